"""What routes share: the desk, the caller, limits, and problems in the API's description."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request
from fastapi.routing import APIRoute

from engine.errors import ArgumentInvalid
from engine.status.desk import Desk
from engine.status.params import LIMIT, LIMIT_MAX
from engine.status.shapes import Problem
from engine.status.tokens import Caller


def desk_of(request: Request) -> Desk:
    """The desk of this process."""
    desk: Desk = request.app.state.desk
    return desk


def caller_of(request: Request) -> Caller:
    """Who asks, as the guard found."""
    caller: Caller = request.scope["caller"]
    return caller


async def strict(request: Request) -> None:
    """Refuse parameters that a path does not know: a filter with a slip would else pass everything."""
    route = request.scope.get("route")
    if not request.query_params or not isinstance(route, APIRoute):
        return
    known = {field.alias: "list" in str(field.field_info.annotation) for field in route.dependant.query_params}
    for name in request.query_params:
        if not known.get(name, True) and len(request.query_params.getlist(name)) > 1:
            raise ArgumentInvalid(f"{name} is given more than once", "give it once", field=name)
        if name not in known:
            raise ArgumentInvalid(
                f"there is no parameter {name[:80]!r} here",
                f"one of {', '.join(sorted(known))}" if known else "leave it out",
                field=name[:80],
            )


Here = Annotated[Any, Depends(lambda: None)]
JobId = Annotated[str, Path(description="id of the job", examples=["job-17"], max_length=200)]
Cursor = Annotated[str | None, Query(max_length=400, description="`next` of the page before")]
Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX, description="items of a page, at most")]
At = Annotated[
    str | None,
    Query(max_length=80, description="a version, a position or a time: the job as it was", examples=["6"]),
]
DEFAULT_LIMIT = LIMIT


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Problems that a path answers with, for its description."""
    common = (400, 401, 403, 404, 405, 413, 415, 421, 422, 500, 503)
    return {
        status: {"model": Problem, "content": {"application/problem+json": {}}, "description": "a problem"}
        for status in sorted({*common, *statuses})
    }

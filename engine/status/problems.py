"""Errors as RFC 9457 problems, with the code, the words and the fix that record and command line have too."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from engine.decide import allowed
from engine.errors import CATALOGUE, ArgumentInvalid, MethodNotAllowed, PathUnknown
from engine.fold import JobState
from engine.lifecycle import State
from events.errors import FlightlogError

log = logging.getLogger("flightlog.status")

MEDIA = "application/problem+json"
RETRY_AFTER = {"yes": "1", "later": "5"}


class Json(Response):
    """A JSON answer, straight from plain values."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes."""
        return to_json(content)


def problem_of(error: FlightlogError) -> dict[str, Any]:
    """The problem's members."""
    context = {name: value for name, value in error.context.items() if name not in ("type", "status", "detail")}
    state = context.get("state")
    members: dict[str, Any] = {
        "type": f"/errors/{error.code}",
        "title": (CATALOGUE.get(error.code, type(error)).__doc__ or error.code).strip().splitlines()[0],
        "status": error.http,
        "detail": error.what,
        "code": error.code,
        "fix": error.fix or None,
        "retry": error.retry,
        "recorded": error.recorded,
        **context,
    }
    if state in [known.value for known in State]:
        answers = allowed(JobState(state=str(state)))
        members["allowed"] = [command for command, code in answers.items() if not code]
    return {name: value for name, value in members.items() if value is not None}


def problem(error: FlightlogError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer for an error."""
    extra = dict(headers or {})
    if error.retry in RETRY_AFTER and error.http >= 429:
        extra["Retry-After"] = RETRY_AFTER[error.retry]
    if error.http == 416:
        extra["Content-Range"] = f"bytes */{error.context.get('size', '*')}"
    if error.http == 401:
        extra["WWW-Authenticate"] = 'Bearer realm="flightlog"'
    return Response(to_json(problem_of(error), serialize_unknown=True), error.http, extra, MEDIA)


def from_validation(error: RequestValidationError) -> FlightlogError:
    """The catalogue's error for what FastAPI found wrong first."""
    first = error.errors()[0]
    where, *names = [str(part) for part in first["loc"]] or ["body"]
    field = ".".join(names) or where
    given = repr(first.get("input"))[:80]
    if first["type"] == "json_invalid":
        return ArgumentInvalid("the body is no JSON", "send a JSON object", field="body")
    return ArgumentInvalid(
        f"{field} is {given}: {first['msg'].lower()}",
        f"correct {field}; /openapi.json says what it takes",
        field=field,
    )


def from_http(error: HTTPException, request: Request) -> FlightlogError:
    """The catalogue's error for what the router says."""
    path = request.url.path[:200]
    if error.status_code == 405:
        return MethodNotAllowed(f"{path} does not take {request.method}", "see /openapi.json")
    if error.status_code == 404:
        return PathUnknown(f"there is nothing at {path}", "see /openapi.json")
    return ArgumentInvalid(str(error.detail)[:200], "see /openapi.json", field="body")

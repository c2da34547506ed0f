"""An error as a page where a browser asks for one, and as a problem everywhere else."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from engine.status.problems import problem
from events.errors import FlightlogError


def page_or_problem(scope: Scope, error: FlightlogError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer for an error."""
    if _wants_page(scope):
        from engine.status.pages.render import error_page

        return error_page(scope, error)
    return problem(error, headers)


def _wants_page(scope: Scope) -> bool:
    path = str(scope.get("path", ""))
    return not path.startswith(("/v1/", "/static/", "/openapi")) and "text/html" in Headers(scope=scope).get(
        "accept", ""
    )

"""The FastAPI application: routes, problems, and its description."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from engine.status.auditing import Auditor
from engine.status.desk import Desk
from engine.status.guard import SAFE, Guard
from engine.status.pages.answers import page_or_problem
from engine.status.pages.routes import router as pages
from engine.status.problems import MEDIA, from_http, from_validation
from engine.status.quick import Quick
from engine.status.routes import commands, events, jobs, site
from events.errors import FlightlogError

log = logging.getLogger("flightlog.status")

ABOUT = """
What a site's record says, and the engine's calls. Answers come from projections and read models, not from a replay.

**Who may what.** On the unix socket the kernel names the caller: the site's own user commands, others look. Over TCP
a token does (`Authorization: Bearer`), as a viewer or an operator; without one a caller from this host may look.

**Errors** are RFC 9457 problems with the codes that record and command line have too; `type` leads to its page.
"""


class Served(FastAPI):
    """The application behind its guard."""

    def __init__(self, desk: Desk, **options: Any) -> None:
        super().__init__(**options)
        self.state.desk = desk
        settings = desk.site.settings
        self._guard = Guard(Quick(super().__call__, desk), desk, [settings.api_host, *settings.api_hosts.split(",")])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every request passes the guard first."""
        await self._guard(scope, receive, send)

    def stop_streams(self) -> None:
        """End what would never end by itself."""
        self.state.desk.hub.stop()

    def openapi(self) -> dict[str, Any]:
        """The description, with problems as problems."""
        if not self.openapi_schema:
            schema = get_openapi(title=self.title, version=self.version, description=ABOUT, routes=self.routes)
            for path in schema["paths"].values():
                for operation in path.values():
                    _problems(operation)
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            self.openapi_schema = schema
        return self.openapi_schema


def _problems(operation: dict[str, Any]) -> None:
    if any(method in operation for method in ("requestBody",)):
        operation["security"] = [{"token": []}]
    for status, answer in operation["responses"].items():
        content = answer.get("content", {})
        if status.startswith(("4", "5")) and MEDIA in content:
            answer["content"] = {MEDIA: {"schema": {"$ref": "#/components/schemas/Problem"}}}


def build(desk: Desk) -> Served:
    """The application of a desk."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        desk.start()
        yield
        app.state.auditor.stop()
        await desk.loop_client.aclose()

    app = Served(
        desk,
        title="Flightlog",
        version=version("flightlog"),
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.auditor = Auditor(desk.site)
    for router in (events.router, jobs.router, site.router, commands.router, pages):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "pages" / "static"), name="static")

    @app.exception_handler(FlightlogError)
    async def ours(request: Request, error: FlightlogError) -> Response:
        if request.method not in SAFE and error.recorded is None and error.http < 500:
            # The engine has recorded what it refused; this is what it was never asked.
            method = f"{request.method} {getattr(request.scope.get('route'), 'path', '')}"
            await run_in_threadpool(desk.refuse, request.scope["caller"], method, error)
        return page_or_problem(request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return await ours(request, from_validation(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return page_or_problem(request.scope, from_http(error, request), headers=error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        log.exception("%s %s failed", request.method, request.url.path)
        return page_or_problem(request.scope, FlightlogError("this server failed; its log says why", "api.log"))

    return app

"""What every request passes before a route sees it: whose host, who asks, may they, from where, how much.

One ASGI layer. What it refuses never reaches a route.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import Counter, Histogram
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.actors import os_name
from engine.errors import (
    ArgumentInvalid,
    CrossSite,
    HostUnknown,
    MediaTypeWrong,
    NotAuthorised,
    NotIdentified,
    PayloadTooLarge,
)
from engine.status.desk import Desk
from engine.status.metrics import REQUESTS, SECONDS
from engine.status.pages.answers import page_or_problem
from engine.status.problems import problem
from engine.status.tokens import Caller, cookie_of
from events.envelope import Actor
from events.errors import FlightlogError

log = logging.getLogger("flightlog.status")

SAFE = ("GET", "HEAD", "OPTIONS")
#: Asked by machines that have no token, or needed to get one.
OPEN = ("/livez", "/readyz", "/version", "/login", "/static/")
BODY_MOST = 64 * 2**10  # bytes of any body but an app's
JSON, ZIP, FORM = (
    ("application/json",),
    ("application/zip", "application/octet-stream"),
    ("application/x-www-form-urlencoded",),
)
NOBODY = Actor(id="anonymous", kind="person", auth="none", via="api")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
}

#: As they go out with every answer; no route sets one of them.
RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


class Guard:
    """The layer.

    Args:
        app: what comes after it.
        desk: of this process.
        hosts: names that this server goes by, beside the loopback's.
    """

    def __init__(self, app: ASGIApp, desk: Desk, hosts: Iterable[str]) -> None:
        self._app = app
        self._desk = desk
        self._cookie = cookie_of(desk.site.name)
        self._counted: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._known_hosts: set[str] = set()  # as they were given, port and all
        self._hosts = {"localhost", "127.0.0.1", "::1", *(host.strip().lower() for host in hosts if host.strip())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, begun = time.perf_counter(), 500, False
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # answered as GET is; the server leaves the body out
        headers = Headers(scope=scope)
        scope["caller"] = Caller(NOBODY, "none")

        async def noted(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [*message["headers"], *RAW_HEADERS]
            await send(message)

        try:
            self._host(scope, headers)
            scope["caller"] = self._caller(scope, headers)
            self._may(scope, headers)
            receive = await self._body(scope, headers, receive)
            await self._app(scope, receive, noted)
        except FlightlogError as error:
            await self._record(scope, error)
            await page_or_problem(scope, error)(scope, receive, noted)
        except Exception:  # a slip of ours in this layer; the routes' own are answered by the application
            if begun:
                raise
            log.exception("%s %s failed in the guard", scope["method"], scope["path"])
            await problem(FlightlogError("this server failed; its log says why", "api.log"))(scope, receive, noted)
        finally:
            self._count(scope, status, time.perf_counter() - began)

    async def _record(self, scope: Scope, error: FlightlogError) -> None:
        """A command, or a token, that was refused is on the record; what only looked is counted."""
        if scope["method"] in SAFE and not isinstance(error, NotAuthorised):
            return
        if isinstance(error, HostUnknown):
            return  # a page that was led here asks as often as it likes
        method = f"{scope['method']} {scope['path'][:100]}"
        await run_in_threadpool(self._desk.refuse, scope["caller"], method, error)

    def _host(self, scope: Scope, headers: Headers) -> None:
        """A page whose name was made to lead here would ask under that name: it is not ours."""
        if _over_unix(scope):
            return
        named = headers.getlist("host")
        given = named[0] if len(named) == 1 else ""
        if given in self._known_hosts:
            return
        try:
            host = (urlsplit(f"//{given}").hostname or "").lower()
        except ValueError:
            host = ""
        if host not in self._hosts:
            raise HostUnknown(
                f"Host is {given[:80]!r}, which is not this server's", "FLIGHTLOG_API_HOSTS adds a name", field="Host"
            )
        if len(self._known_hosts) < 100:
            self._known_hosts.add(given)

    def _caller(self, scope: Scope, headers: Headers) -> Caller:
        """Who asks: by the kernel on the unix socket, by a token, or nobody in particular on this host."""
        if _over_unix(scope):
            uid = int(scope["client"][0].removeprefix("uid:"))
            role = "operator" if uid in (0, self._desk.site.workspace.flight.stat().st_uid) else "viewer"
            return Caller(Actor(id=os_name(uid), kind="person", auth="os-uid", via="api"), role)
        if scope["path"].startswith(OPEN):
            return Caller(NOBODY, "none")
        token = _bearer(headers)
        if token is not None:
            known = self._desk.tokens.caller(token)
            if known is None:
                raise NotIdentified("the token is nobody's", "flightlog token add NAME, on the site's host")
            return known
        token = _cookie(headers, self._cookie)
        known = self._desk.tokens.caller(token) if token else None
        if known is not None:
            return known  # one that was taken back is nobody in particular, and may sign in again
        local = _is_loopback(scope)
        return Caller(NOBODY, self._desk.site.settings.api_anonymous if local else "none")

    def _may(self, scope: Scope, headers: Headers) -> None:
        caller, path = scope["caller"], scope["path"]
        if scope["method"] in SAFE:
            if not caller.may("viewer") and not path.startswith(OPEN):
                raise NotIdentified("who asks is not known", "a token: flightlog token add NAME, on the site's host")
            return
        self._same_site(scope, headers)
        if path == "/logout" or path.startswith(OPEN):
            return  # but for signing in and out, the router has the answer
        if caller.actor is NOBODY:
            raise NotIdentified(
                "a command needs somebody who gives it", "a token of an operator: flightlog token add"
            )
        if not caller.may("operator"):
            error = NotAuthorised(f"{caller.actor.id} is a {caller.role}, and may look only", "ask an operator")
            raise error

    def _same_site(self, scope: Scope, headers: Headers) -> None:
        """A browser says which page it acts for; a program says nothing."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site not in (None, "same-origin", "none"):
            raise CrossSite(f"the page that sent this is of another site ({site})", "use this server's own page")
        if origin is not None and not _over_unix(scope) and _netloc(origin) != headers.get("host"):
            raise CrossSite(f"the page that sent this is {origin[:80]}", "use this server's own page")

    async def _body(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """Look at type and size; a small body is read here, so that no route waits for one without an end."""
        if scope["method"] in SAFE:
            return receive
        path = scope["path"]
        of_app = path.endswith("/app")
        is_app = of_app and scope["method"] == "PUT"
        wanted = ZIP if of_app else FORM if not path.startswith("/v1/") else JSON
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        length = headers.get("content-length")
        if length is not None and not length.isdigit():
            raise ArgumentInvalid(f"Content-Length is {length[:40]!r}", "a number of bytes", field="Content-Length")
        most = self._desk.site.settings.api_body_max if is_app else BODY_MOST
        if length is not None and int(length) > most:
            raise PayloadTooLarge(
                f"the body has {length} bytes, and at most {most} are taken", "send less", field="body"
            )
        empty = length in (None, "0") and "transfer-encoding" not in headers
        takes_one = scope["method"] in ("POST", "PUT", "PATCH")
        if takes_one and kind not in wanted and not (empty and not kind):
            raise MediaTypeWrong(f"Content-Type is {kind[:80]!r}", f"send {wanted[0]}", field="Content-Type")
        return receive if is_app else await _read(receive, most)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in (*SAFE, "POST", "PUT") else "other"
        key = (route, method, status)
        counted = self._counted.get(key)
        if counted is None:
            counted = self._counted[key] = (REQUESTS.labels(*key), SECONDS.labels(route))
        counted[0].inc()
        counted[1].observe(seconds)
        if scope["method"] in SAFE and route not in ("none", "/metrics") and not scope["path"].startswith(OPEN):
            self._desk.saw(scope["caller"], f"GET {route}", "ok" if status < 400 else f"refused:{status}")


async def _read(receive: Receive, most: int) -> Receive:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        size += len(message.get("body", b""))
        if size > most:
            raise PayloadTooLarge(f"the body has more than {most} bytes", "send less", field="body")
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": b"".join(parts), "more_body": False}

    return again


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _bearer(headers: Headers) -> str | None:
    """The token that a program shows."""
    given = headers.get("authorization")
    if given is None:
        return None
    scheme, _, token = given.partition(" ")
    if scheme.lower() != "bearer":
        raise NotIdentified(f"Authorization is {scheme[:40]!r}", "Authorization: Bearer TOKEN")
    return token.strip()


def _cookie(headers: Headers, name: str) -> str | None:
    """The token that a page has after signing in. Others on this host may set cookies too, of whatever form."""
    for given in headers.getlist("cookie"):
        for part in given.split(";"):
            key, _, value = part.strip().partition("=")
            if key == name:
                return value.strip('"')
    return None


def _over_unix(scope: Scope) -> bool:
    """The connection came through the unix socket, whose peer the kernel names."""
    client: Any = scope.get("client")
    return bool(client) and str(client[0]).startswith("uid:")


def _is_loopback(scope: Scope) -> bool:
    client: Any = scope.get("client")
    return bool(client) and _of_this_host(client[0])


@lru_cache(maxsize=1000)
def _of_this_host(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False

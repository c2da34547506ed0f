"""The API's process: one uvicorn on a TCP port and on a unix socket whose peers the kernel names.

``python -P -m engine.status`` is started by ``flightlog up``; ``flightlog api`` runs the same by itself.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable

import uvicorn

from engine.actors import os_actor
from engine.errors import EngineDown
from engine.files import FileLock, read_json, write_json
from engine.ids import new_call_id
from engine.site import Site
from engine.status.app import build
from engine.status.desk import Desk
from engine.status.peers import Protocol
from engine.status.sockets import NEXT, SOCKET, listen, unix_socket
from engine.workspace import host_name
from events.bodies.base import Body
from events.bodies.site import ApiClosed, ApiOpened
from events.envelope import Call
from events.errors import FlightlogError

log = logging.getLogger("flightlog.status")


class _Server(uvicorn.Server):
    """Without uvicorn's waiting for streams that never end."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams first."""
        self.config.loaded_app.stop_streams()
        await super().shutdown(sockets)


def serve(
    site: Site, *, until_eof: bool = False, exactly: bool = False, said: Callable[[str], None] | None = None
) -> int:
    """Serve a site's API until told to end.

    Args:
        site: opened; it is closed in the end.
        until_eof: end when standard input does, which is when the engine that started us is gone.
        exactly: only the port of the settings.
        said: told of the address.

    Raises:
        EngineDown: another process serves this site, or the port is taken.
    """
    lock = FileLock(site.workspace.flight / "api.lock")
    if not lock.acquire(timeout=5):
        raise EngineDown("another process serves this site's API", "flightlog status names its page")
    settings = site.settings
    tcp = _again(site, exactly=exactly) or listen(settings.api_host, settings.api_port, exactly=exactly)
    port = tcp.getsockname()[1]
    host = f"[{settings.api_host}]" if ":" in settings.api_host else settings.api_host
    url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}/"  # noqa: S104 - what was asked for
    desk = Desk(site)
    app = build(desk)
    config = uvicorn.Config(
        app,
        http=Protocol,
        loop="uvloop",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=3,
        lifespan="on",
    )
    server = _Server(config)
    if until_eof:
        threading.Thread(target=_await_eof, args=(server,), name="until-eof", daemon=True).start()
    write_json(
        site.workspace.flight / "api.json", {"url": url, "port": port, "pid": os.getpid(), "host": host_name()}
    )
    try:
        with unix_socket(site.workspace.flight / SOCKET) as unix:
            _note(site, "opened", ApiOpened(host=host_name(), pid=os.getpid(), address=settings.api_host, port=port))
            if said is not None:
                said(url)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: None)  # uvicorn takes them, and raises them again when it is through
            server.run(sockets=[tcp, unix])
    finally:
        _note(site, "closed", ApiClosed(host=host_name(), pid=os.getpid()))
        desk.close()
        lock.release()
    return 0


def _again(site: Site, *, exactly: bool) -> socket.socket | None:
    """The port of the process before us, where any would do: pages that are open find us there."""
    settings = site.settings
    port = int((read_json(site.workspace.flight / "api.json") or {}).get("port", 0))
    near = settings.api_port <= port < settings.api_port + NEXT
    if not port or not (settings.api_port == 0 or (near and not exactly)):
        return None
    try:
        return listen(settings.api_host, port, exactly=True)
    except EngineDown:
        return None


def _note(site: Site, step: str, body: Body) -> None:
    try:
        site.jobs.note(Call(call_id=new_call_id(), actor=os_actor("api"), step=step), [body])
    except FlightlogError as error:
        log.warning("%s could not be recorded: %s", body.name(), error)


def _await_eof(server: uvicorn.Server) -> None:
    while os.read(0, 4096):
        pass
    server.should_exit = True

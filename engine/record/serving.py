"""A small HTTP server in a thread of its own, for those who sign."""

from __future__ import annotations

import socket
import threading
from typing import Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request

from engine.record.ledger import BODY_MAX, Declined
from engine.status.peers import Protocol


class Serving:
    """An application that answers on a socket.

    Args:
        app: what answers.
        sock: listening.
        name: of the thread.
    """

    def __init__(self, app: Starlette, sock: socket.socket, name: str) -> None:
        self._socket = sock
        config = uvicorn.Config(app, log_level="warning", lifespan="off", server_header=False, http=Protocol)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [sock]}, name=name, daemon=True)

    def start(self) -> None:
        """Answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(5)
        self._socket.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


async def body_of(request: Request) -> bytes:
    """A request's body; raises ``Declined`` (413) where it is too long."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_MAX:
            raise Declined(413, f"more than {BODY_MAX} bytes\n")
    return body

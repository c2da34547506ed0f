"""Who is at the other end of a unix socket: the kernel says so."""

from __future__ import annotations

import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from engine.status.sockets import peer_of


class Protocol(HttpToolsProtocol):
    """HTTP, with the user of a unix socket's peer as the client, as ``uid:<number>``."""

    def connection_made(self, transport: Any) -> None:
        """A connection."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family == socket.AF_UNIX:
            pid, uid = peer_of(sock)
            self.client = (f"uid:{uid}", pid)

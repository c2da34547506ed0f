"""Where the API listens, and how its unix socket is reached. Without FastAPI, for whoever only asks."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from engine.errors import EngineDown
from engine.workspace import Workspace

SOCKET = "api.sock"
#: Ports that are tried after the one of the settings, where nobody asked for that one.
NEXT = 20


def listen(host: str, port: int, *, exactly: bool) -> socket.socket:
    """A listening TCP socket.

    Args:
        host: address.
        port: of it; 0: any that is free.
        exactly: only this port; else one of the next, where it is taken.

    Raises:
        EngineDown: there is none to be had.
    """
    why = ""
    for number in range(port, port + (1 if exactly or not port else NEXT)):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, number))
            sock.listen(1024)
        except (OSError, OverflowError) as error:
            sock.close()
            why = str(error)
            continue
        return sock
    raise EngineDown(
        f"port {port} of {host} cannot be had: {why}", "--api-port with another one, 0 for any that is free"
    )


@contextlib.contextmanager
def unix_socket(workspace: Workspace) -> Iterator[socket.socket]:
    """The workspace's own socket, listening; gone in the end."""
    path = workspace.flight / SOCKET
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short(path) as name:
        sock.bind(name)
    path.chmod(0o660)
    sock.listen(128)
    try:
        yield sock
    finally:
        sock.close()
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def short(path: Path) -> Iterator[str]:
    """A name for a socket's path, which may be longer than a socket's may be: through its folder."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)

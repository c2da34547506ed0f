"""Where the API listens, and how its unix socket is reached. Without FastAPI, for whoever only asks."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from engine.errors import EngineDown

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
        f"port {port} of {host} cannot be had: {why}", "name another one, 0 for any that is free (--port, --api-port)"
    )


@contextlib.contextmanager
def unix_socket(path: Path, mode: int = 0o660) -> Iterator[socket.socket]:
    """A unix socket, listening; gone in the end.

    Args:
        path: of any length.
        mode: who may connect.

    Raises:
        FileExistsError: something else lies there.
    """
    if path.is_socket():
        path.unlink()
    elif os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "it is no socket, and is left alone", str(path))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short(path) as name:
            sock.bind(name)
        path.chmod(mode)
        sock.listen(128)
        yield sock
    finally:
        sock.close()
        path.unlink(missing_ok=True)


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of a unix socket."""
    said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", said)
    return pid, uid


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket.

    Args:
        path: of the socket, of any length.
        patience: seconds.
    """

    def __init__(self, path: Path, patience: float) -> None:
        super().__init__("flightlog", timeout=patience)
        self._path = path
        #: The user at the other end, once connected.
        self.uid: int | None = None

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with short(self._path) as name:
            self.sock.connect(name)
        self.uid = peer_of(self.sock)[1]


@contextlib.contextmanager
def short(path: Path) -> Iterator[str]:
    """A name for a socket's path, which may be longer than a socket's may be: through its folder."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)

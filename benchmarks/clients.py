"""Who asks the status API, in processes of their own: ``python -P -m benchmarks.clients ask`` or ``follow``.

Plain sockets and a selector: what they do per answer is little beside what the server does. Both take one JSON
object a line from their input, answer with one, and end with their input.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import percentile

KEPT = 2000  # samples of a series
PATIENCE = 20.0  # seconds for the last event to reach the last follower
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_FRAME = re.compile(rb"id: (\d+)-(\d+)\ndata: ")


def main(which: str) -> None:
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(ask(**order) if which == "ask" else follow(**order)), flush=True)


def thinned(values: Sequence[float]) -> list[float]:
    """At most 2,000 of them, evenly spread."""
    return list(values[:: -(-len(values) // KEPT) or 1])


def connected(port: int) -> socket.socket:
    """A connection over the loopback."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def request(port: int, path: str) -> bytes:
    """A request, as the server reads it."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\n\r\n".encode()


# -- ask ---------------------------------------------------------------------------------------


def ask(port: int, paths: list[str], connections: int) -> dict[str, Any]:
    """Ask for all paths, one after the other on each of some kept-alive connections.

    Returns:
        Seconds for all, and for each.
    """
    left: Iterator[bytes] = iter([request(port, path) for path in paths])
    socks = [connected(port) for _ in range(connections)]
    looking = selectors.DefaultSelector()
    took: list[float] = []
    began = time.perf_counter()
    for sock, first in zip(socks, left, strict=False):
        looking.register(sock, selectors.EVENT_READ, _Answer(time.perf_counter()))
        sock.sendall(first)
    while len(took) < len(paths):
        for key, _ in looking.select():
            answer: _Answer = key.data
            if not answer.take(key.fileobj.recv(2**18)):  # type: ignore[union-attr]
                continue
            took.append(time.perf_counter() - answer.began)
            following = next(left, None)
            if following is not None:
                looking.modify(key.fileobj, selectors.EVENT_READ, _Answer(time.perf_counter()))
                key.fileobj.sendall(following)  # type: ignore[union-attr]
    seconds = time.perf_counter() - began
    looking.close()
    for sock in socks:
        sock.close()
    return {"seconds": seconds, "took": took}


@dataclass(slots=True)
class _Answer:
    """An answer on its way."""

    began: float
    data: bytes = b""
    size: int = 0

    def take(self, data: bytes) -> bool:
        """Some more of it; whether it is whole."""
        assert data, "the server closed the connection"
        self.data += data
        if not self.size:
            head = self.data.find(b"\r\n\r\n")
            if head < 0:
                return False
            length = _LENGTH.search(self.data, 0, head + 2)
            assert self.data.startswith(b"HTTP/1.1 200 "), self.data[:500]
            assert length is not None, self.data[:head]
            self.size = head + 4 + int(length[1])
        return len(self.data) >= self.size


# -- follow ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Follower:
    """One open stream of events, and what came on it."""

    sock: socket.socket
    seq: int
    events: int = 0
    wrong: int = 0
    rest: bytes = b""
    late: array[float] = field(default_factory=lambda: array("d"))

    def take(self, data: bytes, now: float) -> None:
        """Some more of it, at a time in ms."""
        assert data, "the server ended the stream"
        data = self.rest + data
        whole = data.rfind(b"\n\n") + 2
        self.rest = data[whole:] if whole > 1 else data
        if whole < 2:
            return
        for ms, seq in _FRAME.findall(data, 0, whole):
            self.wrong += int(seq) != self.seq + 1
            self.seq = int(seq)
            self.events += 1
            self.late.append(now - int(ms))


def follow(port: int, after: str, followers: int) -> dict[str, Any]:
    """Follow the log from a position on with so many followers; says ``up``, and is then told the last sequence.

    Returns:
        Per follower how many events came and how many of them not right after the one before; how late they came,
        in ms; and the processor time that this took.
    """
    seq = int(after.partition("-")[2])
    streams = [Follower(connected(port), seq) for _ in range(followers)]
    looking = selectors.DefaultSelector()
    for stream in streams:
        stream.sock.sendall(request(port, f"/v1/events/stream?reads=true&after={after}"))
        while b"retry: 1000\n\n" not in stream.rest:
            stream.rest += stream.sock.recv(2**16)
        assert stream.rest.startswith(b"HTTP/1.1 200 "), stream.rest
        looking.register(stream.sock, selectors.EVENT_READ, stream)
    looking.register(sys.stdin, selectors.EVENT_READ, None)
    print('"up"', flush=True)
    began, last, until = time.process_time(), 0, 0.0
    while not last or (time.monotonic() < until and any(stream.seq < last for stream in streams)):
        for key, _ in looking.select(0.1):
            if key.data is None:
                last, until = int(sys.stdin.readline()), time.monotonic() + PATIENCE
                looking.unregister(sys.stdin)
                continue
            data = key.data.sock.recv(2**18)
            key.data.take(data, time.time() * 1000)
    cpu = time.process_time() - began
    looking.close()
    for stream in streams:
        stream.sock.close()
    late = array("d")
    for stream in streams:
        late.extend(stream.late)
    return {
        "events": [stream.events for stream in streams],
        "wrong": [stream.wrong for stream in streams],
        "late": thinned(late),
        "shares": _shares(late, (0.5, 0.95, 0.99, 1.0)),
        "cpu": cpu,
    }


def _shares(values: Sequence[float], shares: Iterable[float]) -> list[float]:
    ordered = sorted(values)
    return [percentile(ordered, share) for share in shares]


if __name__ == "__main__":
    main(sys.argv[1])

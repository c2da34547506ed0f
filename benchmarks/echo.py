"""What ``messages`` sends to, in a process of its own: ``python -P -m benchmarks.echo URL``.

By default the cell ``server``, which answers every aux request with its size; or several cells, or what stands
beside them: a worker of stock RQ, or a bare echo of stream entries. It says ``up``, and ends with its input. For
each number that it reads there, it waits until that many requests were handled, a minute at most, and says how many
were.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, cast

import redis
from rq import Queue, SimpleWorker

from engine.cell.cell import FabricCell
from engine.cell.keys import KeyRing
from engine.cell.message import CellChannel, Message
from engine.context import FLContext
from engine.federation.server import FederationServer
from engine.shareable import Shareable
from engine.streaming import ConsumerFactory, ObjectConsumer, StreamContext

#: How the names of cells begin whose handler never returns.
DEAF = "deaf-"
#: RQ's queue, and the streams of the bare echo.
QUEUE, ASK, TELL = "bench", "bench:ask", "bench:tell"


def size_of(data: bytes) -> int:
    """What stock RQ runs for a message."""
    return len(data)


class Echo:
    """Cells that answer with the size of what they were sent.

    Args:
        url: of the fabric.
        names: their addresses.
        keys: folder of their keys, for sealed messages.
    """

    def __init__(self, url: str, names: list[str], keys: Path | None) -> None:
        self.handled = 0
        self._changed = threading.Condition()
        for name in names:
            cell = FabricCell(url, name, ring=KeyRing(keys, name) if keys else None)
            handler = self._never if name.startswith(DEAF) else self._answer
            cell.register_request_cb(CellChannel.AUX_COMMUNICATION, "*", handler)
            cell.start()

    def _answer(self, request: Message) -> Message:
        with self._changed:
            self.handled += 1
            self._changed.notify()
        return Message(payload=Shareable({"size": len(request.payload["data"])}))

    def _never(self, request: Message) -> Message:
        threading.Event().wait()
        raise AssertionError("unreachable")

    def serve(self) -> None:
        """Until the end of the input."""
        print("up", flush=True)
        for line in sys.stdin:
            with self._changed:
                self._changed.wait_for(lambda wanted=int(line): self.handled >= wanted, 60)  # type: ignore[misc]
                print(self.handled, flush=True)


def bare(url: str) -> None:
    """An entry comes, its size goes back: XREAD, XADD, and nothing else."""
    client = redis.Redis.from_url(url, protocol=2, driver_info=None)
    print("up", flush=True)
    last: Any = "0-0"
    while True:
        found = cast("list[Any]", client.xread({ASK: last}, block=1000))
        if found:
            last, fields = found[0][1][-1]
            client.xadd(TELL, {"size": len(fields[b"data"])}, maxlen=1, approximate=False)


def rq_worker(url: str) -> None:
    """A worker of stock RQ that does not fork."""
    client = redis.Redis.from_url(url)
    worker = SimpleWorker([Queue(QUEUE, connection=client)], connection=client)
    print("up", flush=True)
    worker.work(logging_level="WARNING")


class Drop(ObjectConsumer):
    """Takes in objects, and drops them."""

    def consume(self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[bool, None]:
        """See ``ObjectConsumer``."""
        assert len(shareable["data"])
        return True, None


class Drops(ConsumerFactory):
    """Makes them."""

    def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        """See ``ConsumerFactory``."""
        return Drop()


def sink(url: str) -> None:
    """A server that takes in streams, until the end of the input."""
    with tempfile.TemporaryDirectory() as folder, FederationServer(folder, fabric_url=url) as server:
        server.register_stream_processing("bench", "sink", Drops())
        print("up", flush=True)
        sys.stdin.read()


def _ends_with_input() -> None:
    sys.stdin.read()
    os._exit(0)  # handlers that never return are not waited for


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m benchmarks.echo", description=__doc__)
    parser.add_argument("url", help="of the fabric")
    parser.add_argument("names", nargs="*", default=["server"], help="of cells")
    parser.add_argument("--keys", type=Path, help="folder of the cell's keys")
    parser.add_argument("--sink", action="store_true", help="take in streams, and drop their objects")
    parser.add_argument("--beside", choices=("rq", "bare"), help="be this instead of cells")
    args = parser.parse_args()
    if args.sink:
        sink(args.url)
    elif args.beside is None:
        Echo(args.url, args.names, args.keys).serve()
        os._exit(0)
    threading.Thread(target=_ends_with_input, daemon=True).start()
    (rq_worker if args.beside == "rq" else bare)(args.url)


if __name__ == "__main__":
    main()

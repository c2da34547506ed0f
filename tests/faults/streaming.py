"""Both ends of a stream as processes of their own: a site that sends files, and a server that takes them in."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from engine.client_engine import ClientEngine
from engine.constants import ReturnCode
from engine.context import FLContext
from engine.federation.server import FederationServer
from engine.shareable import Shareable
from engine.streaming import ConsumerFactory, ObjectConsumer, StreamContext, StreamContextKey
from events.errors import FlightlogError
from tests.integration.streams import Numbers
from tests.support import QUICK, SITE, kill


class End:
    """A process that is told what to do, a line at a time, and says what came of it."""

    def __init__(self, role: str, log: Path, **given: Any) -> None:
        self._command = [sys.executable, "-m", "tests.faults.streaming", role, json.dumps(given)]
        self._log = log
        self.start()

    def start(self) -> None:
        """Start it, and wait until it is there."""
        with self._log.open("ab") as errors:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.said: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()
        assert self.hear("ready", 30) is not None, self._log.read_text()[-3000:]

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                with self._news:
                    self.said.append(json.loads(line))
                    self._news.notify_all()

    def tell(self, **what: Any) -> None:
        """Have it do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def hear(self, what: str, seconds: float, **about: Any) -> dict[str, Any] | None:
        """What it says of a thing; None where it says nothing in time."""
        wanted = {"what": what, **about}

        def found() -> dict[str, Any] | None:
            return next((one for one in self.said if wanted.items() <= one.items()), None)

        with self._news:
            self._news.wait_for(lambda: found() is not None, seconds)
            return found()

    def die(self) -> None:
        """``kill -9``."""
        kill(self.process.pid)
        self.process.wait()
        self._reader.join(5)
        if self.process.stdin is not None:
            self.process.stdin.close()

    def end(self) -> None:
        """End it in order."""
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(20)
                self._reader.join(5)
            except subprocess.TimeoutExpired:
                self.die()


_saying = threading.Lock()


def _say(what: str, **about: Any) -> None:
    """Tell the test something, a line at a time: several threads do."""
    with _saying:
        sys.stdout.write(json.dumps({"what": what, **about}) + "\n")
        sys.stdout.flush()


def _send(engine: ClientEngine, path: str, targets: list[str], name: str) -> None:
    try:
        sent = engine.send_file(path, targets)
        _say("sent", name=name, code=sent.code, why=sent.why, locations=sent.locations)
    except FlightlogError as error:
        _say("sent", name=name, code=error.code, why=str(error), locations=None)


class Slow(ObjectConsumer):
    """Takes its time over each object, and says when it is over."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def consume(self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[bool, None]:
        self.numbers.append(shareable["number"])
        if len(self.numbers) == 3:
            _say("consuming")
        time.sleep(0.02)
        return True, None

    def finalize(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        _say("over", rc=str(stream_ctx[StreamContextKey.RC]), numbers=self.numbers)


class Slowly(ConsumerFactory):
    def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        return Slow()


def _stream(engine: ClientEngine, count: int, name: str) -> None:
    producer = Numbers(
        count, timeout=60.0, ends=lambda r: None if r["server"].get_return_code() == ReturnCode.OK else False
    )
    code, _ = engine.stream_objects("c", "slow", {}, ["server"], producer, engine.new_context())
    _say("streamed", name=name, code=str(code), why=str(producer.replies[-1]["server"].get_header("__why__", "")))


def _sender(workspace: str, **settings: Any) -> None:
    with ClientEngine.open(site=SITE, workspace=workspace, workers=2, **{**QUICK, **settings}) as engine:
        _say("ready", fabric=engine.site.servers.fabric_url)
        for line in sys.stdin:
            asked = json.loads(line)
            target = _send if "path" in asked else _stream
            threading.Thread(target=target, args=(engine,), kwargs=asked, daemon=True).start()


def _receiver(folder: str, fabric_url: str) -> None:
    with FederationServer(folder, fabric_url=fabric_url) as server:
        server.receive_files(Path(folder) / "received")
        server.register_stream_processing("c", "slow", Slowly())
        _say("ready")
        for line in sys.stdin:
            threads = [
                t.name for t in threading.enumerate() if t.name.startswith("stream-") and t.name != "stream-read"
            ]
            _say("threads", asked=json.loads(line)["asked"], names=threads, open=server.streams.count)


if __name__ == "__main__":
    {"sender": _sender, "receiver": _receiver}[sys.argv[1]](**json.loads(sys.argv[2]))

"""A peer of the site: the server's cell in the test's own process, and a process that sends through an engine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.aux.codes import code_of
from engine.cell.cell import FabricCell
from engine.cell.message import CellChannel, Message, MessageHeaderKey
from engine.client_engine import ClientEngine
from engine.ids import new_call_id
from engine.shareable import Shareable
from events.envelope import Event
from events.read import read
from events.store import Store
from tests.support import QUICK, SITE, kill, until

ENDS = ("AuxSent", "AuxReplied", "AuxFailed", "AuxOutcomeUnknown")


class Peer(FabricCell):
    """The server's cell: counts how often each request reached its handler, and may take its time.

    Args:
        url: of the fabric.
        delay: seconds that the handler takes.
        once: it tells the fabric that it takes each message once.
    """

    def __init__(self, url: str, fqcn: str = "server", *, delay: float = 0.0, once: bool = True) -> None:
        super().__init__(url, fqcn)
        self.handled: Counter[str] = Counter()
        self.delay = delay
        self._once = once
        self.register_request_cb(CellChannel.AUX_COMMUNICATION, "*", self._answer_it)

    def _about(self) -> dict[str, Any]:
        return {"once": self._once}

    def _answer_it(self, request: Message) -> Message:
        self.handled[request.headers[MessageHeaderKey.REQUEST_ID]] += 1
        if request.payload.get("stall"):
            threading.Event().wait(float(request.payload["stall"]))
        time.sleep(self.delay)
        reply = Shareable({"echo": request.payload.get("number")})
        return Message(payload=reply)


@contextmanager
def peer(url: str, **options: Any) -> Iterator[Peer]:
    """A peer for as long as the block lasts."""
    cell = Peer(url, **options)
    cell.start()
    try:
        yield cell
    finally:
        cell.stop()


class Sending:
    """A process of its own with an engine (the site's, or a client of it) that sends requests."""

    def __init__(
        self,
        workspace: Path,
        log: Path,
        count: int,
        timeout: float,
        threads: int = 4,
        run_for: float = 60.0,
        **settings: Any,
    ) -> None:
        asked = {"count": count, "timeout": timeout, "threads": threads, "run_for": run_for}
        given = json.dumps({**asked, "settings": {**QUICK, **settings}})
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.peer", str(workspace), given],
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
            )

    def die(self) -> None:
        """``kill -9``."""
        kill(self.process.pid)
        self.process.communicate()

    def results(self, seconds: float = 60.0) -> list[dict[str, Any]]:
        """What its callers saw, once it has ended: the message's id, code, seconds."""
        out, _ = self.process.communicate(timeout=seconds)
        return [json.loads(line) for line in out.splitlines()]


def messages(store: Store) -> dict[str, list[Event]]:
    """Message id -> its intent and outcomes."""
    found: dict[str, list[Event]] = {}
    for event in read(store):
        if event.type == "AuxRequested" or event.type in ENDS:
            found.setdefault(event.body["id"], []).append(event)
    return found


def each_has_one_outcome(store: Store, seconds: float = 30.0) -> dict[str, Event]:
    """Message id -> its one outcome, once every message has one."""

    def open_ones() -> list[str]:
        return [message for message, events in messages(store).items() if len(events) < 2]

    until(lambda: not open_ones(), seconds, "a message has no outcome")
    for message, events in messages(store).items():
        assert [events[0].type, len(events)] == ["AuxRequested", 2], f"{message}: {[e.type for e in events]}"
    assert not [name for name in store.client.zrange(store.keys.open, 0, -1) if name.startswith("aux_")]
    return {message: events[1] for message, events in messages(store).items()}


def callers_agree(store: Store, results: list[dict[str, Any]]) -> None:
    """What callers saw is what the record says of each message."""
    lost = {event.body["id"] for event in read(store) if event.type == "AuxReplyLost"}
    outcomes = {message: events[1] for message, events in messages(store).items() if len(events) > 1}
    for result in results:
        outcome = outcomes.get(result["id"])
        if outcome is None:
            assert result["code"] != "OK", f"{result} has no intent on the record"
        elif result["id"] not in lost:
            told = code_of(outcome.body["code"]) if outcome.type != "AuxOutcomeUnknown" else "COMMUNICATION_ERROR"
            known = {told, "COMMUNICATION_ERROR"} if outcome.body.get("code") == "PAYLOAD_LOST" else {told}
            if float(outcome.ms) > result["at"]:  # the record was away as its time ended: what came later is no news
                known.add("TIMEOUT")
            assert result["code"] in known, f"{result}, but the record has {outcome.type} {outcome.body}"


def send(engine: ClientEngine, timeout: float = 20.0, **payload: Any) -> Shareable:
    """One aux request."""
    return engine.send_aux_request("topic", Shareable(payload), timeout, engine.new_context())


def _main(workspace: str, given: str) -> None:
    asked = json.loads(given)
    with ClientEngine.open(site=SITE, workspace=workspace, workers=2, **asked["settings"]) as engine:
        numbers = iter(range(asked["count"]))
        lock = threading.Lock()
        ends = time.monotonic() + asked["run_for"]

        def run() -> None:
            while time.monotonic() < ends:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                began = time.monotonic()
                call = new_call_id()
                with engine.acting_as("sender", call_id=call):
                    reply = send(engine, asked["timeout"], number=number)
                seen = {
                    "id": call.replace("-", ""),
                    "code": reply.get_return_code(),
                    "seconds": time.monotonic() - began,
                    "at": time.time() * 1000,
                }
                with lock:
                    print(json.dumps(seen), flush=True)

        threads = [threading.Thread(target=run) for _ in range(asked["threads"])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    _main(*sys.argv[1:])

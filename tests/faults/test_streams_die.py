"""Files under random kills of everything that carries them. The seed in a test's name replays it."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from engine.server import EmbeddedServer
from engine.streaming.files import digest_of
from engine.workspace import Workspace
from events.envelope import Event
from events.errors import LogUnavailable
from events.read import read
from events.store import Store, connect
from tests.faults.streaming import End
from tests.support import SITE, command_of, kill, processes_with, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

SEEDS = int(os.environ.get("FLIGHTLOG_STREAM_SEEDS", "50"))
SIZE = 64 * 2**20
AT_ONCE = 8
PATIENCE = 60.0


class Wire:
    """A site that sends, and a server that takes in, each a process of its own on one fabric."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = folder / "ws"
        self.peer = folder / "peer"
        self.sender = End("sender", folder / "sender.log", workspace=str(self.workspace))
        ready = self.sender.hear("ready", 30)
        assert ready is not None
        self.url = ready["fabric"]
        self.receiver = End("receiver", folder / "receiver.log", folder=str(self.peer), fabric_url=self.url)
        site = Workspace.prepare(self.workspace, SITE)
        self.fabric, self.record = EmbeddedServer(site, "fabric"), EmbeddedServer(site, "record")
        self.store = Store(connect(self.record.url), SITE)
        self.client = redis.Redis.from_url(self.url)

    def close(self) -> None:
        """End all."""
        self.receiver.end()
        self.sender.end()
        self.store.client.close()
        self.client.close()

    @property
    def received(self) -> Path:
        """Where the site's files come to."""
        return self.peer / "received" / SITE

    def bytes_here(self) -> int:
        """Bytes that have come in of files that are not whole yet."""
        total = 0
        for path in (self.received / ".incoming").glob("*.part"):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue  # it is whole now
        return total

    def events(self) -> list[Event]:
        """Of transfers."""
        return [event for event in read(self.store) if event.type.startswith("Transfer")]


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    folder = tmp_path_factory.mktemp("wire")
    made = Wire(folder)
    yield made
    made.close()
    for pid in processes_with(str(folder)):
        kill(pid)


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file of random bytes, no two blocks alike, and its digest."""
    path = tmp_path_factory.mktemp("blob") / "blob"
    block = random.Random(64).randbytes(2**20)
    with path.open("wb") as file:
        for number in range(SIZE // 2**20):
            file.write(number.to_bytes(8, "big") + block[8:])
    return path, digest_of(path)


def content(blob: tuple[Path, str], folder: Path, name: str) -> Path:
    """The same bytes as a file of its own."""
    path = folder / f"{name}.bin"
    path.hardlink_to(blob[0])
    return path


# -- what dies ----------------------------------------------------------------------------------------------


def _sender(wire: Wire) -> None:
    wire.sender.die()
    wire.sender.start()


def _receiver(wire: Wire) -> None:
    wire.receiver.die()
    wire.receiver.start()


def _worker(wire: Wire) -> None:
    _one(wire, "workers\0worker\0--queue\0io")


def _collector(wire: Wire) -> None:
    _one(wire, "workers\0pool")


def _fabric(wire: Wire) -> None:
    kill(until(wire.fabric.pid, 10))


def _one(wire: Wire, words: str) -> None:
    for pid in processes_with(words):
        if str(wire.workspace) in command_of(pid):
            kill(pid)
            return


#: One count for all tests: an answer to an earlier question is not taken for one to this.
_asked = itertools.count()

KILLS: dict[str, Callable[[Wire], None]] = {
    "sender": _sender,
    "worker": _worker,
    "fabric": _fabric,
    "collector": _collector,
    "receiver": _receiver,
}


@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"seed{seed}") for seed in range(SEEDS)])
def test_a_file_arrives_whole_whatever_dies_on_the_way(
    wire: Wire, blob: tuple[Path, str], tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    what = list(KILLS)[seed % len(KILLS)]
    path = content(blob, tmp_path, f"one-{seed}")
    wire.sender.tell(path=str(path), targets=["server"], name=path.name)
    _strike(wire, what, chance.randrange(SIZE))
    _arrives(wire, path, blob[1], told=what != "sender")
    _nothing_is_left(wire)


@pytest.mark.parametrize(
    "seed", [pytest.param(1000 + seed, id=f"seed{1000 + seed}") for seed in range(max(1, SEEDS // 50))]
)
def test_eight_files_at_once_arrive_whole_whatever_dies_on_the_way(
    wire: Wire, blob: tuple[Path, str], tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    paths = [content(blob, tmp_path, f"many-{seed}-{number}") for number in range(AT_ONCE)]
    for path in paths:
        wire.sender.tell(path=str(path), targets=["server"], name=path.name)
    struck = set()
    for what in chance.sample(list(KILLS), 3):
        _strike(wire, what, wire.bytes_here() + chance.randrange(SIZE))
        struck.add(what)
    for path in paths:
        _arrives(wire, path, blob[1], told="sender" not in struck)
    _nothing_is_left(wire)


def _strike(wire: Wire, what: str, at: int) -> None:
    """Kill something once so much has come in, or once it is over anyway."""
    ends = time.monotonic() + 20
    known = len(list(wire.received.glob("*.bin")))
    while wire.bytes_here() < at and len(list(wire.received.glob("*.bin"))) == known and time.monotonic() < ends:
        time.sleep(0.001)
    KILLS[what](wire)


def _arrives(wire: Wire, path: Path, digest: str, *, told: bool) -> None:
    if told:
        sent = wire.sender.hear("sent", PATIENCE, name=path.name)
        assert sent is not None, f"nobody says what came of {path.name}: {wire.events()[-6:]}"
        assert (sent["code"], sent["why"]) == ("OK", ""), f"{sent}: {[(e.type, e.body) for e in wire.events()[-6:]]}"
    place = wire.received / path.name
    until(place.exists, PATIENCE, f"{path.name} does not come: {[(e.type, e.body) for e in wire.events()[-6:]]}")
    assert digest_of(place) == digest
    place.unlink()


def _nothing_is_left(wire: Wire) -> None:
    """No open transfer, no key, no part, no note, no thread."""

    def open_work() -> list[str]:
        try:
            return [n for n in wire.store.client.zrange(wire.store.keys.open, 0, -1) if "transfer" in n]
        except (redis.RedisError, LogUnavailable):
            return ["the record is away"]

    until(
        lambda: not open_work(), 30, f"open transfers: {open_work()} {[(e.type, e.body) for e in wire.events()[-6:]]}"
    )
    client = wire.client

    def keys() -> list[bytes]:
        try:
            return [*client.keys("ff:tx:*"), *client.keys("ff:*:lane:*"), *client.keys("ff:*:si")]
        except redis.RedisError:
            return [b"the fabric is away"]

    def rest() -> list[Any]:
        return [key for key in keys() if not key.endswith((b":lease", b":rung"))]

    until(lambda: not rest(), 30, f"left on the fabric: {keys()}")
    parts = wire.received / ".incoming"
    until(lambda: not list(parts.glob("*.part")), 30, f"left on the disk: {list(parts.glob('*'))}")
    notes = wire.workspace / ".flightlog" / "sending"
    until(lambda: not list(notes.glob("*")), 30, f"left at the sender: {list(notes.glob('*'))}")

    def threads() -> list[str]:
        number = next(_asked)
        wire.receiver.tell(asked=number)
        heard = wire.receiver.hear("threads", 10, asked=number)
        assert heard is not None
        time.sleep(0.05)
        return list(heard["names"])

    until(lambda: not threads(), 20, "threads stay")


def test_a_stream_whose_engine_dies_has_lost_its_producer_and_the_receiver_is_told(wire: Wire) -> None:
    wire.receiver.said.clear()
    before = {event.body["id"] for event in wire.events() if event.type == "TransferOpened"}
    wire.sender.tell(count=10_000, name="lost")
    assert wire.receiver.hear("consuming", 60) is not None
    wire.sender.die()
    wire.sender.start()
    over = wire.receiver.hear("over", 60)
    assert over is not None
    assert over["rc"] == "PRODUCER_LOST"
    assert over["numbers"] == list(range(len(over["numbers"])))
    (last,) = until(
        lambda: [e for e in wire.events() if e.type == "TransferClosed" and e.body["id"] not in before], 60
    )
    assert (last.body["code"], last.body["at_least"]) == ("PRODUCER_LOST", True)
    _nothing_is_left(wire)


def test_a_stream_whose_consumer_died_and_cannot_go_on_ends_and_says_why(wire: Wire) -> None:
    wire.receiver.said.clear()
    wire.sender.tell(count=10_000, name="cut")
    assert wire.receiver.hear("consuming", 60) is not None
    wire.receiver.die()
    wire.receiver.start()
    said = wire.sender.hear("streamed", 120, name="cut")
    assert said is not None
    assert (said["code"], "the consumer cannot go on" in said["why"]) == ("ERROR", True), said
    _nothing_is_left(wire)


@pytest.mark.parametrize("what", ["worker", "fabric", "collector"])
def test_a_stream_of_objects_is_seen_once_and_in_order_whatever_carries_it_dies(wire: Wire, what: str) -> None:
    wire.receiver.said.clear()
    wire.sender.tell(count=150, name=f"through-{what}")
    assert wire.receiver.hear("consuming", 60) is not None
    KILLS[what](wire)
    said = wire.sender.hear("streamed", 120, name=f"through-{what}")
    assert said is not None
    assert said["code"] == "OK", said
    over = wire.receiver.hear("over", 60)
    assert over is not None
    assert over["numbers"] == list(range(150))
    _nothing_is_left(wire)


def test_every_transfer_has_one_end_on_the_record(wire: Wire) -> None:
    opened = [event.body["id"] for event in wire.events() if event.type == "TransferOpened"]
    closed = [event.body["id"] for event in wire.events() if event.type == "TransferClosed"]
    assert sorted(opened) == sorted(closed)
    assert len(opened) == len(set(opened))

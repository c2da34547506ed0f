"""streams: objects of 64 KiB and 1 MiB to a server in a process of its own, beside the fabric's raw bandwidth."""

from __future__ import annotations

import os
import random
import re
import statistics
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import redis
from rich.console import Console

from benchmarks.harness import SITE, Result, Row, alternating, machine, ratios, scratch, spread, two
from benchmarks.messages import beside, theirs
from engine.client_engine import ClientEngine
from engine.constants import ReturnCode
from engine.context import FLContext
from engine.shareable import Shareable
from engine.streaming import ObjectProducer, StreamContext

ROUNDS = 4
TOTAL = 256 * 2**20  # bytes of a block; in all rounds a GiB
SIZES = {"64 KiB": 2**16, "1 MiB": 2**20}
AT_ONCE = (1, 8)
GOALS = {"64 KiB": 80, "1 MiB": 200}  # MB/s
GOAL_OF_RAW = 0.5
GOAL_MEMORY = 64  # MiB
CHANNEL, TOPIC = "bench", "sink"


class Blob(ObjectProducer):
    """The same bytes, again and again: making them is not what is measured."""

    def __init__(self, data: bytes, count: int) -> None:
        self._data, self._left = data, count

    def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, float]:
        """See ``ObjectProducer``."""
        if not self._left:
            return None, 0.0
        self._left -= 1
        return Shareable({"data": self._data}), 60.0

    def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        """See ``ObjectProducer``."""
        assert all(reply.get_return_code() == ReturnCode.OK for reply in replies.values()), replies


def run(notes: Console) -> Result:
    """Measure the group."""
    nvflare = theirs()
    with scratch() as folder, ClientEngine.open(site=SITE, workspace=folder / "ws", workers=2) as engine:
        result = Result("streams", machine(engine.site.jobs.store))
        url = engine.site.servers.fabric_url
        with beside(url, "--sink") as sink:
            bench = Bench(engine, url)
            bench.stream(SIZES["64 KiB"], 1, 2**22)  # scripts, connections, workers
            memory = Memory(bench, sink, folder)
            took = alternating(bench.blocks(), ROUNDS)
            notes.print(f"streams: {ROUNDS} rounds")
            _tell(result, took, nvflare)
            memory.tell(result)
        return result


class Bench:
    """What is run: streams of an engine, and the same bytes written and read on one connection."""

    def __init__(self, engine: ClientEngine, url: str) -> None:
        self.engine = engine
        self.client = redis.Redis.from_url(url, protocol=2, driver_info=None)
        self.data = {size: random.Random(size).randbytes(size) for size in SIZES.values()}

    def blocks(self) -> dict[str, Callable[[], object]]:
        """All of them, by name."""
        found: dict[str, Callable[[], object]] = {}
        for name, size in SIZES.items():
            found[f"raw, {name}"] = lambda size=size: self.raw(size)  # type: ignore[misc]
            for count in AT_ONCE:
                found[f"{count} x {name}"] = lambda size=size, count=count: self.stream(size, count, TOTAL)  # type: ignore[misc]
        return found

    def raw(self, size: int) -> None:
        """Written and read, one after the other, by one client."""
        data = self.data[size]
        for _ in range(TOTAL // size):
            self.client.set("bench:raw", data)
            self.client.get("bench:raw")
        self.client.delete("bench:raw")

    def stream(self, size: int, at_once: int, total: int) -> None:
        """So many streams at the same time; the bytes are of all of them."""

        def one() -> None:
            producer = Blob(self.data[size], total // at_once // size)
            context = self.engine.new_context()
            code, _ = self.engine.stream_objects(CHANNEL, TOPIC, {}, ["server"], producer, context)
            assert code == ReturnCode.OK, code

        threads = [threading.Thread(target=one) for _ in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _tell(result: Result, took: dict[str, list[float]], nvflare: dict[str, Any] | None) -> None:
    rates = {name: [TOTAL / 1e6 / one for one in seconds] for name, seconds in took.items()}
    for name, values in rates.items():
        result.keep(f"{name}, MB/s", values)
    for size in SIZES:
        raw = rates[f"raw, {size}"]
        for count in AT_ONCE:
            ours = rates[f"{count} x {size}"]
            of_raw = ratios(ours, raw)
            met = statistics.median(ours) >= GOALS[size]
            goal = f"{GOALS[size]} MB/s"
            if size == "1 MiB":
                met, goal = met and statistics.median(of_raw) >= GOAL_OF_RAW, f"{goal}, {GOAL_OF_RAW} of raw"
            result.add(
                Row(
                    what=f"{count} stream{'s' * (count > 1)} of {size} objects",
                    ours=spread(ours, _rate),
                    against=f"{spread(raw, _rate)}: raw, written and read by one client",
                    figure=spread(of_raw, two),
                    goal=goal,
                    met=met,
                )
            )
        result.add(_beside_nvflare(nvflare, size, rates[f"1 x {size}"]))


def _beside_nvflare(nvflare: dict[str, Any] | None, size: str, ours: Sequence[float]) -> Row:
    what = "- beside NVFLARE's own, in a run of its own"
    samples = (nvflare or {"samples": {}})["samples"].get(f"stream, {size}, MB/s")
    if nvflare is None or not samples:
        return Row(what=what, ours="", against="not measured here")
    about = nvflare["machine"]
    return Row(
        what=what,
        ours="",
        against=f"{spread(samples, _rate)}; {about['server']} on {about['date']}",
        figure=two(statistics.median(ours) / statistics.median(samples)),
    )


def _rate(value: float) -> str:
    return f"{value:.0f} MB/s"


class Memory:
    """The most that each process took beyond what it had before the first block.

    Args:
        bench: whose engine and fabric.
        sink: the receiver.
        folder: that names the engine's workers.
    """

    def __init__(self, bench: Bench, sink: subprocess.Popen[str], folder: Path) -> None:
        self._client = bench.client
        self._pids = {"engine": os.getpid(), "receiver": sink.pid, **_workers(folder)}
        self._before = {}
        for name, pid in self._pids.items():
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is counted anew
            self._before[name] = _status(pid, "VmRSS")
        self._fabric = self._used("used_memory")
        self._client.config_resetstat()

    def _used(self, name: str) -> int:
        return int(self._client.info("memory")[name])  # type: ignore[index]

    def tell(self, result: Result) -> None:
        """A line for each process."""
        extra = {name: _status(pid, "VmHWM") - self._before[name] for name, pid in self._pids.items()}
        extra["fabric"] = self._used("used_memory_peak") - self._fabric
        for name, value in extra.items():
            mib = value / 2**20
            result.keep(f"memory, {name}, MiB", [mib])
            result.add(
                Row(
                    what=f"peak extra memory, {name}",
                    ours=f"{mib:.0f} MiB",
                    goal=f"{GOAL_MEMORY} MiB",
                    met=mib <= GOAL_MEMORY,
                )
            )


def _status(pid: int, name: str) -> int:
    """Bytes, as the kernel counts them."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None, name
    return int(found[1]) * 1024


def _workers(folder: Path) -> dict[str, int]:
    """The engine's io worker."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if b"\0worker\0--queue\0io\0" in words and os.fsencode(folder) in words:
            return {"io worker": int(name)}
    raise AssertionError("the io worker is not there")

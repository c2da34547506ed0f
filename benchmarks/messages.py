"""messages: aux round trips, questions to a job and many sends, on a real engine with its own pool."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import redis
from rich.console import Console
from rq import Queue

from benchmarks.echo import ASK, DEAF, QUEUE, TELL, size_of
from benchmarks.harness import (
    SITE,
    Result,
    Row,
    alternating,
    machine,
    millis,
    percentile,
    ratios,
    scratch,
    spread,
    two,
)
from engine.archive import pack
from engine.cell.keys import KeyRing
from engine.cell.message import CellChannel, CellReturnCode, Message
from engine.client_engine import ClientEngine
from engine.constants import ReturnCode
from engine.jobtalk import CommandTopic
from engine.shareable import Shareable

#: Names the file of an earlier run of NVFLARE's own aux messages, with the samples' names of this group.
THEIRS = "FLIGHTLOG_BENCH_NVFLARE"
ROUNDS = 8
SMALL, LARGE = 100, 1_000_000  # bytes of a request
ALONE = {SMALL: 150, LARGE: 15}  # round trips of one caller in a block
CALLERS = 64
EACH = {SMALL: 20, LARGE: 1}  # round trips of each of them in a block
EACH_RQ = 5
TARGETS, DEAF_ONES = 100, 10
SENDS, SEND_ROUNDS = 10_000, 4  # to all targets, in so many blocks
SENDERS = 16
PATIENCE = 30.0
GOAL_P50, GOAL_P99, GOAL_RATE, GOAL_LARGE, GOAL_JOB = 0.002, 0.008, 2000, 0.015, 0.002
JOB = "job-1"
TO_JOB = "send_to_job, one caller"
BESIDE_RQ = "- beside RQ, one job per message"
EXECUTOR = """
from engine.job.executor import Executor

class Idle(Executor):
    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        return shareable
"""

Trip = Callable[[], object]


def run(notes: Console) -> Result:
    """Measure the group."""
    nvflare = theirs()
    with scratch() as folder:
        options: dict[str, Any] = {"deploy_timeout": PATIENCE, "start_timeout": PATIENCE}
        with ClientEngine.open(site=SITE, workspace=folder / "ws", workers=2, **options) as engine:
            result = Result("messages", machine(engine.site.jobs.store))
            bench = Bench(engine, folder)
            url = engine.site.servers.fabric_url
            keys = str(folder / "server")
            with beside(url, "--keys", keys), beside(url, "--beside", "rq"), beside(url, "--beside", "bare"):
                bench.start_job()
                bench.warm_up()
                bench.measure()
                bench.end_job()
            notes.print(f"messages: {ROUNDS} rounds of round trips")
            names = [f"{DEAF if n < DEAF_ONES else 'site-'}{n:03}" for n in range(TARGETS)]
            with beside(url, *names) as crowd:
                bench.send_many(names, crowd)
            notes.print(f"messages: {SENDS} sends to {TARGETS} targets")
            bench.close()
            bench.tell(result, nvflare)
        return result


@contextmanager
def beside(url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process of ``benchmarks.echo`` for as long as the block lasts."""
    command = [sys.executable, "-P", "-m", "benchmarks.echo", url, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "up\n", "the other side does not come up"
        yield process
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


class Bench:
    """One engine, the ways to ask, and what they took: name -> per block, seconds of each round trip."""

    def __init__(self, engine: ClientEngine, folder: Path) -> None:
        self.engine = engine
        self.context = engine.new_context()
        url = engine.site.servers.fabric_url
        self.client = redis.Redis.from_url(url, protocol=2, driver_info=None, socket_timeout=PATIENCE + 5)
        self.queue = Queue(QUEUE, connection=redis.Redis.from_url(url, socket_timeout=PATIENCE + 5))
        self.data = {size: random.Random(size).randbytes(size) for size in (SMALL, LARGE)}
        self.told: Any = "0-0"
        self.took: dict[str, list[list[float]]] = {}
        self.rates: dict[str, list[float]] = {}
        self.sends: dict[str, list[float]] = {}
        self.app = _app(folder / "app")
        server = KeyRing(folder / "server", "server")
        ring = KeyRing(engine.site.workspace.root / "startup", SITE)
        server.trust(ring.public())
        ring.trust(server.public())

    # -- a round trip

    def aux(self, size: int, *, secure: bool = False) -> None:
        """Of an aux request to the server."""
        request = Shareable({"data": self.data[size]})
        reply = self.engine.send_aux_request("bench", request, PATIENCE, self.context, secure=secure)
        assert (reply.get_return_code(), reply.get("size")) == (ReturnCode.OK, size), reply

    def rq(self, size: int) -> None:
        """Of an RQ job, by RQ's own way to wait for a result."""
        job = self.queue.enqueue(size_of, self.data[size])
        found = job.latest_result(timeout=int(PATIENCE))
        assert found is not None
        assert found.return_value == size

    def bare(self, size: int) -> None:
        """Of a stream entry, and another back."""
        self.client.xadd(ASK, {"data": self.data[size]}, maxlen=1, approximate=False)
        answer = cast("list[Any]", self.client.xread({TELL: self.told}, block=int(PATIENCE * 1000)))
        self.told, fields = answer[0][1][-1]
        assert int(fields[b"size"]) == size

    def job(self) -> None:
        """Of a question to a job's process."""
        topic = CommandTopic.SHOW_STATS
        answer = self.engine.send_to_job(JOB, CellChannel.CLIENT_COMMAND, topic, Message(), PATIENCE)
        assert answer.return_code == CellReturnCode.OK, answer.headers
        assert answer.payload["job_id"] == JOB

    # -- blocks

    def alone(self, name: str, count: int, trip: Trip) -> None:
        """One caller's round trips, one after the other."""
        self.took.setdefault(name, []).append(_timed(count, trip))

    def together(self, name: str, each: int, trip: Trip) -> None:
        """Round trips of many callers at the same time: threads of one engine."""
        took: list[list[float]] = []
        ready = threading.Barrier(CALLERS + 1)

        def call() -> None:
            ready.wait()
            took.append(_timed(each, trip))

        threads = [threading.Thread(target=call) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        ready.wait()
        began = time.perf_counter()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        assert len(took) == CALLERS, "a caller has failed"
        self.took.setdefault(name, []).append([one for some in took for one in some])
        self.rates.setdefault(name, []).append(CALLERS * each / seconds)

    def measure(self) -> None:
        """All round trips, in alternating blocks."""
        blocks: dict[str, Callable[[], object]] = {}

        def add(name: str, block: Callable[[str, int, Trip], None], count: int, trip: Trip) -> None:
            blocks[name] = partial(block, name, count, trip)

        for size in (SMALL, LARGE):
            add(_alone("aux", size), self.alone, ALONE[size], partial(self.aux, size))
            add(_alone("sealed aux", size), self.alone, ALONE[size], partial(self.aux, size, secure=True))
            add(_alone("bare streams", size), self.alone, ALONE[size], partial(self.bare, size))
            add(_many("aux", size), self.together, EACH[size], partial(self.aux, size))
        add(_alone("RQ", SMALL), self.alone, ALONE[SMALL], partial(self.rq, SMALL))
        add(_many("RQ", SMALL), self.together, EACH_RQ, partial(self.rq, SMALL))
        add(TO_JOB, self.alone, ALONE[SMALL], self.job)
        alternating(blocks, ROUNDS)

    def warm_up(self) -> None:
        """What is made once: connections, workers, scripts."""
        for _ in range(20):
            self.aux(SMALL)
            self.aux(SMALL, secure=True)
            self.rq(SMALL)
            self.bare(SMALL)
            self.job()

    # -- a job whose process answers

    def start_job(self) -> None:
        """Deploy and start it, and wait until it has said that it runs."""
        said = self.engine.deploy_app("app", JOB, {}, SITE, self.app)
        assert said == "", said
        said = self.engine.start_app(JOB, {})
        assert said == "Start the client app...", said
        self._await("running")

    def end_job(self) -> None:
        """End it."""
        self.engine.abort_app(JOB)
        self._await("aborted")

    def _await(self, wanted: str) -> None:
        until = time.monotonic() + PATIENCE
        while (state := self.engine.site.jobs.load(JOB).state.state.value) != wanted:
            assert time.monotonic() < until, f"{JOB} is {state}, not {wanted}"
            time.sleep(0.01)

    # -- many sends

    def send_many(self, names: Sequence[str], crowd: subprocess.Popen[str]) -> None:
        """The time until all targets that answer have handled all that was for them, with and without the others."""
        others = [name for name in names if not name.startswith(DEAF)]
        each = SENDS // SEND_ROUNDS // TARGETS
        handled = 0

        def block(name: str, targets: Sequence[str]) -> None:
            nonlocal handled
            handled += each * len(others)
            began = time.perf_counter()
            self._send(targets, each)
            sent = time.perf_counter() - began
            _await_handled(crowd, handled)
            self.sends.setdefault(name, []).append(time.perf_counter() - began)
            self.sends.setdefault(f"{name}: until the intents are durable", []).append(sent)
            self._await_quiet()

        blocks = {"with the deaf": names, "without the deaf": others}
        alternating({name: partial(block, name, targets) for name, targets in blocks.items()}, SEND_ROUNDS)

    def _send(self, targets: Sequence[str], each: int) -> None:
        """To the targets in turn, without waiting for answers."""
        numbers = iter(range(each * len(targets)))
        failed: list[object] = []
        data = self.data[SMALL]

        def run() -> None:
            for number in numbers:
                target = targets[number % len(targets)]
                request = Shareable({"data": data})
                reply = self.engine.aux_runner.send("bench", request, 0, self.context, target=target)
                if reply.get_return_code() != ReturnCode.OK:
                    failed.append(reply)

        threads = [threading.Thread(target=run) for _ in range(SENDERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed[0]

    def _await_quiet(self) -> None:
        """Until nothing is on its way any more, to deaf targets either."""
        store = self.engine.site.jobs.store
        until = time.monotonic() + PATIENCE
        while store.client.zcard(store.keys.open):
            assert time.monotonic() < until, "messages are still under way"
            time.sleep(0.02)

    def close(self) -> None:
        """Let go of connections."""
        self.client.close()
        self.queue.connection.close()

    # -- telling

    def tell(self, result: Result, nvflare: dict[str, Any] | None) -> None:
        """Rows from what was taken, and all of it as samples."""
        for name in self.took:
            result.keep(f"{name}, s", self.all(name))
        for name, rates in self.rates.items():
            result.keep(f"{name}, requests/s", rates)
        for name, values in self.sends.items():
            result.keep(f"{SENDS // SEND_ROUNDS} sends, {name}, s", values)
        self._tell_alone(result, theirs)
        self._tell_together(result, theirs)
        self._tell_sends(result)

    def all(self, name: str) -> list[float]:
        """Seconds of all round trips of a name."""
        return [one for block in self.took[name] for one in block]

    def ratio(self, name: str, other: str) -> str:
        """Medians of one by those of the other, round by round."""
        ours, against = ([statistics.median(block) for block in self.took[n]] for n in (name, other))
        return spread(ratios(ours, against), two)

    def _tell_alone(self, result: Result, nvflare: dict[str, Any] | None) -> None:
        for size in (SMALL, LARGE):
            name, floor, sealed = (_alone(what, size) for what in ("aux", "bare streams", "sealed aux"))
            p50, p99 = statistics.median(self.all(name)), percentile(self.all(name), 0.99)
            goal, met = f"p50 <= {GOAL_LARGE * 1000:.0f} ms", p50 <= GOAL_LARGE
            if size == SMALL:
                goal = f"p50 <= {GOAL_P50 * 1000:.0f} ms, p99 <= {GOAL_P99 * 1000:.0f} ms"
                met = p50 <= GOAL_P50 and p99 <= GOAL_P99
            result.add(
                Row(
                    what=f"{_alone('aux round trip', size)}, n={len(self.all(name))}",
                    ours=_shown(self.all(name)),
                    against=f"bare streams {_shown(self.all(floor))}",
                    figure=self.ratio(name, floor),
                    goal=goal,
                    met=met,
                )
            )
            if size == SMALL:
                rq = _alone("RQ", size)
                against = f"RQ {_shown(self.all(rq))}"
                result.add(Row(what=BESIDE_RQ, ours="", against=against, figure=self.ratio(name, rq)))
            result.add(_beside_nvflare(nvflare, name, self.all(name)))
            result.add(
                Row(
                    what=_alone("sealed aux round trip", size),
                    ours=_shown(self.all(sealed)),
                    against=f"unsealed {_shown(self.all(name))}",
                    figure=self.ratio(sealed, name),
                )
            )
        floor = _alone("bare streams", SMALL)
        result.add(
            Row(
                what=f"send_to_job, a running job's stats, one caller, n={len(self.all(TO_JOB))}",
                ours=_shown(self.all(TO_JOB)),
                against=f"bare streams {_shown(self.all(floor))}",
                figure=self.ratio(TO_JOB, floor),
                goal=f"p50 <= {GOAL_JOB * 1000:.0f} ms",
                met=statistics.median(self.all(TO_JOB)) <= GOAL_JOB,
            )
        )

    def _tell_together(self, result: Result, nvflare: dict[str, Any] | None) -> None:
        for size in (SMALL, LARGE):
            name, rq = _many("aux", size), _many("RQ", size)
            rates = self.rates[name]
            result.add(
                Row(
                    what=f"{_many('aux round trip', size)}, n={len(self.all(name))}",
                    ours=f"{spread(rates, _rate)}, {_p50_p99(self.all(name))}",
                    goal=f">= {GOAL_RATE}/s" if size == SMALL else "",
                    met=statistics.median(rates) >= GOAL_RATE if size == SMALL else None,
                )
            )
            if size == SMALL:
                against = f"RQ {spread(self.rates[rq], _rate)}, {_p50_p99(self.all(rq))}"
                figure = spread(ratios(rates, self.rates[rq]), two)
                result.add(Row(what=BESIDE_RQ, ours="", against=against, figure=figure))
                result.add(_beside_nvflare(nvflare, name, self.all(name), rates))

    def _tell_sends(self, result: Result) -> None:
        count, hearing = SENDS // SEND_ROUNDS, (TARGETS - DEAF_ONES) / TARGETS
        ours, without = self.sends["with the deaf"], self.sends["without the deaf"]
        result.add(
            Row(
                what=f"{count} sends to {TARGETS} targets, {DEAF_ONES} of them deaf, until the others' are handled",
                ours=spread(ours, millis),
                against=f"the others' {count * hearing:.0f} alone {spread(without, millis)}",
                figure=f"{spread(ratios(ours, without), two)}; {1 / hearing:.2f} by number",
            )
        )


def _alone(what: str, size: int) -> str:
    return f"{what}, {_bytes(size)}, one caller"


def _many(what: str, size: int) -> str:
    return f"{what}, {_bytes(size)}, {CALLERS} callers"


def _bytes(size: int) -> str:
    return f"{size} B" if size < 10**6 else f"{size // 10**6} MB"


def _timed(count: int, trip: Trip) -> list[float]:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        trip()
        found.append(time.perf_counter() - began)
    return found


def _await_handled(crowd: subprocess.Popen[str], count: int) -> None:
    assert crowd.stdin is not None
    assert crowd.stdout is not None
    crowd.stdin.write(f"{count}\n")
    crowd.stdin.flush()
    said = crowd.stdout.readline()
    assert said == f"{count}\n", f"{said!r} were handled, {count} were sent"


def _p50_p99(values: Sequence[float]) -> str:
    return f"p50 {millis(statistics.median(values))}, p99 {millis(percentile(values, 0.99))}"


def _shown(values: Sequence[float]) -> str:
    return f"{_p50_p99(values)} [{millis(min(values))}-{millis(max(values))}]"


def _rate(value: float) -> str:
    return f"{value:.0f}/s"


def theirs() -> dict[str, Any] | None:
    """The file of an earlier run of NVFLARE's own; None where none is named."""
    path = os.environ.get(THEIRS, "")
    return json.loads(Path(path).read_text()) if path else None


def _beside_nvflare(
    nvflare: dict[str, Any] | None, name: str, ours: Sequence[float], rates: Sequence[float] = ()
) -> Row:
    """Beside what NVFLARE took in a run of its own: medians, and no pairs, since it was another minute."""
    what = "- beside NVFLARE's own, in a run of its own"
    if nvflare is None:
        return Row(what=what, ours="", against="not measured here")
    about, samples = nvflare["machine"], nvflare["samples"]
    values, of_rates = samples[f"{name}, s"], samples.get(f"{name}, requests/s", ())
    shown = f"{spread(of_rates, _rate)}, {_p50_p99(values)}" if rates else _shown(values)
    mine, other = (rates, of_rates) if rates else (ours, values)
    return Row(
        what=what,
        ours="",
        against=f"{shown}; {about['server']} on {about['date']}, load {about['load'][0]}",
        figure=two(statistics.median(mine) / statistics.median(other)),
    )


def _app(folder: Path) -> bytes:
    """An app with executors, so that its job has a process that answers."""
    for part in ("config", "custom"):
        (folder / part).mkdir(parents=True)
    config = {"executors": [{"tasks": ["idle"], "executor": {"path": "idle.Idle", "args": {}}}]}
    (folder / "config" / "config_fed_client.json").write_text(json.dumps(config))
    (folder / "custom" / "idle.py").write_text(EXECUTOR)
    return pack(folder)

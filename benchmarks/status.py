"""status: the HTTP API on a record of a million events and on a small one, and fifty followers of the log."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks.clients import thinned
from benchmarks.harness import (
    Result,
    Row,
    alternating,
    machine,
    millis,
    per_second,
    percentile,
    ratios,
    scratch,
    spread,
    two,
)
from benchmarks.life import OPERATOR, Step, append_lives, life, reads
from engine.ids import new_call_id
from engine.jobs import Note
from engine.site import Site
from events.bodies.job import CallRefused
from events.bodies.site import FLEventFired
from events.envelope import Call, iso
from events.read import last_position

#: Of the large site; a smaller one is for trying things out.
LARGE = int(os.environ.get("FLIGHTLOG_BENCH_JOBS", "100000"))
SMALL = 100
#: How fifty jobs stand, which are recorded in one append with 500 events, two of them the site's. On the small site
#: as many have failed as a page takes, so that both sites have the same to tell.
BATCHES = {
    "large": {"finished": 36, "failed": 4, "aborted": 2, "running": 2, "deployed": 6},
    "small": {"finished": 10, "failed": 30, "aborted": 2, "running": 2, "deployed": 6},
}
STOPS_AFTER = {"running": "AppStarted", "deployed": "DeploySucceeded"}
ENDED = ("finished", "failed", "aborted")
PER_BATCH = 50
PAGE = 50
ROUNDS = 7
CONNECTIONS = 2
#: What is asked for, how often in a block, and what it is called.
ASKED = {
    "one job": (1500, "one job"),
    "list": (250, f"list, a page of {PAGE}"),
    "by state": (250, f"list by state and time, a page of {PAGE}"),
    "then": (600, "one job at a version, time travel"),
}
GOAL_RATIO, GOAL_OF_BARE = 1.5, 0.7
FOLLOWERS, PER_SECOND, AT_ONCE, SECONDS = 50, 1000, 10, 20
FEEDING = 300.0  # seconds to wait for it


def run(notes: Console) -> Result:
    """Measure the group."""
    with scratch() as folder, ExitStack() as stack:
        sites = {}
        for name, count in (("large", LARGE), ("small", SMALL)):
            site = Site.open(create=True, workspace=folder / name, site=f"bench-{name}")
            stack.callback(site.close)
            sites[name] = Filled(site, random.Random(name))
            if name == "large":
                result = Result("status", machine(site.jobs.store))
            sites[name].fill(count, BATCHES[name])
        large = sites["large"]
        notes.print(f"status: {large.events} events of {LARGE} jobs appended in {large.seconds:.0f} s")
        for filled in sites.values():
            filled.api = stack.enter_context(api_of(filled.site, folder))
            filled.feed()
        _tell_filling(result, large)
        notes.print(f"status: read models fed in {large.fed:.0f} s, load {os.getloadavg()[0]:.2f}")
        _asking(result, sites, notes)
        _following(result, large)
        notes.print(f"status: followed, load {os.getloadavg()[0]:.2f}")
        return result


# -- what is asked -----------------------------------------------------------------------------


@dataclass(slots=True)
class Api:
    """An API process."""

    process: subprocess.Popen[bytes]
    port: int
    began: float

    @property
    def about(self) -> psutil.Process:
        """What the kernel knows of it."""
        return psutil.Process(self.process.pid)

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        times = self.about.cpu_times()
        return float(times.user + times.system)

    def rss(self) -> int:
        """Bytes in memory."""
        return int(self.about.memory_info().rss)

    def lag(self) -> int:
        """Events that its read models are behind."""
        return int(self.get("/v1/egress?limit=1")["as_of"]["lag"])

    def get(self, path: str) -> dict[str, Any]:
        """One answer."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return dict(json.load(answer))


@contextmanager
def api_of(site: Site, folder: Path) -> Iterator[Api]:
    """The API process of a site, as ``flightlog up`` starts it."""
    about, said = site.workspace.flight / "api.json", folder / f"{site.name}.log"
    began = time.monotonic()
    with said.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "engine.status", "--workspace", str(site.workspace.root), "--until-eof"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, "FLIGHTLOG_API_PORT": "0"},
        )
    assert process.stdin is not None
    try:
        while not about.exists():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < began + 30, "the API does not come up"
            time.sleep(0.01)
        yield Api(process, int(json.loads(about.read_text())["url"].rstrip("/").rpartition(":")[2]), began)
    finally:
        process.stdin.close()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(slots=True)
class Filled:
    """A site with jobs on its record."""

    site: Site
    chance: random.Random
    #: Jobs that have ended, and how many events each has; those that run.
    ended: list[tuple[str, int]] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    events: int = 0
    seconds: float = 0.0
    #: From when on half of the jobs came, on a small site all.
    since: str = ""
    fed: float = 0.0
    fed_rate: float = 0.0
    api: Api | None = None

    def fill(self, count: int, batch: dict[str, int]) -> None:
        """Record so many jobs, fifty in an append, and two of the site's events with them."""
        began = time.monotonic()
        jobs = self.site.jobs
        self.since = iso(jobs.store.now_ms())
        for first in range(0, count, PER_BATCH):
            if count > SMALL and first == count // PER_BATCH // 2 * PER_BATCH:
                self.since = iso(jobs.store.now_ms())
            states = [state for state, number in batch.items() for _ in range(number)]
            self.chance.shuffle(states)
            recorded = []
            for number, state in enumerate(states, start=first):
                job = f"{self.chance.getrandbits(32):08x}-{number:06}"
                recorded.append((job, short_life(job, self.chance, state)))
                if state in ENDED:
                    self.ended.append((job, len(recorded[-1][1])))
                elif state == "running":
                    self.running.append(job)
            call = Call(call_id=f"reads:{first}", actor=OPERATOR)
            recorded.append(("", [Step(call, reads(40 + number), "") for number in range(2)]))
            self.events += append_lives(jobs, recorded)
        self.seconds = time.monotonic() - began
        why = jobs.consistent()
        assert why is None, why

    def feed(self) -> None:
        """Wait until the API's read models have all of it, and the server has its file in order."""
        assert self.api is not None
        lag = first = self.api.lag()
        asked = time.monotonic()
        while lag:
            assert time.monotonic() < asked + FEEDING, f"the read models lag by {lag}"
            time.sleep(0.05)
            lag = self.api.lag()
        self.fed = time.monotonic() - self.api.began
        self.fed_rate = first / (time.monotonic() - asked)
        while self.site.jobs.store.client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.1)
        for what in ("list", "by state"):  # a full page on both sites
            assert len(self.api.get(self.paths(what, 1)[0])["items"]) == PAGE, what

    def paths(self, what: str, count: int) -> list[str]:
        """What to ask for."""
        if what == "list":
            return [f"/v1/jobs?limit={PAGE}"] * count
        if what == "by state":
            return [f"/v1/jobs?state=failed&since={self.since}&limit={PAGE}"] * count
        chosen = self.chance.choices(self.ended, k=count)
        if what == "one job":
            return [f"/v1/jobs/{job}" for job, _ in chosen]
        return [f"/v1/jobs/{job}?at={self.chance.randint(1, events)}" for job, events in chosen]


def short_life(job: str, chance: random.Random, state: str) -> list[Step]:
    """A job's own events up to a state, 3 to 13 of them; nobody was refused anything."""
    steps = life(job, chance, ends=state if state in ENDED else "finished")
    steps = [step for step in steps if step.job and not isinstance(step.body, CallRefused)]
    if state in STOPS_AFTER:
        names = [step.body.name() for step in steps]
        steps = steps[: names.index(STOPS_AFTER[state]) + 1]
    return steps


def _tell_filling(result: Result, large: Filled) -> None:
    assert large.api is not None
    result.keep("appended, events/s", [large.events / large.seconds])
    result.keep("fed, events/s", [large.fed_rate])
    memory = int(large.site.jobs.store.client.info("memory")["used_memory"])
    result.add(
        Row(
            what=f"{large.events} events of {LARGE} jobs appended, 500 in a call",
            ours=f"{per_second(large.events / large.seconds)}/s",
            figure=f"{large.seconds:.1f} s; the record then has {memory / 2**20:.0f} MiB, read models included",
        )
    )
    result.add(
        Row(
            what="the API process feeds its read models with them",
            ours=f"{per_second(large.fed_rate)}/s",
            figure=f"{large.fed:.1f} s from its start; it then has {large.api.rss() / 2**20:.0f} MiB",
        )
    )


# -- requests ----------------------------------------------------------------------------------


@contextmanager
def helper(*words: str) -> Iterator[subprocess.Popen[str]]:
    """One of ours in a process of its own, that ends with its input."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(20)


def told(process: subprocess.Popen[str], order: object = None) -> Any:
    """Its next line, after an order where one is given."""
    assert process.stdin is not None
    assert process.stdout is not None
    if order is not None:
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
    return json.loads(process.stdout.readline())


@dataclass(slots=True)
class Series:
    """Answers to one question, in blocks."""

    rates: list[float] = field(default_factory=list)
    blocks: list[list[float]] = field(default_factory=list)

    @property
    def all(self) -> list[float]:
        """Seconds of each answer."""
        return [one for block in self.blocks for one in block]

    @property
    def medians(self) -> list[float]:
        """Of each block."""
        return [statistics.median(block) for block in self.blocks]

    def cell(self) -> str:
        """Rate, p50 and p99."""
        ends = ", ".join(f"p{share} {millis(percentile(self.all, share / 100))}" for share in (50, 99))
        return f"{spread(self.rates, lambda rate: f'{rate:.0f}')}/s, {ends}"


def _asking(result: Result, sites: dict[str, Filled], notes: Console) -> None:
    large = sites["large"]
    keys = large.site.jobs.store.keys
    found: dict[str, Series] = {}
    with ExitStack() as stack:
        client = stack.enter_context(helper("benchmarks.clients", "ask"))
        bare = stack.enter_context(helper("benchmarks.bare", large.site.servers.record_url, keys.job("")))
        port = told(bare)

        def block(name: str, port: int, paths: Callable[[], list[str]]) -> Callable[[], object]:
            def asked() -> None:
                wanted = paths()
                answer = told(client, {"port": port, "paths": wanted, "connections": CONNECTIONS})
                found[name].rates.append(len(wanted) / answer["seconds"])
                found[name].blocks.append(answer["took"])

            return asked

        blocks = {}
        for what, (count, _) in ASKED.items():
            for name, filled in sites.items():
                assert filled.api is not None
                paths = _paths(filled, what, count)
                blocks[f"{what}, {name}"] = block(f"{what}, {name}", filled.api.port, paths)
        for kind in ("async", "sync"):
            paths = _bare_paths(large, kind, ASKED["one job"][0])
            blocks[f"bare, {kind}"] = block(f"bare, {kind}", port, paths)
        for rounds in (1, ROUNDS):  # the first is for connections, scripts and caches
            found = {name: Series() for name in blocks}
            alternating(blocks, rounds)
    notes.print(f"status: {ROUNDS} rounds of requests, load {os.getloadavg()[0]:.2f}")
    for name, series in found.items():
        result.keep(f"{name}, requests/s", series.rates)
        result.keep(f"{name}, s", thinned(series.all))
    for what, (_, title) in ASKED.items():
        ours, against = found[f"{what}, large"], found[f"{what}, small"]
        by = ratios(ours.medians, against.medians)
        result.add(
            Row(
                what=f"{title}: {LARGE} jobs and {SMALL}",
                ours=ours.cell(),
                against=against.cell(),
                figure=f"p50 {spread(by, two)}",
                goal=f"p50 <= {GOAL_RATIO}",
                met=statistics.median(by) <= GOAL_RATIO,
            )
        )
    for kind, goal in (("async", GOAL_OF_BARE), ("sync", None)):
        ours, against = found["one job, large"], found[f"bare, {kind}"]
        by = ratios(ours.rates, against.rates)
        route = "an async route" if kind == "async" else "a plain route"
        result.add(
            Row(
                what=f"one job, beside {route} that does one HGETALL",
                ours=ours.cell(),
                against=against.cell(),
                figure=f"rate {spread(by, two)}",
                goal=f"rate >= {goal}" if goal else "",
                met=statistics.median(by) >= goal if goal else None,
            )
        )


def _paths(filled: Filled, what: str, count: int) -> Callable[[], list[str]]:
    return lambda: filled.paths(what, count)


def _bare_paths(filled: Filled, kind: str, count: int) -> Callable[[], list[str]]:
    return lambda: [f"/{kind}/{path.rpartition('/')[2]}" for path in filled.paths("one job", count)]


# -- followers ---------------------------------------------------------------------------------


def _following(result: Result, large: Filled) -> None:
    """Notes are appended at a steady pace, and fifty connections are told of each."""
    api, store = large.api, large.site.jobs.store
    assert api is not None
    with helper("benchmarks.clients", "follow") as client:
        append_notes(large, 6 * PER_SECOND // AT_ONCE)  # more than the ring of the last events holds
        while api.lag():
            time.sleep(0.1)
        order = {"port": api.port, "after": last_position(store), "followers": FOLLOWERS}
        before = api.rss()
        assert told(client, order) == "up"
        time.sleep(1)
        idle, cpu, began = api.rss(), api.cpu(), time.monotonic()
        first = _seq(order["after"])
        seconds = append_notes(large, SECONDS * PER_SECOND // AT_ONCE)
        busy = (api.cpu() - cpu) / (time.monotonic() - began)
        last = _seq(last_position(store))
        answer = told(client, last)
        after = api.rss()
    appended, per_second_ = last - first, (last - first) / seconds
    whole = answer["events"] == [appended] * FOLLOWERS and not any(answer["wrong"])
    p50, p95, p99, most = (late / 1000 for late in answer["shares"])
    result.keep("from append to follower, s", [late / 1000 for late in answer["late"]])
    result.keep("memory of the API process: before, with idle followers, after, bytes", [before, idle, after])
    result.add(
        Row(
            what=f"{FOLLOWERS} followers, {per_second_:.0f} events/s for {seconds:.0f} s: from append to arrival",
            ours=f"p50 {millis(p50)}, p95 {millis(p95)}, p99 {millis(p99)}",
            figure=f"at most {millis(most)}, n={sum(answer['events'])}",
        )
    )
    result.add(
        Row(
            what="- each got each event once, in order",
            ours=f"{min(answer['events'])} to {max(answer['events'])} of {appended}",
            figure=f"{sum(answer['wrong'])} out of order",
            goal="all",
            met=whole,
        )
    )
    result.add(
        Row(
            what="- processor time of the API process meanwhile, read models included",
            ours=f"{busy:.0%} of a core",
            figure=f"{busy / per_second_ / FOLLOWERS * 1e6:.0f} us per event and follower; "
            f"the followers' own process {answer['cpu'] / seconds:.0%}",
        )
    )
    result.add(
        Row(
            what="- memory of the API process, for each of them",
            ours=f"{(after - before) / FOLLOWERS / 1024:.0f} KiB",
            figure=f"{before / 2**20:.0f} MiB before, {idle / 2**20:.0f} MiB while nothing happened, "
            f"{after / 2**20:.0f} MiB after",
        )
    )


def append_notes(filled: Filled, count: int) -> float:
    """So many appends of ten notes, about the site and about jobs that run, one every 10 ms; seconds for all."""
    began = time.monotonic()
    for number in range(count):
        fired = Note(FLEventFired(event="_before_job_launch", job=filled.running[0], handlers=3))
        refused = CallRefused(method="start_app", code="ALREADY_STARTED", message="There is nothing to start.")
        of_jobs = [Note(refused, job) for job in filled.chance.choices(filled.running, k=AT_ONCE // 2)]
        notes = [*of_jobs, *[fired] * (AT_ONCE - len(of_jobs))]
        filled.site.jobs.note_all(Call(call_id=new_call_id(), actor=OPERATOR, step="notes"), notes)
        ahead = began + (number + 1) * AT_ONCE / PER_SECOND - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
    return time.monotonic() - began


def _seq(position: Any) -> int:
    return int(str(position).partition("-")[2])

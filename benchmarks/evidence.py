"""record: verifying, looking back, rebuilding while the site works, bytes kept, and what the sealer costs."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from rich.console import Console

from benchmarks import replay as log
from benchmarks.append import new_call
from benchmarks.harness import (
    Result,
    Row,
    alternating,
    kilo,
    machine,
    millis,
    per_second,
    percentile,
    ratios,
    record,
    scratch,
    spread,
    two,
)
from benchmarks.life import claimed, deploy_request
from engine.fold import JobState, apply, fact_of
from engine.jobs import Jobs
from engine.readmodels.moments import KEEP_FROM, Moments
from engine.rebuild import rebuild_site
from engine.record.findings import Source
from engine.record.mending import mend
from engine.record.verify import Verification
from events.bodies.job import CallRepeated
from events.keep import to_disk, trim
from events.read import count, read, read_job
from events.seal import Sealer
from events.segments import Archive
from events.store import Store, connect

ROUNDS = 3
EVENTS = int(os.environ.get("FLIGHTLOG_BENCH_EVENTS") or 1_000_000)  # of the rebuild
LONG = 10_000  # events of one job
LOOKS = 200  # at moments of it
APPENDS = 20_000  # of one block, with the sealer and without
LIBRARY = 3_000  # events for the other library


def run(notes: Console) -> Result:
    """Measure the group."""
    with record() as store_for, tempfile.TemporaryDirectory(prefix="fl-bench-") as folder:
        result = Result("record", machine(store_for("machine")))
        _verify(store_for("verify"), Path(folder) / "verify", result, notes)
        _moments(store_for("moments"), Path(folder) / "moments", result, notes)
        _sealing(store_for("sealing"), Path(folder) / "sealing", result, notes)
        _library(store_for("library"), Path(folder), result, notes)
    _rebuild(result, notes)
    return result


def _sealed(store: Store, folder: Path) -> Sealer:
    sealer = Sealer(store, folder, "flightlog/bench/0")
    sealer.begin()
    while sealer.step() is not None:
        pass
    return sealer


def _whole(archive: Archive) -> Iterator[Any]:
    """What is on disk, and what it is found by, as ``flightlog verify`` looks at it."""
    yield from archive.read()
    archive.check_indexes()


def _verify(store: Store, folder: Path, result: Result, notes: Console) -> None:
    log.write(store)
    rebuild_site(store)
    raw = sum(len(e.position) + len(e.type) + len(e.subject) + len(str(e.version)) + len(e.raw) for e in read(store))
    memory = int(store.command("MEMORY", "USAGE", store.keys.log, "SAMPLES", "0"))
    sealer = _sealed(store, folder)
    source = partial(Source, notes=[sealer.note], chain=sealer.keys.chain(), tree=sealer.tree)
    store.archive = Archive(folder / "segments")
    to_disk(store, sealer.tree, sealer.size)
    disk = sum(path.stat().st_size for path in (folder / "segments").iterdir())
    tree = sum(path.stat().st_size for path in (folder / "tree").iterdir())
    notes.print(f"record: {log.EVENTS} events sealed")

    def verified(events: Iterator[Any]) -> None:
        report = Verification(source(events=events)).run()
        if report.problems or report.events < log.EVENTS - 5_000:
            raise AssertionError(report.problems[:1])

    plain = Store(store.client, store.site)
    seconds = alternating(
        {
            "from Redis": lambda: verified(read(plain)),
            "from segments": lambda: verified(_whole(store.archive)) if store.archive else None,
            "reading alone": lambda: sum(1 for _ in read(plain)),
        },
        ROUNDS,
    )
    rates = {
        name: result.keep(f"verify {name}, events/s", (log.EVENTS / s for s in seconds[name])) for name in seconds
    }
    for name in ("from Redis", "from segments"):
        result.add(
            Row(
                what=f"verify, {name}: order, schema, transitions, tree, signatures",
                ours=spread(rates[name], per_second) + "/s",
                against="reading alone " + spread(rates["reading alone"], per_second) + "/s",
                goal=">= 50k/s",
                met=statistics.median(rates[name]) >= 50_000,
            )
        )
    sizes = {"in Redis": memory, "in segments": disk, "in the tree": tree}
    for name, value in sizes.items():
        result.keep(f"bytes per event {name}", [value / log.EVENTS])
        result.add(
            Row(
                what=f"bytes of an event {name}",
                ours=kilo(value / log.EVENTS),
                against=f"its stored fields {kilo(raw / log.EVENTS)}",
                figure=two(value / raw),
            )
        )
    sealer.close()


def _moments(store: Store, folder: Path, result: Result, notes: Console) -> None:
    jobs, job = Jobs(store), "long-job"
    jobs.transact(new_call(), job, lambda state: [deploy_request(job)])
    for start in range(0, LONG - 1, 500):
        bodies = [claimed("launch", job, start + n) for n in range(min(500, LONG - 1 - start))]
        jobs.note(new_call("claims"), bodies, job)
    moments = Moments(store)
    for version in range(KEEP_FROM, LONG + 1, KEEP_FROM):
        moments.at_version(job, version)  # as the feeder keeps them
    dice = random.Random(7)

    def look() -> list[float]:
        taken = []
        for version in (dice.randint(1, LONG) for _ in range(LOOKS)):
            began = time.perf_counter()
            loaded, _ = moments.with_event(job, version)
            taken.append(time.perf_counter() - began)
            if loaded.version != version:
                raise AssertionError("another moment")
        return taken

    sealer = _sealed(store, folder)
    for where in ("Redis", "segments"):
        taken = result.keep(f"any moment, from {where}, s", look())
        result.add(
            Row(
                what=f"any moment of a job with {LONG:,} events, from {where}",
                ours=f"p50 {millis(percentile(taken, 0.5))}, p99 {millis(percentile(taken, 0.99))}",
                figure=f"at most {millis(max(taken))}",
                goal="<= 100 ms",
                met=percentile(taken, 0.99) <= 0.1,
            )
        )
        store.archive = Archive(folder / "segments")
        to_disk(store, sealer.tree, sealer.size)
        while trim(store, 10):
            pass
    sealer.close()
    notes.print(f"record: {LOOKS} moments looked at, twice")


def _sealing(store: Store, folder: Path, result: Result, notes: Console) -> None:
    """Server CPU per append, with the sealer following and without."""
    jobs = Jobs(store)
    for name in range(7):
        jobs.transact(new_call(), f"job-{name}", lambda state, name=name: [deploy_request(f"job-{name}")])  # type: ignore[misc]

    def cpu() -> float:
        info = store.client.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    def block() -> float:
        before = cpu()
        for number in range(APPENDS):
            jobs.note(new_call(), [CallRepeated(method="start_app", state="running")], f"job-{number % 7}")
        return (cpu() - before) / APPENDS

    kwargs = store.client.connection_pool.connection_kwargs
    block()
    taken: dict[str, list[float]] = {"without": [], "with": []}
    for turn in range(8):
        for name in ("without", "with") if turn % 2 else ("with", "without"):
            with _follows(f"unix://{kwargs['path']}", store.site, folder) if name == "with" else _nobody():
                taken[name].append(block())
    result.keep("server CPU per append without the sealer, s", taken["without"])
    result.keep("server CPU per append with it, s", taken["with"])
    ratio = ratios(taken["with"], taken["without"])
    result.add(
        Row(
            what="server CPU of an append, with the sealer",
            ours=spread([1e6 * t for t in taken["with"]], lambda v: f"{v:.1f} µs"),
            against="without " + spread([1e6 * t for t in taken["without"]], lambda v: f"{v:.1f} µs"),
            figure=spread(ratio, two),
            goal="<= 1.05",
            met=statistics.median(ratio) <= 1.05,
        )
    )
    notes.print("record: appends with and without the sealer")


@contextmanager
def _nobody() -> Iterator[None]:
    time.sleep(0.2)
    yield


def _follow(url: str, site: str, folder: str, stop: Any) -> None:
    sealer = Sealer(Store(connect(url), site), Path(folder), "flightlog/bench/0")
    sealer.begin()
    while not stop.wait(1.0):
        sealer.step()
    sealer.close()


@contextmanager
def _follows(url: str, site: str, folder: Path) -> Iterator[None]:
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    process = context.Process(target=_follow, args=(url, site, str(folder), stop))
    process.start()
    time.sleep(0.2)
    try:
        yield
    finally:
        stop.set()
        process.join(20)


def _rebuild(result: Result, notes: Console) -> None:
    """Projections written anew from a large log, while another process makes calls."""
    with scratch(), record() as store_for:
        store = store_for("rebuild")
        copies = max(1, EVENTS // log.EVENTS)
        _write_many(store, copies)
        rebuild_site(store)
        total = count(store)
        notes.print(f"record: {total} events written")
        kwargs = store.client.connection_pool.connection_kwargs
        url = f"unix://{kwargs['path']}"
        quiet = _calls_during(url, store.site, lambda: time.sleep(5))
        took: list[float] = []

        def rebuilt() -> None:
            began = time.perf_counter()
            events, differed = mend(Jobs(store), new_call())
            took.append(time.perf_counter() - began)
            if events < total or differed:
                raise AssertionError(f"{events} events, {differed} jobs differed")

        busy = _calls_during(url, store.site, rebuilt)
        result.keep("calls meanwhile, s", busy[:2000])
        result.keep("calls without, s", quiet[:2000])
        result.keep("rebuild, s", took)
        result.add(
            Row(
                what=f"rebuild of {total:,} events while the site works",
                ours=f"{took[0]:.1f} s, {per_second(total / took[0])}/s",
                against=f"calls without: p50 {millis(percentile(quiet, 0.5))}, p99 {millis(percentile(quiet, 0.99))}",
                figure=f"calls meanwhile: p50 {millis(percentile(busy, 0.5))}, p99 {millis(percentile(busy, 0.99))}, "
                f"at most {millis(max(busy))}",
            )
        )


def _write_many(store: Store, copies: int) -> None:
    """The week of ``replay``, several times, with other jobs each time."""
    entries = []
    week = Store(store.client, "week")
    log.write(week)
    entries = [(e.type, e.subject, e.version, e.raw) for e in read(week)]
    store.client.delete(week.keys.log)
    began = int(time.time() * 1000) - 7 * 86_400_000
    seq, site = 0, 0
    for copy in range(copies):
        pipe = store.client.pipeline(transaction=False)
        for kind, subject, version, raw in entries:
            seq += 1
            name, number = (f"{subject}-{copy}", version) if subject != "site" else (subject, version + site)
            fields: dict[Any, Any] = {"t": kind, "s": name, "v": number, "d": raw}
            pipe.xadd(store.keys.log, fields, id=f"{began + seq}-{seq}")
            if len(pipe) >= 2000:
                pipe.execute()
        pipe.execute()
        site += max((v for k, s, v, r in entries if s == "site"), default=0)


def _call(url: str, site: str, stop: Any, told: Any) -> None:
    jobs, taken, number = Jobs(Store(connect(url), site)), [], 0
    while not stop.is_set():
        began = time.perf_counter()
        number += 1
        name = f"call-{os.getpid()}-{number}"
        jobs.transact(new_call(f"c{os.getpid()}"), name, lambda state, name=name: [deploy_request(name)])  # type: ignore[misc]
        taken.append(time.perf_counter() - began)
        time.sleep(0.002)
    told.send(taken)


def _calls_during(url: str, site: str, what: Any) -> list[float]:
    context = multiprocessing.get_context("fork")
    stop, (ours, theirs) = context.Event(), context.Pipe()
    process = context.Process(target=_call, args=(url, site, stop, theirs))
    process.start()
    try:
        what()
    finally:
        stop.set()
        taken: list[float] = ours.recv()
        process.join(10)
    return taken


# -- beside it, the eventsourcing library ------------------------------------------------------


class _Job(Aggregate):
    """A job as the other library has it: one aggregate, one event per step."""

    @event("Stepped")
    def step(self, kind: str, body: str) -> None:
        """Take a step."""
        self.kind = kind
        self.count = getattr(self, "count", 0) + 1

    @classmethod
    def create_id(cls, name: str) -> Any:
        """By name."""
        return uuid5(NAMESPACE_URL, name)

    def __init__(self, name: str) -> None:
        self.name = name


class _Site(Application):
    """The other library's application."""


def _library(store: Store, folder: Path, result: Result, notes: Console) -> None:
    jobs, job = Jobs(store), "beside"
    jobs.transact(new_call(), job, lambda state: [deploy_request(job)])
    theirs = _Site(
        env={
            "PERSISTENCE_MODULE": "eventsourcing.sqlite",
            "SQLITE_DBNAME": str(folder / "other.db"),
        }
    )
    body = claimed("launch", job, 1)
    text = json.dumps(body.model_dump(mode="json"))
    other = _Job(name=job)
    theirs.save(other)

    def ours_append() -> None:
        for number in range(LIBRARY):
            jobs.note(new_call(), [claimed("launch", job, number)], job)

    def theirs_append() -> None:
        for _ in range(LIBRARY):
            other.step("WorkClaimed", text)
            theirs.save(other)

    def ours_replay() -> None:
        state = JobState()
        for one in islice(read_job(store, job), LIBRARY):
            state = apply(state, fact_of(one))

    def theirs_replay() -> None:
        if theirs.repository.get(other.id).version < LIBRARY:
            raise AssertionError("too few")

    appended = alternating({"ours": ours_append, "eventsourcing": theirs_append}, 3)
    rows = int(theirs.repository.get(other.id).version)
    replayed = alternating({"ours": ours_replay, "eventsourcing": theirs_replay}, 3)
    for what, seconds, number in (
        ("append of one event", appended, {"ours": LIBRARY, "eventsourcing": LIBRARY}),
        ("replay of one job", replayed, {"ours": LIBRARY, "eventsourcing": rows}),
    ):
        rates = {
            name: result.keep(f"{what}, {name}, events/s", (number[name] / s for s in seconds[name]))
            for name in seconds
        }
        result.add(
            Row(
                what=f"{what}, beside eventsourcing 9 on SQLite",
                ours=spread(rates["ours"], per_second) + "/s",
                against=spread(rates["eventsourcing"], per_second) + "/s",
                figure=spread(ratios(rates["ours"], rates["eventsourcing"]), two),
            )
        )
    theirs.close()
    notes.print("record: the same with the eventsourcing library")

"""site: does a site of 10,000 finished jobs answer like one of ten, and what does a job cost in memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from rich.console import Console

from benchmarks.harness import Result, Row, alternating, kilo, machine, millis, ratios, record, spread, two
from benchmarks.life import append_lives, lives
from engine.jobs import Jobs
from events.store import Store

LARGE, PAGE, SMALL = 10_000, 50, 10
PER_APPEND = 10  # jobs recorded in one append
ROUNDS = 9
CALLS = 60  # in a block
SAMPLES = 300  # keys of a kind that are weighed
GOAL = 2.0
CALLS_PER_JOB = 12  # calls and steps that a job's life has, each remembered for ten minutes


def run(notes: Console) -> Result:
    """Measure the group."""
    with record() as store_for:
        # Warm scripts and buffers first, so that they are not counted to the jobs.
        small = fill(store_for("small"), SMALL)
        page = fill(store_for("page"), PAGE)
        store = store_for("large")
        result = Result("site", machine(store))
        before = used(store)
        began = time.monotonic()
        large = fill(store, LARGE, notes)
        notes.print(f"site: {LARGE} finished jobs recorded in {time.monotonic() - began:.0f} s")
        events = int(store.client.xlen(store.keys.log))
        call_bytes = forget_calls(store)
        per_job = (used(store) - before) / LARGE
        _times(result, large, page, small)
        _weights(result, store, events, per_job, call_bytes)
        why = large.consistent()
        if why:
            raise AssertionError(why)
        return result


def fill(store: Store, count: int, notes: Console | None = None) -> Jobs:
    """Record the lives of so many finished jobs."""
    jobs = Jobs(store)
    batch, done = [], 0
    for life in lives(count, ends="finished"):
        batch.append(life)
        if len(batch) == PER_APPEND:
            append_lives(jobs, batch)
            batch, done = [], done + len(batch)
            if notes is not None and done % (count // 5) == 0:
                notes.print(f"site: {done} jobs")
    if batch:
        append_lives(jobs, batch)
    return jobs


def used(store: Store) -> int:
    """Bytes that the server has in use."""
    return int(store.client.info("memory")["used_memory"])


def forget_calls(store: Store) -> float:
    """Remove the remembered calls, which go by themselves after ten minutes; the bytes of one."""
    names = list(store.client.scan_iter(match=f"{store.keys.prefix}call:*", count=1000))
    one = statistics.mean(weigh(store, name) for name in names[:SAMPLES])
    for at in range(0, len(names), 500):
        store.client.delete(*names[at : at + 500])
    return one


def weigh(store: Store, name: str) -> int:
    """Bytes of one key with all that it holds."""
    return int(store.command("MEMORY", "USAGE", name, "SAMPLES", "0") or 0)


def _times(result: Result, large: Jobs, page: Jobs, small: Jobs) -> None:
    """List and show, in turn on the large site and on a small one."""

    def listing(jobs: Jobs, limit: int) -> Callable[[], object]:
        def block() -> None:
            for _ in range(CALLS):
                found = jobs.load_many(jobs.ids(limit=limit))
                assert len(found) == limit

        return block

    def showing(jobs: Jobs, count: int) -> Callable[[], object]:
        ids = jobs.ids(limit=count)
        chosen = [ids[i * len(ids) // CALLS] for i in range(CALLS)]

        def block() -> None:
            for job in chosen:
                assert jobs.load(job).known

        return block

    pairs = (
        (f"list, a page of {SMALL}: {LARGE} jobs and {SMALL}", listing(large, SMALL), listing(small, SMALL)),
        (f"list, a page of {PAGE}: {LARGE} jobs and {PAGE}", listing(large, PAGE), listing(page, PAGE)),
        (f"show: {LARGE} jobs and {SMALL}", showing(large, LARGE), showing(small, SMALL)),
    )
    for what, ours, against in pairs:
        ours()
        against()
        seconds = alternating({"large": ours, "small": against}, ROUNDS)
        one = result.keep(f"{what}: large, s", (s / CALLS for s in seconds["large"]))
        other = result.keep(f"{what}: small, s", (s / CALLS for s in seconds["small"]))
        found = ratios(one, other)
        result.add(
            Row(
                what=what,
                ours=spread(one, millis),
                against=spread(other, millis),
                figure=spread(found, two),
                goal=f"<= {GOAL:.0f}",
                met=statistics.median(found) <= GOAL,
            )
        )


def _weights(result: Result, store: Store, events: int, per_job: float, call_bytes: float) -> None:
    """What a finished job costs, and where."""
    keys = store.keys
    ids = Jobs(store).ids(limit=LARGE)[:: LARGE // SAMPLES]
    parts = {
        "log": weigh(store, keys.log) / LARGE,
        "projection": statistics.mean(weigh(store, keys.job(job)) for job in ids),
        "index": statistics.mean(weigh(store, keys.index(job)) for job in ids),
        "heads": weigh(store, keys.heads) / LARGE,
        "sets": (weigh(store, keys.by_time) + weigh(store, keys.state("finished"))) / LARGE,
    }
    result.samples["bytes per finished job"] = [round(per_job)]
    for name, value in parts.items():
        result.samples[f"{name}, bytes per finished job"] = [round(value)]
    derived = sum(parts.values()) - parts["log"]
    result.add(
        Row(
            what="memory of a finished job (used_memory)",
            ours=kilo(per_job),
            figure=f"{events / LARGE:.1f} events, {parts['log'] / (events / LARGE):.0f} B each in the log",
        )
    )
    result.add(
        Row(
            what="- of which log / derived keys (MEMORY USAGE)",
            ours=f"{kilo(parts['log'])} / {kilo(derived)}",
            figure=", ".join(f"{name} {kilo(value)}" for name, value in parts.items() if name != "log"),
        )
    )
    result.add(
        Row(
            what="- and for ten minutes more, its remembered calls",
            ours=kilo(call_bytes * CALLS_PER_JOB),
            figure=f"{CALLS_PER_JOB} of {kilo(call_bytes)}",
        )
    )

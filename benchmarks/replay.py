"""replay: folding a log of 100,000 events, reading included."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any, cast

from rich.console import Console

from benchmarks.harness import Result, Row, alternating, machine, per_second, record, spread
from benchmarks.life import OPERATOR, lives
from engine.fold import JobState, apply, fact_of
from engine.jobs import Jobs
from engine.rebuild import JobProjector, rebuild_site
from engine.replay import statuses
from events.envelope import encode
from events.read import PAGE, read
from events.store import Store
from events.subjects import SITE, job_of, job_subject

EVENTS = 100_000
JOBS = 5_000
ROUNDS = 5
GOAL_STATES, GOAL_FULL = 200_000, 80_000


def run(notes: Console) -> Result:
    """Measure the group."""
    with record() as store_for:
        store = store_for("replay")
        result = Result("replay", machine(store))
        jobs = write(store)
        notes.print(f"replay: {EVENTS} events of {jobs} jobs written")
        states = statuses(store)
        full = projected(store)
        if states != {job: state["state"] for job, state in full.items()} or len(states) != jobs:
            raise AssertionError("the two folds differ")
        seconds = alternating(
            {
                "reading alone": lambda: sum(len(page) for page in pages(store)),
                "reading into Event": lambda: sum(1 for _ in read(store)),
                "states only": lambda: statuses(store),
                "full projection": lambda: projected(store),
                "apply": lambda: folded(store),
            },
            ROUNDS,
        )
        rates = {name: result.keep(f"{name}, events/s", (EVENTS / s for s in seconds[name])) for name in seconds}
        against = "reading alone " + spread(rates["reading alone"], per_second) + "/s"
        rows = (
            ("states only: engine.replay.statuses", "states only", GOAL_STATES),
            ("full projections: rebuild.JobProjector over events.read", "full projection", GOAL_FULL),
            ("full projections: fold.apply over events.read", "apply", None),
            ("events.read alone: pages into Event", "reading into Event", None),
        )
        for what, name, goal in rows:
            result.add(
                Row(
                    what=what,
                    ours=spread(rates[name], per_second) + "/s",
                    against=against,
                    figure=f"{statistics.median(seconds[name]):.2f} s",
                    goal=f">= {goal // 1000}k/s" if goal else "",
                    met=statistics.median(rates[name]) >= goal if goal else None,
                )
            )
        _rebuilt(store, result, full)
        return result


def write(store: Store) -> int:
    """Write the log as the appends of a busy week left it: a call for each step, old enough to be forgotten.

    The entries alone, in pipelines; heads and projections come with the rebuild.
    """
    actors = {OPERATOR: OPERATOR.model_dump_json(exclude_none=True)}
    began = int(time.time() * 1000) - 7 * 86_400_000
    versions: dict[str, int] = {}
    seq = 0
    pipe = store.client.pipeline(transaction=False)
    for jobs, (job, steps) in enumerate(lives(EVENTS // 15), start=1):
        for step in steps:
            seq += 1
            subject = job_subject(job) if step.job else SITE
            versions[subject] = versions.get(subject, 0) + 1
            actor = step.call.actor
            if actor not in actors:
                actors[actor] = actor.model_dump_json(exclude_none=True)
            fields: dict[Any, Any] = {
                "t": step.body.name(),
                "s": subject,
                "v": versions[subject],
                "d": encode(step.call, actors[actor], step.body, 1),
            }
            pipe.xadd(store.keys.log, fields, id=f"{began + seq * 6000}-{seq}")
            if seq == EVENTS:
                break
        if len(pipe) >= PAGE or seq == EVENTS:
            pipe.execute()
        if seq == EVENTS:
            return jobs
    raise AssertionError("too few lives")


def pages(store: Store) -> Iterator[list[Any]]:
    """The log's entries, page by page, as the server sends them."""
    cursor = "0-0"
    while True:
        page = cast("list[Any]", store.client.xrange(store.keys.log, min=f"({cursor}", count=PAGE))
        yield page
        if len(page) < PAGE:
            return
        cursor = page[-1][0]


def projected(store: Store) -> dict[str, JobState]:
    """Projections, open work and remembered calls, as a rebuild folds them."""
    projector = JobProjector(store)
    for event in read(store):
        projector.apply(event)
    return projector.states


def folded(store: Store) -> dict[str, JobState]:
    """Projections alone, as ``engine.fold.fold`` does, but without a list of all events."""
    states: dict[str, JobState] = {}
    for event in read(store):
        job = job_of(event.subject)
        if job is not None:
            states[job] = apply(states.get(job) or JobState(), fact_of(event))
    return states


def _rebuilt(store: Store, result: Result, full: dict[str, JobState]) -> None:
    """A whole rebuild, once, and a look at what it wrote."""
    began = time.perf_counter()
    rebuild_site(store)
    seconds = time.perf_counter() - began
    result.keep("whole rebuild, s", [seconds])
    result.add(
        Row(
            what="a whole rebuild: fold, and write heads, indexes, projections",
            ours=f"{per_second(EVENTS / seconds)}/s",
            figure=f"{seconds:.2f} s",
        )
    )
    jobs = Jobs(store)
    for job in list(full)[:: len(full) // 50]:
        if jobs.load(job).state != full[job]:
            raise AssertionError(f"the rebuilt projection of {job} is not the folded one")

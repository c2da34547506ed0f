"""append: one call of the append script against a bare XADD of the same bytes."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from rich.console import Console

from benchmarks.harness import Result, Row, alternating, machine, per_second, ratios, record, spread, two
from benchmarks.life import OPERATOR, claimed, deploy_request, reads, start_request
from engine.fold import JobState
from engine.jobs import Jobs
from engine.projection import facts_to_be, note_ops, project
from events.append import NewEvent, Ops
from events.bodies.app import LaunchFailed
from events.bodies.base import Body
from events.bodies.job import DeploySucceeded
from events.envelope import Call, encode
from events.store import Store
from events.subjects import SITE, job_subject

ROUNDS = 15
SINGLES = 400  # calls of one event in a block
BATCHES = 25  # calls of BATCH events in a block
BATCH = 100
JOBS = 50
GOAL_SINGLE, GOAL_BATCH = 0.55, 0.6

_numbers = itertools.count()


class Call1(NamedTuple):
    """Arguments of one append."""

    call: Call
    events: list[NewEvent]
    ops: Ops | None
    expected: tuple[str, int] | None


def _always(body: Body, _: JobState) -> list[Body]:
    return [body]


def new_call(step: str = "intent") -> Call:
    """A call that never came before."""
    return Call(call_id=f"0192f3a4-{next(_numbers):012x}", actor=OPERATOR, step=step, arguments="0123456789abcdef")


class Bench:
    """The blocks, and what they need: jobs in place, and arguments made before the clock runs."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.jobs = Jobs(store)
        self.names = [f"7c1d{number:04}-bench" for number in range(JOBS)]
        self.states: dict[str, tuple[JobState, int]] = {}
        self.raw_key = store.keys.prefix + "raw"
        for name in self.names:
            request = deploy_request(name)
            self.jobs.transact(new_call(), name, partial(_always, request))
            placed = DeploySucceeded(files=12, bytes=310_000)
            done = self.jobs.transact(new_call(), name, partial(_always, placed))
            assert done is not None
            self.states[name] = (done.state, done.revision)

    # -- arguments, made before the clock runs

    def note(self, number: int) -> Call1:
        """A worker's claim as a note about a job: one event, one counter."""
        name = self.names[number % JOBS]
        body = claimed("launch", name, number)
        call = new_call("claim")
        return Call1(call, [NewEvent(job_subject(name), body)], note_ops(call, name, [body]), None)

    def site_note(self, number: int) -> Call1:
        """A note about the site: one event, nothing beside it."""
        return Call1(new_call("reads"), [NewEvent(SITE, reads(number + 1))], None, None)

    def transition(self, number: int) -> Call1:
        """In turn a start that opens work and the failed launch that closes it, at an expected revision."""
        name = self.names[number % JOBS]
        state, revision = self.states[name]
        body: Body = (
            LaunchFailed(attempt=state.attempt, code="COMMAND_NOT_FOUND", error="no such program: pyhton")
            if state.live
            else start_request(state.attempt + 1)
        )
        call = new_call()
        after, ops = project(name, state, facts_to_be(call, [body]))
        self.states[name] = (after, revision + 1)
        subject = job_subject(name)
        return Call1(call, [NewEvent(subject, body)], ops, (subject, revision))

    def batch(self, number: int) -> Call1:
        """What ``engine.observed`` may have to record after a busy second: notes about the site."""
        return Call1(new_call("reads"), [NewEvent(SITE, reads(number + k + 1)) for k in range(BATCH)], None, None)

    def job_batch(self, number: int) -> Call1:
        """Notes about fifty jobs, each with its counter."""
        call, ops, events = new_call("claim"), Ops(), []
        for k in range(BATCH):
            name = self.names[k % JOBS]
            body = claimed("launch", name, number + k)
            note_ops(call, name, [body], ops, first=k)
            events.append(NewEvent(job_subject(name), body))
        return Call1(call, events, ops, None)

    # -- blocks

    def ours(self, calls: Sequence[Call1]) -> None:
        """Append each."""
        for call, events, ops, expected in calls:
            self.jobs.log.append(call, events, ops, expected=expected)

    def transacts(self, count: int) -> None:
        """The same transitions the whole way: load, decide, project, append."""
        for number in range(count):
            name = self.names[number % JOBS]

            def decide(state: JobState) -> list[Body]:
                if state.live:
                    return [LaunchFailed(attempt=state.attempt, code="COMMAND_NOT_FOUND", error="no such program")]
                return [start_request(state.attempt + 1)]

            done = self.jobs.transact(new_call(), name, decide)
            assert done is not None
            self.states[name] = (done.state, done.revision)

    def entries(self, calls: Sequence[Call1]) -> list[list[dict[str, str]]]:
        """The same fields for a bare XADD, each call's apart."""
        actor = OPERATOR.model_dump_json(exclude_none=True)
        return [
            [
                {"t": e.body.name(), "s": e.subject, "v": "17", "d": encode(call.call, actor, e.body, 1)}
                for e in call.events
            ]
            for call in calls
        ]

    def raw(self, calls: Sequence[list[dict[str, str]]]) -> None:
        """A bare XADD each, as redis-py does it."""
        client, key = self.store.client, self.raw_key
        for (fields,) in calls:
            client.xadd(key, cast("Any", fields))

    def raw_batches(self, calls: Sequence[list[dict[str, str]]]) -> None:
        """A pipeline of bare XADDs for each call."""
        for entries in calls:
            pipe = self.store.client.pipeline(transaction=False)
            for fields in entries:
                pipe.xadd(self.raw_key, cast("Any", fields))
            pipe.execute()

    def in_server(self, block: Callable[[], object], command: str) -> float:
        """Microseconds of the server's own time per call of a command in a block."""
        self.store.client.config_resetstat()
        block()
        stats = self.store.client.info("commandstats")
        return float(stats[f"cmdstat_{command}"]["usec_per_call"])

    def close_all(self) -> None:
        """No job of ours is left starting."""
        for name, (state, _) in self.states.items():
            if state.live:
                self.ours([self.transition(self.names.index(name))])


def run(notes: Console) -> Result:
    """Measure the group."""
    with record() as store_for:
        bench = Bench(store_for("append"))
        result = Result("append", machine(bench.store))
        singles = (
            ("note about a job, with its counter", bench.note, GOAL_SINGLE),
            ("transition: projection, sets, work, expected revision", bench.transition, GOAL_SINGLE),
            ("note about the site, nothing beside it", bench.site_note, None),
        )
        batches = (
            (f"{BATCH} notes about the site in one call", bench.batch, GOAL_BATCH),
            (f"{BATCH} notes about {JOBS} jobs in one call, with counters", bench.job_batch, None),
        )
        for what, make, goal in singles:
            _compare(bench, result, what, make, goal, SINGLES, 1, bench.raw)
            notes.print(f"append: {what}")
        bench.close_all()
        _transact(bench, result)
        for what, make, goal in batches:
            _compare(bench, result, what, make, goal, BATCHES, BATCH, bench.raw_batches)
            notes.print(f"append: {what}")
        return result


def _compare(
    bench: Bench,
    result: Result,
    what: str,
    make: Callable[[int], Call1],
    goal: float | None,
    calls: int,
    size: int,
    raw: Callable[[Sequence[list[dict[str, str]]]], None],
) -> None:
    """Blocks of ours and raw in turn, on one connection; arguments are made before."""
    # One block more than rounds warms up, and one is for the server's own time. In order: revisions go up.
    made = [[make(i) for i in range(calls)] for _ in range(ROUNDS + 2)]
    prepared = iter(made)
    entries = bench.entries(made[0])
    bench.ours(next(prepared))
    raw(entries)
    in_server = bench.in_server(lambda: bench.ours(next(prepared)), "evalsha")
    raw_in_server = bench.in_server(lambda: raw(entries), "xadd")
    seconds = alternating({"ours": lambda: bench.ours(next(prepared)), "raw": lambda: raw(entries)}, ROUNDS)
    ours = result.keep(f"{what}: ours, events/s", (calls * size / s for s in seconds["ours"]))
    against = result.keep(f"{what}: raw XADD, events/s", (calls * size / s for s in seconds["raw"]))
    found = ratios(ours, against)
    result.add(
        Row(
            what=what,
            ours=spread(ours, per_second) + "/s",
            against=("raw XADD " if size == 1 else f"{size} raw XADD in a pipeline ")
            + spread(against, per_second)
            + "/s",
            figure=spread(found, two),
            goal=f">= {goal}" if goal else "",
            met=statistics.median(found) >= goal if goal else None,
        )
    )
    result.keep(f"{what}: in the server, us per event", [in_server / size, raw_in_server])
    result.add(
        Row(
            what="- of which in the server, per event",
            ours=f"{in_server / size:.1f} us",
            against=f"{raw_in_server:.1f} us",
            figure=two(raw_in_server / (in_server / size)),
        )
    )


def _transact(bench: Bench, result: Result) -> None:
    entries = bench.entries([bench.note(i) for i in range(SINGLES)])
    # Twice as many as jobs, so that every job is back at rest after each block.
    count = SINGLES // (2 * JOBS) * 2 * JOBS
    bench.transacts(2 * JOBS)
    seconds = alternating({"ours": lambda: bench.transacts(count), "raw": lambda: bench.raw(entries)}, ROUNDS)
    ours = result.keep("Jobs.transact, per s", (count / s for s in seconds["ours"]))
    against = result.keep("raw XADD beside Jobs.transact, per s", (SINGLES / s for s in seconds["raw"]))
    result.add(
        Row(
            what="Jobs.transact: load, decide, project, append",
            ours=spread(ours, per_second) + "/s",
            against="raw XADD " + spread(against, per_second) + "/s",
            figure=spread(ratios(ours, against), two),
        )
    )

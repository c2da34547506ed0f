"""From events that are about to be recorded to what changes with them: fields, sets, work."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from engine.fold import COUNTERS, LAST_WRITER, TABLE, Fact, JobState, changes, later, work_id
from engine.lifecycle import WORK
from events.append import Closing, Ops
from events.bodies.base import Body
from events.envelope import Call
from events.standin import ms_of, position_of

#: kind of work -> the condition under which it may be closed
Conditions = Mapping[str, tuple[Closing, str]]

FOREVER = "+inf"


def facts_to_be(call: Call, bodies: Sequence[Body], first: int = 0) -> list[Fact]:
    """The facts that these bodies will be, with stand-ins for time and position."""
    actor = call.actor.model_dump(mode="json")
    correlation = call.correlation or call.call_id
    return [
        Fact(
            body.name(),
            ms_of(first + i),
            position_of(first + i),
            actor,
            correlation,
            body.model_dump(mode="json", exclude={"type"}),
        )
        for i, body in enumerate(bodies)
    ]


def project(
    job_id: str,
    state: JobState,
    facts: Sequence[Fact],
    conditions: Conditions | None = None,
    ops: Ops | None = None,
) -> tuple[JobState, Ops]:
    """Fold facts onto a state, and say what to write.

    Args:
        job_id: whose state this is.
        state: before the facts.
        facts: in order.
        conditions: by kind of work, how it may be closed; where a kind is not named, "any".
        ops: operations to add to.

    Returns:
        The state after, and the operations.

    Raises:
        engine.fold.Illegal: one of the facts cannot come.
    """
    ops = ops or Ops()
    before = state.get("state", "new")
    after = JobState(state)
    changed: dict[str, str] = {}
    for fact in facts:
        change = changes(after, fact)
        news = {name: value for name, value in change.items() if value != after.get(name)}
        after.update(change)
        if fact.type in COUNTERS:
            ops.add(f"job:{job_id}", COUNTERS[fact.type])
        else:
            changed.update(news)
        _work(job_id, after, fact, conditions or {}, ops)
    ops.set(f"job:{job_id}", changed)
    now = after.get("state", "new")
    if before not in (now, "new"):
        ops.drop(f"by:state:{before}", job_id)
    if "since" in changed:
        ops.put(f"by:state:{now}", after["since"], job_id)
        ops.put("by:time", after["since"], job_id)
    return after, ops


def _work(job_id: str, after: JobState, fact: Fact, conditions: Conditions, ops: Ops) -> None:
    for effect in WORK.get(fact.type, "").split():
        kind = effect[1:]
        name = work_id(kind, job_id, after)
        if effect[0] == "-":
            how, token = conditions.get(kind, ("any", ""))
            ops.close(name, how, token)
        else:
            ops.open(name, *opened(kind, job_id, after, fact))


def opened(kind: str, job_id: str, after: JobState, fact: Fact) -> tuple[str, dict[str, str]]:
    """Deadline and fields of work that an event opens."""
    deadline = later(fact.ms, fact.body["deadline"]) if "deadline" in fact.body else FOREVER
    fields = {
        "kind": kind,
        "job": job_id,
        "number": name_number(kind, after),
        "position": fact.position,
        "opened": fact.ms,
        "correlation": fact.correlation,
        "max": str(fact.body.get("attempts", 0)),
    }
    return deadline, fields


def name_number(kind: str, state: Mapping[str, str]) -> str:
    """The number in a work's id."""
    return work_id(kind, "", state).rpartition("_")[2]


def note_ops(job_id: str, bodies: Sequence[Body], ops: Ops | None = None) -> Ops:
    """What notes change, without looking at the state: they add, or are last-writer by nature.

    Raises:
        ValueError: a body is no note.
    """
    ops = ops or Ops()
    for body in bodies:
        name = body.name()
        if name in TABLE:
            raise ValueError(f"{name} is no note: it needs an expected revision")
        if name in COUNTERS:
            ops.add(f"job:{job_id}", COUNTERS[name])
        elif name in LAST_WRITER:
            ops.set(f"job:{job_id}", LAST_WRITER[name](json.loads(body.model_dump_json())))
        for effect in WORK.get(name, "").split():
            number = body.model_dump().get("attempt")
            ops.close(f"{effect[1:]}_{job_id}_{number}", "any")
    return ops

"""From events that are about to be recorded to what changes with them: fields, sets, work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.fold import COUNTERS, LAST_WRITER, TABLE, Fact, JobState, changes, counter_of, later, work_id
from engine.lifecycle import WORK
from events.append import Closing, Ops
from events.bodies.base import Body
from events.envelope import Call
from events.standin import ms_of, position_of

#: kind of work -> the condition under which it may be closed
Conditions = Mapping[str, tuple[Closing, str]]

FOREVER = "+inf"
#: Kinds of work whose second end is refused.
ONCE = ("aux", "transfer")


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
    after = JobState(state).seen_with(state.vault)
    changed: dict[str, str] = {}
    for fact in facts:
        change = changes(after, fact)
        news = {name: value for name, value in change.items() if value != after.get(name)}
        after.update(change)
        if counter := counter_of(fact.type, fact.body):
            ops.add(f"job:{job_id}", counter)
            news.pop(counter, None)
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
        name = work_id(kind, job_id, after, fact.body)
        if effect[0] == "-":
            how, token = conditions.get(kind, ("open" if kind in ONCE else "any", ""))
            ops.close(name, how, token)
            continue
        ops.open(name, *opened(kind, job_id, after, fact))
        if kind == "aux" and fact.body["transport"] == "lane":
            ops.push(lane_of(fact.body), fact.body["id"])


def lane_of(body: Mapping[str, Any]) -> str:
    """The lane of a message: one per kind of work and target."""
    return f"aux:{body['target']}"


def opened(kind: str, job_id: str, after: Mapping[str, str], fact: Fact) -> tuple[str, dict[str, str]]:
    """Deadline and fields of work that an event opens."""
    body = fact.body
    deadline = later(fact.ms, body["deadline"]) if "deadline" in body else FOREVER
    fields = {
        "kind": kind,
        "job": job_id,
        "number": work_id(kind, "", after, body).rpartition("_")[2],
        "position": fact.position,
        "opened": fact.ms,
        "correlation": fact.correlation,
        "max": str(body.get("attempts", 0)),
    }
    if kind == "aux":
        fields |= {
            "target": body["target"],
            "transport": body["transport"],
            "reply": "1" if body["reply"] else "0",
            "reply_key": body["reply_key"],
        }
    if kind == "transfer":
        fields |= {
            "tx": body["id"],
            "direction": body["direction"],
            "process": body["process"],
            "sender": body["sender"],
            "targets": " ".join(body["targets"]),
        }
    return deadline, fields


def note_ops(call: Call, job_id: str | None, bodies: Sequence[Body], ops: Ops | None = None, first: int = 0) -> Ops:
    """What notes change, without looking at the state: they add, or are last-writer by nature.

    Args:
        call: which they are of.
        job_id: the job that they are about; None: the site.
        bodies: in order.
        ops: operations to add to.
        first: which event of the append the first of them is.

    Raises:
        ValueError: a body is no note.
    """
    ops = ops or Ops()
    if not any(body.name() in _LEAVES_A_TRACE for body in bodies):
        return ops
    nothing = JobState()
    for fact in facts_to_be(call, bodies, first):
        if fact.type in TABLE:
            raise ValueError(f"{fact.type} is no note: it needs an expected revision")
        if job_id and (counter := counter_of(fact.type, fact.body)):
            ops.add(f"job:{job_id}", counter)
        if job_id and fact.type in LAST_WRITER:
            ops.set(f"job:{job_id}", LAST_WRITER[fact.type](fact))
        _work(job_id or "", nothing, fact, {}, ops)
    return ops


#: Event types for which something is to be done beside the append.
_LEAVES_A_TRACE = frozenset((*TABLE, *COUNTERS, *LAST_WRITER, *WORK))

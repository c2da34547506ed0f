"""Replay by the table alone: every job's state from the types of its events, without reading their facts."""

from __future__ import annotations

from engine.fold import TABLE
from engine.jobs import Jobs
from engine.lifecycle import State
from events.errors import RecordDamaged
from events.read import read
from events.store import Store
from events.subjects import job_of

PAGE = 2000


def statuses(store: Store) -> dict[str, str]:
    """Job id -> state, after the whole log. No JSON is parsed; guards on attempts are not looked at.

    Raises:
        RecordDamaged: an event cannot come in the state that its job was in.
    """
    states: dict[str, str] = {}
    seq = 0
    for event in read(store, page=PAGE):
        seq += 1
        if event.seq != seq:
            raise RecordDamaged(
                f"the log has a gap or a double before {event.position}: {seq} was to come",
                "restore it from a backup; two servers may have written to the same files",
            )
        row = TABLE.get(event.type)
        if row is None:
            continue
        there = row.get(states.get(event.subject, "new"))
        if there is None:
            raise RecordDamaged(
                f"event {event.position}: {event.type} cannot come in state "
                f"{states.get(event.subject, 'new')} of {event.subject}",
                "somebody wrote to the log; restore it from a backup",
            )
        states[event.subject] = there
    return {job: state for subject, state in states.items() if (job := job_of(subject)) is not None}


def differing(jobs: Jobs) -> list[str]:
    """Jobs whose place among the states is not what the replay says, looked at once more before they are named."""
    told = statuses(jobs.store)
    shown = {job: state.value for state in State for job in jobs.ids(state=state.value, limit=2**31)}
    return [
        job
        for job in told.keys() | shown.keys()
        if told.get(job) != shown.get(job) and jobs.load(job).state.state.value != shown.get(job)
    ]

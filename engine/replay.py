"""Replay by the table alone: every job's state from the types of its events, without reading their facts."""

from __future__ import annotations

from typing import Any, cast

from engine.fold import TABLE
from engine.jobs import Jobs
from engine.lifecycle import State
from events.errors import RecordDamaged
from events.store import Store, translated
from events.subjects import job_of

PAGE = 2000


def statuses(store: Store) -> dict[str, str]:
    """Job id -> state, after the whole log. No JSON is parsed; guards on attempts are not looked at.

    Raises:
        RecordDamaged: an event cannot come in the state that its job was in.
    """
    states: dict[str, str] = {}
    cursor, seq = "0-0", 0
    while True:
        with translated():
            page = cast("list[Any]", store.client.xrange(store.keys.log, min=f"({cursor}", count=PAGE))
        for position, (_, kind, _, subject, *_rest) in page:
            seq += 1
            if not position.endswith(f"-{seq}"):
                raise RecordDamaged(
                    f"the log has a gap or a double before {position}: {seq} was to come",
                    "restore it from a backup; two servers may have written to the same files",
                )
            row = TABLE.get(kind)
            if row is None:
                continue
            there = row.get(states.get(subject, "new"))
            if there is None:
                raise RecordDamaged(
                    f"event {position}: {kind} cannot come in state {states.get(subject, 'new')} of {subject}",
                    "somebody wrote to the log; restore it from a backup",
                )
            states[subject] = there
        if len(page) < PAGE:
            return {job: state for subject, state in states.items() if (job := job_of(subject)) is not None}
        cursor = page[-1][0]


def differing(jobs: Jobs) -> list[str]:
    """Jobs whose place among the states is not what the replay says, looked at once more before they are named."""
    told = statuses(jobs.store)
    shown = {job: state.value for state in State for job in jobs.ids(state=state.value, limit=2**31)}
    return [
        job
        for job in told.keys() | shown.keys()
        if told.get(job) != shown.get(job) and jobs.load(job).state.state.value != shown.get(job)
    ]

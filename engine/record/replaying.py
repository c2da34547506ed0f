"""Replay: a job as it was, event by event, forward and back; and whether what is shown is what the log says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from engine import present
from engine.errors import JobUnknown
from engine.fold import JobState, apply, fact_of
from engine.ids import check_job_id
from engine.jobs import Jobs, Loaded
from engine.lifecycle import EVENTS
from engine.readmodels.moments import Moments
from engine.rebuild import JobProjector
from engine.site import Site
from events.envelope import Event
from events.read import last_position, read, read_job


class Moment(NamedTuple):
    """A job after one of its events."""

    version: int
    state: JobState
    event: Event
    revision: int

    def shown(self, job: str) -> dict[str, Any]:
        """As ``flightlog show`` has it."""
        return present.job(job, Loaded(self.state, self.version, self.revision, self.event.position))


class Difference(NamedTuple):
    """One difference between a live projection and the fold of the log."""

    job: str
    field: str
    shown: str | None
    folded: str | None


class Replay:
    """A job's life, to be stepped through; a debugger or a notebook has it in its hand.

    Iterating gives a ``Moment`` after each event; ``at`` and indexing give one of them.

    Args:
        site: opened (``Site.open(workspace=...)``), or its jobs.
        job: id.

    Raises:
        JobUnknown: it is not on the record.
    """

    def __init__(self, site: Site | Jobs, job: str) -> None:
        self._jobs = site if isinstance(site, Jobs) else site.jobs
        self.job = check_job_id(job)
        self._moments = Moments(self._jobs.store)
        if not len(self):
            raise JobUnknown(f"job {job} is not on this site's record", "flightlog list shows the jobs of this site")

    def __len__(self) -> int:
        return self._moments.length(self.job)

    def __iter__(self) -> Iterator[Moment]:
        state, revision = JobState().seen_with(self._jobs.store.vault), 0
        for event in read_job(self._jobs.store, self.job):
            state = apply(state, fact_of(event))
            revision += event.type in EVENTS
            yield Moment(event.version, state, event, revision)

    def __getitem__(self, version: int) -> Moment:
        """After the event of a version; -1 is the last."""
        last = len(self)
        wanted = last + 1 + version if version < 0 else version
        if not 1 <= wanted <= last:
            raise IndexError(f"{self.job} has versions 1 to {last}")
        loaded, event = self._moments.with_event(self.job, wanted)
        return Moment(wanted, loaded.state, event, loaded.revision)

    def at(self, moment: str) -> Moment:
        """At a version (17), a position (1795531521766-6) or a time (2026-11-24T03:00:00Z).

        Raises:
            ArgumentInvalid: it is none of them, or still to come. JobUnknown: the job was not there yet.
        """
        return self[self._moments.resolve(self.job, moment)]

    @staticmethod
    def changes(before: JobState, after: JobState) -> dict[str, tuple[str | None, str | None]]:
        """What differs between two states: name -> (before, after), to be read."""
        return {
            name: (before.told(name) or None, after.told(name) or None)
            for name in sorted(before.keys() | after.keys())
            if before.get(name, "") != after.get(name, "")
        }


def check(jobs: Jobs) -> tuple[int, list[Difference]]:
    """Hold every live projection against the fold of the log, field by field; how many jobs, and what differs.

    The log goes on meanwhile: a job that moved is looked at once more.
    """
    store = jobs.store
    upto = last_position(store)
    projector = JobProjector(store)
    for event in read(store, upto=upto):
        projector.apply(event)
    found: list[Difference] = []
    names = sorted(projector.states)
    for start in range(0, len(names), 500):
        loaded = dict(jobs.load_many(names[start : start + 500]))
        for job in names[start : start + 500]:
            folded = {name: value for name, value in projector.states[job].items() if value}
            shown = {name: value for name, value in (loaded[job].state if job in loaded else {}).items() if value}
            if folded != shown:
                found += _again(jobs, job)
    stray = set(jobs.each()) - set(names)
    found += [Difference(job, "*", "listed", None) for job in stray if not jobs.load(job).known]
    return len(names), found


def _again(jobs: Jobs, job: str) -> list[Difference]:
    """A job looked at by itself, until it has not moved in between."""
    for _ in range(5):
        before = jobs.load(job)
        state = JobState()
        for moment in Replay(jobs, job):
            state = moment.state
        after = jobs.load(job)
        if before.version == after.version:
            break
    return [
        Difference(job, name, after.state.get(name), state.get(name))
        for name in sorted(after.state.keys() | state.keys())
        if after.state.get(name, "") != state.get(name, "")
    ]

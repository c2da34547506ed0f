"""Projections, written anew while the site works: job by job, each in one short step.

A rebuild (``engine.rebuild``) is for a record whose heads are gone: appends wait for it. This one is for a
projection that somebody doubts: nobody waits.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

from engine.errors import EngineDown
from engine.fold import JobState, changes, fact_of
from engine.jobs import Jobs
from engine.lifecycle import EVENTS, State
from engine.rebuild import JobProjector
from events.bodies.site import ProjectionRebuilt
from events.envelope import Call
from events.read import first_event, last_position, read, read_job
from events.segments import order
from events.store import Store, translated
from events.subjects import job_of

TRIES = 500


def mend(jobs: Jobs, call: Call, *, progress: Callable[[int], None] = lambda count: None) -> tuple[int, int]:
    """Fold the whole log and write every job's projection; how many events there were, and jobs that differed.

    Args:
        jobs: of the site.
        call: whose; it is recorded.
        progress: told now and then how many events were folded.

    Raises:
        EngineDown: a job goes on faster than it can be written.
    """
    store = jobs.store
    upto = last_position(store)
    begins = first_event(store)
    projector = JobProjector(store)
    versions: dict[str, int] = {}
    positions: dict[str, list[str]] = {}
    count = 0
    for event in read(store, upto=upto):
        projector.apply(event)
        count += 1
        job = job_of(event.subject)
        if job is not None:
            versions[job] = event.version
            if begins is not None and event.seq >= begins.seq:
                positions.setdefault(job, []).append(event.position)
        if count % 20_000 == 0:
            progress(count)
    changed = 0
    script = store.client.register_script((files("events") / "mend.lua").read_text("utf-8"))
    for job, folded in versions.items():
        version = folded
        state = JobState(projector.states.get(job, JobState()))
        revision, listed = projector.revisions.get(f"job/{job}", 0), positions.get(job, [])
        for _ in range(TRIES):
            answer = _write(store, script, job, state, version, revision, listed)
            if answer[0] == "OK":
                changed += answer == ["OK", 1]
                break
            # It has moved on meanwhile: so do we.
            for event in read_job(store, job, after=version):
                state.update(changes(state, fact_of(event)))
                version, revision = event.version, revision + (event.type in EVENTS)
                listed.append(event.position)
            listed = _still_there(store, listed)
        else:
            raise EngineDown(f"{job} does not rest long enough to be written anew", "call again")
    _strays(jobs, projector)
    jobs.note(call, [ProjectionRebuilt(why="asked for", events=count, jobs=len(versions))])
    return count, changed


def _still_there(store: Store, positions: list[str]) -> list[str]:
    """Those positions that have not gone to disk."""
    begins = first_event(store)
    return [one for one in positions if begins is None or order(one) >= order(begins.position)]


def _write(
    store: Store, script: object, job: str, state: JobState, version: int, revision: int, positions: list[str]
) -> list[object]:
    fields = {name: value for name, value in state.items() if value != ""}
    flat = [part for pair in fields.items() for part in pair]
    with translated():
        answer: list[object] = script(  # type: ignore[operator]
            keys=[store.keys.heads],
            args=[
                store.keys.prefix,
                job,
                f"{version} {revision}",
                state.get("state", ""),
                state.get("since", "0"),
                len(fields),
                *flat,
                *positions,
            ],
        )
    return answer


def _strays(jobs: Jobs, projector: JobProjector) -> None:
    """Jobs that are listed under a state that they are not in, go from there."""
    for state in State:
        for job in jobs.ids(state=state.value, limit=2**31):
            folded = projector.states.get(job, JobState()).get("state")
            if folded != state.value and jobs.load(job).state.get("state") != state.value:
                jobs.store.command("ZREM", jobs.store.keys.state(state.value), job)

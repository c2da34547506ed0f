"""Forgetting: a job's key is destroyed, and with it every personal field that it locked; the record stays whole."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

from engine.errors import ArgumentInvalid, JobUnknown, LegalHold, NotDeleted, Retained
from engine.ids import check_job_id
from engine.jobs import Loaded
from engine.lifecycle import AT_REST
from engine.refusals import standing
from engine.site import Site
from events.bodies.record import Erased, HoldLifted, HoldSet
from events.envelope import Call, iso
from events.read import read_job
from events.vault import MARK

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Erasure:
    """What an erasure would do, or did."""

    job: str
    events: int
    fields: int
    keys: int
    position: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self)}


def may_erase(site: Site, job: str) -> Loaded:
    """The job, where it may be forgotten now.

    Raises:
        JobUnknown, NotDeleted, LegalHold, Retained: why not.
    """
    loaded = site.jobs.load(check_job_id(job))
    state = loaded.state
    if not loaded.known:
        raise JobUnknown(f"job {job} is not on this site's record", "flightlog list shows the jobs of this site")
    if state.get("hold"):
        raise LegalHold(f"{job} is under a legal hold (event {state['hold']})", f"flightlog why {job} says whose")
    if state.state not in AT_REST or site.workspace.run(job).exists():
        raise NotDeleted(
            f"{job} {standing(state)}, and its run folder or its process is there", f"flightlog delete {job}"
        )
    ended = int(state.get("ended_at") or state.get("since") or 0)
    until = ended + int(site.settings.retention * DAY_MS)
    if site.settings.retention and site.jobs.store.now_ms() < until:
        raise Retained(
            f"{job} ended at {iso(ended)} and is kept for {site.settings.retention:g} days", f"try at {iso(until)}"
        )
    return loaded


def foresee(site: Site, job: str) -> Erasure:
    """What erasing a job would do; raises as ``may_erase``."""
    loaded = may_erase(site, job)
    fields = sum(event.raw.count(MARK) for event in read_job(site.jobs.store, job))
    vault = site.jobs.store.vault
    return Erasure(job, loaded.version, fields, len(vault.keys_of(job)) if vault else 0)


def erase(site: Site, call: Call, job: str, reason: str) -> Erasure:
    """Forget the personal fields of a job; raises as ``may_erase``.

    It is recorded first, under the job's next key; whoever seals the log finishes what a crash leaves undone.
    """
    seen = foresee(site, job)
    vault = site.jobs.store.vault
    lives = vault.next_life(job) if vault else 0
    noted = site.jobs.note(call, [Erased(reason=reason, lives=lives)], job)
    finish(site, job, lives)
    return Erasure(job, seen.events, seen.fields, seen.keys, noted.positions[0])


def finish(site: Site, job: str, lives: int) -> None:
    """Destroy what was recorded as erased; twice is once."""
    if site.jobs.store.vault is not None:
        site.jobs.store.vault.destroy(job, lives)
    # What our own processes wrote down beside the record: specs, output, samples.
    shutil.rmtree(site.workspace.job(job), ignore_errors=True)


def hold(site: Site, call: Call, job: str, reason: str, *, lift: bool) -> str:
    """Set or lift a legal hold; the position of that event. Raises ``JobUnknown``."""
    loaded = site.jobs.load(check_job_id(job))
    if not loaded.known:
        raise JobUnknown(f"job {job} is not on this site's record", "flightlog list shows the jobs of this site")
    if lift and not loaded.state.get("hold"):
        raise ArgumentInvalid(f"{job} is not held", "flightlog show says whether it is", field="--lift")
    noted = site.jobs.note(call, [HoldLifted(reason=reason) if lift else HoldSet(reason=reason)], job)
    return noted.positions[0]

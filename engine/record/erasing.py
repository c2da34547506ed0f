"""Forgetting: a job's key is destroyed, and with it every personal field that it locked; the record stays whole."""

from __future__ import annotations

import re
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from engine.errors import ArgumentInvalid, JobUnknown, LegalHold, NotDeleted, Retained
from engine.files import locked
from engine.ids import check_job_id
from engine.jobs import Loaded
from engine.lifecycle import AT_REST
from engine.refusals import standing
from engine.site import Site
from events.bodies.record import Erased, HoldLifted, HoldSet
from events.durable import write
from events.envelope import Call, iso
from events.errors import RecordDamaged
from events.read import read, read_job
from events.subjects import job_of
from events.vault import MARK

DAY_MS = 86_400_000
PATIENCE = 10.0  # seconds for a job's lock


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
    days = keep_retention(site)
    until = ended + int(days * DAY_MS)
    if days and site.jobs.store.now_ms() < until:
        raise Retained(f"{job} ended at {iso(ended)} and is kept for {days:g} days", f"try at {iso(until)}")
    return loaded


def keep_retention(site: Site) -> float:
    """The site's minimum retention, days: the longest that it was ever told, whoever is told another one now.

    Raises:
        RecordDamaged: what was kept of it cannot be read.
    """
    path, wanted = site.workspace.seal / "retention", site.settings.retention
    try:
        kept = float(path.read_text()) if path.exists() else 0.0
    except ValueError as error:
        raise RecordDamaged(f"the retention in {path} is no number of days", "write it there anew") from error
    if wanted > kept:
        write(path, f"{wanted:g}\n")
    return max(wanted, kept)


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
    with _alone(site):
        seen = foresee(site, job)
        vault = site.jobs.store.vault
        lives = vault.next_life(job) if vault else 0
        noted = site.jobs.note(call, [Erased(reason=reason, lives=lives)], job)
        finish(site, job, lives)
    return Erasure(job, seen.events, seen.fields, seen.keys, noted.positions[0])


def _alone(site: Site) -> AbstractContextManager[None]:
    """Nobody sets a hold while a job is erased, and nobody erases one while a hold is set."""
    return locked(site.workspace.seal / "erase.lock")


def finish(site: Site, job: str, lives: int) -> None:
    """Destroy what was recorded as erased; twice is once, and what the job has done since stays."""
    vault = site.jobs.store.vault
    if vault is not None and 0 < lives <= len(vault.erased_of(job)):
        return
    folder = site.workspace.job(job)
    if folder.exists():
        with site.workspace.lock(job, PATIENCE):
            state = site.jobs.load(job).state
            now = str(state.get("attempt") or "") if state.state not in AT_REST else None
            # What our own processes wrote down beside the record: specs, output, samples.
            for one in folder.iterdir():
                if one.name not in (now, "lock"):
                    shutil.rmtree(one) if one.is_dir() else one.unlink()
            if now is None:
                shutil.rmtree(folder)
    if vault is not None:
        vault.destroy(job, lives)


def finish_upto(site: Site, position: str) -> None:
    """Destroy what was recorded as erased up to there, and was not, whoever died over it."""
    path = site.workspace.seal / "erased"
    told = path.read_bytes().strip().decode(errors="replace") if path.exists() else ""
    after = told if re.fullmatch(r"\d+-\d+", told, re.ASCII) else "0-0"  # twice is once
    for event in read(site.jobs.store, after=after, upto=position):
        job = job_of(event.subject)
        if event.type == Erased.name() and job is not None:
            finish(site, job, int(event.body["lives"]))
    write(path, f"{position}\n")


def finish_left(site: Site, job: str) -> None:
    """Destroy what is recorded as erased of a job, and was not done: before anything of it goes out."""
    store = site.jobs.store
    if store.vault is None or not site.jobs.load(job).state.get("erased"):
        return
    told = next((event for event in read_job(store, job, backward=True) if event.type == "Erased"), None)
    if told is not None and len(store.vault.erased_of(job)) < int(told.body["lives"]):
        finish(site, job, int(told.body["lives"]))


def hold(site: Site, call: Call, job: str, reason: str, *, lift: bool) -> str:
    """Set or lift a legal hold; the position of that event. Raises ``JobUnknown``."""
    with _alone(site):
        loaded = site.jobs.load(check_job_id(job))
        if not loaded.known:
            raise JobUnknown(f"job {job} is not on this site's record", "flightlog list shows the jobs of this site")
        if lift and not loaded.state.get("hold"):
            raise ArgumentInvalid(f"{job} is not held", "flightlog show says whether it is", field="--lift")
        noted = site.jobs.note(call, [HoldLifted(reason=reason) if lift else HoldSet(reason=reason)], job)
    return noted.positions[0]

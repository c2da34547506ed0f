"""Delete: move the run folder aside under the job's lock, remove it, record. Tried again, then given up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from engine.fold import JobState
from engine.lifecycle import State
from engine.site import Site
from events.append import WorkRefused
from events.bodies.base import Body
from events.bodies.job import DeleteAbandoned, DeleteFailed, DeleteSucceeded
from workers.claim import Claim

LOCK_PATIENCE = 0.2  # seconds
PAUSE = 1.0  # seconds before the next try; doubled each time


class Deleter:
    """Carries out deletes for the caretaker."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._claims: dict[str, Claim] = {}
        self._tries: dict[str, int] = {}
        self._not_before: dict[str, float] = {}

    def carry_out(self, name: str, work: dict[str, str]) -> None:
        """One try, where it is due."""
        if time.monotonic() < self._not_before.get(name, 0):
            return
        claim = self._claims.get(name) or Claim.take(self.site, name, "delete")
        if claim is None:
            self._give_up_lapsed(name, work)
            return
        self._claims[name] = claim
        outcome = self._try(claim)
        bodies: list[Body] = [outcome]
        if isinstance(outcome, DeleteFailed):
            tries = self._tries[name] = self._tries.get(name, 0) + 1
            self._not_before[name] = time.monotonic() + PAUSE * 2 ** (tries - 1)
            if tries >= int(work["max"]):
                bodies.append(DeleteAbandoned(why="attempts", error=outcome.error))
        self._record(claim, bodies, f"try:{self._tries.get(name, 0)}")
        if not isinstance(bodies[-1], DeleteFailed):
            for known in (self._claims, self._tries, self._not_before):
                known.pop(name, None)

    def _try(self, claim: Claim) -> DeleteSucceeded | DeleteFailed:
        workspace = self.site.workspace
        run, aside = workspace.run(claim.job), workspace.trash / claim.job
        try:
            with workspace.lock(claim.job, LOCK_PATIENCE):
                existed = run.exists() or aside.exists()
                size = _size(run) + _size(aside)
                if run.exists():
                    aside.mkdir(parents=True, exist_ok=True)
                    run.rename(aside / f"{claim.number}-{time.time_ns()}")
                if aside.exists():
                    shutil.rmtree(aside)
                for attempt in workspace.job(claim.job).iterdir():
                    if attempt.is_dir():
                        shutil.rmtree(attempt)
        except OSError as error:
            return DeleteFailed(error=f"{error.strerror}: {error.filename}"[:2000])
        return DeleteSucceeded(existed=existed, bytes=size)

    def _record(self, claim: Claim, bodies: Sequence[Body], step: str) -> None:
        def decide(state: JobState) -> Sequence[Body]:
            same = state.state is State.DELETING and state.get("deletes") == str(claim.number)
            return bodies if same else []

        try:
            self.site.jobs.transact(claim.call(step), claim.job, decide)
        except WorkRefused:
            return  # another caretaker closed it

    def _give_up_lapsed(self, name: str, work: dict[str, str]) -> None:
        """Caretakers before us used all the attempts up."""
        if int(work.get("attempts", "0")) < int(work["max"]):
            return

        def decide(state: JobState) -> Sequence[Body]:
            deleting = state.state is State.DELETING and state.get("deletes") == work["number"]
            return [DeleteAbandoned(why="attempts")] if deleting else []

        call = self.site.system_call(
            "abandoned",
            call_id=f"abandon:{name}",
            cause=work["position"],
            correlation=work["correlation"],
            role="caretaker",
        )
        try:
            self.site.jobs.transact(call, work["job"], decide, conditions={"delete": ("lapsed", "")})
        except WorkRefused:
            return


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()) if folder.exists() else 0

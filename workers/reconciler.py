"""The reconciler: one per site, by a lease on the record's time. Rings, expires, cleans; judges nothing."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence

import redis
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry

from engine.fold import JobState
from engine.leases import Lease
from engine.lifecycle import State
from engine.ring import TASKS
from engine.site import Site
from events.append import WorkRefused
from events.bodies.app import LaunchExpired
from events.bodies.base import Body
from events.bodies.job import DeleteAbandoned, DeployExpired
from events.bodies.site import WorkRerung
from events.errors import LogUnavailable
from workers.job_class import RegisteredJob

log = logging.getLogger("flightlog.reconciler")


class Reconciler:
    """Makes sure that every piece of open work is heard of, or ends.

    Args:
        site: an opened site.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self._rung: dict[str, float] = {}
        self._lease = Lease(site, "reconciler", site.settings.reconcile_every * 3)

    def run(self, stop: threading.Event) -> None:
        """Look every ``reconcile_every`` seconds, while the lease is ours."""
        every = self.site.settings.reconcile_every
        while not stop.is_set():
            try:
                if self._lease.hold():
                    self.tick()
            except LogUnavailable as error:
                log.warning("a server is away: %s", error)
            except Exception:  # a duty ends with the pool, not with an error
                log.exception("reconciling failed; it is tried again")
            stop.wait(every)

    def tick(self) -> None:
        """Compare counts, expire what nobody claimed, ring for what waits, clean RQ's registries."""
        jobs = self.site.jobs
        why = jobs.consistent()
        if why and jobs.consistent():  # looked at twice: an append may come between two counts
            jobs.rebuild(why)
        now = jobs.store.now_ms()
        to_ring = []
        for name, work in jobs.open_work():
            kind = work["kind"]
            unclaimed = not work.get("token")
            if unclaimed and work["deadline"] != "inf" and int(work["deadline"]) < now:
                self._expire(name, kind, work)
            elif kind in TASKS and (unclaimed or int(work["until"]) < now):
                to_ring.append((kind, name, now - int(work["opened"])))
        self._ring(to_ring)
        self._clean()

    def _expire(self, name: str, kind: str, work: dict[str, str]) -> None:
        """End work that was never claimed, in one step that excludes a claim."""
        number = int(work["number"])

        def decide(state: JobState) -> Sequence[Body]:
            if (
                kind == "deploy"
                and state.get("deploys") == str(number)
                and state.state
                in (
                    State.DEPLOYING,
                    State.REDEPLOYING,
                )
            ):
                return [DeployExpired(why="deadline")]
            if kind == "launch" and state.attempt == number and state.live and not state.spawned:
                return [LaunchExpired(attempt=number, why="deadline")]
            if kind == "delete" and state.get("deletes") == str(number) and state.state is State.DELETING:
                return [DeleteAbandoned(why="deadline")]
            return []

        call = self.site.system_call(
            "expired",
            call_id=f"expire:{name}",
            cause=work["position"],
            correlation=work["correlation"],
            role="reconciler",
        )
        with contextlib.suppress(WorkRefused):  # claimed a moment ago
            self.site.jobs.transact(call, work["job"], decide, conditions={kind: ("unclaimed", "")})

    def _ring(self, works: list[tuple[str, str, int]]) -> None:
        """Ring again for what waits longer than a round, where no bell of ours is still unheard."""
        if not works or self.site.bells.waiting() > len(works) * 2:
            return
        every = self.site.settings.reconcile_every
        rung = []
        for kind, name, age_ms in works:
            if age_ms < every * 500 or time.monotonic() - self._rung.get(name, -1e9) < every:
                continue
            self.site.bells.ring(kind, name)
            self._rung[name] = time.monotonic()
            rung.append(name)
        if rung:
            self.site.jobs.note(self.site.system_call("rerung", role="reconciler"), [WorkRerung(works=rung)])
        self._rung = {name: when for name, when in self._rung.items() if time.monotonic() - when < 3600}

    def _clean(self) -> None:
        bells = self.site.bells
        try:
            for queue in (bells.queue, bells.launches) if bells.launches is not bells.queue else (bells.queue,):
                for registry in (StartedJobRegistry, FinishedJobRegistry, FailedJobRegistry):
                    registry(queue=queue, job_class=RegisteredJob).cleanup()
        except redis.ResponseError as error:
            log.warning("a registry of the queue cannot be cleaned: %s", error)
        except redis.RedisError as error:
            raise LogUnavailable(f"the fabric server does not answer ({error})") from error

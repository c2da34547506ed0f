"""The follower that feeds the read models: each event once, whoever of several feeds, whatever dies.

A batch and the cursor after it are one transaction, which is void where the cursor has moved meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from itertools import islice
from typing import cast

import redis

from engine.leases import Lease
from engine.readmodels.models import Models
from engine.readmodels.moments import Moments
from engine.readmodels.names import FORMAT, Names
from engine.readmodels.room import EVERY, sample
from engine.site import Site
from events.envelope import Event
from events.errors import LogUnavailable
from events.follow import follow
from events.read import last_position, read
from events.segments import order
from events.store import Store, translated
from events.subjects import job_of

log = logging.getLogger("flightlog.readmodels")

LEASE = 10.0  # seconds
BATCH = 1000  # events in one transaction
LOOK_EVERY = 30.0  # seconds between looks whether the models are whole
#: A state of a job is kept at each multiple of this version, so that looking back needs few events.
MOMENT_EVERY = 500


class Stale(Exception):
    """The cursor is not where this feeder left it: another one feeds, or the models were deleted."""


class Feeder:
    """Feeds a site's read models while it holds the lease.

    Args:
        site: opened.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.store: Store = site.jobs.store
        self.names = Names(self.store)
        self.lease = Lease(site, "readmodels", LEASE)
        self._moments = Moments(self.store)
        self._looked = 0.0
        self._sampled = -EVERY

    def run(self, stop: threading.Event) -> None:
        """Feed until ``stop``; what goes wrong is tried again from the cursor."""
        while not stop.is_set():
            try:
                if self.lease.hold():
                    self._feed(stop)
                else:
                    stop.wait(1.0)
            except (LogUnavailable, Stale) as error:
                log.info("read models wait: %s", error)
                stop.wait(0.1)
            except Exception:  # a duty ends with its process, not with an error
                log.exception("the read models could not be fed; it is tried again from their cursor")
                stop.wait(1.0)

    def catch_up(self, patience: float = 600.0) -> int:
        """Have the models fed up to the log's end as it is now, by us or by whoever has the role; events fed.

        Raises:
            LogUnavailable: the server is away, or another feeds too slowly.
        """
        end, until = last_position(self.store), time.monotonic() + patience
        fed = 0
        while time.monotonic() < until:
            cursor = str(self.store.command("HGET", self.names.cursor, "position") or "0-0")
            if order(cursor) >= order(end):
                return fed
            if not self.lease.hold():
                time.sleep(0.1)
                continue
            with contextlib.suppress(Stale):
                cursor, models = self.begin(), Models(self.store)
                events = read(self.site.as_stored(self.store), after=cursor, upto=end)
                while self.lease.hold() and (batch := list(islice(events, BATCH))):
                    self.apply(models, batch, cursor)
                    cursor, fed = batch[-1].position, fed + len(batch)
        raise LogUnavailable("the read models are not fed up to the log's end", "look whether the API runs")

    def _feed(self, stop: threading.Event) -> None:
        cursor = self.begin()
        # Rows are kept as the log has them: personal fields as tokens.
        follower = self.site.as_stored(self.site.follower_store())
        models = Models(self.store)

        def lost(error: LogUnavailable) -> None:
            raise error

        try:
            for batch in follow(follower, cursor, stop, on_loss=lost, page=BATCH):
                if not self.lease.hold():
                    return
                if batch:
                    self.apply(models, batch, cursor)
                    cursor = batch[-1].position
                if time.monotonic() - self._looked > LOOK_EVERY:
                    self.check(cursor)
                if time.monotonic() - self._sampled > EVERY:
                    self._sampled = time.monotonic()
                    sample(self.site)
        finally:
            follower.client.close()

    def begin(self) -> str:
        """The position from which on the models are to be fed; what is not whole or of another format is dropped."""
        with translated():
            known = cast("dict[str, str]", self.store.client.hgetall(self.names.cursor))
        cursor = known.get("position", "")
        if not cursor or known.get("format") != FORMAT or not self._whole(cursor):
            self.drop()
            with translated():
                self.store.client.hset(self.names.cursor, mapping={"position": "0-0", "format": FORMAT})
            cursor = "0-0"
        self._looked = time.monotonic()
        return cursor

    def check(self, cursor: str) -> None:
        """Look whether the models are whole, now and then; raises ``Stale``."""
        self._looked = time.monotonic()
        if not self._whole(cursor):
            self.drop()
            raise Stale("what the read models count does not match their cursor")

    def _whole(self, cursor: str) -> bool:
        """The counts match the cursor, and the cursor lies within the log."""
        with translated():
            counted = sum(int(count) for count in self.store.client.hvals(self.names.types))
            created, named = self.store.client.zcard(self.names.created), self.store.client.zcard(self.names.ids)
        if created != named:
            return False
        seq = int(cursor.partition("-")[2])
        return counted == seq and seq <= int(last_position(self.store).partition("-")[2])

    def drop(self) -> None:
        """Delete all models, the cursor first."""
        with translated():
            self.store.client.delete(self.names.cursor)
            pattern = "".join("\\" + c if c in "*?[]\\{}" else c for c in self.names.prefix) + "*"
            for name in self.store.client.scan_iter(match=pattern, count=1000):
                self.store.client.unlink(name)

    def _forget(self, job: str) -> None:
        """Whose a job was is told by nothing any more."""
        pattern = "".join("\\" + c if c in "*?[]\\{}" else c for c in self.names.prefix) + "actor:*"
        with translated():
            for name in self.store.client.scan_iter(match=pattern, count=1000):
                self.store.client.zrem(name, job)

    def apply(self, models: Models, batch: list[Event], cursor: str) -> None:
        """Feed a batch that comes right after ``cursor``.

        Raises:
            Stale: the cursor is elsewhere.
        """
        done = False
        with translated():
            pipe = self.store.client.pipeline()
            try:
                pipe.watch(self.names.cursor)  # type: ignore[no-untyped-call]
                if pipe.hget(self.names.cursor, "position") != cursor:
                    raise Stale("the cursor of the read models is elsewhere")
                for event in batch:
                    models.take(event)
                pipe.multi()
                models.write(pipe, self.store)
                pipe.hset(self.names.cursor, "position", batch[-1].position)
                pipe.execute()
                done = True
            except redis.WatchError as error:
                raise Stale("the cursor of the read models has moved") from error
            finally:
                pipe.reset()
                models.over(done=done)
        for event in batch:
            job = job_of(event.subject)
            if job is not None and event.type == "Erased":
                self._forget(job)
            if job is not None and event.version % MOMENT_EVERY == 0:
                self._moments.at_version(job, event.version)

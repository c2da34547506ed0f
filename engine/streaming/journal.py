"""Transfers on the record: opened before anything leaves, progress while it moves, closed once."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Protocol

from engine.actors import current_actor
from engine.core import Core
from engine.foreign import plain
from events.append import WorkRefused
from events.bodies.messages import MessageRefused
from events.bodies.transfers import OfTransfer, TransferClosed, TransferOpened
from events.envelope import Actor, Call
from events.errors import CallIdReused, FlightlogError

log = logging.getLogger("flightlog.stream")


class Journal(Protocol):
    """Records transfers of one end."""

    def opened(self, body: TransferOpened, call: Call | None = None, job: str | None = None) -> None:
        """A transfer begins; raises ``FlightlogError`` where that cannot be recorded, so that it does not."""

    def note(self, body: OfTransfer, job: str | None = None) -> None:
        """How it goes; where that cannot be recorded, it goes on."""

    def closed(self, body: TransferClosed, job: str | None = None) -> bool:
        """It is over; False: that could not be recorded, and is to be tried again."""

    def refused(self, sender: str, tx: str, code: str, why: str) -> None:
        """Something that came for a stream was not taken."""


class RecordJournal:
    """On a site's record, or on that of a job.

    Args:
        core: of the process.
        job: whose record; None: the site's, where a call names none.
    """

    def __init__(self, core: Core, job: str | None = None) -> None:
        self._core = core
        self._job = job
        self._count = 0

    def opened(self, body: TransferOpened, call: Call | None = None, job: str | None = None) -> None:
        """See ``Journal``."""
        try:
            self._core.site.jobs.note(call or self._call(body, "opened"), [body], job or self._job)
        except CallIdReused:
            log.info("transfer %s was opened before, by a process that is gone", body.id)

    def note(self, body: OfTransfer, job: str | None = None) -> None:
        """See ``Journal``."""
        self._count += 1
        try:
            step = f"{body.name()}:{self._core.site.process}:{self._count}"
            self._core.site.jobs.note(self._call(body, step), [body], job or self._job)
        except FlightlogError as error:
            log.warning("%s of %s could not be recorded: %s", body.name(), body.id, error)

    def closed(self, body: TransferClosed, job: str | None = None) -> bool:
        """See ``Journal``."""
        try:
            self._core.site.jobs.note(self._call(body, "closed"), [body], job or self._job)
        except (WorkRefused, CallIdReused):
            log.warning("transfer %s has another end on the record", body.id)
        except FlightlogError as error:
            log.warning("the end of transfer %s could not be recorded: %s", body.id, error)
            return False
        return True

    def refused(self, sender: str, tx: str, code: str, why: str) -> None:
        """See ``Journal``."""
        body = MessageRefused(id=plain(tx[:64]) or "?", code=code, why=plain(why), sender=plain(sender) or "?")
        actor = Actor(id=(plain(sender) or "?")[:200], kind="service", via="cell")
        if self._core.too_many(actor.id):
            self._core.observed.saw("stream", actor, f"refused:{code}")
            return
        try:
            call = replace(self._core.call("stream").at("refused"), actor=actor)
            self._core.site.jobs.note(call, [body], self._job)
        except FlightlogError as error:
            log.warning("that an object was refused could not be recorded: %s", error)

    def _call(self, body: OfTransfer, step: str) -> Call:
        return Call(call_id=f"transfer:{body.direction}:{body.id}", actor=current_actor(), step=step)

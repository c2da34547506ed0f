"""What comes into a cell, on the record: before a handler sees it, and before its answer leaves."""

from __future__ import annotations

import logging
import secrets
from dataclasses import replace
from typing import Literal

from engine.actors import acting_as
from engine.cell.digests import Digests
from engine.cell.protocol import root_of
from engine.cell.wire import Envelope
from engine.core import Core
from engine.foreign import plain
from events.bodies.messages import AddressChanged, AuxHandled, AuxReceived, MessageRefused
from events.envelope import Actor, Call
from events.errors import CallIdReused, FlightlogError

log = logging.getLogger("flightlog.cell")


def actor_of(envelope: Envelope) -> Actor:
    """Who sent a message: its address, established only where its seal proves it."""
    root = root_of(envelope.sender)
    kind: Literal["server", "job", "service"] = (
        "server" if root == "server" else "job" if "." in envelope.sender else "service"
    )
    return Actor(
        id=envelope.sender[:200],
        kind=kind,
        auth="signed" if envelope.sealed else "none",
        via="cell",
    )


class RecordJournal:
    """Records what comes in for a site, or for one job of it.

    Args:
        core: of the process.
        digests: the workspace's.
        job: whose record it goes to; None: the site's.
    """

    def __init__(self, core: Core, digests: Digests, job: str | None = None) -> None:
        self._core = core
        self._digests = digests
        self._job = job

    def received(self, envelope: Envelope) -> bool:
        """A message is about to be handled; False: it was before, and is on the record already.

        Raises:
            FlightlogError: it cannot be recorded, so it is not to be handled.
        """
        body = AuxReceived(
            id=plain(envelope.id[:64]),
            channel=plain(envelope.channel),
            topic=plain(envelope.topic),
            sender=plain(envelope.sender),
            size=envelope.size,
            digest=self._digests.of(envelope.sha256),
            secure=envelope.sealed,
            reply=envelope.reply,
            inside=root_of(envelope.sender) == self._core.site.name,
        )
        # With an argument that no other take has: an append that is sent twice over a broken line is the same one.
        call = replace(self._call(envelope, "received"), arguments=secrets.token_hex(8))
        try:
            self._core.site.jobs.note(call, [body], self._job)
        except CallIdReused:
            return False
        return True

    def handled(self, envelope: Envelope, answer: Envelope, ms: int) -> None:
        """It was handled, and its answer is about to leave."""
        body = AuxHandled(
            id=plain(envelope.id[:64]),
            channel=plain(envelope.channel),
            topic=plain(envelope.topic),
            target=plain(envelope.sender),
            code=answer.code,
            size=answer.size,
            digest=self._digests.of(answer.sha256),
            secure=answer.sealed,
            reply=envelope.reply,
            ms=ms,
        )
        self._core.site.jobs.note(self._call(envelope, "handled"), [body], self._job)

    def refused(self, envelope: Envelope | None, code: str, why: str) -> None:
        """It was not taken. A flood of such is folded into counts."""
        sender = plain(envelope.sender) if envelope is not None else "?"
        body = MessageRefused(
            id=plain(envelope.id[:64]) if envelope is not None else "?", code=code, why=plain(why), sender=sender
        )
        actor = Actor(id=sender[:200] or "?", kind="service", via="cell")
        with acting_as(actor):
            if self._core.too_many(actor.id):
                self._core.read("message", f"refused:{code}")
                return
            try:
                self._core.site.jobs.note(self._core.call("message").at("refused"), [body], self._job)
            except FlightlogError as error:
                log.warning("that a message was refused could not be recorded: %s", error)

    def address(self, fqcn: str, *, ours: bool) -> None:
        """Another cell has taken over the address, or it is ours again."""
        try:
            self._core.site.jobs.note(
                self._core.call("address").at("changed"), [AddressChanged(fqcn=fqcn, ours=ours)]
            )
        except FlightlogError as error:
            log.warning("that the address changed hands could not be recorded: %s", error)

    def _call(self, envelope: Envelope, step: str) -> Call:
        return Call(
            call_id=f"in:{plain(envelope.id[:64])}:{plain(envelope.target)}", actor=actor_of(envelope), step=step
        )

"""The collector: one per site. It takes in answers, closes the work that waited for them, and what is overdue.

It outlives the engine: an answer to a request whose caller died is on the record all the same.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable
from typing import Any, cast

from engine.cell.digests import Digests
from engine.cell.fabric import Fabric, answers_of
from engine.cell.lanes import Lanes
from engine.cell.message import CODE, CellReturnCode
from engine.cell.wire import key_digest
from engine.faults import passing
from engine.foreign import plain
from engine.leases import Lease
from engine.site import Site
from events.bodies.base import Body
from events.bodies.messages import AuxFailed, AuxOutcomeUnknown, AuxReplied, MessageRefused, RepliesDropped
from events.errors import LogUnavailable
from workers.claim import end_worker
from workers.closing import close_all, fields_of, look_at
from workers.transfers import LostTransfers

log = logging.getLogger("flightlog.collector")

MOST = 256  # answers of one append
SWEEP_EVERY = 0.25  # seconds
LOOK_MS = 100
REFUSALS_A_SWEEP = 10
REMEMBERED = 10_000  # answers that were taken in lately
CUT = 200  # characters of foreign text that are kept
_SIZE = re.compile(r"[0-9]{1,15}")


class Collector:
    """Takes in answers while the lease is ours.

    Args:
        site: an opened site.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.fabric = Fabric(site.servers.fabric_url, blocking=True)
        self.lanes = Lanes(site.jobs.store)
        self.digests = Digests(site.workspace.flight)
        self.key = answers_of(site.name)
        self.transfers = LostTransfers(site)
        self._lease = Lease(site, "collector", 3.0)
        self._dropped = 0
        self._last_dropped = ""
        self._taken: dict[str, None] = {}
        self._refused = 0

    def run(self, stop: threading.Event) -> None:
        """Until told to end."""
        swept, away = 0.0, False
        while not stop.is_set():
            try:
                if not self._lease.hold():
                    stop.wait(0.2)
                    continue
                self._answers()
                if time.monotonic() - swept > SWEEP_EVERY:
                    swept = time.monotonic()
                    self._sweep()
                away = False
            except LogUnavailable as error:
                if not away:  # once, not five times a second
                    log.warning("a server is away: %s", error)
                away = True
                self._sweep_alone()
                stop.wait(0.2)
            except Exception:  # a duty ends with the pool, not with an error
                log.exception("collecting failed; it is tried again")
                stop.wait(0.2)
        self.fabric.close()
        self.transfers.fabric.close()

    def _sweep_alone(self) -> None:
        """With the fabric away, what is overdue is closed all the same."""
        try:
            self._overdue()
        except LogUnavailable as error:
            log.debug("the record is away too: %s", error)

    # -- answers -----------------------------------------------------------------------------------

    def _answers(self) -> None:
        found = self.fabric.read([self.key], MOST, LOOK_MS)
        if not found:
            return
        passing("answers-read")
        answers = [(entry, _text(fields)) for _, entry, fields in found]
        ids = [fields.get("i", "") for _, fields in answers]
        found_works, now = look_at(self.site, ids)
        works = dict(zip(ids, found_works, strict=True))
        outcomes: dict[str, Body] = {}
        known: dict[str, dict[str, str]] = {}
        useless: list[str] = []
        for message, (_, fields) in zip(ids, answers, strict=True):
            work = works[message]
            if work is None or work["reply"] != "1" or message in outcomes:
                self._drop(message)
                if message not in outcomes and message not in self._taken:
                    useless.append(f"{message}:r")  # of one that was told twice, the caller may still want it
            elif why := _objection(fields, work):
                self._refuse(message, fields, why)
            else:
                known[message] = work
                outcomes[message] = AuxReplied(
                    id=message,
                    code=fields["c"],
                    size=int(fields["s"]),
                    digest=self.digests.of(bytes.fromhex(fields["d"])),
                    ms=max(0, now - int(work["opened"])),
                )
        close_all(self.site, list(outcomes.values()), role="collector", known=known)
        passing("answers-recorded")
        self._remember(outcomes)
        self.fabric.remove(self.key, [entry for entry, _ in answers], [*outcomes, *useless])

    def _remember(self, messages: Iterable[str]) -> None:
        """Answers that were taken in lately."""
        self._taken.update(dict.fromkeys(messages))
        while len(self._taken) > REMEMBERED:
            del self._taken[next(iter(self._taken))]

    def _drop(self, message: str) -> None:
        """An answer that nobody waits for: dropped, and counted."""
        self._dropped += 1
        self._last_dropped = message[:CUT]

    def _refuse(self, message: str, fields: dict[str, str], why: str) -> None:
        """An answer that is none: the request goes on waiting for its own."""
        self._refused += 1
        if self._refused > REFUSALS_A_SWEEP:
            self._drop(message)
            return
        body = MessageRefused(
            id=plain(message, CUT), code="FORGED_ANSWER", why=why, sender=plain(fields.get("f", "?"), CUT)
        )
        self.site.jobs.note(self.site.system_call(f"refused:{message[:64]}", role="collector"), [body])

    # -- what is overdue -----------------------------------------------------------------------------

    def _sweep(self) -> None:
        self._overdue()
        self.transfers.sweep()
        self._refused = 0
        if self._dropped:
            dropped = RepliesDropped(count=self._dropped, last=plain(self._last_dropped, CUT))
            self.site.jobs.note(self.site.system_call("dropped", role="collector"), [dropped])
            self._dropped = 0
        now = self.site.jobs.store.now_ms()
        for lane in self.lanes.names():
            worker = self.lanes.lonely(lane, now)
            if worker is not None:
                if worker:  # it stalls over the lane: ended, it cannot act late, and the pool has another
                    end_worker(self.site, worker, lane)
                self.site.bells.ring_lane(lane)

    def _overdue(self) -> None:
        store = self.site.jobs.store
        now = store.now_ms()
        names = cast(
            "list[str]", store.command("ZRANGEBYSCORE", store.keys.open, "-inf", f"({now}", "LIMIT", 0, 5000)
        )
        ids = [name.removeprefix("aux_") for name in names if name.startswith("aux_")]
        if not ids:
            return
        outcomes: list[Body] = []
        known: dict[str, dict[str, str]] = {}
        for message, work in zip(ids, fields_of(self.site, ids), strict=True):
            if work is not None:
                known[message] = work
                outcomes.append(_late(message, work))
        for start in range(0, len(outcomes), MOST):
            close_all(self.site, outcomes[start : start + MOST], role="collector", known=known)
        self.fabric.drop(ids)


def _late(message: str, work: dict[str, str]) -> Body:
    """What is said of a message whose time is over."""
    if work["transport"] == "cell":
        return AuxOutcomeUnknown(id=message, why="the engine that sent it died over it, or stalls")
    if not work["token"]:
        return AuxFailed(id=message, code=CellReturnCode.TIMEOUT, why="its time was over before it was sent")
    if work["reply"] != "1":
        return AuxOutcomeUnknown(id=message, why="the worker that sent it died over it, or stalls")
    return AuxFailed(id=message, code=CellReturnCode.TIMEOUT, why="no answer came in time")


def _objection(fields: dict[str, str], work: dict[str, str]) -> str | None:
    """Why an answer cannot be taken for what was asked."""
    if fields.get("f") != work["target"]:
        return "it comes from another address than the request went to"
    if key_digest(fields.get("k", "")) != work["reply_key"]:
        return "it does not show what only a reader of the request can know"
    if not CODE.fullmatch(fields.get("c", "")) or not _SIZE.fullmatch(fields.get("s", "")):
        return "it cannot be read"
    if not re.fullmatch(r"[0-9a-f]{64}", fields.get("d", "")):
        return "it has no digest"
    return None


def _text(fields: dict[bytes, bytes]) -> dict[str, Any]:
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()}

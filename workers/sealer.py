"""The sealer of a site: seals its log, has it witnessed, moves history to disk, and watches how full it gets."""

from __future__ import annotations

import logging
import os
import threading
import time

from engine.ending import told_to_end
from engine.errors import EngineDown
from engine.files import FileLock
from engine.jobs import Jobs
from engine.readmodels.room import rooms
from engine.record.custody import Custody, user_name
from engine.record.erasing import finish_upto, keep_retention
from engine.record.sealed import say
from engine.record.sealing import sealer_of
from engine.record.witnessing import Refused, seen_by, submit, witnessed, witnesses
from engine.site import Site
from events.append import Ops
from events.bodies.base import Body
from events.bodies.record import (
    CheckpointSigned,
    CheckpointWitnessed,
    Erased,
    RoomLow,
    SegmentWritten,
    WitnessRefused,
)
from events.errors import FlightlogError
from events.keep import to_disk, trim
from events.note import Note
from events.seal import keep_note
from events.segments import Segment
from events.store import allowed_when_full, translated

log = logging.getLogger("flightlog.sealer")

#: A checkpoint is put on the record after so many events, or seconds, and at a job's end; others only on disk.
RECORD_EVENTS, RECORD_SECONDS = 1_000, 60.0
ENDS = frozenset(("AppFinished", "AppFailed", "AppAborted", "AppLost", "LaunchFailed", "LaunchExpired"))
ROOM_EVERY = 2.0  # seconds
PAUSE = 5.0  # seconds after what went wrong
#: What says that there is no room lasts so long without being said again: a sealer that died refuses nothing.
FULL_LASTS = 20.0
_SAY_FULL = "return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])"
#: Once full, it is so until this much less is used.
SLACK = 0.02


class SealerDuty:
    """One site's sealer, while it has the lock.

    Args:
        site: opened.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.jobs: Jobs = site.jobs
        self.sealer = sealer_of(site)
        self._recorded_size, self._recorded_at = 0, time.monotonic()
        self._witness_at, self._room_at = 0.0, 0.0
        self._due = False
        self._erasures_due = True  # whoever sealed before may have died over them
        self._said: dict[str, str] = {}
        self._witnessed: tuple[int, float] = (0, 0.0)
        self._refused = ""

    def run(self, stop: threading.Event) -> None:
        """Seal until ``stop``; what goes wrong is told and tried again."""
        begun = False
        keep_retention(self.site)
        while not stop.is_set():
            broken = ""
            try:
                if time.monotonic() - self._room_at > ROOM_EVERY:
                    self._room_at = time.monotonic()
                    self.room()  # first: there must be room left, whether anything can be sealed or not
                if not begun:
                    self.sealer.begin()
                    self._recorded_size = self.sealer.size
                    begun = True
                while self.once() and not stop.is_set():
                    pass
            except FlightlogError as error:
                broken = str(error)
                log.warning("%s", error)
            except OSError as error:
                broken = f"{error.strerror}: {error.filename}"
                log.exception("the disk does not take it")
            if broken:
                begun = False  # from the last checkpoint: a loss may be disclosed by then, and a tree be too long
            self._say(broken)
            stop.wait(PAUSE if broken else self.site.settings.seal_every)
        self.sealer.close()

    def once(self) -> bool:
        """One look; whether there is more to seal at once."""
        note = self.sealer.step()
        self._erasures_due |= note is not None and Erased.name() in self.sealer.types
        if note is not None:
            self._record(note)
        store, settings = self.jobs.store, self.site.settings
        to_disk(store, self.sealer.tree, self.sealer.size, size=settings.segment, written=self._written)
        # Where memory gets short, less stays in it: it is all on disk.
        trim(store, settings.keep // 10 if self._said.get("memory") else settings.keep)
        if self._due or time.monotonic() - self._witness_at > settings.witness_every:
            self._witness()
        if self.sealer.note is not None:
            self._witnessed = witnessed(self.site.workspace, self.sealer.note.checkpoint.origin)
        if self._erasures_due:  # last: what cannot be removed keeps nothing from being sealed
            finish_upto(self.site, self.sealer.position)
            self._erasures_due = False
        return note is not None and note.checkpoint.size - self._recorded_size > RECORD_EVENTS

    def _record(self, note: Note) -> None:
        ended = bool(self.sealer.types & ENDS)
        size, now = note.checkpoint.size, time.monotonic()
        if not (ended or size - self._recorded_size >= RECORD_EVENTS or now - self._recorded_at >= RECORD_SECONDS):
            return
        keep_note(self.sealer.folder, note)
        key = self.sealer.keys.newest
        signed = CheckpointSigned(size=size, root=note.checkpoint.root.hex(), key=f"{key.name}+{key.key_id.hex()}")
        self._note("checkpoint", signed)
        self._recorded_size, self._recorded_at = size, now
        self._due |= ended

    def _written(self, segment: Segment) -> None:
        self._note(
            "segment",
            SegmentWritten(first=segment.first, last=segment.last, sha256=segment.sha256, size=segment.size),
        )

    def _witness(self) -> None:
        note = self.sealer.note
        if note is None:
            return
        point = note.checkpoint
        named = [url for url in witnesses(self.site) if seen_by(self.site.workspace, url, point.origin) < point.size]
        if not named:
            return  # and look again: a federation's witness is known once the site has joined
        self._witness_at, self._due = time.monotonic(), False
        refused = []
        for url in named:
            try:
                cosigned, witness = submit(self.site.workspace, self.sealer.tree, note, url)
            except Refused as error:
                refused.append(f"{url}: {error}")
                if self._refused != refused[-1]:
                    self._note("refused", WitnessRefused(size=point.size, url=url, why=str(error)[:300]))
                    self._refused = refused[-1]
                log.error("the witness %s refuses this log: %s", url, error)
                continue
            except EngineDown as error:
                log.warning("%s", error)
                continue
            keep_note(self.sealer.folder, cosigned)
            told = CheckpointWitnessed(
                size=point.size, root=point.root.hex(), witness=str(witness), note=str(cosigned)
            )
            self._note("witnessed", told)
        if not refused:
            self._refused = ""

    def room(self) -> None:
        """Look how full memory and disk are; say so, and refuse new work, before there is no room for outcomes."""
        settings, store = self.site.settings, self.jobs.store
        full = []
        for room in rooms(self.site):
            before = self._said.get(room.what, "")
            slack = SLACK if before else 0.0
            state = (
                "full"
                if room.part >= settings.room_full - (slack if before == "full" else 0)
                else "low"
                if room.part >= settings.room_warn - slack
                else ""
            )
            if state != before and state:
                log.warning("%s is %s: %d of %d bytes are used", room.what, state, room.used, room.limit)
                self._note(
                    f"room-{room.what}",
                    RoomLow(
                        what="memory" if room.what == "memory" else "disk",
                        used=room.used,
                        limit=room.limit,
                        full=state == "full",
                    ),
                )
            self._said[room.what] = state
            if state == "full":
                full.append(f"{room.what} is {room.part:.0%} full, and the rest is for what is under way")
        with translated():
            if full:
                script = allowed_when_full(store.client, _SAY_FULL)
                store.client.eval(script, 1, store.keys.full, "; ".join(full), str(int(FULL_LASTS * 1000)))
            else:
                store.client.delete(store.keys.full)

    def _note(self, step: str, body: Body) -> None:
        ops = Ops()
        ops.urgent = True  # what makes room must have some
        self.jobs.note(self.site.system_call(f"seal:{step}", role="sealer"), [body], ops=ops)

    def _say(self, broken: str) -> None:
        keys = self.sealer.keys
        custody = keys.custodian if keys.apart and isinstance(keys.custodian, Custody) else None
        say(
            self.site.workspace,
            signer=user_name(custody.uid) if custody else None,
            signer_at=str(custody.path) if custody else None,
            pid=os.getpid(),
            size=self.sealer.size,
            broken=broken or None,
            witnessed=self._witnessed[0],
            witnessed_at=self._witnessed[1] or None,
            witness_refused=self._refused or None,
            room={what: state for what, state in self._said.items() if state},
        )


def run_sealer(site: Site, *, until_eof: bool = False) -> int:
    """Seal a site's log until told to end; where another process does it, wait for its place."""
    stop = told_to_end()
    if until_eof:
        threading.Thread(target=_await_eof, args=(stop,), name="until-eof", daemon=True).start()
    lock = FileLock(site.workspace.seal / "lock")
    while not lock.acquire() and not stop.wait(0.5):
        pass
    try:
        if not stop.is_set():
            SealerDuty(site).run(stop)
    finally:
        lock.release()
        site.close()
    return 0


def _await_eof(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()

"""Have a log sealed now: by the sealer that is there, or here where none is."""

from __future__ import annotations

import time

from engine.errors import Unverifiable
from engine.files import FileLock
from engine.record.custody import custody_of
from engine.record.erasing import finish_upto
from engine.record.sealed import log_name
from engine.site import Site
from events.read import read_back
from events.seal import QUIET, Sealer, keep_note, latest

PATIENCE = 15.0  # seconds


def seal_now(site: Site, *, timeout: float = PATIENCE) -> int:
    """Seal all that is on the record now; how many events are sealed.

    Raises:
        HistoryBroken: the log is not what was sealed. Unverifiable: the sealer that is there does not come to it.
    """
    wanted = next((event.seq for event in read_back(site.jobs.store) if event.type not in QUIET), 0)
    lock = FileLock(site.workspace.seal / "lock")
    until = time.monotonic() + timeout
    while True:
        note = latest(site.workspace.seal)
        if note is not None and note.checkpoint.size >= wanted:
            return note.checkpoint.size
        if lock.acquire():
            break
        if time.monotonic() > until:
            raise Unverifiable(
                f"the sealer has not come to event {wanted} within {timeout:g} s",
                f"look at {site.workspace.flight}/sealer.log",
            )
        time.sleep(0.05)
    try:
        sealer = sealer_of(site)
        try:
            sealer.begin()
            while (made := sealer.step()) is not None:
                keep_note(sealer.folder, made)
            finish_upto(site, sealer.position)
            return sealer.size
        finally:
            sealer.close()
    finally:
        lock.release()


def sealer_of(site: Site) -> Sealer:
    """Who seals a site's log, with its key wherever that is."""
    workspace = site.workspace
    return Sealer(site.jobs.store, workspace.seal, log_name(workspace), custody_of(workspace, site.settings))

"""Imports: a history from elsewhere, in an empty site, byte for byte."""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path

from engine.actors import current_actor
from engine.errors import ExportInvalid, SiteNotEmpty
from engine.ids import new_call_id
from engine.rebuild import rebuild_site
from engine.record.exporting import ExportFile
from engine.record.findings import Report
from engine.record.sources import ORIGINS
from engine.record.verify import Verification
from engine.record.witnessing import WITNESSES
from engine.site import Site
from events.bodies.record import Imported
from events.durable import write
from events.envelope import Call
from events.epochs import open_epoch, put_events
from events.errors import RecordDamaged
from events.note import Note
from events.seal import keep_note

BATCH = 1000  # events


def check_empty(site: Site) -> None:
    """Raise ``SiteNotEmpty`` where the site has a history."""
    if site.jobs.store.command("EXISTS", site.jobs.store.keys.log):
        raise SiteNotEmpty(f"{site.name} in {site.workspace.root} has a history already", "name a new --workspace")


def take_in(site: Site, path: Path) -> Report:
    """Verify an export and put it into an empty site; what verification found.

    Raises:
        ExportInvalid: it is no whole export. SiteNotEmpty. RecordDamaged: it does not verify; nothing was written.
    """
    check_empty(site)
    file = ExportFile(path)
    if not file.head["whole"]:
        raise ExportInvalid(f"{path} holds a part of a history", "export it without --job and --since")
    report = Verification(file.source()).run()
    if report.problems:
        first = report.problems[0]
        raise RecordDamaged(f"{path} does not verify: event {first.seq}: {first.what}", "have it made again")
    with site.workspace.taking_in(f"the export {path}"):
        _put(site, file, path, report)
    return report


def _put(site: Site, file: ExportFile, path: Path, report: Report) -> None:
    store = site.jobs.store
    # The site's own seal begins anew; what was signed elsewhere is kept with the keys that it was signed with.
    write(site.workspace.seal / ORIGINS, "".join(f"{line}\n" for line in file.head["keys"]))
    write(site.workspace.seal / WITNESSES, "".join(f"{key}\n" for key in file.head["witnesses"]))
    for text in file.head["checkpoints"]:
        keep_note(site.workspace.seal, Note.parse(text))
    events = file.events()
    while batch := list(islice(events, BATCH)):
        put_events(store, [(e.position, e.type, e.subject, e.version, e.raw) for e in batch])
    if store.vault is not None:
        store.vault.adopt(file.keys, file.erased)
    rebuild_site(store)
    with path.open("rb") as raw:
        digest = hashlib.file_digest(raw, "sha256").hexdigest()
    told = Imported(origin=file.log, events=report.events, root=report.root, sha256=digest)
    open_epoch(store, Call(call_id=new_call_id(), actor=current_actor()), [told])

"""Commands that keep the record: back up, restore, rebuild."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.actors import current_actor
from engine.cli.common import opened, site_command, where
from engine.cli.evidence import checkpoint_of, taken
from engine.cli.output import Format, err, out, print_json, text
from engine.errors import ArgumentInvalid
from engine.files import new_folder
from engine.ids import new_call_id
from engine.readmodels.feeder import Feeder
from engine.record.backup import backup as write_backup
from engine.record.backup import restored, unpack
from engine.record.mending import mend
from engine.record.sealed import log_name
from engine.record.sealing import seal_now
from engine.record.witnessing import last_seen
from engine.site import Site
from engine.workspace import Workspace, known_site
from events.bodies.record import HistoryLost
from events.envelope import Call
from events.errors import FlightlogError
from events.note import Note, Verifier
from events.read import count
from events.signing import Keys

PANEL = "Keeping"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for function, name in (
        (backup, None),
        (restore, None),
        (rebuild, None),
    ):
        site_command(app, PANEL, name)(function)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="To write to.")],
) -> int:
    """Write the whole record, its seal and its keys to one file, while the site works."""
    site = opened()
    try:
        made = write_backup(site, file)
    except FileExistsError as error:
        raise taken(file) from error
    finally:
        site.close()
    out.print(f"{text(file)}: {made.last} events, sha256 {made.sha256}")
    err.print("It holds the site's keys: keep it as you keep those. Apps and their folders are not in it.")
    return 0


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Made by flightlog backup.")],
    reason: Annotated[str, typer.Option(help="Why: it goes on the record.")] = "",
    checkpoint: Annotated[
        Path | None, typer.Option(help="The last checkpoint that anybody has: it tells what is missing.")
    ] = None,
    witness: Annotated[str | None, typer.Option(help="Address of a witness, to be asked for that.")] = None,
) -> int:
    """Make a site from a backup, in a new folder; it goes on in an epoch that says what is missing."""
    if not reason:
        raise ArgumentInvalid("--reason is missing", "say why: --reason 'the disk died'", field="--reason")
    chosen = where()
    if known_site(chosen.folder):
        Workspace.find(chosen.folder).check_finished()
        raise ArgumentInvalid(
            f"a site lives in {chosen.folder}",
            "name a new --workspace: nothing is put over a record",
            field="--workspace",
        )
    if not file.is_file():
        raise ArgumentInvalid(f"{file} is no file", "name one that flightlog backup wrote", field="FILE")
    noted = checkpoint_of(checkpoint) if checkpoint else None
    # Beside it first: what fails leaves nothing behind.
    beside = chosen.folder.resolve().with_name(f".{chosen.folder.resolve().name}.restoring")
    shutil.rmtree(beside, ignore_errors=True)
    with new_folder(beside):
        head = unpack(file, beside)
        workspace = Workspace.find(beside)
        log, keys = log_name(workspace), Keys(workspace.seal).verifiers()
        seen = last_seen(witness.rstrip("/"), log) if witness is not None else []
        known = _of_this_log([*seen, *([noted] if noted else [])], log, keys)
        beside.rename(chosen.folder)
    with new_folder(chosen.folder):  # it was not there before
        site = Site.open(
            finishing=True, workspace=chosen.folder, record_url=chosen.record_url, fabric_url=chosen.fabric_url
        )
        try:
            told = restored(site, Call(call_id=new_call_id(), actor=current_actor()), head, reason, known)
            unsealed = _sealing_fails(site)
        finally:
            site.close()
    out.print(
        f"{text(head['site'])} is back in {text(chosen.folder)}, with {head['last']} events of {head['taken']}."
    )
    for body in told:
        if isinstance(body, HistoryLost):
            out.print(f"[yellow]Lost[/]: events {body.first} to {body.last}. The record says so.")
    if unsealed:
        out.print(f"[yellow]Not sealed yet[/]: {text(unsealed)}")
    if known is None:
        out.print("What came after the backup, nobody has said here: --witness or --checkpoint tells.")
    return 0


def _sealing_fails(site: Site) -> str:
    """Why what was restored is not sealed; empty: it is. A signer may have the key, and has to accept the epoch."""
    try:
        seal_now(site)
    except FlightlogError as error:
        return f"{error.what}. {error.fix}"
    return ""


def _of_this_log(notes: list[Note], log: str, keys: list[Verifier]) -> Note | None:
    """The largest of some checkpoints; raises ``ArgumentInvalid`` for one that is not this site's."""
    for one in notes:
        if one.checkpoint.origin.rpartition("/")[0] != log or not one.signed_by(keys):
            raise ArgumentInvalid(
                f"the checkpoint of {one.checkpoint.origin[:80]} is not one that this site signed ({log})",
                "name one of this site",
                field="--checkpoint",
            )
    return max(notes, key=lambda one: one.checkpoint.size, default=None)


def rebuild(
    models: Annotated[bool, typer.Option("--models", help="Only the read models: lists, rows and counts.")] = False,
) -> int:
    """Write projections and read models anew from the log, while the site works."""
    site = opened()
    began = time.monotonic()
    told: dict[str, Any] = {}
    try:
        changed = 0
        if not models:
            _, changed = mend(site.jobs, Call(call_id=new_call_id(), actor=current_actor()))
        Feeder(site).drop()
        fed = Feeder(site).catch_up()
        told = {
            "events": count(site.jobs.store),
            "differed": changed,
            "fed": fed,
            "seconds": round(time.monotonic() - began, 3),
        }
    finally:
        site.close()
    if where().how is not Format.TABLE:
        print_json(told)
    else:
        differed = f"; {told['differed']} jobs had differed" if told["differed"] else ""
        out.print(f"Written anew from {told['events']} events in {told['seconds']} s{differed}.")
    return 0

"""Commands that keep the record: seal, witness, rotate, back up, restore, rebuild."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.actors import current_actor
from engine.cli.common import site_command, where
from engine.cli.evidence import checkpoint_of, note, opened, taken
from engine.cli.output import Format, err, out, print_json, text
from engine.errors import ArgumentInvalid
from engine.ids import new_call_id
from engine.readmodels.feeder import Feeder
from engine.record.backup import backup as write_backup
from engine.record.backup import restored, unpack
from engine.record.mending import mend
from engine.record.sealed import log_name, sealed
from engine.record.sealing import seal_now
from engine.record.witness import Witness, WitnessServer
from engine.record.witnessing import last_seen
from engine.site import Site
from engine.workspace import Workspace, known_site
from events.bodies.record import HistoryLost, KeyRotated
from events.envelope import Call
from events.epochs import open_epoch
from events.note import Note, Verifier
from events.read import count
from events.seal import Keys, kept, latest

PANEL = "Keeping"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for function, name in (
        (seal, None),
        (witness, None),
        (rotate_key, "rotate-key"),
        (new_epoch, "new-epoch"),
        (backup, None),
        (restore, None),
        (rebuild, None),
    ):
        site_command(app, PANEL, name)(function)


def seal() -> int:
    """Seal what is on the record now, and say how far it is sealed and witnessed."""
    site = opened()
    try:
        seal_now(site)
        told = {**sealed(site.workspace), "key": str(Keys(site.workspace.seal).verifiers()[-1])}
    finally:
        site.close()
    if where().how is not Format.TABLE:
        print_json(told)
        return 0
    out.print(f"Sealed: {told['sealed']} events, until {told['sealed_until']}. Witnessed: {told['witnessed']}.")
    out.print(f"The site's key, for whoever is to verify: {text(told['key'])}")
    if told["broken"]:
        out.print(f"[red]The sealer says: {text(told['broken'])}[/]")
    return 0


def witness(
    folder: Annotated[Path, typer.Option(help="Of its key, and of what it has seen.")] = Path("flightlog-witness"),
    name: Annotated[str, typer.Option(help="Of its key: who it is.")] = "witness",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any that is free.")] = 8788,
    accept: Annotated[
        str | None, typer.Option(help="Accept this epoch of a log that was seen before, LOG/EPOCH, and end.")
    ] = None,
    known_only: Annotated[
        bool, typer.Option("--known-only", help="Only logs whose key is in FOLDER/known; else the first is taken.")
    ] = False,
) -> int:
    """Witness other sites' logs, until Ctrl-C: cosign what continues, refuse what was rewritten."""
    if not name or any(c.isspace() or c == "+" for c in name):
        raise ArgumentInvalid(f"--name is {name!r}", "letters without blanks and +", field="--name")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    made = Witness(folder.resolve(), name, first_use=not known_only)
    if accept is not None:
        made.accept(accept)
        out.print(f"{text(accept)} is cosigned from now on.")
        return 0
    with WitnessServer(made, host, port) as server:
        err.print(f"Witness [bold]{text(name)}[/] at {server.url}. Its key: {text(made.signer.verifier)}")
        err.print("Sites show it their log with: FLIGHTLOG_WITNESS=" + server.url)
        stop.wait()
    return 0


def rotate_key() -> int:
    """Sign with another key from now on; what was signed before stays valid."""
    site = opened()
    try:
        seal_now(site)
        old, new, proof = Keys(site.workspace.seal).rotate(log_name(site.workspace))
        position = note(site, KeyRotated(old=str(old), new=str(new), proof=proof))
        seal_now(site)
    finally:
        site.close()
    out.print(f"The site signs with {text(new)} from event {position} on.")
    return 0


def new_epoch(
    reason: Annotated[str, typer.Option(help="What happened: a failover, a power loss, ...")] = "",
) -> int:
    """Disclose that the log ends earlier than what was sealed, and go on from there."""
    if not reason:
        raise ArgumentInvalid("--reason is missing", "say what happened: --reason 'a failover'", field="--reason")
    site = opened()
    try:
        last = latest(site.workspace.seal)
        end = kept(site.jobs.store, site.workspace.seal)
        if last is None or last.checkpoint.size <= end:
            raise ArgumentInvalid(
                f"nothing is missing: all {last.checkpoint.size if last else 0} events that were sealed are there",
                "flightlog verify says more",
            )
        lost = HistoryLost(first=end + 1, last=last.checkpoint.size, note=str(last), reason=reason)
        epoch = open_epoch(site.jobs.store, Call(call_id=new_call_id(), actor=current_actor()), [lost])
        seal_now(site)
    finally:
        site.close()
    out.print(f"Epoch {epoch} began; events {lost.first} to {lost.last} of the one before are disclosed as lost.")
    return 0


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="To write to.")],
) -> int:
    """Write the whole record, its seal and its keys to one file, while the site works."""
    site = opened()
    try:
        made = write_backup(site, file)
        note(site, made)
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
        raise ArgumentInvalid(
            f"a site lives in {chosen.folder}",
            "name a new --workspace: nothing is put over a record",
            field="--workspace",
        )
    if not file.is_file():
        raise ArgumentInvalid(f"{file} is no file", "name one that flightlog backup wrote", field="FILE")
    noted = checkpoint_of(checkpoint) if checkpoint else None
    # Beside it first: what fails leaves nothing behind.
    beside = chosen.folder.with_name(f".{chosen.folder.name}.restoring")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        head = unpack(file, beside)
        workspace = Workspace.find(beside)
        log, keys = log_name(workspace), Keys(workspace.seal).verifiers()
        seen = last_seen(witness.rstrip("/"), log) if witness is not None else []
        known = _of_this_log([*seen, *([noted] if noted else [])], log, keys)
        beside.rename(chosen.folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    try:
        site = Site.open(workspace=chosen.folder, record_url=chosen.record_url, fabric_url=chosen.fabric_url)
        try:
            told = restored(site, Call(call_id=new_call_id(), actor=current_actor()), head, reason, known)
            seal_now(site)
        finally:
            site.close()
    except BaseException:
        shutil.rmtree(chosen.folder, ignore_errors=True)  # it was not there before
        raise
    out.print(
        f"{text(head['site'])} is back in {text(chosen.folder)}, with {head['last']} events of {head['taken']}."
    )
    for body in told:
        if isinstance(body, HistoryLost):
            out.print(f"[yellow]Lost[/]: events {body.first} to {body.last}. The record says so.")
    if known is None:
        out.print("What came after the backup, nobody has said here: --witness or --checkpoint tells.")
    return 0


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

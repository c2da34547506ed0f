"""Commands that make others vouch for the record: seal, witness, signer, rotate-key, new-epoch."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from engine.actors import current_actor
from engine.cli.common import opened, site_command, where
from engine.cli.output import Format, err, out, print_json, text
from engine.ending import told_to_end
from engine.errors import ArgumentInvalid, EngineDown
from engine.files import FileLock
from engine.ids import new_call_id
from engine.record.custody import custody_of, user_name
from engine.record.noting import note
from engine.record.sealed import log_name, sealed
from engine.record.sealing import seal_now
from engine.record.serving import Serving
from engine.record.signer import Signatory, signer_app
from engine.record.witness import Witness, WitnessServer
from engine.settings import settings
from engine.status.sockets import unix_socket
from events.bodies.record import HistoryLost, KeyRotated
from events.envelope import Call
from events.epochs import open_epoch
from events.seal import kept, latest
from events.signing import Keys

PANEL = "Keeping"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for function, name in (
        (seal, None),
        (witness, None),
        (signer, None),
        (rotate_key, "rotate-key"),
        (new_epoch, "new-epoch"),
    ):
        site_command(app, PANEL, name)(function)


def seal() -> int:
    """Seal what is on the record now, and say how far it is sealed and witnessed."""
    site = opened()
    try:
        seal_now(site)
        keys = Keys(site.workspace.seal, custody_of(site.workspace, site.settings))
        told = {**sealed(site.workspace), "key": str(keys.newest)}
        holder = told["signer"] or ("a signer" if keys.apart else "the site itself")
    finally:
        site.close()
    if where().how is not Format.TABLE:
        print_json(told)
        return 0
    out.print(f"Sealed: {told['sealed']} events, until {told['sealed_until']}. Witnessed: {told['witnessed']}.")
    out.print(f"The site's key, for whoever is to verify: {text(told['key'])}")
    out.print(f"It is held by {text(holder)}.")
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
    made = Witness(folder.resolve(), name, first_use=not known_only)
    if accept is not None:
        made.ledger.accept(_origin(accept))
        out.print(f"{text(accept)} is cosigned from now on.")
        return 0
    stop = told_to_end()
    with _alone(folder.resolve(), "witness"), WitnessServer(made, host, port) as server:
        err.print(f"Witness [bold]{text(name)}[/] at {server.url}. Its key: {text(made.signer.verifier)}")
        err.print("Sites show it their log with: FLIGHTLOG_WITNESS=" + server.url)
        stop.wait()
    return 0


def signer(
    folder: Annotated[Path, typer.Option(help="Of the key, and of what was signed.")] = Path("flightlog-signer"),
    socket: Annotated[
        Path | None, typer.Option(help="To listen at; else FLIGHTLOG_SIGNER, or FOLDER/signer.sock.")
    ] = None,
    for_: Annotated[
        list[str] | None, typer.Option("--for", help="User whose site it signs for; may be given several times.")
    ] = None,
    accept: Annotated[str | None, typer.Option(help="Accept this epoch of the log, LOG/EPOCH, and end.")] = None,
) -> int:
    """Hold a site's key as another user, until Ctrl-C: sign what goes on from what was signed, and nothing else."""
    made = Signatory(folder.resolve())
    if accept is not None:
        made.ledger.accept(_origin(accept))
        out.print(f"{text(accept)} is signed from now on.")
        return 0
    users = frozenset(map(_uid, for_ or [])) or frozenset((os.getuid(),))
    place = socket or Path(settings().signer or folder / "signer.sock")
    stop = told_to_end()
    with _alone(folder.resolve(), "signer"), unix_socket(place.resolve(), 0o666) as listening:
        # Everybody may connect, and the kernel says who did.
        err.print(f"Signer of [bold]{text(user_name(os.getuid()))}[/], for {text(', '.join(map(user_name, users)))}.")
        if os.getuid() in users:
            err.print("[yellow]It signs for its own user, who can read the key[/]: run it as another one.")
        err.print(f"The site has it sign with: FLIGHTLOG_SIGNER={text(place.resolve())}")
        with Serving(signer_app(made, users), listening, "signer"):
            stop.wait()
    return 0


def rotate_key() -> int:
    """Sign with another key from now on; what was signed before stays valid. A signer that was named takes over."""
    site = opened()
    try:
        seal_now(site)
        keys = Keys(site.workspace.seal, custody_of(site.workspace, site.settings))
        old, new, proof = keys.rotate(log_name(site.workspace))
        position = note(site, KeyRotated(old=str(old), new=str(new), proof=proof))
        seal_now(site)
    finally:
        site.close()
    if where().how is not Format.TABLE:
        print_json({"old": str(old), "new": str(new), "position": position})
        return 0
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


@contextmanager
def _alone(folder: Path, whose: str) -> Iterator[None]:
    lock = FileLock(folder / "serving.lock")
    if not lock.acquire():
        raise EngineDown(f"another {whose} serves {folder}", "end it, or name another --folder")
    try:
        yield
    finally:
        lock.release()


def _origin(given: str) -> str:
    log, _, epoch = given.rpartition("/")
    if not log or not epoch.isdigit():
        raise ArgumentInvalid(
            f"--accept is {given!r}", "it reads LOG/EPOCH, as the refusal names it", field="--accept"
        )
    return given


def _uid(name: str) -> int:
    try:
        return int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ArgumentInvalid(
            f"--for is {name!r}, and no such user is here", "a user's name or number", field="--for"
        ) from None

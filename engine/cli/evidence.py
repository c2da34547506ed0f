"""Commands that make evidence of the record, and hold it against what was signed."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from engine.cli.common import opened, site_command, where
from engine.cli.output import Format, counted, err, out, print_json, text
from engine.errors import ArgumentInvalid, Unverifiable
from engine.exits import Exit
from engine.files import new_file
from engine.readmodels.moments import moment, time_of
from engine.record.bundling import bundle as write_bundle
from engine.record.carried import verify_export
from engine.record.exporting import ExportFile
from engine.record.exporting import export as write_export
from engine.record.findings import Report, reach
from engine.record.importing import take_in
from engine.record.leaving import leaves
from engine.record.noting import note
from engine.record.proving import Prover
from engine.record.sealed import log_name
from engine.record.sealing import seal_now
from engine.record.sources import site_source
from engine.record.verify import Verification
from engine.record.witnessing import last_seen
from engine.site import Site
from engine.workspace import known_site
from events.bodies.record import Exported
from events.note import Note, NoteInvalid, Verifier
from events.read import at

PANEL = "Evidence"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    site_command(app, PANEL)(verify)
    site_command(app, PANEL)(prove)
    site_command(app, PANEL, prints=False)(export)
    site_command(app, PANEL, "import")(import_)
    site_command(app, PANEL)(bundle)


def verify(
    from_: Annotated[str | None, typer.Option("--from", help="First position, or sequence.")] = None,
    to: Annotated[str | None, typer.Option(help="Last position, or sequence.")] = None,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A checkpoint that was kept elsewhere; may be given several times.")
    ] = None,
    witness: Annotated[list[str] | None, typer.Option(help="Address of a witness, to be asked what it saw.")] = None,
    witness_key: Annotated[list[str] | None, typer.Option(help="Public key of a witness that you trust.")] = None,
    key: Annotated[str | None, typer.Option(help="The site's public key, as you know it from elsewhere.")] = None,
    export_: Annotated[Path | None, typer.Option("--export", help="Verify this file instead of a site.")] = None,
) -> int:
    """Verify the record: nothing missing, nothing changed, signed by the site, seen by a witness."""
    anchor, trusted = _key(key, "--key"), [_key(one, "--witness-key") for one in witness_key or []]
    extra = [checkpoint_of(path) for path in checkpoint or []]
    if export_ is not None:
        file = _export_file(export_)
        extra += _seen(witness or [], file.log)
        report = verify_export(file, anchor, trusted, extra)
        _tell(report, str(export_))
        return _exit(report)
    site = opened()
    try:
        extra += _seen(witness or [], log_name(site.workspace))
        first, last = _sequence(from_, "--from") or 1, _sequence(to, "--to")
        if last is not None and last < first:
            raise ArgumentInvalid(f"--to is before --from ({last} < {first})", "a later position", field="--to")
        source = site_source(site, first=first, last=last, extra=extra, anchor=anchor)
        if trusted:  # those that you know, and no others
            source.witnesses = [one for one in trusted if one is not None]
        report = Verification(source, first=first, last=last).run()
        _tell(report, site.name)
        note(site, report.found())
    finally:
        site.close()
    return _exit(report)


def _tell(report: Report, what: str) -> None:
    if where().how is not Format.TABLE:
        print_json(report.as_dict())
        return
    for problem in report.problems:
        place = f"event {problem.seq}" + (f" ({problem.position})" if problem.position else "")
        out.print(f"[red]{place}[/]: {text(problem.what)}")
    for loss in report.losses:
        out.print(f"[yellow]disclosed loss[/]: {text(loss)}")
    for erased in report.erased:
        out.print(f"[dim]personal fields erased: {text(erased)}[/]")
    colour = {"DAMAGED": "bold red", "WITNESSED": "bold green", "SITE-SIGNED": "green", "UNSEALED": "yellow"}
    for word, low, high in report.spans():
        by = {
            "WITNESSED": f"cosigned by {', '.join(report.witnessed_by)}",
            "SITE-SIGNED": "signed by the site; its key's holder could have written them anew",
            "UNSEALED": "not signed yet",
        }[word]
        if not report.problems:
            out.print(f"  {word:<12} events {low} to {high}: {text(by)}")
    upto = f" (up to event {end})" if (end := reach(report.as_dict())) < report.last else ""
    out.print(
        f"[{colour[report.verdict]}]{report.verdict}[/]: {text(what)}, {counted(report.events, 'event')}{upto}, "
        f"{counted(len(report.problems), 'problem')}, {counted(report.checkpoints, 'checkpoint')}"
    )


def _exit(report: Report) -> int:
    return int(Exit.DAMAGED) if report.problems else int(Exit.OK)


def _key(given: str | None, name: str) -> Verifier | None:
    if given is None:
        return None
    try:
        path = Path(given)
        return Verifier.parse(path.read_text().split()[0] if len(given) < 200 and path.is_file() else given)
    except (ValueError, OSError, IndexError) as error:
        raise ArgumentInvalid(f"{name} is {given[:80]!r}", "a key, or a file with one", field=name) from error


def checkpoint_of(path: Path) -> Note:
    """A checkpoint from a file; raises ``Unverifiable``."""
    try:
        found = Note.parse(path.read_text())
        assert found.checkpoint  # noqa: S101 - parsed for its errors
    except (OSError, NoteInvalid, UnicodeDecodeError) as error:
        raise Unverifiable(f"the checkpoint {path} cannot be read: {error}", "name a signed checkpoint") from error
    return found


def _export_file(path: Path) -> ExportFile:
    try:
        return ExportFile(path)
    except OSError as error:
        raise Unverifiable(f"{path} cannot be read: {error.strerror}", "name a file of flightlog export") from error


def _seen(urls: list[str], log: str) -> list[Note]:
    """What witnesses have seen; one that knows nothing of this log says so."""
    found = []
    for url in urls:
        seen = last_seen(url.rstrip("/"), log)
        if not seen:
            raise Unverifiable(f"the witness {url} has seen nothing of {log}", "name the one that cosigns it")
        found += seen
    return found


def _sequence(given: str | None, name: str) -> int | None:
    if given is None:
        return None
    number = given.partition("-")[2] or given
    if not re.fullmatch(r"(\d{1,15}-)?\d{1,15}", given, re.ASCII) or int(number) < 1:
        raise ArgumentInvalid(f"{name} is {given[:80]!r}", "a position, or its sequence number", field=name)
    return int(number)


def prove(
    event: Annotated[str, typer.Argument(metavar="EVENT", help="Position of the event.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; else it is printed.")] = None,
) -> int:
    """Write a proof that an event was in the log, which needs nothing of ours to be verified."""
    kind, position = moment(event, "EVENT")
    if kind != "position":
        raise ArgumentInvalid(f"EVENT is {event[:80]!r}", "a position, as events print it", field="EVENT")
    site = opened()
    try:
        found = at(site.jobs.store, [position])
        if not found:
            raise ArgumentInvalid(f"the log has no event {position}", "flightlog events shows them", field="EVENT")
        seal_now(site)
        prover = Prover(site, found[0].seq)
        try:
            proof = json.dumps(prover.proof(found[0]), indent=2, ensure_ascii=False) + "\n"
        finally:
            prover.close()
        seq = found[0].seq
        made = Exported(what="proof", first=seq, last=seq, events=1, sha256=_sha256(proof))
        if output is not None:
            with new_file(output) as file:
                file.write(proof.encode())
                leaves(site, file, made)
        else:
            leaves(site, None, made)
            typer.echo(proof, nl=False)
    except FileExistsError as error:
        raise taken(output or Path()) from error
    finally:
        site.close()
    if output is not None:
        err.print(f"To verify it elsewhere: python flightlog_verify.py {text(output)} (it is in every bundle).")
    return 0


def _sha256(data: str) -> str:
    return hashlib.sha256(data.encode()).hexdigest()


def taken(path: Path) -> ArgumentInvalid:
    """The error for a file that is there already: nothing is written over."""
    return ArgumentInvalid(f"{path} is there already", "name another file; nothing was written", field="FILE")


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="To write to; .jsonl is not packed.")],
    job: Annotated[str | None, typer.Option(help="Only this job, each event with its proof.")] = None,
    since: Annotated[str | None, typer.Option(help="Only from this time on, each event with its proof.")] = None,
    format_: Annotated[
        Literal["cloudevents", "csv"], typer.Option("--format", help="cloudevents is lossless; csv is for a look.")
    ] = "cloudevents",
) -> int:
    """Write the history to a file that can be verified and imported anywhere."""
    site = opened()
    try:
        made = write_export(
            site, file, style=format_, job=job, since=time_of(since, "--since") if since is not None else None
        )
    except FileExistsError as error:
        raise taken(file) from error
    finally:
        site.close()
    out.print(f"{made.events} events, {made.first} to {made.last}, sha256 {made.sha256}")
    if made.keys:
        err.print(f"It can be read: the keys of {made.keys} jobs' personal fields are in it. Keep it accordingly.")
    return 0


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Made by flightlog export.")],
) -> int:
    """Put a whole history into an empty site: the same statuses, the same root."""
    chosen = where()
    export_file = _export_file(file)
    name = chosen.site or known_site(chosen.folder) or str(export_file.head["site"])
    site = Site.open(
        create=True, site=name, workspace=chosen.folder, record_url=chosen.record_url, fabric_url=chosen.fabric_url
    )
    try:
        report = take_in(site, file)
        jobs = sum(1 for _ in site.jobs.each())
    finally:
        site.close()
    told: dict[str, Any] = {"events": report.events, "jobs": jobs, "verdict": report.verdict, "root": report.root}
    if chosen.how is not Format.TABLE:
        print_json(told)
    else:
        out.print(f"{text(name)} has {report.events} events and {jobs} jobs; they are {report.verdict}.")
        out.print(f"root {report.root}")
    return 0


def bundle(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The zip; JOB.zip if left out.")] = None,
    with_log: Annotated[bool, typer.Option("--with-log", help="The app's output too: it may hold anything.")] = False,
) -> int:
    """Put a job's events, proofs and a readable page into one archive, with what verifies it."""
    site = opened()
    path = output or Path(f"{job}.zip")
    try:
        made = write_bundle(site, job, path, with_log=with_log)
    except FileExistsError as error:
        raise taken(path) from error
    finally:
        site.close()
    out.print(f"{text(path)}: {made.events} events, sha256 {made.sha256}")
    return 0

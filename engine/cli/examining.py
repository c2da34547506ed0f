"""Commands for whoever looks back: replay, review, report; and what must be kept, or forgotten."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from engine.actors import current_actor
from engine.cli.common import opened, reading, site_command, where
from engine.cli.output import Format, fields, out, print_json, text
from engine.errors import ArgumentInvalid
from engine.exits import Exit
from engine.ids import new_call_id
from engine.readmodels.moments import moment, time_of
from engine.record.erasing import erase as forget
from engine.record.erasing import foresee
from engine.record.erasing import hold as set_hold
from engine.record.noting import note
from engine.record.replaying import Moment, Replay, check
from engine.record.reporting import period
from engine.why import said
from events.bodies.record import ReviewRecorded
from events.envelope import Call, iso
from events.read import at as events_at

PANEL = "Looking back"
Job = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for function in (replay, review, report, erase, hold):
        site_command(app, PANEL)(function)


def replay(
    job: Annotated[str | None, typer.Option(help="Id of the job.")] = None,
    at: Annotated[
        list[str] | None, typer.Option(help="A version, a position or a time; twice: what differs between.")
    ] = None,
    check_: Annotated[
        bool, typer.Option("--check", help="Hold every projection against the log, field by field.")
    ] = False,
) -> int:
    """Show a job as it was, and what made it so; step by step, at a moment, or between two."""
    with reading() as (jobs, _):
        if check_:
            return _check(jobs)
        if not job:
            raise ArgumentInvalid("--job is missing", "flightlog replay --job JOB, or --check", field="--job")
        life = Replay(jobs, job)
        moments = at or []
        if len(moments) > 2:
            raise ArgumentInvalid("--at is given more than twice", "once or twice", field="--at")
        if not moments:
            return _steps(life)
        found = [life.at(one) for one in moments]
        return _moment(life, found[0]) if len(found) == 1 else _between(life, *found)


def _step(one: Moment) -> dict[str, Any]:
    return {
        "version": one.version,
        "position": one.event.position,
        "time": iso(one.event.ms),
        "event": one.event.type,
        "state": one.state.state.value,
        "said": said(one.event),
    }


def _steps(life: Replay) -> int:
    steps = [_step(one) for one in life]
    if where().how is not Format.TABLE:
        print_json(steps)
        return 0
    for step in steps:
        told = step["said"] or step["event"]
        out.print(f"{step['version']:>5}  [dim]{step['time']}[/]  [bold]{step['state']:<12}[/] {text(told)}")
    return 0


def _moment(life: Replay, one: Moment) -> int:
    shown = one.shown(life.job)
    if where().how is not Format.TABLE:
        print_json({**shown, "event": one.event.as_dict()})
        return 0
    fields({name: value for name, value in shown.items() if name not in ("allowed", "refused")}, Format.TABLE)
    told = said(one.event) or one.event.type
    out.print(f"[bold]By event {one.event.position}[/] (version {one.version}): {text(told)}")
    return 0


def _between(life: Replay, one: Moment, other: Moment) -> int:
    changes = life.changes(one.state, other.state)
    if where().how is not Format.TABLE:
        told = {name: {"before": before, "after": after} for name, (before, after) in changes.items()}
        print_json({"job": life.job, "from": one.version, "to": other.version, "changes": told})
        return 0
    out.print(f"{text(life.job)} from version {one.version} to {other.version}:")
    for name, (before, after) in changes.items():
        out.print(f"  {name:<16} [red]{text(before or '-')}[/] → [green]{text(after or '-')}[/]")
    return 0


def _check(jobs: Any) -> int:
    count, found = check(jobs)
    if where().how is not Format.TABLE:
        print_json({"jobs": count, "differences": [one._asdict() for one in found]})
    else:
        for one in found:
            out.print(
                f"[red]{text(one.job)}.{one.field}[/]: shown {text(one.shown)}, the log says {text(one.folded)}"
            )
        good = "every projection is what the log says" if not found else f"{len(found)} fields differ"
        out.print(f"{count} jobs: {good}." + (" To mend it: flightlog rebuild" if found else ""))
    return int(Exit.DAMAGED) if found else 0


def review(
    until: Annotated[str, typer.Option(help="Position up to which you have looked.")] = "",
    note_: Annotated[str, typer.Option("--note", help="What you found.")] = "",
) -> int:
    """Put on the record that you have looked at the history, and what you found."""
    if not until or moment(until, "--until")[0] != "position":
        raise ArgumentInvalid(
            f"--until is {until[:80]!r}", "a position, as flightlog events prints it", field="--until"
        )
    if not note_.strip():
        raise ArgumentInvalid("--note is missing", "say what you found: --note 'nothing unusual'", field="--note")
    site = opened()
    try:
        if not events_at(site.jobs.store, [until]):
            raise ArgumentInvalid(f"the log has no event {until}", "flightlog events shows them", field="--until")
        position = note(site, ReviewRecorded(until=until, note=note_.strip()))
    finally:
        site.close()
    out.print(f"On the record as event {position}: looked at up to {until}.")
    return 0


def report(
    from_: Annotated[str, typer.Option("--from", help="Time, 2026-11-01 or 2026-11-01T00:00:00Z.")] = "",
    to: Annotated[str, typer.Option(help="Time; now if left out.")] = "",
    actor: Annotated[str | None, typer.Option(help="Only what this one asked, and what came of it.")] = None,
) -> int:
    """Print a period: who asked what, how it ended, what left the site, who looked at the record."""
    if not from_:
        raise ArgumentInvalid("--from is missing", "flightlog report --from 2026-11-01", field="--from")
    with reading() as (jobs, _):
        first = time_of(from_, "--from")
        last = time_of(to, "--to") if to else jobs.store.now_ms()
        if last < first:
            raise ArgumentInvalid(f"--to is before --from ({iso(last)})", "a later time", field="--to")
        told = period(jobs, first, last, actor)
    if where().how is not Format.TABLE:
        print_json(told)
        return 0
    out.print(
        f"[bold]{text(told['site'])}[/], {told['from']} to {told['to']}" + (f", {text(actor)}" if actor else "")
    )
    out.print(f"{told['events']} events about {told['jobs']} jobs.")
    for who, what in told["asked"].items():
        out.print(f"  {text(who)} asked: " + ", ".join(f"{n} {kind}" for kind, n in what.items()))
    for title, counted in (("Ends", told["ends"]), ("Refused", told["refused"]), ("Bytes out", told["bytes_out"])):
        if counted:
            out.print(f"  {title}: " + ", ".join(f"{text(name)} {n}" for name, n in counted.items()))
    for one in told["record"]:
        facts = "  ".join(f"{k}={v}" for k, v in one["facts"].items() if v not in (None, [], {}, ""))
        out.print(f"  [dim]{one['time']}[/] {one['type']} by {text(one['by'])}: {text(facts)[:160]}")
    return 0


def erase(
    job: Job,
    reason: Annotated[str, typer.Option(help="Why: it goes on the record.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be forgotten.")] = False,
) -> int:
    """Forget a job's personal fields for ever, by destroying its key; the record stays whole and verifiable."""
    if not reason and not dry_run:
        raise ArgumentInvalid("--reason is missing", "say why: --reason 'the patient asked for it'", field="--reason")
    site = opened()
    try:
        if dry_run:
            done = foresee(site, job)
        else:
            done = forget(site, Call(call_id=new_call_id(), actor=current_actor()), job, reason)
    finally:
        site.close()
    if where().how is not Format.TABLE:
        print_json(done.as_dict())
        return 0
    would = "would be" if dry_run else "are"
    out.print(f"{done.fields} personal fields in {done.events} events of {text(job)} {would} forgotten.")
    out.print("Not reached: backups and exports that were made before, and other sites.")
    return 0


def hold(
    job: Job,
    reason: Annotated[str, typer.Option(help="Why: it goes on the record.")] = "",
    lift: Annotated[bool, typer.Option("--lift", help="End the hold.")] = False,
) -> int:
    """Set a legal hold on a job, or lift it: while it is held, nothing of it can be erased."""
    if not reason:
        raise ArgumentInvalid("--reason is missing", "say why: --reason 'case 17'", field="--reason")
    site = opened()
    try:
        call = Call(call_id=new_call_id(), actor=current_actor())
        position = set_hold(site, call, job, reason, lift=lift)
    finally:
        site.close()
    out.print(f"{text(job)} is {'held no more' if lift else 'held'}, by event {position}.")
    return 0

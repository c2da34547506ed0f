"""Commands about the record."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from itertools import islice
from typing import Annotated, Any

import typer

from engine.cli.common import reading, site_command, where
from engine.cli.output import Format, lines, out, print_json, text
from engine.errors import ArgumentInvalid, JobUnknown
from engine.ids import check_job_id
from engine.why import consequences, story
from events.bodies import BODIES
from events.envelope import Event
from events.follow import follow as follow_log
from events.read import at, last_position, read, read_job
from events.store import Store, blocking
from events.subjects import job_of

PANEL = "Record"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for function in (events, why):
        site_command(app, PANEL)(function)


def events(
    job: Annotated[str | None, typer.Option(help="Only of this job.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="Only of this type.")] = None,
    after: Annotated[str, typer.Option(help="Only after this position.")] = "0-0",
    reads: Annotated[bool, typer.Option("--reads", help="Folded reads too.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="And then as they come.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
) -> int:
    """Print events, oldest first."""
    if type_ is not None and type_ not in BODIES:
        raise ArgumentInvalid(f"--type is {type_!r}", f"one of {', '.join(BODIES)}", field="--type")
    _check_position(after)

    def wanted(event: Event) -> bool:
        return (
            (type_ is None or event.type == type_)
            and (reads or type_ is not None or event.type != "ReadsObserved")
            and (job is None or job_of(event.subject) == job or _refused(event, job))
        )

    with reading() as (jobs, _):
        store = jobs.store
        refused = job is not None and not jobs.load(check_job_id(job)).known
        if refused and not any(_refusals(store, str(job))):
            raise JobUnknown(f"job {job} is not on this site's record", "flightlog list")
        end = last_position(store)
        found: Iterable[Event]
        if job is not None and refused:
            found = _refusals(store, job)
        elif job is not None:
            found = (e for e in read_job(store, job) if _order(e.position) > _order(after))
        else:
            found = read(store, after=after, upto=end)
        _print(islice((e for e in found if wanted(e)), limit), follow)
        if follow:
            _follow(store, max(end, after, key=_order), wanted)
    return 0


def _refused(event: Event, job: str) -> bool:
    """A call about a job that was refused before there was one: it is on the site's record."""
    return event.type == "CallRefused" and event.body.get("job") == job


def _follow(store: Store, after: str, wanted: Any) -> None:
    client = blocking(store.client)
    try:
        live = Store(client, store.site, vault=store.vault, archive=store.archive)
        for batch in follow_log(live, after, threading.Event()):
            _print((event for event in batch if wanted(event)), True)
    except KeyboardInterrupt:
        return
    finally:
        client.close()


def _print(found: Iterable[Event], live: bool) -> None:
    how = where().how
    if how is Format.JSON and not live:
        print_json([event.as_dict() for event in found])
    elif how is not Format.TABLE:
        lines(event.as_dict() for event in found)
    else:
        for event in found:
            whole = event.as_dict()
            facts = "  ".join(f"{k}={v}" for k, v in whole["body"].items() if v not in (None, [], {}, ""))
            out.print(
                f"[dim]{whole['time']}[/] [bold]{event.seq:>6}[/] {text(event.type):<20} "
                f"[cyan]{text(event.subject)}[/] [dim]{text(whole['actor']['id'])}[/] {text(facts)[:300]}"
            )


def why(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")],
    across: Annotated[bool, typer.Option("--across", help="And what came of it elsewhere.")] = False,
) -> int:
    """Tell a job's story in plain sentences; where something came of another job, that too."""
    with reading() as (jobs, _):
        known = jobs.load(check_job_id(job)).known
        mine = list(read_job(jobs.store, job) if known else _refusals(jobs.store, job))
        lines_ = list(story(mine, lambda position: next(iter(at(jobs.store, [position])), None)))
        if across and mine:
            rest = read(jobs.store, after=mine[0].position)
            lines_ += consequences(rest, {event.position for event in mine}, mine[0].subject)
            lines_.sort(key=lambda line: _order(line[2]))
        told = [{"time": time, "sentence": sentence, "position": position} for time, sentence, position in lines_]
        if not told:
            raise JobUnknown(f"job {job} is not on this site's record", "flightlog list shows the jobs of this site")
    how = where().how
    if how is Format.JSON:
        print_json(told)
    elif how is Format.JSONL:
        lines(told)
    else:
        tell_story(told)
    return 0


def _refusals(store: Store, job: str) -> Iterable[Event]:
    """Calls about a job that never came to be."""
    return (event for event in read(store) if _refused(event, job))


def tell_story(told: list[dict[str, str]]) -> None:
    """Print a story: the date once, then a sentence a line."""
    day = ""
    for line in told:
        date, _, clock = line["time"].partition(" ")
        if date != day:
            out.print(f"[bold]{date}[/] (UTC)")
            day = date
        out.print(f"  [dim]{clock}[/]  {text(line['sentence'])}")


def _order(position: str) -> int:
    return int(position.partition("-")[2])


def _check_position(position: str) -> None:
    if not re.fullmatch(r"\d{1,15}-\d{1,15}", position, re.ASCII):
        raise ArgumentInvalid(
            f"--after is {position[:80]!r}",
            "a position reads <ms>-<seq>, as events print it",
            field="--after",
        )

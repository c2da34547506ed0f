"""Commands about streams: what is under way, and sending a file."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from engine.cli.asking import ask
from engine.cli.common import acting, reading, site_command, where
from engine.cli.output import Format, err, fields, lines, out, print_json, rows, text
from engine.client_engine import ClientEngine
from engine.errors import JobUnknown, TransferFailed
from engine.ids import check_job_id
from engine.jobs import Jobs
from engine.messages import MessageRows
from engine.readmodels.models import KEPT
from engine.streaming.files import CHUNK
from engine.streaming.sending import SentFile
from engine.transfers import Transfers, transfers
from engine.workspace import Workspace
from events.follow import follow
from events.read import last_position, read

PANEL = "Federation"
MESSAGES = ("since", "direction", "job", "peer", "topic", "size", "sealed", "state", "code", "ms", "why")
LIVE_EVERY = 0.5  # seconds
LAST = 20  # transfers that are over, in the table
SHOWN = ("since", "direction", "job", "what", "peers", "state", "objects", "bytes", "speed", "resumed", "why")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    site_command(app, PANEL, "transfers")(transfers_)
    site_command(app, PANEL)(messages)
    site_command(app, PANEL)(send)
    site_command(app, PANEL, "share-logs")(share_logs)


def transfers_(
    job: Annotated[str | None, typer.Option(help="Only of this job.")] = None,
    follow_: Annotated[bool, typer.Option("--follow", "-f", help="Those under way, live, until Ctrl-C.")] = False,
    all_: Annotated[bool, typer.Option("--all", help=f"All that are over too, not the last {LAST}.")] = False,
) -> int:
    """List streams and files that go out or come in: how far they are, and how they ended."""
    with reading() as (jobs, _):
        if job is not None and not jobs.load(check_job_id(job)).known:
            raise JobUnknown(f"job {job} is not on this site's record", "flightlog list")
        if follow_:
            return _live(jobs, job)
        found = transfers(read(jobs.store), job=job, now=jobs.store.now_ms())
    how = where().how
    if how is Format.JSON:
        print_json(found)
    elif how is Format.JSONL:
        lines(found)
    elif not found:
        out.print("Nothing was streamed.")
    else:
        over = [row for row in found if row["state"] != "under way"]
        under_way = [row for row in found if row["state"] == "under way"]
        _table([*(over if all_ else over[-LAST:]), *under_way])
        if under_way and err.is_terminal:
            err.print("[dim]flightlog transfers --follow shows them live.[/]")
    return 0


def messages(
    job: Annotated[str | None, typer.Option(help="Only of this job.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many, the last.")] = 50,
) -> int:
    """List messages that were sent or came in, and what came of each, the newest first."""
    with reading() as (jobs, workspace):
        if job is not None and not jobs.load(check_job_id(job)).known:
            raise JobUnknown(f"job {job} is not on this site's record", "flightlog list")
        found = _from_api(workspace, job, limit) if workspace is not None else None
        if found is None:
            rows_: dict[str, dict[str, Any]] = {}
            fold = MessageRows(rows_)
            for event in read(jobs.store):
                fold.take(event)
            found = [row for row in reversed(rows_.values()) if job is None or row["job"] == job][:limit]
    shown = found if where().how is not Format.TABLE else [{**row, "sealed": row["sealed"] or ""} for row in found]
    rows(shown, MESSAGES, where().how, "No message was sent, and none came in.")
    return 0


def _from_api(workspace: Workspace, job: str | None, limit: int) -> list[dict[str, Any]] | None:
    """The last messages, where the API has as many: it keeps the last of them only."""
    found: list[dict[str, Any]] = []
    cursor = None
    while len(found) < limit:
        page = ask(workspace, "/v1/messages", job=job, limit=min(500, limit - len(found)), cursor=cursor)
        if page is None or page["as_of"]["lag"]:
            return None
        found += page["items"]
        cursor = page["next"]
        if cursor is None:
            return found if len(found) < KEPT["messages"] else None
    return found


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in SHOWN:
        table.add_column(column.upper(), justify="right" if column in ("objects", "bytes", "speed") else "left")
    for row in rows:
        speed = row["bytes_per_second"]
        shown = {
            **row,
            "peers": ", ".join(row["peers"]),
            "job": row["job"] or "-",
            "bytes": decimal(row["bytes"]) + (f" of {decimal(row['total'])}" if row["total"] else ""),
            "speed": f"{decimal(speed)}/s" if speed else "-",
            "resumed": row["resumed"] or "-",
            "why": row["why"] or "",
        }
        table.add_row(*(text(shown[column]) for column in SHOWN))
    out.print(table)


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=err,
        refresh_per_second=5,
    )


def _live(jobs: Jobs, job: str | None) -> int:
    """Bars of what is under way, until Ctrl-C; where nobody looks, a line for each step."""
    folded, since = Transfers(job), "0-0"
    with _bars() as bars:
        shown: dict[tuple[str, str], Any] = {}
        try:
            while True:
                first = since == "0-0"
                for event in read(jobs.store, after=since):
                    since = event.position
                    row = folded.take(event)
                    if row is not None and (not first or row["state"] == "under way"):
                        _show(bars, shown, row)
                time.sleep(LIVE_EVERY)
        except KeyboardInterrupt:
            return 0


def _show(bars: Progress, shown: dict[tuple[str, str], Any], row: dict[str, Any]) -> None:
    arrow = "→" if row["direction"] == "out" else "←"
    what = f"{text(row['what'])} {arrow} {text(', '.join(row['peers']))}"
    if not err.is_terminal:
        out.print(f"{what} {row['state']} {row['objects']} objects, {decimal(row['bytes'])}")
        return
    key = (row["id"], row["direction"])
    if key not in shown:
        shown[key] = bars.add_task(what, total=row["total"])
    total = row["bytes"] if row["state"] == "done" else row["total"]
    bars.update(shown[key], completed=row["bytes"], total=total)


def send(
    file: Annotated[Path, typer.Argument(help="What is to be sent.")],
    to: Annotated[list[str], typer.Option(help="Address of a receiver: server, or a site; may be given again.")],
    job: Annotated[str | None, typer.Option(help="Whose record it goes to; the site's if left out.")] = None,
    secure: Annotated[bool, typer.Option("--secure", help="Seal it for the receivers alone.")] = False,
    chunk: Annotated[int, typer.Option(help="Bytes of one object.")] = CHUNK,
) -> int:
    """Send a file of any size; the same command again goes on where it was broken off."""
    if job is not None:
        check_job_id(job)
    with acting() as engine:
        sent = _watched(engine, file, to, job, secure, chunk)
    if not sent.ok:
        raise TransferFailed(
            f"{file} was not sent: {sent.code} {sent.why}".strip(), "the same command goes on from there"
        )
    said = {"file": str(file), "sent_to": sent.locations}
    fields(said, where().how)
    return 0


def _watched(engine: ClientEngine, file: Path, to: list[str], job: str | None, secure: bool, chunk: int) -> SentFile:
    """Send, with a bar that moves by what the record says."""
    store = engine.site.follower_store()
    since = last_position(store)
    stop, folded = threading.Event(), Transfers()
    total = file.stat().st_size if file.is_file() else None
    with _bars() as bars:
        bar = bars.add_task(text(file.name), total=total)

        def watch() -> None:
            for batch in follow(store, since, stop):
                for event in batch:
                    row = folded.take(event)
                    if row is not None and row["process"] == engine.site.process:
                        bars.update(bar, completed=row["bytes"])

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            sent = engine.send_file(file, to, job=job, secure=secure, chunk=chunk)
            if sent.ok:
                bars.update(bar, completed=total)
            return sent
        finally:
            stop.set()
            watcher.join(2)
            store.client.close()


def share_logs(
    job: Annotated[str, typer.Argument(help="Id of the job.")],
    what: Annotated[str, typer.Argument(help="off, errors (its error log when it ends), or live (its output too).")],
    reason: Annotated[str | None, typer.Option(help="Why; goes on the record.")] = None,
) -> int:
    """Decide what the server is sent of a job's log. Nothing, unless somebody decides so: logs can hold anything."""
    with acting() as engine:
        engine.share_log(job, what)  # type: ignore[arg-type] # it says what it can be
    fields({"job": job, "shared": what}, where().how)
    return 0

"""What commands print: tables for people, JSON for programs; errors to standard error, with their code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from events.errors import FlightlogError

WIDE = 240  # columns where nobody looks: a pipe or a file cuts nothing

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
if not out.is_terminal:
    out = Console(highlight=False, soft_wrap=True, width=WIDE)


class Format(StrEnum):
    """How a command prints."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


COLOURS = {
    "running": "green",
    "finished": "green",
    "deployed": "cyan",
    "failed": "red",
    "launch_failed": "red",
    "deploy_failed": "red",
    "delete_failed": "red",
    "aborted": "yellow",
    "aborting": "yellow",
}


def colour(state: str) -> str:
    """A state with its colour; the text says it all without."""
    return f"[{COLOURS[state]}]{state}[/]" if state in COLOURS else state


def text(value: object) -> str:
    """A foreign text, never taken as markup; no control characters reach the terminal."""
    shown = "" if value is None else str(value)
    return escape("".join(c if c.isprintable() else "�" for c in shown))


def counted(count: int, what: str) -> str:
    """So many of them: ``1 problem``, ``2 problems``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def rows(items: Sequence[Mapping[str, Any]], columns: Sequence[str], how: Format, empty: str) -> None:
    """Print a list of things."""
    if how is Format.JSON:
        print_json(list(items))
    elif how is Format.JSONL:
        lines(items)
    elif not items:
        out.print(empty)
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column.upper().replace("_", " "), no_wrap=column in ("job_id", "state"), overflow="fold")
        for item in items:
            table.add_row(*(colour(str(item[c])) if c == "state" else text(item.get(c)) for c in columns))
        out.print(table)


def fields(item: Mapping[str, Any], how: Format) -> None:
    """Print one thing."""
    if how is not Format.TABLE:
        print_json(item) if how is Format.JSON else lines([item])
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in item.items():
        if value in (None, "", [], {}):
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        table.add_row(name.replace("_", " "), colour(str(value)) if name == "state" else text(shown))
    out.print(table)


def print_json(value: Any) -> None:
    """One JSON value, indented."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def lines(items: Iterable[Mapping[str, Any]]) -> None:
    """A JSON value a line, each written out at once."""
    for item in items:
        sys.stdout.write(json.dumps(item, default=str) + "\n")
        sys.stdout.flush()


def tell(error: FlightlogError, how: Format = Format.TABLE) -> None:
    """An error, in the words and with the code that the record and the API have for it too."""
    if how is not Format.TABLE:
        sys.stderr.write(
            json.dumps(
                {
                    "error": error.code,
                    "message": error.what,
                    "try": error.fix or None,
                    "recorded": error.recorded,
                    **error.context,
                },
                default=str,
            )
            + "\n"
        )
        return
    err.print(f"[bold red]{error.code}[/]: {text(error.what)}")
    if error.fix:
        err.print(f"[bold]Try:[/] {text(error.fix)}")
    if error.recorded:
        err.print(f"Recorded as event {text(error.recorded)}.")

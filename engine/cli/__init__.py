"""The command line: ``flightlog``.

Commands stand in rooms, and a room is opened when one of its commands is asked for: who asks for a job's state does
not wait until all that signs, streams and serves has been loaded.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import version as release
from typing import Annotated, Any, Final, cast

import typer
from typer.core import TyperGroup

from engine.logs import set_up

#: The manual: rooms and commands of theirs, in its order. A test holds that each room has its commands here.
MANUAL: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("jobs", ("run", "deploy", "start", "abort", "delete")),
    ("looking", ("list", "show", "wait", "logs")),
    ("record", ("events", "why")),
    ("examining", ("replay", "review", "report", "erase", "hold")),
    ("evidence", ("verify", "prove", "export", "import", "bundle")),
    ("keeping", ("backup", "restore", "rebuild")),
    ("signing", ("seal", "witness", "signer", "rotate-key", "new-epoch")),
    ("site", ("up",)),
    ("standing", ("down", "status")),
    ("site", ("api", "pool")),
    ("standing", ("doctor",)),
    ("site", ("worker",)),
    ("keys", ("keys",)),
    ("tokens", ("token",)),
    ("federation", ("server", "egress", "demo")),
    ("streams", ("transfers", "messages", "send", "share-logs")),
)
MARKUP: Final = "rich"


def commands_of(room: str) -> dict[str, Any]:
    """The commands of a room, by name."""
    opened = typer.Typer(rich_markup_mode=MARKUP)
    import_module(f"engine.cli.{room}").register(opened)
    return dict(typer.main.get_group(opened).commands)


class Commands(Mapping[str, Any]):
    """All commands by name; each is loaded with its room, once somebody asks for it."""

    def __init__(self) -> None:
        self._rooms = {name: room for room, names in MANUAL for name in names}
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded |= commands_of(self._rooms[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rooms)

    def __len__(self) -> int:
        return len(self._rooms)


class Rooms(TyperGroup):
    """The group of all commands."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = cast("dict[str, Any]", Commands())

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order of the manual."""
        return list(self.commands)


app = typer.Typer(
    name="flightlog",
    cls=Rooms,
    help="The flight recorder of a federated-learning site: nothing happens unless it is on the record.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=MARKUP,
    pretty_exceptions_show_locals=False,
)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Say the version, or go on to a command."""
    if version:
        typer.echo(f"flightlog {release('flightlog')}")
        raise typer.Exit


def main() -> None:
    """Entry point of the ``flightlog`` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a name that this terminal cannot show is no reason to fail
    set_up(logging.WARNING, "%(levelname)s %(name)s: %(message)s")
    app()

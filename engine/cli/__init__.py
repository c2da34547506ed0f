"""The command line: ``flightlog``."""

from __future__ import annotations

import io
import logging
import sys
from importlib.metadata import version as release
from typing import Annotated

import typer

from engine.cli import evidence, examining, federation, jobs, keeping, keys, record, signing, site, streams, tokens
from engine.logs import set_up

app = typer.Typer(
    name="flightlog",
    help="The flight recorder of a federated-learning site: nothing happens unless it is on the record.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)
for group in (jobs, record, examining, evidence, keeping, signing, site, federation, streams, keys, tokens):
    group.register(app)


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

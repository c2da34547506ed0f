"""Commands about who may ask the status API over TCP."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from engine.actors import os_actor
from engine.cli.common import site_command, where
from engine.cli.output import Format, err, out, print_json, rows
from engine.ids import new_call_id
from engine.site import Site
from engine.status.tokens import Tokens
from events.bodies.site import AccessChanged
from events.envelope import Call

PANEL = "Site"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Tokens for the status API: who may look, who may command.", no_args_is_help=True)
    for function in (add, list_, remove):
        site_command(group, PANEL, function.__name__.rstrip("_"))(function)
    app.add_typer(group, name="token", rich_help_panel=PANEL)


Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose it is; events name it.")]


def add(
    name: Name,
    role: Annotated[
        Literal["viewer", "operator"], typer.Option(help="viewer: looks; operator: commands too.")
    ] = "viewer",
    service: Annotated[bool, typer.Option("--service", help="A program's, not a person's.")] = False,
) -> int:
    """Make a token and print it, once: only its hash is kept."""
    site = _site()
    try:
        given = AccessChanged(who=name, role=role)
        tokens = Tokens(site.workspace)
        token = tokens.add(name, role, service=service, record=lambda: site.jobs.note(_call(), [given]))
    finally:
        site.close()
    if where().how is Format.TABLE:
        err.print("Keep it: it is not shown again.")
        out.print(token)
    else:
        print_json({"name": name, "role": role, "token": token})
    return 0


def list_() -> int:
    """List who has a token, and what each may do."""
    site = _site()
    try:
        known = Tokens(site.workspace).listed()
    finally:
        site.close()
    found = [{"name": name, "role": entry["role"], "kind": entry["kind"]} for name, entry in sorted(known.items())]
    rows(found, ["name", "role", "kind"], where().how, "Nobody has a token. Try: flightlog token add NAME")
    return 0


def remove(name: Name) -> int:
    """Take a token back; it is refused from the next request on."""
    site = _site()
    try:
        taken = AccessChanged(who=name, role=None)
        Tokens(site.workspace).remove(name, record=lambda: site.jobs.note(_call(), [taken]))
    finally:
        site.close()
    return 0


def _site() -> Site:
    chosen = where()
    return Site.open(workspace=chosen.folder, record_url=chosen.record_url, fabric_url=chosen.fabric_url)


def _call() -> Call:
    return Call(call_id=new_call_id(), actor=os_actor("cli"))

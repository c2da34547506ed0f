"""Commands about keys: those of a site or server, and of its peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from engine.cell.keys import KeyRing
from engine.cli.common import site_command, where
from engine.cli.output import Format, fields, lines, out, print_json, text
from engine.errors import ArgumentInvalid, SiteUnknown
from engine.workspace import known_site

PANEL = "Site"
_LIMIT = 2**16  # bytes; public keys take 200


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Show this site's public keys, and trust those of its peers.", no_args_is_help=True)
    for function in (show, trust):
        site_command(group, PANEL)(function)
    app.add_typer(group, name="keys", rich_help_panel=PANEL)


def show() -> int:
    """Print this site's public keys as JSON: what a peer needs to trust it. The first time makes them."""
    public = _ring().public()
    if where().how is Format.JSONL:
        lines([public])
    else:
        print_json(public)
    return 0


def trust(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `flightlog keys show` printed at the peer's.")],
    replace: Annotated[bool, typer.Option("--replace", help="Also where other keys of it are trusted.")] = False,
) -> int:
    """Trust a peer's public keys. Compare the fingerprint with its operator, on another way."""
    ring = _ring()
    with file.open("rb") as source:
        content = source.read(_LIMIT)
    try:
        public = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArgumentInvalid(
            f"{file} is not JSON", "save what flightlog keys show prints at the peer's", field="FILE"
        ) from error
    peer = ring.trust(public, replace=replace)
    if where().how is Format.TABLE:
        out.print(f"{text(peer.name)} is trusted, fingerprint {text(peer.fingerprint)}.")
    else:
        fields({"name": peer.name, "fingerprint": peer.fingerprint}, where().how)
    return 0


def _ring() -> KeyRing:
    """The keys in the folder: of the site, or of the server, that lives there; --site names one that is to."""
    chosen = where()
    name = known_site(chosen.folder) or chosen.site
    if not name:
        raise SiteUnknown(
            f"nobody lives in {chosen.folder.resolve()}",
            "name the folder of a site or a server (-w), or with --site who is to live there",
        )
    return KeyRing(chosen.folder.resolve() / "startup", name)

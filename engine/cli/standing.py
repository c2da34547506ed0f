"""Commands about how the site is, and the one that ends it."""

from __future__ import annotations

import os
import signal
import time
from typing import Annotated

import typer

from engine.cli.common import opened, site_command, where
from engine.cli.output import Format, fields, lines, out, print_json, text
from engine.errors import CallTimeout, EngineDown
from engine.overview import overview
from engine.owner import owner_of
from engine.workspace import Workspace

PANEL = "Site"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for function in (down, status, doctor):
        site_command(app, PANEL)(function)


def down(
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 30,
) -> int:
    """End the site's engine and workers; apps run on."""
    workspace = Workspace.find(where().folder)
    owner = owner_of(workspace)
    if owner is None:
        out.print("The site is not up.")
        return 0
    if owner["purpose"] != "up":
        raise held(workspace)
    os.kill(int(owner["pid"]), signal.SIGTERM)
    until = time.monotonic() + timeout
    while owner_of(workspace) is not None:
        if time.monotonic() > until:
            raise CallTimeout(f"process {owner['pid']} has not ended", f"look at it: ps {owner['pid']}")
        time.sleep(0.05)
    out.print("The site is down. Running apps go on; the next `flightlog up` takes them back.")
    return 0


def status() -> int:
    """Show the site: up or not, workers, servers, what waits, who holds what."""
    chosen = where()
    site = opened()
    try:
        whole = overview(site)
    finally:
        site.close()
    if chosen.how is Format.JSON:
        print_json(whole)
        return 0
    if chosen.how is Format.JSONL:
        lines([whole])
        return 0
    work = whole.pop("open_work")
    shown = {
        **whole,
        "jobs": ", ".join(f"{count} {state}" for state, count in whole["jobs"].items()) or "none",
        "workers": len(whole["workers"]),
        "servers": "; ".join(
            f"{s['server']} {s.get('version', '')} {s.get('memory', '')}" if s["answers"] else f"{s['server']} AWAY"
            for s in whole["servers"]
        ),
        "messages": "; ".join(f"{m['target']}: {m['waiting']}" for m in whole["messages"]) or "none under way",
        "resources": "; ".join(f"{r['job']}: {r['resources']}" for r in whole["resources"]),
    }
    fields(shown, Format.TABLE)
    for item in work:
        late = "[red]overdue[/] " if item["overdue"] else ""
        until = f", until {item['deadline']}" if item["deadline"] else ""
        out.print(f"  {late}{text(item['work'])}: open for {item['age']} s, {text(item['by'])}{until}")
    return 0


def doctor() -> int:
    """Look for what could go wrong on this host, and say what to do."""
    from engine.doctor import examine

    chosen = where()
    found = list(examine(chosen.folder, chosen.record_url or "", chosen.fabric_url or ""))
    if chosen.how is not Format.TABLE:
        items = [vars(f) for f in found]
        print_json(items) if chosen.how is Format.JSON else lines(items)
    else:
        marks = {"ok": "[green]ok[/]  ", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}
        for finding in found:
            out.print(f"{marks[finding.verdict]} {text(finding.what)}: {text(finding.found)}")
            if finding.verdict != "ok":
                out.print(f"     [bold]Try:[/] {text(finding.fix)}")
    return 1 if any(f.verdict == "fail" for f in found) else 0


def held(workspace: Workspace) -> EngineDown:
    """The error that somebody else has the site."""
    owner = owner_of(workspace) or {"pid": 0, "since": "a moment ago", "purpose": "up"}
    if owner["purpose"] == "up":
        return EngineDown(
            f"the site is up already, as process {owner['pid']} since {owner['since']}", "flightlog status"
        )
    return EngineDown(
        f"process {owner['pid']} ({owner['purpose']}) has the site since {owner['since']}", "wait for its end"
    )

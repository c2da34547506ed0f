"""The end of the demo: a site's record is verified, carried away, and then somebody changes a copy of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from engine.cli.output import out, text
from engine.record.exporting import ExportFile, export
from engine.record.findings import Report
from engine.record.sealed import sealed
from engine.record.sources import site_source
from engine.record.verify import Verification
from engine.site import Site

PATIENCE = 10.0  # seconds for the witness, without which the demo goes on
FOLDER = "evidence"


def show(workspace: Path, job: str) -> bool:
    """Verify, tamper with a copy, verify again; whether the first was good and the second was not."""
    site = Site.open(workspace=workspace)
    try:
        until = time.monotonic() + PATIENCE
        ended = site.jobs.load(job).state.get("position", "0-0")
        while sealed(site.workspace)["witnessed"] < _seq(ended) and time.monotonic() < until:
            time.sleep(0.1)
        good = Verification(site_source(site)).run()
        _tell(site.name, good)
        folder = workspace / FOLDER
        folder.mkdir()
        copy = folder / f"{site.name}.jsonl"
        export(site, copy)
    finally:
        site.close()
    changed, was, now = _tamper(copy, job)
    out.print(f"Somebody changes one number in a copy of it: an exit code, from {was} to {now}.")
    bad = Verification(ExportFile(changed).source()).run()
    _tell(changed.name, bad)
    return good.verdict in ("WITNESSED", "SITE-SIGNED") and bad.verdict == "DAMAGED"


def _seq(position: str) -> int:
    return int(position.partition("-")[2])


def _tell(what: str, report: Report) -> None:
    colour = "bold red" if report.problems else "bold green"
    by = f", cosigned by {', '.join(report.witnessed_by)}" if report.witnessed_by else ""
    out.print(f"  [{colour}]{report.verdict}[/] {text(what)}: {report.events} events{text(by)}")
    for problem in report.problems[:2]:
        out.print(f"    event {problem.seq}: {text(problem.what)}")


def _tamper(copy: Path, job: str) -> tuple[Path, int, int]:
    """A copy in which the job ended differently."""
    lines = copy.read_text("utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines):
        event = json.loads(line)
        if event.get("subject") == f"job/{job}" and event["type"].startswith("flightlog.App"):
            stored = json.loads(event["flightlogdata"])
            if "exit_code" in stored["body"]:
                was, now = stored["body"]["exit_code"], 1
                stored["body"]["exit_code"] = now
                event["flightlogdata"] = json.dumps(stored, separators=(",", ":"))
                lines[number] = json.dumps(event, separators=(",", ":")) + "\n"
                break
    changed = copy.with_name("changed.jsonl")
    changed.write_text("".join(lines), "utf-8")
    return changed, was, now

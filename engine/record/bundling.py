"""A bundle: all that is known of a job, with proofs, in one archive that needs nothing of ours to be verified."""

from __future__ import annotations

import json
import shutil
import zipfile
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment

from engine import present
from engine.errors import JobUnknown
from engine.files import new_file, open_plain
from engine.ids import check_job_id
from engine.jobs import Loaded
from engine.record.erasing import finish_left
from engine.record.exporting import cloudevent
from engine.record.leaving import digest_of, leaves
from engine.record.proving import Prover
from engine.record.sealed import log_name
from engine.record.sealing import seal_now
from engine.site import Site
from engine.why import story
from events.bodies.record import Exported
from events.envelope import Event
from events.read import read_job

VERIFIER = "flightlog_verify.py"


def bundle(site: Site, job: str, path: Path, *, with_log: bool = False) -> Exported:
    """Write a job's bundle; what was written, and recorded.

    Args:
        site: opened.
        job: id.
        path: the zip, which must not be there.
        with_log: the app's output too, of every attempt: it may hold anything.

    Raises:
        JobUnknown: there is no such job. FileExistsError: the file is there.
    """
    loaded = site.jobs.load(check_job_id(job))
    if not loaded.known:
        raise JobUnknown(f"job {job} is not on this site's record", "flightlog list shows the jobs of this site")
    sealed = seal_now(site)
    finish_left(site, job)
    # A job that is at work goes on meanwhile: it is in the bundle as far as it was sealed.
    events = [event for event in read_job(site.jobs.store, job) if event.seq <= sealed]
    with new_file(path) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            _fill(archive, site, job, loaded, events, with_log=with_log)
        made = Exported(
            what="bundle",
            job=job,
            first=events[0].seq,
            last=events[-1].seq,
            events=len(events),
            sha256=digest_of(file),
            with_log=with_log,
        )
        return leaves(site, file, made)


def _fill(
    archive: zipfile.ZipFile, site: Site, job: str, loaded: Loaded, events: list[Event], *, with_log: bool
) -> None:
    source = f"/{log_name(site.workspace)}"
    with closing(Prover(site, events[-1].seq)) as prover:
        lines = [json.dumps(cloudevent(event, source), ensure_ascii=False) + "\n" for event in events]
        archive.writestr("events.jsonl", "".join(lines))
        archive.writestr("proofs.jsonl", "".join(prover.lines(events)))
        note = prover.note_for(events[-1].seq)
        archive.writestr("checkpoint.txt", str(note))
        archive.writestr("keys.txt", "".join(f"{line}\n" for line in prover.chain))
    archive.writestr(VERIFIER, (files("engine.record") / VERIFIER).read_text("utf-8"))
    deployed = [event for event in events if event.type == "DeployRequested"]
    manifest = {
        "site": site.name,
        "log": log_name(site.workspace),
        "job": job,
        "events": len(events),
        "app": loaded.state.get("app") or loaded.state.get("next_app") or None,
        "app_sha256": loaded.state.get("sha256") or None,
        "signers": deployed[-1].body["signers"] if deployed else [],
        "with_log": with_log,
    }
    archive.writestr("manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False))
    page = _TEMPLATE.render(
        **manifest | {"events": [event.as_dict() for event in events]},
        shown=present.job(job, loaded),
        story=list(story(events)),
        checkpoint=str(note),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        release=version("flightlog"),
    )
    archive.writestr("index.html", page)
    if with_log:
        _logs(site, job, archive)


def _logs(site: Site, job: str, archive: zipfile.ZipFile) -> None:
    folder = site.workspace.job(job)
    attempts = sorted(int(one.name) for one in folder.iterdir() if one.name.isdigit()) if folder.is_dir() else []
    for attempt in attempts:
        try:
            log = open_plain(folder / str(attempt) / "log.txt")
        except FileNotFoundError:
            continue  # an attempt that never had a process
        with log, archive.open(f"log-{attempt}.txt", "w", force_zip64=True) as kept:
            shutil.copyfileobj(log, kept)


_TEMPLATE = Environment(autoescape=True).from_string((files("engine.record") / "bundle.html.j2").read_text("utf-8"))

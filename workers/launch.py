"""Launch: start a keeper for the attempt, wait for its word, record what the disk proves."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import marshal
import os
import secrets
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.app_config import AppConfig, parse_config
from engine.archive import CONFIG
from engine.errors import BadConfig
from engine.faults import passing
from engine.files import read_json, read_plain, write_json, write_whole
from engine.fold import JobState
from engine.job.grant import Grant, new_run_key
from engine.lifecycle import State
from engine.network import tighter
from engine.orders import covers, read_order
from engine.outcome import end_bodies, spawn_bodies
from engine.site import Site
from engine.workspace import host_name
from events.append import WorkRefused
from events.bodies.base import Body
from events.errors import Fenced
from workers.claim import Claim
from workers.spool import drain

KEEPER = Path(__file__).with_name("keeper.py")
#: Compiled by the worker's own import of it; run by path, the source would be compiled at every launch.
COMPILED = Path(importlib.util.cache_from_source(str(KEEPER)))
PATIENCE = 20.0  # seconds for the keeper's word
#: Not handed on to an app: what is ours, and what tells where our servers are.
WITHHELD = ("FLIGHTLOG_", "RQ_", "REDIS_", "VALKEY_")


def launch(site: Site, work_id: str) -> None:
    """Carry out a launch, so that twice is once. Ends without a word where the work is another's."""
    drain(site)  # an abort that was given while the record was away comes before any launch
    claim = Claim.take(site, work_id, "launch")
    if claim is None:
        return
    passing("launch-claimed")
    with claim:
        folder = site.workspace.attempt(claim.job, claim.number)
        request = claim.request().body
        with site.workspace.lock(claim.job):
            claim.check()
            passing("launch-locked")
            refused = None
            try:
                start(site, claim, request, folder)
            except BadConfig as error:
                refused = {"ran": False, "why": error.code, "error": error.what}
            except OSError as error:
                refused = {"ran": False, "why": "LAUNCH_FAILED", "error": f"{error.strerror}: {error.filename}"}
        passing("launch-before-record")
        record(site, claim, folder, refused)


def record(site: Site, claim: Claim, folder: Path, refused: dict[str, Any] | None) -> None:
    """Record what the disk proves, which closes the work."""

    def decide(state: JobState) -> Sequence[Body]:
        return proven(state, claim.number, folder, refused)

    try:
        site.jobs.transact(claim.call("outcome"), claim.job, decide, conditions=claim.conditions())
    except WorkRefused as error:
        raise Fenced(f"the outcome of {claim.work_id} was recorded by another") from error


def proven(state: JobState, attempt: int, folder: Path, refused: dict[str, Any] | None = None) -> Sequence[Body]:
    """What an attempt's folder proves of its launch; nothing where that is recorded already."""
    if state.attempt != attempt or not state.live or state.spawned:
        return []
    identity, spec = read_json(folder / "identity.json"), read_json(folder / "spec.json")
    exit_ = refused or read_json(folder / "exit.json")
    if exit_ is not None and not exit_["ran"]:
        return end_bodies(state, attempt, exit_, identity, spec)
    if identity is not None and spec is not None:
        return spawn_bodies(state, attempt, identity, spec)
    return []


def start(site: Site, claim: Claim, request: dict[str, Any], folder: Path) -> None:
    """Start the keeper, unless the attempt has run, runs, or is not to run. Called under the job's lock.

    Raises:
        BadConfig: the app in place names nothing to run.
    """
    if (folder / "identity.json").exists() or (folder / "exit.json").exists():
        return
    aborting = site.jobs.load(claim.job).state.state is State.ABORTING  # its order may not be on disk yet
    if aborting or covers(read_order(site.workspace, claim.job), claim.position):
        write_json(folder / "exit.json", {"ran": False, "why": "aborted", "error": "aborted before the launch"})
        return
    config = app_config(site, claim.job)
    run = site.workspace.run(claim.job)
    folder.mkdir(parents=True, exist_ok=True)
    prepare_log(run, folder)
    clear(run / "_process_rc.txt")
    marker = secrets.token_hex(16)
    spec = {
        "argv": list(config.command),
        "env": environment(site, claim, config, request, marker),
        "cwd": str(site.workspace.app(claim.job)),
        "run": str(run),
        "log": str(folder / "log.txt"),
        "marker": marker,
        # A pool that runs by itself may have a setting of its own, and an intent of earlier days says nothing.
        "network": tighter(site.settings.network, request.get("network", "open")),
        "grace": config.grace if config.grace is not None else site.settings.grace,
        "start": claim.position,
        "host": host_name(),
        "started_by": config.started_by,
        "started_within": site.settings.started_deadline,
        "argv_sha256": hashlib.sha256("\0".join(config.command).encode()).hexdigest(),
    }
    grant = b""
    if config.executors:
        secret, spec["run_key"] = new_run_key()
        # Where they are, not how they are found: an app does not have our environment.
        servers = {"record_url": site.servers.record_url, "fabric_url": site.servers.fabric_url}
        away = [name for name, url in servers.items() if not url.startswith("unix:")]
        if away and spec["network"] == "none":
            raise BadConfig(
                f"its executors need {' and '.join(away)}, which is reached by the network it is not to have",
                "start it with --network open, or give the site servers on unix sockets",
            )
        grant = Grant(
            job=claim.job,
            attempt=claim.number,
            server=site.settings.federation or "server",
            run_key=secret,
            settings={**json.loads(site.settings.model_dump_json()), **servers},
        ).encode()
    write_json(folder / "spec.json", spec)
    write_whole(folder / "spec.bin", marshal.dumps(spec))
    keep(folder, grant)


def app_config(site: Site, job: str) -> AppConfig:
    """The config of the app in place."""
    try:
        return parse_config(read_plain(site.workspace.app(job) / CONFIG))
    except OSError as error:
        raise BadConfig(
            f"the app of {job} is not in place: {error.strerror}", f"flightlog deploy {job} APP"
        ) from error


def environment(site: Site, claim: Claim, config: AppConfig, request: dict[str, Any], marker: str) -> dict[str, str]:
    """The app's environment: this host's, without what is ours; then what the site and the app say."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(WITHHELD)}
    # "python" in a command is the site's Python, whichever way the pool was started.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    if not config.executors:  # our own job process puts it at the end of its path, where it shadows nothing
        env["PYTHONPATH"] = str(site.workspace.app(claim.job) / "custom")
    env.setdefault("PYTHONUNBUFFERED", "1")
    env |= request["environment"]
    env |= config.env
    return env | {
        "FLIGHTLOG_JOB_ID": claim.job,
        "FLIGHTLOG_SITE": site.name,
        "FLIGHTLOG_RUN_DIR": str(site.workspace.run(claim.job)),
        "FLIGHTLOG_ATTEMPT": str(claim.number),
        "FLIGHTLOG_MARKER": marker,
    }


def prepare_log(run: Path, folder: Path) -> None:
    """``log.txt`` of the run folder is the attempt's; those of earlier attempts get its number."""
    log = folder / "log.txt"
    log.touch(mode=0o600)
    shown = run / "log.txt"
    if shown.is_symlink() or not shown.is_file():
        clear(shown)  # an earlier attempt may have put anything there
    if shown.exists():
        if shown.samefile(log):
            return
        number = max((int(path.name) for path in folder.parent.iterdir() if path.name.isdigit()), default=1) - 1
        shown.rename(run / f"log.{max(number, 1)}.txt")
    os.link(log, shown)


def pipe_with(grant: bytes) -> int:
    """The reading end of a pipe that holds these bytes; -1 where there are none."""
    if not grant:
        return -1
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)  # it has to fit: nobody reads yet
        if os.write(writing, grant) != len(grant):
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), "the grant of the job's process")
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return reading


def clear(path: Path) -> None:
    """Remove whatever is there, if anything is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def keeper() -> Path:
    """The keeper's program: compiled where that is up to date, else its source."""
    fresh = COMPILED.exists() and COMPILED.stat().st_mtime >= KEEPER.stat().st_mtime
    return COMPILED if fresh else KEEPER


def keep(folder: Path, grant: bytes = b"") -> None:
    """Start the keeper and wait for its word; what it did is on disk either way.

    Args:
        folder: of the attempt.
        grant: what the app's process is to read from its descriptor 3, which nobody else can.
    """
    ready, said = os.pipe()
    given = pipe_with(grant)
    try:
        with (folder / "keeper.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(keeper()), str(folder), str(said), str(given)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(said, given) if given >= 0 else (said,),
                start_new_session=True,
                env={"PATH": os.environ.get("PATH", os.defpath)},
            )
    finally:
        os.close(said)
        if given >= 0:
            os.close(given)
    try:
        readable, _, _ = select.select([ready], [], [], PATIENCE)
        word = os.read(ready, 100).decode().strip() if readable else ""
    finally:
        os.close(ready)
    if word == "BUSY":
        process.wait()
        until = time.monotonic() + PATIENCE
        while not (folder / "identity.json").exists() and time.monotonic() < until:
            time.sleep(0.01)
    process.returncode = 0  # it outlives us on purpose: no warning about a child left running

"""deploy_app: put an app in place, or leave everything as it was."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from engine.actors import current_reason
from engine.app_config import find_command, parse_config
from engine.archive import Limits, inspect, read_all
from engine.core import Core
from engine.decide import Deploy
from engine.deploy_checks import brought_code, check_byoc, check_scope, submitters_of
from engine.errors import CATALOGUE, ArgumentInvalid, ArgumentTypeInvalid, CallTimeout, NoWorker, from_code
from engine.fold import JobState, work_id
from engine.ids import check_job_id
from engine.lifecycle import State
from engine.meta import check_meta
from engine.meta import digest as meta_digest
from engine.refusals import clock
from engine.signature import check_signature
from events.bodies.job import DeployExpired, DeployRequested
from events.errors import FlightlogError

UNDER_WAY = (State.DEPLOYING, State.REDEPLOYING)


def deploy(
    core: Core,
    app_name: str,
    job_id: str,
    job_meta: dict[str, Any],
    client_name: str,
    app_data: bytes,
    *,
    timeout: float | None = None,
) -> JobState:
    """Deploy an app (reference 3.1, 3.2), and wait for the outcome.

    Args:
        core: the engine's.
        app_name: name of the app.
        job_id: job that it is for.
        job_meta: the job's metadata; it is not changed.
        client_name: must be this site's name.
        app_data: a zip of the app's folder.
        timeout: seconds to wait for the outcome; 0: not at all.

    Returns:
        The job's state with the app in place.

    Raises:
        ArgumentInvalid, JobIdInvalid, BadArchive, BadConfig, CommandNotFound: bad input.
        ScopeDenied, SignatureBad, ByocDenied: the site's rules.
        JobLive, JobBusy, DeployInProgress: the job's state.
        NoWorker: nobody took it in time; it was withdrawn. CallTimeout: the outcome is not known yet.
        DeployFailedError or the worker's error: it did not succeed; the old app is untouched.
    """
    method = "deploy_app"
    sha256 = hashlib.sha256(app_data).hexdigest() if isinstance(app_data, bytes) else None
    call = core.call(method, app_name, job_id, job_meta, client_name, sha256)
    request = core.guarded(
        call, method, job_id, lambda: _checked(core, app_name, job_id, job_meta, client_name, app_data)
    )
    # The archive waits as a blob before the intent that names it; what nobody names is swept later.
    core.guarded(call, method, job_id, lambda: core.site.blobs.put(app_data))
    recorded = core.command(call, job_id, Deploy(request=request))
    if recorded is None:
        return core.site.jobs.load(job_id).state
    mine = recorded.state["deploys"]
    core.ring("deploy", work_id("deploy", job_id, recorded.state))
    wait = core.site.settings.deploy_timeout if timeout is None else timeout
    version = recorded.version
    if wait <= 0:
        return recorded.state
    state = core.view.wait(job_id, version, lambda s: s.get("deploys") != mine or s.state not in UNDER_WAY, wait)
    if state is None:
        _give_up(core, call, job_id, mine, wait, recorded.state)
        state = core.site.jobs.load(job_id).state
    if state.get("deploys") == mine and (error := failure(job_id, state)) is not None:
        raise error
    return state


def failure(job_id: str, state: JobState) -> FlightlogError | None:
    """The error of a deploy that is over; None where it went well."""
    if not state.get("error"):
        return None
    code, _, text = state.told("error").partition(": ")
    return from_code(code if code in CATALOGUE else "DEPLOY_FAILED", text or code, f"flightlog why {job_id}")


def _give_up(core: Core, call: Any, job_id: str, mine: str, wait: float, state: JobState) -> None:
    def expire(now: JobState) -> list[DeployExpired]:
        same = now.get("deploys") == mine and now.state in UNDER_WAY
        return [DeployExpired(why="withdrawn")] if same else []

    if core.withdraw(call, job_id, expire, {"deploy": ("unclaimed", "")}):
        raise NoWorker(
            f"no worker took the deploy of {job_id} within {wait:g} s, so it was withdrawn",
            "flightlog up, or flightlog worker",
        )
    if core.site.jobs.load(job_id).state.state in UNDER_WAY:
        raise CallTimeout(
            f"the deploy of {job_id} is pending until {clock(state['deadline'])}", f"flightlog wait {job_id}"
        )


def _checked(
    core: Core, app_name: str, job_id: str, job_meta: Any, client_name: str, app_data: bytes
) -> DeployRequested:
    """All that can be said against it before anything is written."""
    site = core.site
    check_job_id(job_id)
    if not isinstance(app_name, str) or not 0 < len(app_name) <= 128 or not app_name.isprintable():
        raise ArgumentInvalid(
            f"app_name is {str(app_name)[:80]!r}",
            "give a name of 1 to 128 characters that can be printed",
            field="app_name",
        )
    if client_name != site.name:
        raise ArgumentInvalid(
            f"client_name is {str(client_name)[:80]!r}, but this site is {site.name!r}",
            f"deploy to {site.name!r}",
            field="client_name",
        )
    if not isinstance(app_data, bytes):
        raise ArgumentTypeInvalid(
            f"app_data is {type(app_data).__name__}, not bytes",
            "give the bytes of a zip of the app's folder",
            field="app_data",
        )
    meta = check_meta(job_meta, job_id)
    settings = site.settings
    limits = Limits(files=settings.zip_files, bytes=settings.zip_bytes, ratio=settings.zip_ratio)
    contents = inspect(app_data, limits)
    config = parse_config(contents.config)
    find_command(config.command, contents.names, app_path())
    root = site.workspace.root
    check_scope(root, meta)
    signers = check_signature(root, app_name, read_all(app_data, limits) if contents.signed else {})
    check_byoc(root, site=site.name, submitters=submitters_of(meta, signers), contents=contents, meta=meta)
    return DeployRequested(
        app=app_name,
        sha256=hashlib.sha256(app_data).hexdigest(),
        size=len(app_data),
        meta_sha256=meta_digest(meta),
        meta=meta,
        byoc=brought_code(site=site.name, contents=contents, meta=meta) is not None,
        signers=[signer["name"] for signer in signers],
        reason=current_reason(),
        deadline=settings.claim_deadline,
        attempts=settings.attempts,
    )


def app_path() -> str:
    """The PATH that an app will have: this Python's folder first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

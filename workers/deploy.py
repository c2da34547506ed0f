"""Deploy: unpack beside, check the claim, put in place with one rename, record."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.archive import Limits, unpack
from engine.blobs import Blobs
from engine.errors import DiskFull
from engine.faults import passing
from engine.files import sync_tree
from engine.fold import JobState
from engine.lifecycle import State
from engine.orders import sequence
from engine.site import Site
from events.append import WorkRefused
from events.bodies.base import Body
from events.bodies.job import DeployFailed, DeploySucceeded
from events.durable import sync_folder
from events.errors import Fenced, FlightlogError, LogUnavailable
from workers.claim import Claim

RENAME_EXCHANGE = 2
AT_FDCWD = -100


def deploy(site: Site, work_id: str) -> None:
    """Carry out a deploy, so that twice is once. Ends without a word where the work is another's."""
    claim = Claim.take(site, work_id, "deploy")
    if claim is None:
        return
    passing("deploy-claimed")
    with claim:
        try:
            outcome: Body = _put_in_place(site, claim)
        except (Fenced, LogUnavailable):
            raise
        except FlightlogError as error:
            outcome = DeployFailed(code=error.code, error=f"{error.what} {error.fix}".strip()[:2000])
        except OSError as error:
            outcome = DeployFailed(
                code="DISK_FULL" if error.errno == errno.ENOSPC else "DEPLOY_FAILED", error=str(error)[:2000]
            )
        passing("deploy-before-record")
        record(site, claim, outcome)


def record(site: Site, claim: Claim, outcome: Body) -> None:
    """Record the outcome, which closes the work. A twin that was faster has recorded the same."""

    def decide(state: JobState) -> Sequence[Body]:
        return [outcome] if state.state in (State.DEPLOYING, State.REDEPLOYING) else []

    try:
        site.jobs.transact(claim.call("outcome"), claim.job, decide, conditions=claim.conditions())
    except WorkRefused as error:
        raise Fenced(f"the outcome of {claim.work_id} was recorded by another") from error


def _put_in_place(site: Site, claim: Claim) -> DeploySucceeded:
    workspace = site.workspace
    run = workspace.run(claim.job)
    request = claim.request().body
    done = standing(site, claim.job, claim.position)
    if done is not None:
        return done
    staging = workspace.staging / f"{claim.work_id}-{claim.token}"
    try:
        receipt = _stage(site, claim, request, staging)
        passing("deploy-staged")
        with workspace.lock(claim.job):
            claim.check()
            passing("deploy-locked")
            known = workspace.receipt(claim.job)
            if known is not None and sequence(known["position"]) >= sequence(claim.position):
                raise Fenced(f"a later deploy of {claim.job} is in place", work=claim.work_id)
            swap(staging, run)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no room to unpack the app of {claim.job} in {workspace.staging}", "free some space"
            ) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return DeploySucceeded(files=receipt["files"], bytes=receipt["bytes"])


def standing(site: Site, job: str, position: str) -> DeploySucceeded | None:
    """The outcome of a deploy that is in place already, by its receipt."""
    receipt = site.workspace.receipt(job)
    if receipt is None or receipt["position"] != position:
        return None
    return DeploySucceeded(files=receipt["files"], bytes=receipt["bytes"])


def _stage(site: Site, claim: Claim, request: dict[str, Any], staging: Path) -> dict[str, Any]:
    limits = Limits(files=site.settings.zip_files, bytes=site.settings.zip_bytes, ratio=site.settings.zip_ratio)
    archive = Blobs(site.workspace.root).get(request["sha256"])
    staging.mkdir(mode=0o755)
    unpacked = unpack(archive, staging / f"app_{site.name}", limits)
    (staging / "fl_app.txt").write_text(f"{request['app']}\n")
    meta = {**request["meta"], "byoc": True} if request["byoc"] else {**request["meta"]}
    if not request["byoc"]:
        meta.pop("byoc", None)
    (staging / "meta.json").write_text(json.dumps(meta, indent=4, sort_keys=True))
    receipt = {
        "work": claim.work_id,
        "position": claim.position,
        "sha256": request["sha256"],
        "files": unpacked.files,
        "bytes": unpacked.bytes,
    }
    (staging / ".receipt.json").write_text(json.dumps(receipt))
    sync_tree(staging)
    return receipt


def swap(staging: Path, run: Path) -> None:
    """Put ``staging`` where ``run`` is, in one step where the file system can exchange two folders."""
    if not run.exists():
        staging.rename(run)
    elif not _exchange(staging, run):
        # Between the two renames nothing stands there; a retry finds that, and the receipt tells it.
        aside = staging.with_name(staging.name + "-old")
        run.rename(aside)
        staging.rename(run)
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(run.parent)


def _exchange(one: Path, other: Path) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    done = libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    if done == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number), str(one))

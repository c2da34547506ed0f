"""``flightlog doctor``: what could go wrong on this host, found before it does, with what to do."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import redis

from engine.cell.fabric import answers_of, inbox_of
from engine.jobs import Jobs
from engine.overview import caretaker_seen
from engine.owner import servers_of
from engine.record.custody import user_name
from engine.record.sealed import sealed
from engine.replay import differing
from engine.server import Servers
from engine.settings import settings
from engine.workspace import Workspace, known_site
from events.errors import FlightlogError
from events.safety import check_server
from events.segments import Archive
from events.store import Store, connect

Verdict = Literal["ok", "warn", "fail"]
GB = 10**9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    found: str
    fix: str = ""


def examine(folder: Path, record_url: str = "", fabric_url: str = "") -> Iterator[Finding]:
    """Look at everything; each finding says what to do where it is not well."""
    for look in (python, names, isolation, network, limits):
        yield from look()
    if not known_site(folder.resolve()):
        yield Finding("workspace", "warn", f"no site lives in {folder}", f"flightlog up --site NAME -w {folder}")
        return
    workspace = Workspace.find(folder)
    try:
        workspace.check_finished()
    except FlightlogError as error:
        yield Finding("history", "fail", error.what, error.fix)
        return
    yield from rights(workspace)
    yield from disk(workspace)
    yield from exchange(workspace)
    yield from caretaker(workspace)
    yield from _sealed(workspace)
    yield from _signing(workspace)
    yield from _servers(workspace, record_url, fabric_url)


def python() -> Iterator[Finding]:
    """The interpreter, and what the kernel offers to it."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok" if sys.version_info >= (3, 11) else "fail", version, "use Python 3.11 or newer")
    has = hasattr(os, "pidfd_open")
    try:
        if has:
            os.close(os.pidfd_open(os.getpid()))
    except OSError:
        has = False
    yield Finding("pidfd", "ok" if has else "fail", "there" if has else "missing", "use Linux 5.3 or newer")
    reaper = ctypes.CDLL(None).prctl(37, ctypes.byref(ctypes.c_int()), 0, 0, 0) == 0
    yield Finding("subreaper", "ok" if reaper else "fail", "there" if reaper else "missing", "use Linux 3.4 or newer")


def names() -> Iterator[Finding]:
    """Whether another distribution or folder stands in the way of our packages."""
    home = Path(__file__).resolve().parent.parent
    for name in ("events", "engine", "workers"):
        spec = importlib.util.find_spec(name)
        where = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        yield Finding(
            f"package {name}",
            "ok" if where == home else "fail",
            str(where),
            f"another {name} shadows ours: uninstall it, or start Python with -P",
        )


def isolation() -> Iterator[Finding]:
    """What keeps apps from the site's own files."""
    root = os.getuid() == 0
    yield Finding(
        "user",
        "warn" if root else "ok",
        "root" if root else f"uid {os.getuid()}",
        "run the site as a user of its own: apps run as the same user and can do all that it can",
    )


def network() -> Iterator[Finding]:
    """Whether an app can be taken off the network, tried by the keeper's own way in a process of its own."""
    keeper = Path(__file__).resolve().parent.parent / "workers" / "keeper.py"
    tried = subprocess.run(
        [sys.executable, "-I", "-S", str(keeper), "--probe-network"], capture_output=True, text=True, check=False
    )
    needed = settings().network == "none"
    yield Finding(
        "apps without a network",
        "ok" if tried.returncode == 0 else "fail" if needed else "warn",
        "possible" if tried.returncode == 0 else (tried.stdout or tried.stderr).strip()[-500:],
        f"run the site as root, or raise the limit that is named; until then {'no app' if needed else 'no such app'} "
        "starts here",
    )


def limits() -> Iterator[Finding]:
    """Open files and processes."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Finding("open files", "ok" if files >= 1024 else "warn", str(files), "ulimit -n 4096")
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    enough = processes == resource.RLIM_INFINITY or processes >= 512
    yield Finding("processes", "ok" if enough else "warn", str(processes), "ulimit -u 4096")


def rights(workspace: Workspace) -> Iterator[Finding]:
    """Who may look into the site's own folder."""
    info = workspace.flight.stat()
    private = info.st_mode & 0o077 == 0 and info.st_uid == os.getuid()
    yield Finding(
        ".flightlog is private",
        "ok" if private else "fail",
        f"mode {info.st_mode & 0o777:o}, uid {info.st_uid}",
        f"chmod 700 {workspace.flight}, owned by the site's user",
    )


def disk(workspace: Workspace) -> Iterator[Finding]:
    """Room for apps, output and the log."""
    free = shutil.disk_usage(workspace.root).free
    verdict: Verdict = "ok" if free > 5 * GB else "warn" if free > GB else "fail"
    yield Finding("disk", verdict, f"{free / GB:.1f} GB free", "free some space: deploys and the log need it")


def exchange(workspace: Workspace) -> Iterator[Finding]:
    """Whether the file system can exchange two folders in one step."""
    with tempfile.TemporaryDirectory(dir=workspace.flight) as name:
        one, other = Path(name, "a"), Path(name, "b")
        one.mkdir()
        other.mkdir()
        libc = ctypes.CDLL(None, use_errno=True)
        done = hasattr(libc, "renameat2") and (
            libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0
        )
    yield Finding(
        "exchange of folders",
        "ok" if done else "warn",
        "in one step" if done else "not supported",
        "a redeploy takes two renames here; ext4, xfs or btrfs do it in one",
    )


def caretaker(workspace: Workspace) -> Iterator[Finding]:
    """Whether somebody looks after the apps, and does look."""
    seen = caretaker_seen(workspace)
    stuck = seen.startswith("STUCK")
    yield Finding(
        "caretaker",
        "fail" if stuck else "warn" if seen == "none" else "ok",
        seen,
        f"look at {workspace.flight / 'pool.log'}, then flightlog down and up" if stuck else "flightlog up",
    )


def _servers(workspace: Workspace, record_url: str, fabric_url: str) -> Iterator[Finding]:
    try:
        known = servers_of(workspace)  # of whoever has the site up: it may have been given others than we
        servers = Servers(workspace, record_url or known["record_url"], fabric_url or known["fabric_url"])
        servers.join()
    except FlightlogError as error:
        yield Finding("servers", "fail", error.what, error.fix)
        return
    try:
        yield from _record(servers.record_url)
        yield from _answers("fabric", servers.fabric_url, lambda client: _takes(client, workspace.site))
        yield from _replay(workspace, servers.record_url)
    finally:
        servers.leave()


def _record(url: str) -> Iterator[Finding]:
    yield from _answers("record", url, check_server)
    try:
        client = connect(url)
        seconds, micros = client.time()
        off = abs(time.time() - seconds - micros / 1e6)
        policy = client.info()
    except redis.RedisError:
        return
    yield Finding(
        "clock",
        "ok" if off < 2 else "warn" if off < 60 else "fail",
        f"{off:.2f} s from the record's",
        "keep both hosts on NTP: deadlines go by the record's clock, aborts without it by this one's",
    )
    limit = int(policy.get("maxmemory", 0))
    used = int(policy.get("used_memory", 0))
    full = bool(limit) and used > limit * 0.8
    yield Finding(
        "record memory",
        "warn" if full else "ok",
        f"{used / 1e6:.0f} MB of {limit / 1e6:.0f} MB" if limit else f"{used / 1e6:.0f} MB, no limit set",
        "raise maxmemory before new intents are refused",
    )
    client.close()


def _sealed(workspace: Workspace) -> Iterator[Finding]:
    """Whether the log is sealed, and by whom it was seen."""
    known = sealed(workspace)
    what = f"{known['sealed']} events sealed, {known['witnessed']} witnessed"
    if known["broken"] or known["witness_refused"]:
        why = known["broken"] or f"refused by a witness: {known['witness_refused']}"
        yield Finding("seal", "fail", f"{what}; {why}", "change nothing, and look: flightlog verify")
    elif not known["sealing"]:
        yield Finding("seal", "warn", f"{what}; nobody seals now", "flightlog up seals, if FLIGHTLOG_SEAL is not off")
    elif not known["witnessed"]:
        yield Finding(
            "seal", "warn", f"{what}: who has the key could sign another history", "name a witness: FLIGHTLOG_WITNESS"
        )
    else:
        yield Finding("seal", "ok", what, "")


def _signing(workspace: Workspace) -> Iterator[Finding]:
    """Who holds the key that the log is signed with, where the site was told to give it away."""
    known, wanted = sealed(workspace), settings().signer
    if not known["sealing"] or not (wanted or known["signer"]):
        return
    if known["signer"] is None:
        yield Finding("signing key", "warn", "still in the workspace", "flightlog rotate-key hands it to the signer")
    elif known["signer"] == user_name(os.getuid()):
        yield Finding("signing key", "warn", "held by a signer of this very user", "run the signer as another user")
    else:
        yield Finding("signing key", "ok", f"held by {known['signer']}")


def _replay(workspace: Workspace, url: str) -> Iterator[Finding]:
    """Whether every job is where a replay of the log says it is."""
    client = connect(url, attempts=0)
    try:
        found = differing(Jobs(Store(client, workspace.site, archive=Archive(workspace.segments))))
    except (FlightlogError, redis.RedisError) as error:
        yield Finding("status is the replay's", "fail", str(error), "flightlog events --json shows the log")
        return
    finally:
        client.close()
    yield Finding(
        "status is the replay's",
        "fail" if found else "ok",
        f"{len(found)} jobs differ: {', '.join(found[:5])}" if found else "for every job",
        "look again in a moment; the next append writes anew what does not match",
    )


def _takes(client: redis.Redis, site: str) -> None:
    """The fabric takes a message, and what is to be a stream is one."""
    client.set("ff:doctor", "a look", px=1000)
    for key in (inbox_of(site), answers_of(site)):
        kind = str(client.type(key))
        if kind not in ("stream", "none"):
            raise redis.ResponseError(f"{key} is a {kind}, not a stream: somebody else writes to it (DEL it)")


def _answers(role: str, url: str, check: Callable[[redis.Redis], None]) -> Iterator[Finding]:
    try:
        client = connect(url, attempts=0)
        client.ping()
        check(client)
        client.close()
    except FlightlogError as error:
        yield Finding(f"{role} server", "fail", error.what, error.fix)
    except redis.RedisError as error:
        yield Finding(f"{role} server", "fail", str(error), f"start it, or correct {role}_url")
    else:
        yield Finding(f"{role} server", "ok", "answers, and is safe" if role == "record" else "answers")

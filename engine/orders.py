"""Abort orders: a file that a keeper or a late launch reads, and a signal to the keepers that are there.

An order covers the starts up to a position, or all before a time; a later start is not covered.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from engine.files import read_json, write_json
from engine.workspace import Workspace, host_name


def write_order(workspace: Workspace, job_id: str, *, through: str | None, before_ms: int, grace: float) -> None:
    """Order the end of a job's app, so that it holds after the death of everybody.

    Args:
        workspace: of the site.
        job_id: whose app.
        through: position of the last start that is meant, where it is known.
        before_ms: all starts recorded before this time are meant.
        grace: seconds between the polite signal and the kill.
    """
    path = workspace.job(job_id) / "abort"
    known = read_json(path)
    if known:
        before_ms = max(before_ms, int(known["before_ms"]))
        if sequence(known.get("through")) > sequence(through):
            through = known["through"]
    write_json(path, {"through": through, "before_ms": before_ms, "grace": grace})


def covers(order: dict[str, Any] | None, start: str) -> bool:
    """Whether an order means the start at this position."""
    if not order:
        return False
    ms = int(start.partition("-")[0])
    return sequence(start) <= sequence(order.get("through")) or ms <= int(order["before_ms"])


def read_order(workspace: Workspace, job_id: str) -> dict[str, Any] | None:
    """A job's order, where there is one."""
    return read_json(workspace.job(job_id) / "abort")


def sequence(position: str | None) -> int:
    """The sequence number in a position; 0 for none."""
    return int(position.partition("-")[2]) if position else 0


def signal_keepers(folder: Path) -> list[int]:
    """Tell the keepers of an attempt to look for an order; the pids that were told."""
    identity = read_json(folder / "identity.json")
    if identity is None or not same_boot(identity):
        return []
    told = []
    for name in ("inner", "outer"):
        pid, ticks = identity[name]
        if signal_exact(pid, ticks, signal.SIGUSR1):
            signal_exact(pid, ticks, signal.SIGCONT)  # whoever stopped it
            told.append(pid)
    return told


def signal_exact(pid: int, ticks: int, number: int) -> bool:
    """Send a signal to the process that has this pid and start time, and to no other."""
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, PermissionError):
        return False
    try:
        # The descriptor is of whoever has the pid now; the start time says whether it is the one meant.
        if start_ticks(pid) != ticks:
            return False
        signal.pidfd_send_signal(fd, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(fd)
    return True


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks after boot; None where there is none, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_gone(host: object, pid: object, ticks: object) -> bool:
    """Whether these name a process of this host that is gone; False for one of another host, or for no process."""
    if host != host_name() or not isinstance(pid, int) or not isinstance(ticks, int):
        return False
    return start_ticks(pid) != ticks


def boot_id() -> str:
    """This boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def same_boot(identity: dict[str, Any]) -> bool:
    """Whether a keeper's identity is of this boot and this pid namespace."""
    return all(identity[name] == value for name, value in this_boot().items())


def this_boot() -> dict[str, str]:
    """This boot of this machine, and this pid namespace: within them a pid and a start time name a process."""
    return {"boot_id": boot_id(), "pid_namespace": os.readlink("/proc/self/ns/pid")}

"""Ending what an app left behind when both halves of its keeper are gone."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from engine.orders import same_boot, signal_exact, start_ticks
from workers.keeper import carries, stat_of


def end_leftovers(identity: dict[str, Any] | None, spec: dict[str, Any] | None) -> int:
    """Stop and kill every process of an attempt, until none is left; how many there were.

    Args:
        identity: what the keeper wrote at the spawn; None: it never came to that.
        spec: what the keeper was given; it has the marker that the app's processes carry.
    """
    ended: set[int] = set()
    while True:
        found = _processes(identity, spec)
        if not found:
            return len(ended)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid, ticks in found.items():
                signal_exact(pid, ticks, number)
        ended |= set(found)
        time.sleep(0.01)


def _processes(identity: dict[str, Any] | None, spec: dict[str, Any] | None) -> dict[int, int]:
    marker = f"FLIGHTLOG_MARKER={spec['marker']}".encode() if spec else None
    roots: set[int] = set()
    if identity is not None and same_boot(identity) and start_ticks(identity["pid"]) == identity["start_ticks"]:
        roots.add(identity["pid"])
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := stat_of(int(name))) is not None:
            parents[int(name)] = int(stat[1])
            if marker is not None and carries(int(name), marker):
                roots.add(int(name))
    tree = {pid for pid in parents if _below(pid, roots, parents)}
    ticks = {pid: start_ticks(pid) for pid in tree - {os.getpid()}}
    return {pid: started for pid, started in ticks.items() if started is not None}


def _below(pid: int, roots: set[int], parents: dict[int, int]) -> bool:
    seen: set[int] = set()
    while pid not in seen:
        if pid in roots:
            return True
        seen.add(pid)
        pid = parents.get(pid, 0)
    return False

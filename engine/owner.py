"""Who has the site up now, and what others are to know of it."""

from __future__ import annotations

import time
from typing import Any

from engine.files import FileLock, read_json
from engine.orders import start_ticks
from engine.workspace import Workspace


def owner_of(workspace: Workspace) -> dict[str, Any] | None:
    """The engine that owns the site now: pid, start ticks, since, purpose, network; None where nobody does.

    One that has not said yet who it is, or whose word is gone, has the pid 0.
    """
    probe = FileLock(workspace.flight / "owner.lock")
    free = probe.acquire(shared=True, timeout=0)
    probe.release()
    if free:
        return None
    info = read_json(workspace.flight / "owner.json") or {}
    if {"pid", "ticks", "since", "purpose"} <= info.keys() and start_ticks(int(info["pid"])) == info["ticks"]:
        return info
    return {"pid": 0, "ticks": 0, "since": "a moment ago", "purpose": "unknown"}


def own(lock: FileLock, patience: float = 5.0) -> bool:
    """Take the owner's lock; False where another has it.

    Whoever asks who has the site up holds it, shared, for as long as it takes to ask: that is waited for.
    """
    until = time.monotonic() + patience
    while not lock.acquire(timeout=0.05):
        probe = FileLock(lock.path)
        asked_only = probe.acquire(shared=True)
        probe.release()
        if not asked_only or time.monotonic() > until:
            return False
    return True


def servers_of(workspace: Workspace) -> dict[str, str]:
    """Servers that whoever has the site up was given: record_url and fabric_url, empty where they are embedded."""
    owner = owner_of(workspace) or {}
    return {name: str(owner.get(name) or "") for name in ("record_url", "fabric_url")}

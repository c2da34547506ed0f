"""How full the record's memory and the workspace's disk are, now and then, to tell how many days are left."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import Any, cast

import psutil

from engine.readmodels.names import Names
from engine.site import Site
from events.store import translated

EVERY = 300.0  # seconds
KEPT = 2016  # samples: a week
LEAST = 3_600_000  # ms that samples must span before anything is said of days


@dataclass(frozen=True)
class Room:
    """One kind of room."""

    what: str
    used: int
    limit: int
    days: float | None

    @property
    def part(self) -> float:
        """How much of it is used, from 0 to 1."""
        return self.used / self.limit if self.limit else 0.0


def sample(site: Site) -> None:
    """Note how full both are."""
    names, store = Names(site.jobs.store), site.jobs.store
    row = {"ms": store.now_ms(), "memory": _memory(site)["used_memory"], "disk": _disk(site).used}
    with translated():
        pipe = store.client.pipeline(transaction=False)
        pipe.rpush(names.room, json.dumps(row))
        pipe.ltrim(names.room, -KEPT, -1)
        pipe.execute()


def rooms(site: Site) -> list[Room]:
    """Memory of the record and disk of the workspace: used, limit, and for how many days they last at this pace."""
    names = Names(site.jobs.store)
    with translated():
        ends = [cast("list[str]", site.jobs.store.client.lrange(names.room, place, place)) for place in (0, -1)]
    first, last = (json.loads(row[0]) if row else None for row in ends)
    memory, disk = _memory(site), _disk(site)
    # Without a limit of its own, the server may take what the host has left.
    limit = int(memory.get("maxmemory") or 0) or int(memory["used_memory"]) + psutil.virtual_memory().available
    return [
        _room("memory", int(memory["used_memory"]), limit, first, last, "memory"),
        _room("disk", disk.used, disk.used + disk.free, first, last, "disk"),
    ]


def _room(what: str, used: int, limit: int, first: Any, last: Any, name: str) -> Room:
    days = None
    if first and last and last["ms"] - first["ms"] >= LEAST and last[name] > first[name]:
        per_day = (last[name] - first[name]) / (last["ms"] - first["ms"]) * 86_400_000
        days = max(0.0, (limit - used) / per_day)
    return Room(what, used, limit, days)


def _memory(site: Site) -> dict[str, Any]:
    with translated():
        return site.jobs.store.client.info("memory")


def _disk(site: Site) -> Any:
    return shutil.disk_usage(site.workspace.root)

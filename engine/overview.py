"""A site at a glance: is it up, what is stuck, who holds what."""

from __future__ import annotations

import shutil
import time
from typing import Any, cast

import redis

from engine.cell.fabric import Fabric
from engine.cell.lanes import Lanes, target_of
from engine.files import FileLock, read_json
from engine.fold import JobState
from engine.jobs import MESSAGE, Jobs
from engine.lifecycle import EXECUTORS, LIVE, State
from engine.owner import owner_of
from engine.present import caretaker_there
from engine.record.sealed import sealed
from engine.site import Site
from engine.workspace import Workspace
from events.envelope import iso
from events.errors import LogUnavailable
from events.read import count, last_position
from events.store import translated

CARETAKER_LATE = 30.0  # seconds


def overview(site: Site) -> dict[str, Any]:
    """All of it, as JSON values."""
    jobs, now = site.jobs, site.jobs.store.now_ms()
    return {
        **standing(site),
        "workers": workers(site),
        "servers": servers(site),
        "jobs": by_state(jobs),
        "open_work": open_work(jobs, now),
        "messages": messages(site, now),
        "resources": resources(jobs),
        "events": count(jobs.store),
        "seal": seal(site),
        "last_position": last_position(jobs.store),
    }


def seal(site: Site) -> str:
    """How far the log is sealed, and what is wrong with that."""
    known = sealed(site.workspace)
    told = f"{known['sealed']} events" if known["sealed"] else "nothing yet"
    if known["witnessed"]:
        told += f", {known['witnessed']} witnessed"
    if known["broken"]:
        return f"{told}; BROKEN: {known['broken']}"
    if known["witness_refused"]:
        return f"{told}; REFUSED by a witness: {known['witness_refused']}"
    return told if known["sealing"] else f"{told}; no sealer is there now"


def standing(site: Site) -> dict[str, Any]:
    """Whether a site is up, by whose hand and since when, and where its page is."""
    owner = owner_of(site.workspace)
    return {
        "site": site.name,
        "workspace": str(site.workspace.root),
        "up": owner is not None,
        "held_by": owner["purpose"] if owner else None,
        "engine_pid": owner["pid"] if owner else None,
        "up_since": owner["since"] if owner else None,
        "listens_as": listening(site, owner),
        "page": page_of(site.workspace),
        "caretaker": caretaker_seen(site.workspace),
    }


def page_of(workspace: Workspace) -> str | None:
    """The address of the site's page; None where nobody serves it."""
    probe = FileLock(workspace.flight / "api.lock")
    free = probe.acquire(shared=True, timeout=0)
    probe.release()
    return None if free else (read_json(workspace.flight / "api.json") or {}).get("url")


def disk_free(workspace: Workspace) -> int:
    """Bytes of room on the workspace's disk."""
    return shutil.disk_usage(workspace.root).free


def caretaker_seen(workspace: Workspace) -> str:
    """Whether a caretaker is there, and how long ago it last looked: one that hangs holds its lock too."""
    if not caretaker_there(workspace):
        return "none"
    looked = int((read_json(workspace.flight / "caretaker.json") or {}).get("looked", 0))
    ago = time.time() - looked / 1000
    return f"looked {ago:.0f} s ago" if ago < CARETAKER_LATE else f"STUCK: looked {ago:.0f} s ago; see pool.log"


def by_state(jobs: Jobs) -> dict[str, int]:
    """How many jobs are in each state that has any."""
    counts = {s.value: cast("int", jobs.store.command("ZCARD", jobs.store.keys.state(s.value))) for s in State}
    return {state: count for state, count in counts.items() if count}


def open_work(jobs: Jobs, now: int) -> list[dict[str, Any]]:
    """Open work, the nearest to its deadline first: who it waits for, how long already, until when."""
    found = []
    for name, work in jobs.open_work():
        held = work.get("token") and int(work["until"]) > now
        found.append(
            {
                "work": name,
                "job": work["job"],
                "kind": work["kind"],
                "age": round((now - int(work["opened"])) / 1000, 1),
                "deadline": None if work["deadline"] == "inf" else iso(work["deadline"]),
                "overdue": work["deadline"] != "inf" and int(work["deadline"]) < now,
                "by": work["claimed_by"] if held else f"waits for {EXECUTORS[work['kind']][0]}",
                "attempts": int(work.get("attempts", "0")),
            }
        )
    return found


def listening(site: Site, owner: dict[str, Any] | None) -> str | None:
    """The address at which the site's engine is to be reached, and whether it is; None where it is not up."""
    if owner is None:
        return None
    fabric = Fabric(site.servers.fabric_url)
    try:
        there = fabric.holder(site.name)
        about = fabric.about(site.name)
    except LogUnavailable:
        return f"{site.name}: the fabric is away"
    finally:
        fabric.close()
    if there is None:
        return f"{site.name}: NOT THERE, messages to it fail"
    if about.get("pid") != owner["pid"]:
        return f"{site.name}: TAKEN OVER by process {about.get('pid', '?')} on host {about.get('host', '?')}"
    return site.name


def messages(site: Site, now: int) -> list[dict[str, Any]]:
    """Messages under way, by lane: how many wait to be sent, how many are open in all, who drains."""
    jobs, lanes = site.jobs, Lanes(site.jobs.store)
    lengths = jobs.store.client.pipeline(transaction=False)
    names = lanes.names()
    for name in names:
        lengths.llen(jobs.store.keys.outbox(name))
        lengths.hgetall(jobs.store.keys.lane(name))
    with translated():
        answers = lengths.execute()
    found = []
    for name, waiting, lane in zip(names, answers[::2], answers[1::2], strict=True):
        drained = int(lane.get("until") or 0) > now
        found.append(
            {"target": target_of(name), "waiting": waiting, "drained_by": lane["worker"] if drained else None}
        )
    count = sum(name.startswith(MESSAGE) for name in jobs.store.command("ZRANGE", jobs.store.keys.open, 0, -1))
    if count:
        found.append({"target": "in all, sent or not", "waiting": count, "drained_by": None})
    return found


def resources(jobs: Jobs) -> list[dict[str, Any]]:
    """Who holds which resources."""
    held = []
    for state in LIVE:
        for job, loaded in jobs.load_many(jobs.ids(state=state.value, limit=1000)):
            status: JobState = loaded.state
            if status.resources:
                held.append({"job": job, "resources": status.resources, "manager": status.get("manager")})
    return held


def workers(site: Site) -> list[dict[str, Any]]:
    """The RQ workers of the site's queues."""
    from rq import Worker

    try:
        return [
            {"name": w.name, "kind": kind, "pid": w.pid, "host": w.hostname, "state": str(w.get_state())}
            for kind, queue in site.bells.queues().items()
            for w in Worker.all(queue=queue)
        ]
    except redis.RedisError:
        return []


def servers(site: Site) -> list[dict[str, Any]]:
    """Record and fabric: where, whether they answer, memory."""
    found = []
    for role, url, client in (
        ("record", site.servers.record_url, site.jobs.store.client),
        ("fabric", site.servers.fabric_url, site.bells.client),
    ):
        try:
            info = client.info()
        except redis.RedisError as error:
            found.append({"server": role, "url": url, "answers": False, "error": str(error)})
            continue
        version = info.get("valkey_version") or info.get("redis_version")
        found.append(
            {
                "server": role,
                "url": url,
                "answers": True,
                "version": version,
                "memory": info.get("used_memory_human"),
                "maxmemory": info.get("maxmemory_human"),
            }
        )
    return found

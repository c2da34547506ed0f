"""What is looked up: one job, its time line, the site, its workers and queues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any, cast

import redis

from engine import overview, present
from engine.errors import JobUnknown
from engine.ids import check_job_id
from engine.jobs import MESSAGE, Loaded
from engine.status.desk import Desk
from events.envelope import Event
from events.read import at as events_at
from events.read import count, read_back
from events.store import translated

REFUSED_SHOWN = 20
SHOWN = 400  # events of a time line, of each kind
#: What of an attempt is known only from an event on: name of the event's position -> facts.
LATER = {
    "spawned": ("host", "pid", "network", "spawned"),
    "started": ("started",),
    "ended": ("ended", "exit_code", "signal", "outcome", "duration", "killed", "why"),
}
UNKNOWN = dict.fromkeys(name for names in LATER.values() for name in names)


# -- one job -----------------------------------------------------------------------------------


def known_job(desk: Desk, job: str) -> Loaded:
    """A job's state now.

    Raises:
        JobIdInvalid: not an id. JobUnknown: not on the record.
    """
    loaded = desk.site.jobs.load(check_job_id(job))
    if not loaded.known:
        raise JobUnknown(f"job {job} is not on this site's record", "flightlog list shows the jobs of this site")
    return loaded


def job_now(desk: Desk, job: str) -> dict[str, Any]:
    """A job as it is."""
    loaded = known_job(desk, job)
    return {**present.job(job, loaded, desk.site.workspace), "attempts": attempts(desk, job)}


def job_then(desk: Desk, job: str, at: str) -> dict[str, Any]:
    """A job as it was, and the event that made it so."""
    known_job(desk, job)
    version = desk.moments.resolve(job, at)
    loaded, event = desk.moments.with_event(job, version)
    shown = present.job(job, loaded)
    then = [one for one in _kept(desk, job) if _order(one["positions"]["asked"]) <= event.seq]
    return {**shown, "attempts": [_as_then(one, event.position) for one in then], "event": event.as_dict()}


def _as_then(kept: Mapping[str, Any], position: str) -> dict[str, Any]:
    """An attempt with what was known of it at a position."""
    known, upto = dict(kept), _order(position)
    when = {name: _order(where) for name, where in known.pop("positions").items()}
    for name, facts in LATER.items():
        if when.get(name, upto + 1) > upto:
            known |= dict.fromkeys(facts)
    if when.get("ended", upto + 1) > upto:
        known["state"] = "running" if when.get("started", upto + 1) <= upto else "starting"
    return known


def attempts(desk: Desk, job: str) -> list[dict[str, Any]]:
    """The job's attempts, the first first."""
    return [_shown(one) for one in _kept(desk, job)]


def in_order(desk: Desk, found: Mapping[str, str]) -> list[dict[str, Any]]:
    """Attempts as they are kept, to be shown: the first first."""
    return [_shown(one) for one in _sorted(desk, found)]


def _kept(desk: Desk, job: str) -> list[dict[str, Any]]:
    with translated():
        found = cast("dict[str, str]", desk.store.client.hgetall(desk.names.attempts(job)))
    return _sorted(desk, found)


def _sorted(desk: Desk, found: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{**UNKNOWN, **desk.told(found[number])} for number in sorted(found, key=int)]


def _shown(kept: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kept.items() if name != "positions"}


def milestones(desk: Desk, job: str, upto: str | None = None) -> list[Event]:
    """The last events of a job that a time line shows, the oldest first: of its life, its tasks and its streams."""
    found: list[Event] = []
    for key in (desk.names.life(job), desk.names.tasks(job)):
        end = desk.moments.before(key, upto) if upto is not None else desk.store.command("LLEN", key)
        with translated():
            positions = cast("list[str]", desk.store.client.lrange(key, max(0, end - SHOWN), end - 1)) if end else []
        found += events_at(desk.store, positions)
    return sorted(found, key=lambda event: event.seq)


# -- the site ----------------------------------------------------------------------------------


def sites(desk: Desk) -> dict[str, Any]:
    """The sites that this server shows: its own."""
    events = count(desk.store)
    jobs = overview.by_state(desk.site.jobs)
    return {"items": [{**overview.standing(desk.site), "jobs": jobs, "events": events}], "next": None}


def workers(desk: Desk) -> dict[str, Any]:
    """Workers, who looks after them, and what befell them."""
    types = counts_of(desk, desk.names.types)
    return {
        "workers": overview.workers(desk.site),
        "caretaker": overview.caretaker_seen(desk.site.workspace),
        "reconciler": lease_holder(desk, "reconciler"),
        "collector": lease_holder(desk, "collector"),
        "died": types.get("WorkerDied", 0),
        "killed": types.get("WorkerKilled", 0),
        "refused_tasks": types.get("TaskRefused", 0),
        "as_of": desk.as_of(),
    }


def queues(desk: Desk) -> dict[str, Any]:
    """Queues and lanes: how much waits, for how long already."""
    site, now = desk.site, desk.store.now_ms()
    depths: list[dict[str, Any]] = []
    for kind, queue in site.bells.queues().items():
        try:
            depths.append({"queue": queue.name, "kind": kind, "bells": int(site.bells.client.llen(queue.key))})
        except redis.RedisError as error:
            depths.append({"queue": queue.name, "kind": kind, "bells": None, "error": str(error)[:200]})
    work = site.jobs.open_work()
    open_by: Counter[str] = Counter(fields["kind"] for _, fields in work)
    oldest: dict[str, int] = {}
    for _, fields in work:
        oldest[fields["kind"]] = min(oldest.get(fields["kind"], now), int(fields["opened"]))
    messages = sum(
        1 for name in cast("list[str]", desk.store.command("ZRANGE", desk.store.keys.open, 0, -1)) if _message(name)
    )
    return {
        "queues": depths,
        "open_work": [
            {"kind": kind, "open": count, "oldest_age": round((now - oldest[kind]) / 1000, 3)}
            for kind, count in sorted(open_by.items())
        ],
        "messages_open": messages,
        "lanes": [lane for lane in overview.messages(site, now) if lane["target"] != "in all, sent or not"],
        "refused": [
            event.as_dict()
            for event in islice(
                (e for e in islice(read_back(desk.store), 5000) if e.type == "TaskRefused"), REFUSED_SHOWN
            )
        ],
    }


def _message(name: str) -> bool:
    return name.startswith(MESSAGE)


def lease_holder(desk: Desk, name: str) -> str | None:
    """Who holds a role of the site now: host:pid:start ticks."""
    held = desk.store.command("GET", desk.store.keys.lease(name))
    return str(held) if held else None


def counts_of(desk: Desk, key: str) -> dict[str, int]:
    """A hash of counts."""
    with translated():
        return {
            name: int(float(count)) for name, count in cast("dict[str, str]", desk.store.client.hgetall(key)).items()
        }


def _order(position: str) -> int:
    return int(position.partition("-")[2])

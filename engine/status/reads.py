"""What is looked up: one job, events, messages, transfers, egress, workers, queues, files of an app."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import redis
from pydantic_core import from_json

from engine import overview, present
from engine.errors import JobUnknown
from engine.ids import check_job_id
from engine.jobs import MESSAGE, Loaded
from engine.status.desk import Desk
from engine.status.paging import by_score
from engine.status.params import encoded
from engine.transfers import timed
from events.envelope import Event
from events.read import at as events_at
from events.read import read, read_back
from events.store import translated
from events.subjects import SITE, job_of

SCANNED = 20_000  # events that are looked at for one page; a page may be short, and `next` goes on
REFUSED_SHOWN = 20
SHOWN = 400  # events of a time line, of each kind
MOST_ROWS = 500
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


def in_order(found: Mapping[str, str]) -> list[dict[str, Any]]:
    """Attempts as they are kept, to be shown: the first first."""
    return [_shown(one) for one in _sorted(found)]


def _kept(desk: Desk, job: str) -> list[dict[str, Any]]:
    with translated():
        found = cast("dict[str, str]", desk.store.client.hgetall(desk.names.attempts(job)))
    return _sorted(found)


def _sorted(found: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{**UNKNOWN, **from_json(found[number])} for number in sorted(found, key=int)]


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


# -- events ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EventFilter:
    """Which events, from where, in which direction. ``since`` and ``until`` are ms."""

    job: str | None = None
    types: Sequence[str] = ()
    actor: str | None = None
    correlation: str | None = None
    text: str | None = None
    reads: bool = False
    since: int | None = None
    until: int | None = None
    cursor: str | None = None
    down: bool = False
    limit: int = 50

    def wanted(self, event: Event) -> bool:
        """Whether it is one of them; facts are parsed only where that is needed."""
        if self.types and event.type not in self.types:
            return False
        if not self.reads and not self.types and event.type == "ReadsObserved":
            return False
        if self.job is not None and job_of(event.subject) != self.job and not self._refused(event):
            return False
        if self.correlation is not None and self.correlation not in event.raw:
            return False
        if self.text is not None and not self._holds(event, self.text.casefold()):
            return False
        if self.actor is None and self.correlation is None:
            return True
        rest = event.rest()
        return (self.actor is None or rest["actor"]["id"] == self.actor) and (
            self.correlation is None or self.correlation in (rest["correlation"], rest["call"])
        )

    def _refused(self, event: Event) -> bool:
        return event.subject == SITE and event.type == "CallRefused" and event.body.get("job") == self.job

    @staticmethod
    def _holds(event: Event, text: str) -> bool:
        return text in event.raw.casefold() or text in event.type.casefold() or text in event.subject.casefold()


def events_page(desk: Desk, asked: EventFilter) -> dict[str, Any]:
    """A page of events. It may be short, or empty, where few of many fit: ``next`` goes on from there."""
    source = _job_events(desk, asked) if asked.job is not None else _site_events(desk, asked)
    items: list[Event] = []
    last, more = None, False
    for looked, event in enumerate(source):
        if len(items) == asked.limit or looked == SCANNED:
            more = True
            break
        last = event.position
        if _beyond(event, asked):
            break
        if asked.wanted(event):
            items.append(event)
    return {
        "items": [event.as_dict() for event in items],
        "next": last if more else None,
        "previous": items[0].position if items and asked.cursor else None,
        "order": "desc" if asked.down else "asc",
    }


def _beyond(event: Event, asked: EventFilter) -> bool:
    """Past the end of the range of times that is asked for."""
    ms = int(event.ms)
    if asked.down:
        return asked.since is not None and ms < asked.since
    return asked.until is not None and ms > asked.until


def _site_events(desk: Desk, asked: EventFilter) -> Iterator[Event]:
    page = min(1000, max(100, asked.limit + 1)) if not asked.types else 1000
    if asked.down and asked.cursor == "0-0":
        return iter(())
    if asked.down:
        top = asked.cursor or (f"{asked.until + 1}-0" if asked.until is not None else "+")
        return read_back(desk.store, before=top, page=page)
    start = asked.cursor or (f"{asked.since - 1}-{2**63}" if asked.since else "0-0")
    return read(desk.store, after=start, page=page)


def _job_events(desk: Desk, asked: EventFilter) -> Iterator[Event]:
    job = check_job_id(asked.job or "")
    if not desk.site.jobs.load(job).known:
        yield from _refusals(desk, asked, job)
        return
    end = desk.moments.length(job)
    if asked.down:
        top = asked.cursor or (f"{asked.until}-" if asked.until is not None else None)
        high = desk.moments.version_at(job, top) if top else end
        if asked.cursor and high and desk.moments.event(job, high).position == asked.cursor:
            high -= 1
        for first in range(high, 0, -500):
            yield from reversed(slice_of(desk, job, max(0, first - 500), first))
        return
    start = asked.cursor or (f"{asked.since - 1}-" if asked.since else None)
    low = desk.moments.version_at(job, start) if start else 0
    for first in range(low, end, 500):
        yield from slice_of(desk, job, first, min(end, first + 500))


def _refusals(desk: Desk, asked: EventFilter, job: str) -> Iterator[Event]:
    """Calls about a job that never came to be are on the site's record; one that has none is unknown."""
    found = _site_events(desk, asked)
    first = next((event for event in islice(found, SCANNED) if asked.wanted(event)), None)
    if first is None:
        raise JobUnknown(f"job {job} is not on this site's record", "flightlog list shows the jobs of this site")
    yield first
    yield from found


def slice_of(desk: Desk, job: str, low: int, high: int) -> list[Event]:
    """Events of a job by version, from the one after ``low`` to ``high``."""
    with translated():
        positions = cast("list[str]", desk.store.client.lrange(desk.store.keys.index(job), low, high - 1))
    return events_at(desk.store, positions)


# -- rows of read models -----------------------------------------------------------------------


def rows_page(
    desk: Desk,
    what: str,
    *,
    job: str | None,
    after: list[Any] | None,
    limit: int,
    fits: Callable[[dict[str, Any]], bool] = lambda row: True,
) -> dict[str, Any]:
    """A page of messages, transfers or egress, the newest first."""
    if job is not None:
        known_job(desk, job)
    place = None if after is None else (float(after[0]), str(after[1]))
    items: list[dict[str, Any]] = []
    last, looked, more = None, 0, False
    for chunk in by_score(desk.store, desk.names.order(what, job or ""), limit=limit, down=True, after=place):
        with translated():
            values = desk.store.client.hmget(desk.names.rows(what), [key for key, _ in chunk])
        for (key, score), value in zip(chunk, cast("list[str | None]", values), strict=True):
            if len(items) == limit:
                more = True
                break
            last = [score, key]
            row = from_json(value) if value is not None else None
            if row is not None and fits(row):
                items.append(row)
        looked += len(chunk)
        if more or looked >= SCANNED:
            more = True
            break
    if what == "transfers":
        now = desk.store.now_ms()
        items = [timed(row, now) for row in items]
    return {"items": items, "next": encoded(last) if more and last else None, "as_of": desk.as_of()}


def egress_totals(desk: Desk, *, job: str | None = None, since: str | None = None) -> dict[str, Any]:
    """Bytes and messages that left, by day, target, topic and job; and which apps ran with the network open."""
    with translated():
        sizes, counts, networks = (
            cast("dict[str, str]", desk.store.client.hgetall(key))
            for key in (desk.names.days_bytes, desk.names.days_count, desk.names.networks)
        )
    totals = []
    for field, size in sizes.items():
        day, target, topic, of = json.loads(field)
        if (job is None or of == job) and (since is None or day >= since):
            row = {"day": day, "target": target, "topic": topic, "job": of or None}
            totals.append({**row, "bytes": int(size), "messages": int(counts.get(field, 0))})
    totals.sort(key=lambda row: (row["day"], row["bytes"]), reverse=True)
    runs = []
    for field, count in networks.items():
        app, network = json.loads(field)
        runs.append({"app": app, "network": network, "runs": int(count)})
    runs.sort(key=lambda row: (row["network"] != "open", -row["runs"]))
    return {"totals": totals, "networks": runs}


# -- the site ----------------------------------------------------------------------------------


def sites(desk: Desk) -> dict[str, Any]:
    """The sites that this server shows: its own."""
    events = desk.store.command("XLEN", desk.store.keys.log)
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

"""Events in pages: of a job or of the site, in both directions, by type, actor, correlation and text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from engine.errors import JobUnknown
from engine.ids import check_job_id
from engine.status.desk import Desk
from events.envelope import Event
from events.read import job_slice, last_position, read, read_back
from events.subjects import SITE, job_of
from events.vault import MARK

SCANNED = 20_000  # events that are looked at for one page; a page may be short, and `next` goes on


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
        if text in event.type.casefold() or text in event.subject.casefold():
            return True
        return text in (json.dumps(event.rest(), ensure_ascii=False) if MARK in event.raw else event.raw).casefold()


def events_page(desk: Desk, asked: EventFilter) -> dict[str, Any]:
    """A page of events. It may be short, or empty, where few of many fit: ``next`` goes on from there."""
    end = last_position(desk.store)
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
        "end": end,
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
    return job_slice(desk.store, job, low, high)

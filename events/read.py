"""Reading the log: by site or by job, from a position, forward and backward, in pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from events.envelope import Event, from_entry
from events.store import Store, translated
from events.subjects import job_subject

PAGE = 1000


def read(store: Store, *, after: str = "0-0", upto: str = "+", page: int = PAGE) -> Iterator[Event]:
    """The site's events after a position, oldest first, fetched page by page."""
    cursor = after
    while True:
        with translated():
            entries = cast("list[Any]", store.client.xrange(store.keys.log, min=f"({cursor}", max=upto, count=page))
        for position, fields in entries:
            yield from_entry(position, fields)
        if len(entries) < page:
            return
        cursor = entries[-1][0]


def read_back(store: Store, *, before: str = "+", page: int = PAGE) -> Iterator[Event]:
    """The site's events before a position, newest first."""
    cursor = before
    while True:
        top = cursor if cursor == "+" else f"({cursor}"
        with translated():
            entries = cast("list[Any]", store.client.xrevrange(store.keys.log, max=top, min="-", count=page))
        for position, fields in entries:
            yield from_entry(position, fields)
        if len(entries) < page:
            return
        cursor = entries[-1][0]


def read_job(
    store: Store, job_id: str, *, after: int = 0, page: int = PAGE, backward: bool = False
) -> Iterator[Event]:
    """A job's events after a version (or, backward, all from the newest), through its index."""
    key = store.keys.index(job_id)
    with translated():
        pipe = store.client.pipeline(transaction=False)
        pipe.hget(store.keys.heads, job_subject(job_id))
        pipe.llen(key)
        head, end = pipe.execute()
    if str(head or end).partition(" ")[0] != str(end):
        yield from _without_index(store, job_id, after, backward)
        return
    low = after
    while low < end:
        # By absolute index: the list only grows, so pages neither overlap nor leave a gap.
        first, last = (max(low, end - page), end - 1) if backward else (low, min(low + page, end) - 1)
        with translated():
            positions = cast("list[str]", store.client.lrange(key, first, last))
        found = at(store, positions)
        yield from (reversed(found) if backward else found)
        low, end = (low, first) if backward else (last + 1, end)


def _without_index(store: Store, job_id: str, after: int, backward: bool) -> Iterator[Event]:
    """A job's events from the log itself, where the index does not match its head."""
    subject = job_subject(job_id)
    events = read_back(store) if backward else read(store)
    return (event for event in events if event.subject == subject and event.version > after)


def at(store: Store, positions: list[str]) -> list[Event]:
    """The events at these positions, in their order; a position that is gone is left out."""
    if not positions:
        return []
    with translated():
        pipe = store.client.pipeline(transaction=False)
        for position in positions:
            pipe.xrange(store.keys.log, min=position, max=position)
        answers = pipe.execute()
    return [from_entry(entry[0][0], entry[0][1]) for entry in answers if entry]


def last_position(store: Store) -> str:
    """Where the log ends now; ``0-0`` for an empty one."""
    with translated():
        entries = cast("list[Any]", store.client.xrevrange(store.keys.log, count=1))
    return str(entries[0][0]) if entries else "0-0"


def count(store: Store) -> int:
    """How many events the log holds in Redis."""
    with translated():
        return store.client.xlen(store.keys.log)

"""Reading the log: by site or by job, from a position, forward and backward, in pages.

What has been trimmed from Redis is read from segments on disk, where the store has an archive; nobody who
reads sees the seam.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from events.envelope import Event, from_entry
from events.errors import RecordDamaged
from events.heads import Head, parse
from events.segments import Archive, Order, order
from events.store import Store, translated
from events.subjects import job_subject

PAGE = 1000


def read(store: Store, *, after: str = "0-0", upto: str = "+", page: int = PAGE) -> Iterator[Event]:
    """The site's events after a position, oldest first, fetched page by page."""
    cursor = after
    while True:
        if store.archive is not None:
            for event in store.archive.read(cursor, upto):
                yield event
                cursor = event.position
        with translated():
            entries = cast("list[Any]", store.client.xrange(store.keys.log, min=f"({cursor}", max=upto, count=page))
        if store.archive is not None and _moved(store.archive, cursor, entries, upto):
            continue
        for position, fields in entries:
            yield from_entry(position, fields, store.vault)
        if len(entries) < page:
            return
        cursor = entries[-1][0]


def read_twice(store: Store, *, after: str = "0-0") -> Iterator[Event]:
    """As ``read``, but what is in Redis is told as it is there, and held against its copy on disk.

    Raises:
        RecordDamaged: the two differ; the one in Redis was told before.
    """
    archive, first = store.archive, first_event(store)
    if archive is None or first is None or not archive.end:
        yield from read(store, after=after)
        return
    cursor = after
    for event in archive.read(after):
        if event.seq >= first.seq:
            break
        yield event
        cursor = event.position
    copies = archive.read(cursor)
    end = archive.end
    for event in read(Store(store.client, store.site, vault=store.vault), after=cursor):
        if event.seq > order(cursor)[1] + 1:  # what lay between has been trimmed since: it is on disk alone
            for moved in archive.read(cursor):
                if moved.seq >= event.seq:
                    break
                yield moved
                cursor = moved.position
            copies, end = archive.read(cursor), archive.end
        yield event
        cursor = event.position
        if event.seq <= end:
            copy = next(copies, None)
            if copy is None or (copy.position, copy.type, copy.subject, copy.version, copy.raw) != (
                event.position,
                event.type,
                event.subject,
                event.version,
                event.raw,
            ):
                raise RecordDamaged(f"event {event.position} is another one in Redis than in its segment")


def _moved(archive: Archive, cursor: str, entries: list[Any], upto: str) -> bool:
    """Whether what comes next has gone to disk since the archive was read."""
    first = archive.next_after(cursor)
    if first is None:
        return False
    if entries:
        return first < order(entries[0][0])[1]
    return upto == "+" or order(upto) >= order(archive.last_position)


def read_back(store: Store, *, before: str = "+", page: int = PAGE) -> Iterator[Event]:
    """The site's events before a position, newest first."""
    cursor = before
    while True:
        top = cursor if cursor == "+" else f"({cursor}"
        with translated():
            entries = cast("list[Any]", store.client.xrevrange(store.keys.log, max=top, min="-", count=page))
        for position, fields in entries:
            yield from_entry(position, fields, store.vault)
            cursor = position
        if len(entries) < page:
            break
    if store.archive is not None:
        yield from store.archive.read_back(cursor)


def read_job(
    store: Store, job_id: str, *, after: int = 0, page: int = PAGE, backward: bool = False
) -> Iterator[Event]:
    """A job's events after a version (or, backward, all from the newest), through its index.

    Raises:
        RecordDamaged: some of them are gone.
    """
    head, length = _head(store, job_id)
    if head is None or head.version - head.base != length:
        if head is not None or length:
            yield from _without_index(store, job_id, after, backward)
        return
    low, end = after, head.version
    while low < end:
        # By version: a job's history only grows, so pages neither overlap nor leave a gap.
        first, last = (max(low, end - page), end) if backward else (low, min(low + page, end))
        found = job_slice(store, job_id, first, last)
        if len(found) < last - first:
            raise RecordDamaged(
                f"history is missing: {job_id} has {head.version} events, and {last - first - len(found)} of "
                f"{first + 1} to {last} are not where they should be",
                "flightlog verify says more",
            )
        yield from (reversed(found) if backward else found)
        low, end = (low, first) if backward else (last, end)


def job_slice(store: Store, job_id: str, low: int, high: int) -> list[Event]:
    """A job's events by version, from the one after ``low`` to ``high``; what is not there is left out."""
    key = store.keys.index(job_id)
    for _ in range(3):
        head, _ = _head(store, job_id)
        base = head.base if head else 0
        found: list[Event] = []
        if low < base and store.archive is not None:
            found += store.archive.subject(job_subject(job_id), low, min(high, base))
        if high > base:
            with translated():
                pipe = store.client.pipeline()
                pipe.hget(store.keys.heads, job_subject(job_id))
                pipe.lrange(key, max(low, base) - base, high - base - 1)
                now, positions = pipe.execute()
            if head is not None and getattr(parse(now), "base", None) != base:
                continue  # a part went to disk at this moment
            found += at(store, positions)
        return found
    return list(_without_index(store, job_id, low, backward=False))[: high - low]


def version_at(store: Store, job_id: str, at_or_before: Order) -> int:
    """A job's last version at or before a place in the log; 0: it was not there yet."""
    head, length = _head(store, job_id)
    base = head.base if head else 0
    key = store.keys.index(job_id)
    low, high = 0, length
    while low < high:
        middle = (low + high) // 2
        if order(str(store.command("LINDEX", key, middle) or "+")) <= at_or_before:
            low = middle + 1
        else:
            high = middle
    if low == 0 and base and store.archive is not None:
        return store.archive.version_at(job_subject(job_id), at_or_before)
    return base + low


def _head(store: Store, job_id: str) -> tuple[Head | None, int]:
    with translated():
        pipe = store.client.pipeline(transaction=True)
        pipe.hget(store.keys.heads, job_subject(job_id))
        pipe.llen(store.keys.index(job_id))
        head, length = pipe.execute()
    return parse(head), int(length)


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
    found = []
    for position, entry in zip(positions, answers, strict=True):
        event = from_entry(entry[0][0], entry[0][1], store.vault) if entry else None
        if event is None and store.archive is not None:
            event = store.archive.at(position)
        if event is not None:
            found.append(event)
    return found


def last_position(store: Store) -> str:
    """Where the log ends now; ``0-0`` for an empty one."""
    with translated():
        entries = cast("list[Any]", store.client.xrevrange(store.keys.log, count=1))
    return str(entries[0][0]) if entries else "0-0"


def first_event(store: Store) -> Event | None:
    """The first event that is still in Redis; None where there is none."""
    with translated():
        entries = cast("list[Any]", store.client.xrange(store.keys.log, count=1))
    return from_entry(entries[0][0], entries[0][1], store.vault) if entries else None


def count(store: Store) -> int:
    """How many events the site has on its record, in Redis and on disk."""
    return order(last_position(store))[1]

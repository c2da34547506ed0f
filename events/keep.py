"""Keeping memory bounded: sealed history goes to segments on disk, and then from Redis."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from itertools import islice

from events.errors import RecordDamaged
from events.merkle import Tree
from events.read import first_event, read
from events.seal import PAGE, leaf_of
from events.segments import Archive, Segment, order, write_segment
from events.store import Store, allowed_when_full, translated
from events.subjects import job_of

SEGMENT = 5_000  # events

Written = Callable[[Segment], None]


def to_disk(store: Store, tree: Tree, sealed: int, *, size: int = SEGMENT, written: Written | None = None) -> int:
    """Write whole segments of what is sealed; how many.

    Args:
        store: the site's record, with its archive.
        tree: over the log.
        sealed: how many events a checkpoint is over.
        size: events of a segment.
        written: told of each.

    Raises:
        RecordDamaged: an event is not what was sealed; it stays where it is.
    """
    archive = _archive(store)
    count = 0
    while sealed - archive.end >= size:
        events = list(islice(read(store, after=archive.last_position, page=PAGE), size))
        first = archive.end
        for event, leaf in zip(events, tree.leaves(first, first + size), strict=True):
            if leaf_of(event) != leaf:
                raise RecordDamaged(f"event {event.position} is not what was sealed", "flightlog verify")
        segment = write_segment(archive.folder, events)
        count += 1
        if written is not None:
            written(segment)
    return count


def trim(store: Store, keep: int, *, most: int = 20) -> int:
    """Take out of Redis what is on disk, down to the last ``keep`` events; how many went.

    Args:
        store: the site's record, with its archive.
        keep: events that stay in Redis.
        most: segments at a time: the server does nothing else meanwhile.
    """
    archive = _archive(store)
    first = first_event(store)
    with translated():
        end = int(store.client.hget(store.keys.heads, "@seq") or 0)
    if first is None:
        return 0
    gone = 0
    for segment in archive.segments():
        if segment.last < first.seq:
            continue
        if segment.last > end - keep or most == 0:
            break
        most -= 1
        jobs = [(job, versions[1]) for subject, versions in segment.subjects.items() if (job := job_of(subject))]
        ms, seq = order(segment.last_position)
        with translated():
            answer = store.client.eval(
                allowed_when_full(store.client, (files("events") / "trim.lua").read_text("utf-8")),
                2,
                store.keys.log,
                store.keys.heads,
                store.keys.prefix,
                # The next event may come at this very millisecond, and its sequence is the next.
                f"{ms}-{seq + 1}",
                str(segment.last),
                *(str(part) for job in jobs for part in job),
            )
        if answer[0] != "OK":
            return gone  # an append or a rebuild will see to it; then comes the next look
        gone += int(answer[1])
    return gone


def _archive(store: Store) -> Archive:
    if store.archive is None:
        raise ValueError("a store without an archive keeps everything in Redis")
    return store.archive

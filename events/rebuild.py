"""Writing anew what derives from the log: heads and indexes here, projections by whoever knows them.

Appends are answered ``REBUILD`` while heads are missing, so the log stands still meanwhile.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from events.bodies import BODIES
from events.envelope import Event
from events.errors import LogUnavailable
from events.read import first_event, read
from events.segments import order
from events.store import Store, translated
from events.subjects import job_of

LOCK_MS = 30_000
#: Types that count in a subject's revision.
LIFECYCLE = frozenset(name for name, body in BODIES.items() if body.lifecycle)
#: Everything below the prefix that is not the log itself, a lease, or a follower's cursor.
DERIVED = ("heads", "open", "idx:*", "job:*", "by:*", "work:*", "call:*", "out:*", "fly:*", "lane:*", "lanes")


class Projector(Protocol):
    """Folds the log and says what to write."""

    def apply(self, event: Event) -> None:
        """Take in the next event."""

    def writes(self) -> Iterable[tuple[Any, ...]]:
        """Redis commands that write the result, with full key names."""

    def open_work(self) -> int:
        """How many pieces of work are open."""


#: Deletes a lock only if it is still ours.
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


def rebuild(store: Store, projector: Callable[[], Projector], *, patience: float = 60.0) -> int | None:
    """Rebuild under a lock, or wait while another does.

    Args:
        store: the site's record.
        projector: makes an empty projector.
        patience: seconds to wait for another's rebuild.

    Returns:
        The number of events read, or None where another rebuilt.

    Raises:
        LogUnavailable: the server is away, or another's rebuild takes too long.
    """
    lock = store.keys.lease("rebuild")
    token = secrets.token_hex(8)
    until = time.monotonic() + patience
    while time.monotonic() < until:
        with translated():
            if store.client.set(lock, token, nx=True, px=LOCK_MS):
                break
            if not store.client.exists(lock):
                continue
        time.sleep(0.05)
        with translated():
            if not store.client.exists(lock) and store.client.hexists(store.keys.heads, "@seq"):
                return None
    else:
        raise LogUnavailable("the record is being rebuilt by another process", "call again in a moment")
    try:
        return _rebuild(store, projector(), lock, token)
    finally:
        with translated():
            store.client.eval(_RELEASE, 1, lock, token)


def _rebuild(store: Store, projector: Projector, lock: str, token: str) -> int:
    client, keys = store.client, store.keys
    with translated():
        for pattern in DERIVED:
            for name in list(client.scan_iter(match=_literal(keys.prefix) + pattern, count=1000)):
                client.delete(name)
    begins = order(first.position)[1] if (first := first_event(store)) is not None else 1
    bases: dict[str, int] = {}  # per subject, versions that are on disk only
    heads: dict[str, list[Any]] = {}
    indexes: dict[str, list[str]] = {}
    total, ring = 0, 0
    last: Event | None = None
    for event in read(store):
        total += 1
        last = event
        head = heads.setdefault(event.subject, [0, 0, ""])
        head[0], head[2] = event.version, event.position
        if event.type in LIFECYCLE:
            head[1] += 1
        job = job_of(event.subject)
        if job is not None and event.seq < begins:
            bases[event.subject] = event.version
        elif job is not None:
            indexes.setdefault(job, []).append(event.position)
        projector.apply(event)
        ring += 1
        if ring >= 5000:
            ring = 0
            with translated():
                client.pexpire(lock, LOCK_MS)
            _write_indexes(store, indexes)
            indexes.clear()
    _write_indexes(store, indexes)
    with translated():
        pipe = client.pipeline(transaction=False)
        for number, command in enumerate(projector.writes()):
            pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            if number % 5000 == 4999:
                pipe.execute()
        pipe.execute()
        if last is not None:
            ms, _, seq = last.position.partition("-")
            fields = {
                name: f"{v} {r} {position}" + (f" {bases[name]}" if name in bases else "")
                for name, (v, r, position) in heads.items()
            }
            fields |= {
                "@seq": seq,
                "@ms": ms,
                "@open": str(projector.open_work()),
                "@epoch": str(last.rest()["epoch"]),  # epochs only grow
                "@format": "1",
            }
            client.hset(keys.heads, items=[part for pair in fields.items() for part in pair])
    return total


def _write_indexes(store: Store, indexes: dict[str, list[str]]) -> None:
    with translated():
        pipe = store.client.pipeline(transaction=False)
        for job, positions in indexes.items():
            pipe.rpush(store.keys.index(job), *positions)
        pipe.execute()


def _literal(prefix: str) -> str:
    return "".join("\\" + c if c in "*?[]\\" else c for c in prefix)

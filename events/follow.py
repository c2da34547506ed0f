"""Following the log: each event once, in order, from a position on, across broken connections."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, cast

from events.envelope import Event, from_entry
from events.errors import LogUnavailable
from events.read import read
from events.segments import order
from events.store import Store, translated

#: A follower looks up from its blocking read this often, to see whether it is to stop.
LOOK_MS = 300


def follow(
    store: Store,
    after: str,
    stop: threading.Event,
    *,
    on_loss: Callable[[LogUnavailable], None] | None = None,
    page: int = 1000,
) -> Iterator[list[Event]]:
    """Batches of events after a position, as they come, until ``stop`` is set.

    An empty batch comes at least every few seconds, so that a caller can do other things.

    Args:
        store: a store with a client of its own, made with ``connect(url, blocking=True)``.
        after: position to go on from.
        stop: set it to end the iteration.
        on_loss: told each time that the server is away; following goes on once it is back.
        page: events per batch, at most.
    """
    cursor = after
    while not stop.is_set():
        try:
            with translated():
                answer = cast(
                    "list[Any]",
                    store.client.xread({store.keys.log: cursor}, count=page, block=LOOK_MS),
                )
        except LogUnavailable as error:
            if on_loss is not None:
                on_loss(error)
            stop.wait(0.1)
            yield []
            continue
        entries = answer[0][1] if answer else []
        if entries and store.archive is not None and _skipped(cursor, entries[0][0]):
            # A follower that is far behind, and history that has gone to disk meanwhile.
            missed = list(islice(read(store, after=cursor), page))
            cursor = missed[-1].position
            yield missed
            continue
        if entries:
            cursor = entries[-1][0]
        yield [from_entry(position, fields, store.vault) for position, fields in entries]


def _skipped(cursor: str, first: str) -> bool:
    return order(first)[1] > order(cursor)[1] + 1

"""Epochs: after a loss, a restore or an import the log goes on under a new number, and says why."""

from __future__ import annotations

from collections.abc import Sequence

from events.append import Log, NewEvent, Ops
from events.bodies.base import Body
from events.envelope import Call
from events.store import Store, translated
from events.subjects import SITE


def open_epoch(store: Store, call: Call, bodies: Sequence[Body]) -> int:
    """Begin the next epoch with events that say why, in one step; its number.

    Writers of the epoch before are told the new one by their next append.
    """
    Log(store).append(call, [NewEvent(SITE, body) for body in bodies], Ops().begin_epoch())
    with translated():
        store.epoch = int(store.client.hget(store.keys.heads, "@epoch") or 1)
    return store.epoch


def put_events(store: Store, events: Sequence[tuple[str, str, str, int, str]]) -> None:
    """Put events into the log of a site that has none yet, as they were elsewhere.

    Args:
        store: the site's record.
        events: position, type, subject, version and d of each, in order.
    """
    with translated():
        pipe = store.client.pipeline(transaction=False)
        for position, kind, subject, version, d in events:
            pipe.execute_command(  # type: ignore[no-untyped-call]
                "XADD", store.keys.log, position, "t", kind, "s", subject, "v", str(version), "d", d
            )
        pipe.execute()

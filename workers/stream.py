"""Streams: deliver what waits in a lane, by reference, in order; no object is moved, and none is waited for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from engine.cell.lanes import target_of
from engine.faults import passing
from engine.site import Site
from engine.streaming.fabric import Step, StreamFabric, new_token
from events.errors import LogUnavailable

MOST = 64  # references of one step
LEASE = 2.0  # seconds that a lane is a dead worker's
TURN = 1.0  # seconds, where nobody else waits
LINGER = 0.02  # seconds that an empty lane is watched: less than a bell takes to be heard, and to come
SLICE = 0.005  # seconds of that during which nobody looks who else waits


def drain(site: Site, lane: str) -> None:
    """Deliver what waits in a lane, for one turn; ends at once where another does."""
    target, token = target_of(lane), new_token()
    fabric = _fabric(site)
    inbox_max = site.settings.inbox_max

    def step(how: str = "GO") -> Step:
        return fabric.pump(target, token, LEASE, MOST, inbox_max, how)

    try:
        if _turn(fabric, target, step):
            site.bells.ring_lane(lane)
    except LogUnavailable:
        with contextlib.suppress(LogUnavailable):
            step("HAND")
        raise


def _turn(fabric: StreamFabric, target: str, step: Callable[..., Step]) -> bool:
    """One turn; whether the lane is left with something in it, so that its bell is to be rung."""
    ends = time.monotonic() + TURN
    idle_since = time.monotonic()
    while True:
        done = step()
        if done.word != "OK":
            return False
        if done.moved:
            passing("stream-delivered")
            idle_since = time.monotonic()
        if done.others or time.monotonic() > ends:
            return step("HAND").left > 0
        if done.left:
            continue
        if time.monotonic() - idle_since > LINGER:
            if step("LEAVE").word != "OK":
                return False
            idle_since = time.monotonic()
        fabric.linger(target, SLICE)


_kept: dict[str, StreamFabric] = {}


def _fabric(site: Site) -> StreamFabric:
    """Scripts and a connection, made once in a warm worker."""
    key = str(site.workspace.root)
    if key not in _kept:
        _kept[key] = StreamFabric(site.servers.fabric_url, site.name)
    return _kept[key]

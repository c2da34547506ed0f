"""What happens now, for everybody who watches: one follower of the log, and a ring of the last events.

A watcher has a cursor of its own and no queue, so one that is slow or was away costs nothing: what the ring no
longer has, it reads from the log. Nothing is left out, and nothing comes twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from pydantic_core import to_json

from engine.site import Site
from events.bodies.record import Erased
from events.envelope import Event
from events.errors import FlightlogError, LogUnavailable
from events.follow import follow
from events.read import last_position, read
from events.vault import MARK

log = logging.getLogger("flightlog.status")

RING = 4096  # events
PAGE = 500  # events that are read from the log at once, for a watcher that is behind
ALIVE_EVERY = 15.0  # seconds; a proxy or a browser that hears nothing for long gives up
AWAY_PAUSE = 1.0
NOWHERE = "0-0"  # before the first look at the log

Wanted = Callable[[Event], bool]


@dataclass(frozen=True, slots=True)
class Live:
    """An event as it goes to watchers; without a frame it is made when it goes."""

    event: Event
    frame: bytes | None

    def sent(self) -> bytes:
        """Its frame of server-sent events."""
        return self.frame or frame_of(self.event)


def frame_of(event: Event) -> bytes:
    """An event as it is sent."""
    return b"id: %s\ndata: %s\n\n" % (event.position.encode(), to_json(event.as_dict()))


class Hub:
    """Follows the log for all watchers of this process.

    Args:
        site: opened.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._ring: deque[Live] = deque(maxlen=RING)
        self._changed = asyncio.Event()
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self.position = NOWHERE
        #: The record does not answer.
        self.away = False
        self.watchers = 0

    def start(self) -> None:
        """Follow from the log's end; to be called on the loop that watchers run on."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End following, and every stream."""
        self._stop.set()
        self._wake()
        self._thread.join(2)

    def _run(self) -> None:
        store = self._site.follower_store()
        while not self._stop.is_set():
            try:
                self.position = last_position(store)
                break
            except LogUnavailable:
                self._turn(away=True)
                self._stop.wait(0.2)
        for batch in follow(store, self.position, self._stop, on_loss=lambda error: self._turn(away=True)):
            if not batch:
                self._look(store)
                continue
            self._turn(away=False)
            self._tell(self._take, [Live(event, frame_of(event)) for event in batch])
        store.client.close()

    def _take(self, found: list[Live]) -> None:
        """On the loop, where watchers read the ring."""
        self._ring.extend(found)
        if any(one.event.type == Erased.name() for one in found):
            # What could be read a moment ago may not be shown again: it is made anew whenever it goes out.
            kept = (Live(one.event, None) if MARK in one.event.raw else one for one in self._ring)
            self._ring = deque(kept, maxlen=RING)
        self.position = found[-1].event.position
        self._notify()

    def _look(self, store: object) -> None:
        """An empty batch also comes while the record is away: ask it."""
        if self.away:
            try:
                self._site.jobs.store.command("PING")
            except FlightlogError:
                return
            self._turn(away=False)

    def _turn(self, *, away: bool) -> None:
        if away != self.away:
            self.away = away
            self._wake()

    def _wake(self) -> None:
        self._tell(self._notify)

    def _tell(self, what: Callable[..., None], *arguments: object) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, *arguments)

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _since(self, position: str) -> Sequence[Live] | None:
        """Events after a position; None where the ring does not reach back that far."""
        seq = _seq(position)
        behind = _seq(self.position) - seq
        if behind <= 0:
            return ()
        ring = self._ring
        if len(ring) < behind or ring[-behind].event.seq != seq + 1:
            return None
        return [ring[place] for place in range(-behind, 0)]

    async def watch(self, after: str, wanted: Wanted, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        """Frames of the wanted events after a position, as they come; at most ``limit`` of them.

        Where the record goes away or comes back, an event ``record`` says so.
        """
        cursor, sent, away = after, 0, False
        lost = await asyncio.to_thread(self._is_ahead, after)
        self.watchers += 1
        try:
            yield b"retry: 1000\n\n"
            if lost:
                # From before a backup was put back, or of another site: what the watcher has seen is not on this log.
                cursor = await self.now()
                yield b"event: reset\ndata: {}\n\n"
            while not self._stop.is_set():
                changed = self._changed
                if self.away != away:
                    away = self.away
                    yield b"event: record\ndata: %s\n\n" % json.dumps({"away": away}).encode()
                found = self._since(cursor)
                if found is None:
                    found = await asyncio.to_thread(self._read, cursor)
                if not found:
                    try:
                        await asyncio.wait_for(changed.wait(), AWAY_PAUSE if away else ALIVE_EVERY)
                    except TimeoutError:
                        yield b": alive\nid: %s\n\n" % cursor.encode()
                    continue
                frames = [item.sent() for item in found if wanted(item.event)]
                if limit is not None:
                    frames = frames[: limit - sent]
                cursor, sent = found[-1].event.position, sent + len(frames)
                if frames:
                    yield b"".join(frames)
                if limit is not None and sent >= limit:
                    return
        finally:
            self.watchers -= 1

    async def now(self) -> str:
        """Where the log is now: as last seen, or as the record says where nothing was seen yet."""
        if self.position == NOWHERE:
            return await asyncio.to_thread(last_position, self._site.jobs.store)
        return self.position

    def _is_ahead(self, position: str) -> bool:
        """Whether the log has not come to a position; what others read there may be ahead of what we have seen."""
        if _seq(position) <= _seq(self.position):
            return False
        try:
            return _seq(position) > _seq(last_position(self._site.jobs.store))
        except LogUnavailable:
            return False  # nobody can say now; the watcher keeps its place

    def _read(self, after: str) -> Sequence[Live]:
        try:
            return [Live(event, None) for event in islice(read(self._site.jobs.store, after=after, page=PAGE), PAGE)]
        except LogUnavailable:
            self._turn(away=True)
            return ()


def _seq(position: str) -> int:
    return int(position.partition("-")[2])

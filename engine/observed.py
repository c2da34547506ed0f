"""Reads on the record, folded: one event per method, actor, result and second, with a count."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from engine.ids import new_call_id
from engine.jobs import Jobs
from events.bodies.job import ReadsObserved
from events.envelope import Actor, Call
from events.errors import FlightlogError

log = logging.getLogger("flightlog.observed")

ROOM = 2000  # folded entries that are kept while the record is away


@dataclass
class _Seen:
    count: int
    first: int
    last: int


class Observed:
    """Counts reads in memory and records them about once a second, or in longer spans.

    Args:
        jobs: where to record.
        folded: seconds that are folded into one event.
    """

    def __init__(self, jobs: Jobs, folded: int = 1) -> None:
        self._jobs = jobs
        self._folded = folded
        self._seen: dict[tuple[str, Actor, str, int], _Seen] = {}
        self._dropped = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observed", daemon=True)
        self._thread.start()

    def saw(self, method: str, actor: Actor, result: str = "ok") -> None:
        """A read happened. Costs a dictionary look-up."""
        now = time.time_ns() // 1_000_000
        key = (method, actor, result, now // (1000 * self._folded))
        with self._lock:
            seen = self._seen.get(key)
            if seen is not None:
                seen.count += 1
                seen.last = now
            elif len(self._seen) < ROOM:
                self._seen[key] = _Seen(1, now, now)
            else:
                self._dropped += 1

    def close(self) -> None:
        """Record what is left."""
        self._stop.set()
        self._thread.join(2)
        self.flush()

    def flush(self) -> None:
        """Record what has been counted; what cannot be recorded now is kept."""
        with self._lock:
            seen, self._seen = self._seen, {}
            dropped, self._dropped = self._dropped, 0
        for key, value in seen.items():
            method, actor, result, _ = key
            body = ReadsObserved(
                method=method,
                result=result[:100],
                count=value.count,
                first=value.first,
                last=value.last,
                dropped=dropped,
            )
            try:
                self._jobs.note(Call(call_id=new_call_id(), actor=actor, step="reads"), [body])
            except FlightlogError as error:
                log.debug("reads wait: %s", error)
                with self._lock:
                    self._dropped += dropped
                    if len(self._seen) < ROOM:
                        self._seen.setdefault(key, value)
                    else:
                        self._dropped += value.count
                continue
            dropped = 0

    def _run(self) -> None:
        while not self._stop.wait(self._folded):
            self.flush()

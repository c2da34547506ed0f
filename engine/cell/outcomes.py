"""Waiting for what comes of a message: the engine's one follower of the log tells whoever waits."""

from __future__ import annotations

import threading

from events.envelope import Event
from events.read import read_back
from events.store import Store

ENDS = frozenset(("AuxSent", "AuxReplied", "AuxFailed", "AuxOutcomeUnknown"))


class Expected:
    """An outcome that somebody waits for."""

    def __init__(self) -> None:
        self._there = threading.Event()
        self.event: Event | None = None

    def tell(self, event: Event) -> None:
        """It is there."""
        self.event = event
        self._there.set()

    def wait(self, seconds: float) -> Event | None:
        """The outcome; None where it is not there in time."""
        self._there.wait(max(0.0, seconds))
        return self.event


class Outcomes:
    """Outcomes by message id."""

    def __init__(self) -> None:
        self._expected: dict[str, Expected] = {}
        self._lock = threading.Lock()

    def expect(self, message: str) -> Expected:
        """From now on, wait for a message's outcome."""
        with self._lock:
            return self._expected.setdefault(message, Expected())

    def forget(self, message: str) -> None:
        """Nobody waits any more."""
        with self._lock:
            self._expected.pop(message, None)

    def take(self, event: Event) -> None:
        """See an event of the log."""
        if not self._expected or event.type not in ENDS:
            return
        with self._lock:
            expected = self._expected.get(str(event.body["id"]))
        if expected is not None:
            expected.tell(event)


def find_outcome(store: Store, message: str, since: str) -> Event | None:
    """A message's outcome, searched in the log from its end back to the position of its intent."""
    first = int(since.partition("-")[2])
    for event in read_back(store):
        if event.seq <= first:
            return None
        if event.type in ENDS and event.body["id"] == message:
            return event
    return None

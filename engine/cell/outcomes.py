"""Waiting for what comes of a message: the engine's one follower of the log tells whoever waits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from events.envelope import Event
from events.errors import LogUnavailable
from events.read import read_back
from events.store import Store

ENDS = frozenset(("AuxSent", "AuxReplied", "AuxFailed", "AuxOutcomeUnknown"))


log = logging.getLogger("flightlog.sender")

#: Takes the bytes of answers away, by their names; None for one that is gone.
Fetch = Callable[[Sequence[str]], list[bytes | None]]


class Expected:
    """An outcome that somebody waits for.

    Args:
        fetch: takes its answer away with others'; None: who waits fetches it by himself.
    """

    def __init__(self, fetch: Fetch | None) -> None:
        self._there = threading.Event()
        self.fetch = fetch
        self.event: Event | None = None
        #: The bytes of the answer, where they were fetched along with others.
        self.frame: bytes | None = None

    def tell(self, event: Event, frame: bytes | None) -> None:
        """It is there."""
        self.event, self.frame = event, frame
        self._there.set()

    def wait(self, seconds: float) -> Event | None:
        """The outcome; None where it is not there in time."""
        self._there.wait(max(0.0, seconds))
        return self.event


class Outcomes:
    """Outcomes by message id."""

    def __init__(self) -> None:
        #: Told when somebody begins to wait.
        self.hurry: Callable[[], None] | None = None
        self._expected: dict[str, Expected] = {}
        self._lock = threading.Lock()

    def expect(self, message: str, fetch: Fetch | None = None) -> Expected:
        """From now on, wait for a message's outcome."""
        with self._lock:
            expected = self._expected.setdefault(message, Expected(fetch))
        if self.hurry is not None:
            self.hurry()
        return expected

    def busy(self) -> bool:
        """Whether somebody waits."""
        return bool(self._expected)

    def forget(self, message: str) -> None:
        """Nobody waits any more."""
        with self._lock:
            self._expected.pop(message, None)

    def take(self, batch: Sequence[Event]) -> None:
        """See events of the log; who waits for one of them is told, with the answer."""
        if not self._expected:
            return
        ends = [(str(event.body["id"]), event) for event in batch if event.type in ENDS]
        with self._lock:
            told = [(message, event, one) for message, event in ends if (one := self._expected.get(message))]
        frames = self._fetched([(message, one.fetch) for message, event, one in told if event.type == "AuxReplied"])
        for message, event, one in told:
            one.tell(event, frames.get(message))

    def _fetched(self, wanted: Sequence[tuple[str, Fetch | None]]) -> dict[str, bytes]:
        """Answers by message, fetched together; what cannot be had now is left to those who wait."""
        found: dict[str, bytes] = {}
        for fetch in {fetch for _, fetch in wanted if fetch is not None}:
            messages = [message for message, by in wanted if by == fetch]
            try:
                frames = fetch([f"{message}:r" for message in messages])
            except LogUnavailable as error:
                log.debug("answers are left where they are: %s", error)
                continue
            found |= {message: frame for message, frame in zip(messages, frames, strict=True) if frame is not None}
        return found


def find_outcome(store: Store, message: str, since: str) -> Event | None:
    """A message's outcome, searched in the log from its end back to the position of its intent."""
    first = int(since.partition("-")[2])
    for event in read_back(store):
        if event.seq <= first:
            return None
        if event.type in ENDS and event.body["id"] == message:
            return event
    return None

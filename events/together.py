"""Calls of many threads, made as one round trip by whoever comes first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Told = TypeVar("Told")


class Interrupted(RuntimeError):
    """The thread that asked on behalf of others was interrupted in the middle."""


class _Place(Generic[Asked, Told]):
    """One caller's place in the queue."""

    __slots__ = ("answer", "asked", "turn")

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.answer: Told | Exception | None = None
        self.turn = threading.Event()


class Together(Generic[Asked, Told]):
    """Gathers what several threads ask for while one asks for all of them.

    A caller alone asks at once, as if this were not there.

    Args:
        ask: one answer, or what is to be raised, per question, in order.
    """

    def __init__(self, ask: Callable[[Sequence[Asked]], Sequence[Told | Exception]]) -> None:
        self._ask = ask
        self._queue: list[_Place[Asked, Told]] = []
        self._asking = False
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> Told:
        """Ask, alone or with others; raises what is to be raised."""
        place: _Place[Asked, Told] = _Place(asked)
        with self._lock:
            self._queue.append(place)
            leads = not self._asking
            self._asking = True
        if not leads:
            place.turn.wait()
        if place.answer is None:
            self._lead(place)
        if isinstance(place.answer, Exception):
            raise place.answer
        return place.answer  # type: ignore[return-value]

    def _lead(self, own: _Place[Asked, Told]) -> None:
        """Ask for all that wait, our own question among them; then the next who waits leads."""
        with self._lock:
            batch, self._queue = self._queue, []
        answers: Sequence[Told | Exception] = [Interrupted("whoever asked for us was interrupted")] * len(batch)
        try:
            answers = self._ask([place.asked for place in batch])
        except Exception as error:  # noqa: BLE001 - it is raised in each of those who asked
            answers = [error] * len(batch)
        finally:
            for place, answer in zip(batch, answers, strict=True):
                place.answer = answer
            with self._lock:
                following = self._queue[0] if self._queue else None
                self._asking = following is not None
            for place in batch:
                if place is not own:
                    place.turn.set()
            if following is not None:
                following.turn.set()

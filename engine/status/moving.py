"""Tells a follower that works from one that stands still."""

from __future__ import annotations

import time

STUCK = 10.0  # seconds that a follower may be behind without having moved


class Moving:
    """Where followers were when they were last asked for."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}

    def stuck(self, name: str, at: int, lag: int) -> bool:
        """Whether a follower is behind and has not moved for a while."""
        known = self._seen.get(name)
        if known is None or known[0] != at or lag == 0:
            self._seen[name] = (at, time.monotonic())
            return False
        return time.monotonic() - known[1] > STUCK

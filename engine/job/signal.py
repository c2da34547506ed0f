"""The signal by which a running task is told to give up."""

from __future__ import annotations

import threading


class Signal:
    """Set once; whoever runs looks at ``triggered``."""

    def __init__(self) -> None:
        self._set = threading.Event()
        #: What it was triggered with.
        self.value: object = None

    @property
    def triggered(self) -> bool:
        """It was set."""
        return self._set.is_set()

    def trigger(self, value: object = True) -> None:
        """Set it."""
        self.value = value
        self._set.set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but wake when it is set; whether it is."""
        return self._set.wait(seconds)

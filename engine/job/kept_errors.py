"""The last errors that a job's process has logged, for whoever asks."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Any

ROOM = 100
CUT = 2000  # characters of one message


class KeptErrors(logging.Handler):
    """Keeps what is logged at ERROR and above."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._kept: deque[dict[str, Any]] = deque(maxlen=ROOM)
        self._guard = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        try:
            said = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                said += f" ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        except Exception:  # noqa: BLE001 - as every handler: whoever logs is not to fail over it
            self.handleError(record)
            return
        with self._guard:
            self._kept.append({"time": record.created, "logger": record.name, "message": said[:CUT]})

    def all(self) -> list[dict[str, Any]]:
        """What is kept, oldest first."""
        with self._guard:
            return list(self._kept)

    def reset(self) -> None:
        """Forget it."""
        with self._guard:
            self._kept.clear()

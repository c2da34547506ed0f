"""How processes write their own logs: as text, or a JSON object a line, with the call that a line is about."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pythonjsonlogger.json import JsonFormatter

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_ABOUT: ContextVar[tuple[str, str]] = ContextVar("flightlog_about", default=("", ""))


@contextmanager
def about(call_id: str, correlation: str = "") -> Iterator[None]:
    """Within the block, lines are about this call."""
    was = _ABOUT.set((call_id, correlation or call_id))
    try:
        yield
    finally:
        _ABOUT.reset(was)


class _Ids(logging.Filter):
    """Adds ``call_id`` and ``correlation`` to a line, where they are known."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Every line passes."""
        call_id, correlation = _ABOUT.get()
        if call_id:
            record.call_id, record.correlation = call_id, correlation
        return True


def set_up(level: int = logging.INFO, text: str = TEXT) -> None:
    """Set up this process's logging, by ``FLIGHTLOG_LOG_FORMAT``.

    Args:
        level: the least that is written.
        text: form of a line, where it is text.
    """
    handler = logging.StreamHandler()
    handler.addFilter(_Ids())
    if os.environ.get("FLIGHTLOG_LOG_FORMAT") == "json":
        names = {"asctime": "time", "levelname": "level", "name": "logger"}
        handler.setFormatter(
            JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=names, timestamp=False)
        )
    else:
        handler.setFormatter(logging.Formatter(text))
    logging.basicConfig(level=level, handlers=[handler], force=True)

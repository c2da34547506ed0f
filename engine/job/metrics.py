"""Rows of numbers that an app leaves in its run folder: ``metrics.jsonl``, one JSON object a line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

NAME = "metrics.jsonl"


def metrics(**row: Any) -> None:
    """Append a row: ``metrics(round=3, loss=0.21, accuracy=0.94)``.

    The time is added (``time``, in seconds since the epoch). Numbers of numpy are taken as numbers.

    Raises:
        KeyError: this process was not launched by Flightlog (``FLIGHTLOG_RUN_DIR`` is not set).
        TypeError: a value is no JSON.
    """
    path = Path(os.environ["FLIGHTLOG_RUN_DIR"]) / NAME
    line = json.dumps({"time": round(time.time(), 3), **row}, default=_plain) + "\n"
    # One write to a file opened for appending: lines of several processes do not mix.
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def _plain(value: Any) -> Any:
    if callable(getattr(value, "tolist", None)):  # numpy's scalars and arrays
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be a metric: give a number, a string or a list of them")

"""Rows of numbers that an app leaves in its run folder: ``metrics.jsonl``, one JSON object a line."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

NAME = "metrics.jsonl"


def metrics(**row: Any) -> None:
    """Append a row: ``metrics(round=3, loss=0.21, accuracy=0.94)``.

    The time is added (``time``, in seconds since the epoch). Numbers of numpy are taken as numbers; what is
    no number (NaN, infinity) becomes null, which JSON has.

    Raises:
        KeyError: this process was not launched by Flightlog (``FLIGHTLOG_RUN_DIR`` is not set).
        TypeError: a value is no JSON.
    """
    path = Path(os.environ["FLIGHTLOG_RUN_DIR"]) / NAME
    plain = {name: _finite(value) for name, value in {"time": round(time.time(), 3), **row}.items()}
    line = json.dumps(plain, allow_nan=False) + "\n"
    # One write to a file opened for appending: lines of several processes do not mix.
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def _finite(value: Any) -> Any:
    if not isinstance(value, str | bytes) and callable(getattr(value, "tolist", None)):
        value = value.tolist()  # numpy's scalars and arrays
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _finite(each) for name, each in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be a metric: give a number, a string or a list of them")

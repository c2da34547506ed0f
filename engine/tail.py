"""An app's output: the last lines, or as it grows."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CHUNK = 65_536


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a file, decoded with replacement; none where there is no file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - CHUNK))
            lines = file.read().decode(errors="replace").splitlines()
            return lines[-count:] if count else []
    except FileNotFoundError:
        return []


def follow_file(path: Path, over: Callable[[], bool], pause: float = 0.1) -> Iterator[str]:
    """Text of a file as it grows, until ``over()`` and nothing is left to read.

    Args:
        path: may not be there yet.
        over: asked after each look; when it is true, what is there is read a last time.
        pause: seconds between looks.
    """
    at = 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may be cut by a read
    while True:
        ending = over()
        if path.exists():
            with path.open("rb") as file:
                file.seek(at)
                while data := file.read(CHUNK):
                    at += len(data)
                    yield decoder.decode(data)
        if ending:
            return
        time.sleep(pause)

"""What an app leaves as files: output, metrics, what it used. All are foreign: an app puts there what it likes."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ArgumentInvalid, JobUnknown
from engine.files import open_plain
from engine.job.metrics import NAME as METRICS
from engine.status.desk import Desk
from engine.status.reads import known_job

TEXT = "text/plain; charset=utf-8"
CHUNK = 65_536
PAUSE = 0.2  # seconds between looks at a file that grows
READ_MOST = 4 * 2**20  # bytes of rows that are looked at, from the end
USAGE = "usage.jsonl"
_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")


class RangeInvalid(ArgumentInvalid):
    """The range is none, or lies beyond the end: the code of ``ArgumentInvalid``, with the status 416.

    Ask for one range within the output, as in ``bytes=0-1023``.
    """

    http = 416


@dataclass(frozen=True)
class Output:
    """The output of one attempt."""

    job: str
    attempt: int
    path: Path


def log_of(desk: Desk, job: str, attempt: int | None) -> Output:
    """Where an attempt's output is.

    Raises:
        JobUnknown: no such job, or it has no output.
    """
    number = attempt or known_job(desk, job).state.attempt
    path = desk.site.workspace.attempt(job, number) / "log.txt"
    if not _is_plain(path):
        raise JobUnknown(f"{job} has no output of attempt {number}", f"flightlog show {job}", job=job)
    return Output(job, number, path)


def last_lines(output: Output, count: int) -> bytes:
    """The last lines, of the last megabytes at most."""
    lines = _tail(output.path, READ_MOST).splitlines(keepends=True)
    return b"".join(lines[-count:])


def ranged(output: Output, asked: str | None, offset: int) -> tuple[int, int, int]:
    """First byte, the one after the last, and the size.

    Raises:
        RangeInvalid: the range is none, or there is nothing in it.
    """
    with open_plain(output.path) as file:
        size = os.fstat(file.fileno()).st_size
    if asked is None:
        return min(offset, size), size, size
    found = _RANGE.fullmatch(asked.strip())
    if not found or not (found[1] or found[2]):
        raise RangeInvalid(f"Range is {asked!r}", "one range, as in bytes=0-1023", field="Range")
    first = int(found[1]) if found[1] else max(0, size - int(found[2]))
    last = min(size, int(found[2]) + 1) if found[1] and found[2] else size
    if first >= last:
        raise RangeInvalid(f"Range is {asked!r}, and the output has {size} bytes", "a range within it", field="Range")
    return first, last, size


async def piece(output: Output, first: int, last: int) -> AsyncIterator[bytes]:
    """Bytes of a range."""
    with open_plain(output.path) as file:
        file.seek(first)
        while first < last:
            data = await asyncio.to_thread(file.read, min(CHUNK, last - first))
            if not data:
                return
            first += len(data)
            yield data


async def follow(desk: Desk, output: Output, offset: int) -> AsyncIterator[bytes]:
    """Bytes as they come, until the attempt is over and nothing is left."""

    def over() -> bool:
        state = desk.site.jobs.load(output.job).state
        return state.attempt != output.attempt or not state.live

    with open_plain(output.path) as file:
        file.seek(offset)
        while True:
            ending = await asyncio.to_thread(over)
            while data := await asyncio.to_thread(file.read, CHUNK):
                yield data
            if ending:
                return
            await asyncio.sleep(PAUSE)


def metrics(desk: Desk, job: str, limit: int) -> dict[str, Any]:
    """The last rows of an app's ``metrics.jsonl``."""
    known_job(desk, job)
    rows, broken = [], 0
    for row in _rows(desk.site.workspace.run(job) / METRICS):
        if row is None:
            broken += 1
        else:
            rows.append(row)
    return {"items": rows[-limit:], "broken": broken}


def usage(desk: Desk, job: str, attempt: int | None, limit: int) -> dict[str, Any]:
    """The last samples of what an attempt used."""
    number = attempt or known_job(desk, job).state.attempt
    rows = [row for row in _rows(desk.site.workspace.attempt(job, number) / USAGE) if row is not None]
    return {"attempt": number, "items": rows[-limit:]}


def _rows(path: Path) -> Iterator[dict[str, Any] | None]:
    """JSON objects of a file, one a line; None for a line that is none. A last line without an end is left out."""
    if not _is_plain(path):
        return
    lines = _tail(path, READ_MOST).split(b"\n")[:-1]
    for line in lines:
        try:
            # What is no number in JSON (NaN) is none here either.
            row = json.loads(line, parse_constant=lambda name: None)
        except (ValueError, RecursionError):
            row = None
        yield row if isinstance(row, dict) else None


def _tail(path: Path, most: int) -> bytes:
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - most))
        data = file.read(most)
    return data if size <= most else data.partition(b"\n")[2]


def _is_plain(path: Path) -> bool:
    try:
        open_plain(path).close()
    except OSError:
        return False
    return True

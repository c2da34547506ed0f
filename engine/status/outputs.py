"""What an app leaves as files: output, metrics, what it used. All are foreign: an app puts there what it likes."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from engine.errors import ArgumentInvalid, JobUnknown
from engine.files import open_within
from engine.job.metrics import NAME as METRICS
from engine.status.desk import Desk
from engine.status.reads import known_job

TEXT = "text/plain; charset=utf-8"
CHUNK = 65_536
PAUSE = 0.2  # seconds between looks at a file that grows
READ_MOST = 4 * 2**20  # bytes of rows that are looked at, from the end
USAGE = "usage.jsonl"
DEEPEST, LARGEST = 8, 1e300  # of what an app may write
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
    root: Path
    path: Path

    def open(self) -> BufferedReader:
        """For reading; an app may have put links in its way, which are not followed."""
        return open_within(self.root, self.path)


def log_of(desk: Desk, job: str, attempt: int | None) -> Output:
    """Where an attempt's output is.

    Raises:
        JobUnknown: no such job, or it has no output.
    """
    number = attempt or known_job(desk, job).state.attempt
    root = desk.site.workspace.root
    output = Output(job, number, root, desk.site.workspace.attempt(job, number) / "log.txt")
    if not _is_plain(root, output.path):
        raise JobUnknown(f"{job} has no output of attempt {number}", f"flightlog show {job}", job=job)
    return output


def last_lines(output: Output, count: int) -> bytes:
    """The last lines, of the last megabytes at most."""
    lines = _tail(output.root, output.path, READ_MOST).splitlines(keepends=True)
    return b"".join(lines[-count:])


def ranged(output: Output, asked: str | None) -> tuple[int, int, int] | None:
    """First byte, the one after the last, and the size; None where no range of bytes is asked for.

    Raises:
        RangeInvalid: there is nothing in it.
    """
    with output.open() as file:
        size = os.fstat(file.fileno()).st_size
    found = _RANGE.fullmatch(asked.strip()) if asked is not None else None
    if found is None or not (found[1] or found[2]):
        return None  # none, of another unit, or several: a server may answer those with the whole
    first = int(found[1]) if found[1] else max(0, size - int(found[2]))
    last = min(size, int(found[2]) + 1) if found[1] and found[2] else size
    if first >= last:
        raise RangeInvalid(
            f"Range is {asked!r}, and the output has {size} bytes", "a range within it", field="Range", size=size
        )
    return first, last, size


def size_of(output: Output) -> int:
    """Bytes of the output now."""
    with output.open() as file:
        return os.fstat(file.fileno()).st_size


async def piece(output: Output, first: int, last: int) -> AsyncIterator[bytes]:
    """Bytes of a range."""
    with output.open() as file:
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

    with output.open() as file:
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
    for row in _rows(desk.site.workspace.root, desk.site.workspace.run(job) / METRICS):
        if row is None:
            broken += 1
        else:
            rows.append(row)
    return {"items": rows[-limit:], "broken": broken}


def usage(desk: Desk, job: str, attempt: int | None, limit: int) -> dict[str, Any]:
    """The last samples of what an attempt used."""
    last = known_job(desk, job).state.attempt
    number = attempt or last
    if number > max(last, 1):
        raise JobUnknown(f"{job} has had {last} attempts", f"flightlog show {job}", job=job)
    workspace = desk.site.workspace
    rows = [row for row in _rows(workspace.root, workspace.attempt(job, number) / USAGE) if row is not None]
    return {"attempt": number, "items": rows[-limit:]}


def _rows(root: Path, path: Path) -> Iterator[dict[str, Any] | None]:
    """JSON objects of a file, one a line; None for a line that is none. A last line without an end is left out."""
    if not _is_plain(root, path):
        return
    lines = _tail(root, path, READ_MOST).split(b"\n")[:-1]
    for line in lines:
        try:
            # What is no number in JSON (NaN) is none here either.
            row = json.loads(line, parse_constant=lambda name: None)
        except (ValueError, RecursionError):
            row = None
        yield row if isinstance(row, dict) and _is_decent(row) else None


def _is_decent(value: Any, depth: int = DEEPEST) -> bool:
    """Whether a value can be sent on: finite numbers, whole characters, not too deep."""
    if isinstance(value, dict):
        return depth > 0 and all(_is_decent(each, depth - 1) for pair in value.items() for each in pair)
    if isinstance(value, list):
        return depth > 0 and all(_is_decent(each, depth - 1) for each in value)
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)
    return isinstance(value, bool) or value is None or abs(value) < LARGEST


def _tail(root: Path, path: Path, most: int) -> bytes:
    with open_within(root, path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - most))
        data = file.read(most)
    return data if size <= most else data.partition(b"\n")[2]


def _is_plain(root: Path, path: Path) -> bool:
    try:
        open_within(root, path).close()
    except OSError:
        return False
    return True

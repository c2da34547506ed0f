"""History on disk: sealed events in compressed files, read as if they were still in Redis.

A segment is ``<first>-<last>.tsv.zst``: a line per event, its stored fields with tabs between (position, type,
subject, version, d), in zstd frames of ``BLOCK`` lines, so ``zstdcat`` shows it. What is needed to find
something in it lies beside it in ``<first>-<last>.json``, and is made anew from it where it is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from events.envelope import Event
from events.errors import RecordDamaged
from events.vault import Vault

BLOCK = 512  # events
LEVEL = 9  # of zstd
CACHED = 16  # blocks
_NAME = re.compile(r"^(\d{12})-(\d{12})\.tsv\.zst$")

Line = tuple[str, str, str, int, str]
Order = tuple[int, int]


def order(position: str) -> Order:
    """A position as two numbers; ``-`` and ``+`` are the ends."""
    if position in ("-", "+"):
        return (0, 0) if position == "-" else (2**63, 2**63)
    ms, _, seq = position.partition("-")
    return int(ms), int(seq) if seq else 0


@dataclass(frozen=True)
class Segment:
    """One file of history: what lies beside it."""

    path: Path
    first: int
    last: int
    first_position: str
    last_position: str
    sha256: str
    size: int
    raw: int
    #: Per block: where it begins, how many bytes it has, its first sequence.
    blocks: tuple[tuple[int, int, int], ...]
    #: Per subject: its first and last version in here.
    subjects: dict[str, tuple[int, int]]

    @property
    def name(self) -> str:
        """Of the file."""
        return self.path.name

    def described(self) -> dict[str, Any]:
        """As it is written beside the file."""
        return {
            "first": self.first,
            "last": self.last,
            "first_position": self.first_position,
            "last_position": self.last_position,
            "sha256": self.sha256,
            "size": self.size,
            "raw": self.raw,
            "blocks": self.blocks,
            "subjects": self.subjects,
        }


def line_of(event: Event) -> bytes:
    """An event as a line; raises ``RecordDamaged`` for one that was not written by an append."""
    fields = (event.position, event.type, event.subject, str(event.version), event.raw)
    text = "\t".join(fields)
    if text.count("\t") != 4 or "\n" in text:
        raise RecordDamaged(f"event {event.position} holds a tab or a line break", "flightlog verify tells more")
    return text.encode() + b"\n"


def write_segment(folder: Path, events: Sequence[Event]) -> Segment:
    """Write events as a segment, for good: after this they may go from Redis.

    Args:
        folder: of the segments.
        events: without a gap, in order.
    """
    packer = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True)
    frames, blocks, offset, raw = [], [], 0, 0
    subjects: dict[str, tuple[int, int]] = {}
    for start in range(0, len(events), BLOCK):
        lines = b"".join(line_of(event) for event in events[start : start + BLOCK])
        frame = packer.compress(lines)
        frames.append(frame)
        blocks.append((offset, len(frame), events[start].seq))
        offset, raw = offset + len(frame), raw + len(lines)
    for event in events:
        known = subjects.get(event.subject)
        subjects[event.subject] = (known[0] if known else event.version, event.version)
    data = b"".join(frames)
    first, last = events[0], events[-1]
    path = folder / f"{first.seq:012d}-{last.seq:012d}.tsv.zst"
    segment = Segment(
        path,
        first.seq,
        last.seq,
        first.position,
        last.position,
        hashlib.sha256(data).hexdigest(),
        len(data),
        raw,
        tuple(blocks),
        subjects,
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(path.with_name(path.name.replace(".tsv.zst", ".json")), json.dumps(segment.described()).encode())
    _write(path, data)
    # Whoever has listed the folder sees by its time that there is more; the kernel's own clock ticks too coarsely.
    now = time.time_ns()
    os.utime(folder, ns=(now, now))
    return segment


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.chmod(0o600)
    part.replace(path)
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Archive:
    """All segments of a site.

    Args:
        folder: where they are; it need not be there.
        vault: to read personal fields with.
    """

    def __init__(self, folder: Path, vault: Vault | None = None) -> None:
        self.folder = folder
        self.vault = vault
        self._seen = -1
        self._segments: list[Segment] = []
        self._known: dict[str, Segment] = {}
        self._checked: set[tuple[str, int, int]] = set()
        self._blocks: OrderedDict[tuple[str, int], list[Line]] = OrderedDict()
        self._lock = threading.Lock()

    # -- what there is ---------------------------------------------------------------------

    def segments(self) -> list[Segment]:
        """All segments, the oldest first.

        Raises:
            RecordDamaged: one is missing in the middle.
        """
        try:
            changed = self.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return []
        if changed != self._seen:
            names = sorted(name for name in os.listdir(self.folder) if _NAME.match(name))
            self._segments = [self._described(name) for name in names]
            self._seen = changed
            expected = 1
            for segment in self._segments:
                if segment.first != expected:
                    self._seen = -1
                    if segment.first < expected:
                        raise _altered(segment.name, f"it begins before event {expected}, where it should")
                    raise _missing(expected, segment.first - 1)
                expected = segment.last + 1
        return self._segments

    @property
    def end(self) -> int:
        """The last sequence on disk; 0: none."""
        segments = self.segments()
        return segments[-1].last if segments else 0

    @property
    def last_position(self) -> str:
        """The last position on disk; ``0-0``: none."""
        segments = self.segments()
        return segments[-1].last_position if segments else "0-0"

    def _described(self, name: str) -> Segment:
        if name in self._known:
            return self._known[name]
        path = self.folder / name
        try:
            kept = json.loads((self.folder / name.replace(".tsv.zst", ".json")).read_bytes())
            segment = Segment(
                path,
                **{
                    **kept,
                    "blocks": tuple(tuple(block) for block in kept["blocks"]),
                    "subjects": {subject: tuple(versions) for subject, versions in kept["subjects"].items()},
                },
            )
            if not _sound(segment):
                raise ValueError(name)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            segment = self._looked_through(path)
        self._known[name] = segment
        return segment

    def _looked_through(self, path: Path) -> Segment:
        """What lies beside a segment, made anew."""
        data = path.read_bytes()
        blocks, offset, raw = [], 0, 0
        subjects: dict[str, tuple[int, int]] = {}
        ends: list[str] = []
        while offset < len(data):
            try:
                unpacker = zstandard.ZstdDecompressor().decompressobj()
                plain = unpacker.decompress(data[offset:])
            except zstandard.ZstdError as error:
                raise _altered(path.name, str(error)) from error
            block, used = _lines(path.name, plain), len(data) - offset - len(unpacker.unused_data)
            blocks.append((offset, used, order(block[0][0])[1]))
            for _, _, subject, version, _ in block:
                subjects[subject] = (subjects.get(subject, (version, 0))[0], version)
            ends += (block[0][0], block[-1][0])
            offset, raw = offset + used, raw + len(plain)
        if not ends:
            raise _altered(path.name, "it is empty")
        first, last = (int(number) for number in _NAME.match(path.name).groups())  # type: ignore[union-attr]
        digest = hashlib.sha256(data).hexdigest()
        return Segment(path, first, last, ends[0], ends[-1], digest, len(data), raw, tuple(blocks), subjects)

    def check_indexes(self) -> None:
        """Hold what lies beside the segments against what is in them; raises ``RecordDamaged``."""
        for segment in self.segments():
            if self._looked_through(segment.path) != segment:
                raise RecordDamaged(
                    f"what lies beside segment {segment.name} is not what is in it: jobs would be looked for in vain",
                    f"remove {segment.name.replace('.tsv.zst', '.json')}: it is made anew",
                )

    # -- reading ---------------------------------------------------------------------------

    def read(self, after: str = "0-0", upto: str = "+") -> Iterator[Event]:
        """Events after a position and up to another, the oldest first."""
        low, high = order(after), order(upto)
        segments = self.segments()
        for segment in segments[bisect_right([order(s.last_position) for s in segments], low) :]:
            for number in range(len(segment.blocks)):
                block = self._block(segment, number)
                if order(block[-1][0]) <= low:
                    continue
                for line in block:
                    at = order(line[0])
                    if at > high:
                        return
                    if at > low:
                        yield self._event(line)

    def next_after(self, after: str) -> int | None:
        """The sequence of the first event on disk after a position; None: there is none."""
        if order(self.last_position) <= order(after):
            return None
        return next(self.read(after)).seq

    def read_back(self, before: str = "+") -> Iterator[Event]:
        """Events before a position, the newest first."""
        high = order(before)
        segments = self.segments()
        for segment in reversed(segments[: bisect_left([order(s.first_position) for s in segments], high)]):
            for number in reversed(range(len(segment.blocks))):
                for line in reversed(self._block(segment, number)):
                    if order(line[0]) < high:
                        yield self._event(line)

    def subject(self, subject: str, after: int = 0, upto: int | None = None) -> Iterator[Event]:
        """A subject's events after a version and up to another, the oldest first."""
        for segment in self.segments():
            versions = segment.subjects.get(subject)
            if versions is None or versions[1] <= after:
                continue
            if upto is not None and versions[0] > upto:
                return
            for number in range(len(segment.blocks)):
                for line in self._block(segment, number):
                    if line[2] == subject and line[3] > after and (upto is None or line[3] <= upto):
                        yield self._event(line)

    def subject_back(self, subject: str, after: int, upto: int) -> Iterator[Event]:
        """The same, the newest first."""
        for segment in reversed(self.segments()):
            versions = segment.subjects.get(subject)
            if versions is None or versions[0] > upto:
                continue
            if versions[1] <= after:
                return
            for number in reversed(range(len(segment.blocks))):
                for line in reversed(self._block(segment, number)):
                    if line[2] == subject and after < line[3] <= upto:
                        yield self._event(line)

    def version_at(self, subject: str, at: Order) -> int:
        """A subject's last version on disk at or before a place in the log; 0: none."""
        version = 0
        for segment in self.segments():
            if order(segment.first_position) > at:
                break
            versions = segment.subjects.get(subject)
            if versions is None:
                continue
            if order(segment.last_position) <= at:
                version = versions[1]
                continue
            for number in range(len(segment.blocks)):
                for line in self._block(segment, number):
                    if line[2] == subject and order(line[0]) <= at:
                        version = line[3]
        return version

    def at(self, position: str) -> Event | None:
        """The event at a position, or None."""
        seq = order(position)[1]
        segments = self.segments()
        at = bisect_left([segment.last for segment in segments], seq)
        if at == len(segments) or segments[at].first > seq:
            return None
        segment = segments[at]
        number = bisect_right([first for _, _, first in segment.blocks], seq) - 1
        block = self._block(segment, number)
        line = block[seq - segment.blocks[number][2]] if seq - segment.blocks[number][2] < len(block) else None
        return self._event(line) if line is not None and line[0] == position else None

    def _event(self, line: Line) -> Event:
        return Event(*line, self.vault)

    def _block(self, segment: Segment, number: int) -> list[Line]:
        key = (segment.name, number)
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
        self._check(segment)
        offset, size, first = segment.blocks[number]
        with segment.path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        try:
            plain = zstandard.ZstdDecompressor().decompress(data)
        except zstandard.ZstdError as error:
            raise _altered(segment.name, str(error)) from error
        block = _lines(segment.name, plain)
        if not block or order(block[0][0])[1] != first:
            raise _altered(segment.name, f"its block {number} does not begin with event {first}")
        with self._lock:
            self._blocks[key] = block
            while len(self._blocks) > CACHED:
                self._blocks.popitem(last=False)
        return block

    def _check(self, segment: Segment) -> None:
        """A file is looked at once: it is what was written."""
        try:
            info = segment.path.stat()
        except FileNotFoundError as error:
            self._seen = -1
            raise _missing(segment.first, segment.last) from error
        seen = (segment.name, info.st_size, info.st_mtime_ns)
        if seen not in self._checked:
            with segment.path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != segment.sha256:
                    raise _altered(segment.name, "its digest is another than when it was written")
            self._checked.add(seen)


def _sound(segment: Segment) -> bool:
    """Whether what lies beside a segment can be worked with; whether it is right is another question."""
    first, last = (int(number) for number in _NAME.match(segment.name).groups())  # type: ignore[union-attr]
    numbers = [segment.size, segment.raw, *(n for block in segment.blocks for n in block)]
    numbers += [n for versions in segment.subjects.values() for n in versions]
    return (
        (segment.first, segment.last) == (first, last)
        and all(type(number) is int for number in numbers)
        and bool(segment.blocks)
        and all(len(block) == 3 for block in segment.blocks)
        and all(len(versions) == 2 for versions in segment.subjects.values())
        and order(segment.first_position)[1] == first
        and order(segment.last_position)[1] == last
    )


def _lines(name: str, plain: bytes) -> list[Line]:
    try:
        found = []
        for text in plain.decode().removesuffix("\n").split("\n"):
            position, kind, subject, version, d = text.split("\t")
            found.append((position, kind, subject, int(version), d))
    except ValueError as error:
        raise _altered(name, "a line of it has not five fields") from error
    return found


def _missing(first: int, last: int) -> RecordDamaged:
    return RecordDamaged(
        f"history is missing: the segment with events {first} to {last} is not in its folder",
        "put it back from a backup: flightlog restore",
    )


def _altered(name: str, how: str) -> RecordDamaged:
    return RecordDamaged(
        f"history was altered: segment {name}: {how}", "put it back from a backup: flightlog restore"
    )

"""Logs as streams: a file that grows, sent as it grows, whatever rotates it; and what takes it in.

As with files, every object says its place: the receiver says what it has, and what comes again is skipped. A log that
was rotated goes on as the next part: its number is in each object.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, BinaryIO, Final

from engine.constants import ReturnCode
from engine.context import FLContext
from engine.files import open_plain
from engine.shareable import Shareable, make_reply
from engine.streaming.files import FileKey, safe_name
from engine.streaming.spec import (
    ConsumerFactory,
    ObjectConsumer,
    ObjectProducer,
    StreamContext,
    StreamContextKey,
)

CHANNEL: Final = "flightlog.logs"
TOPIC: Final = "log"
CHUNK: Final = 64 * 1024
TIMEOUT: Final = 60.0
LOOK: Final = 0.25  # seconds between two looks whether the log has grown


class LogKey:
    """Names in contexts and bodies, beside those of files."""

    JOB: Final = "LogStreamer.job"
    ATTEMPT: Final = "LogStreamer.attempt"
    #: How often the log was rotated before these bytes.
    PART: Final = "LogStreamer.part"


class LogProducer(ObjectProducer):
    """Follows a log until it is told that no more comes, and then to its end.

    Args:
        path: of the log; one that is not there yet is waited for.
        over: set once nobody writes any more.
        stop: set to break off.
    """

    def __init__(self, path: Path, over: threading.Event, stop: threading.Event) -> None:
        self._path = path
        self._over, self._stop = over, stop
        self._file: BinaryIO | None = None
        self._part = 0
        self._at = 0
        #: Until the receiver has said what it has.
        self.stop_and_wait = True

    def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, float]:
        """See ``ObjectProducer``: waits for more to be written."""
        if self.stop_and_wait:
            return self._object(b""), TIMEOUT
        while not self._stop.is_set():
            # Asked before it is read: what is written last is read too.
            over = self._over.is_set()
            data = self._read()
            if data:
                obj = self._object(data)
                self._at += len(data)
                return obj, TIMEOUT
            if self._rotated():
                continue
            if over:
                return None, 0.0
            self._over.wait(LOOK) if not self._over.is_set() else self._stop.wait(LOOK)
        return None, 0.0

    def process_replies(
        self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> Any | None:
        """See ``ObjectProducer``."""
        if any(reply.get_return_code() != ReturnCode.OK for reply in replies.values()):
            return False
        if self.stop_and_wait:
            self.stop_and_wait = False
            known = min(int(reply.get_header(FileKey.OFFSET) or 0) for reply in replies.values())
            self._skip(known)
        return None

    def _object(self, data: bytes) -> Shareable:
        return Shareable({FileKey.DATA: data, FileKey.OFFSET: self._at, LogKey.PART: self._part})

    def _read(self) -> bytes:
        if self._file is None:
            try:
                self._file = open_plain(self._path)
            except FileNotFoundError:
                return b""
        return self._file.read(CHUNK)

    def _skip(self, count: int) -> None:
        """Go on behind what the receiver has; where the log is shorter by now, it is another one: from its start."""
        if count and self._path.is_file() and self._path.stat().st_size >= count:
            self._file = open_plain(self._path)
            self._file.seek(count)
            self._at = count

    def _rotated(self) -> bool:
        """Whether the path is another file by now, or this one was cut; then the next part begins."""
        if self._file is None:
            return False
        mine = os.fstat(self._file.fileno())
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino) and mine.st_size >= self._at:
            return False
        self._file.close()
        self._file, self._at = None, 0
        self._part += 1
        return True

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()


class LogConsumer(ObjectConsumer):
    """Writes a log, one file for each part of it.

    Args:
        path: of the first part.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable | None]:
        """See ``ObjectConsumer``.

        Raises:
            OSError: it cannot be written.
        """
        data, offset, part = shareable[FileKey.DATA], int(shareable[FileKey.OFFSET]), int(shareable[LogKey.PART])
        path = self._path if part == 0 else self._path.with_name(f"{self._path.name}.{part}")
        with path.open("ab") as file:
            have = file.seek(0, os.SEEK_END)
            if not data:
                return True, make_reply(ReturnCode.OK, {FileKey.OFFSET: have})
            if offset > have:
                raise ValueError(f"the log has a gap: {have} bytes are here, and the next are for {offset}")
            file.write(data[have - offset :])
        return True, None

    def resume(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> int | None:
        """See ``ObjectConsumer``: what was answered is on the disk, and what comes twice is skipped by its place."""
        return int(stream_ctx.get(StreamContextKey.ANSWERED, 0))

    def finalize(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        """See ``ObjectConsumer``: what is there stays."""


class LogFactory(ConsumerFactory):
    """Logs into a folder: ``<site>/<job>/<attempt>-<name>``.

    Args:
        folder: made where it is missing.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).resolve()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        """See ``ConsumerFactory``."""
        job = safe_name(str(stream_ctx.get(LogKey.JOB, "")), "no-job")
        attempt, name = stream_ctx.get(LogKey.ATTEMPT, 0), safe_name(str(stream_ctx.get(FileKey.NAME, "")), "log.txt")
        site = safe_name(str(stream_ctx[StreamContextKey.SENDER]), "site")
        return LogConsumer(self.folder / site / job / f"{int(attempt)}-{name}")

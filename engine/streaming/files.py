"""Files as streams: of any size, written beside and renamed, checked at the end, resumed where one end died.

The first object is a question without data: the receiver says how much of the file it has, so that a second try goes
on there. Every object says its place in the file, so what comes again is skipped. Names of contexts and bodies are
the reference's (5.5); ``FileStreamer.file_id``, ``.offset`` and ``.sha256`` are ours.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, Final

from engine.aux.codes import WHY
from engine.constants import ReturnCode
from engine.context import FLContext
from engine.errors import ArgumentInvalid
from engine.files import open_plain, read_json, write_json
from engine.shareable import Shareable, make_reply
from engine.streaming.spec import (
    ConsumerFactory,
    ObjectConsumer,
    ObjectProducer,
    StreamContext,
    StreamContextKey,
)
from events.durable import sync_folder

CHANNEL: Final = "flightlog.files"
TOPIC: Final = "file"
CHUNK: Final = 2**20
TIMEOUT: Final = 3600.0  # seconds; the site's ``stream_stall`` is what ends a transfer that stands still
INCOMING: Final = ".incoming"
KEPT: Final = 7 * 86_400.0  # seconds that a part waits for the rest
BLOCK: Final = 2**20
LONGEST: Final = 200  # bytes of a name, so that there is room for a part of the id
SWEEP_EVERY: Final = 3600.0  # seconds
OLDER: Final = "the file comes in a stream that began later"


class FileKey:
    """Names in contexts, bodies and headers."""

    NAME: Final = "Streamer.file_name"
    SIZE: Final = "FileStreamer.file_size"
    ID: Final = "FileStreamer.file_id"
    DATA: Final = "Streamer.data"
    DATA_SIZE: Final = "Streamer.size"
    EOF: Final = "Streamer.eof"
    OFFSET: Final = "FileStreamer.offset"
    SHA256: Final = "FileStreamer.sha256"
    #: In the receiver's context, and in the reply to the last object: where the file is.
    LOCATION: Final = "Streamer.file_location"


class FileProducer(ObjectProducer):
    """Reads a file.

    Args:
        path: of a regular file.
        chunk: bytes of one object.
        timeout: seconds within which each object is to be answered.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, *, chunk: int = CHUNK, timeout: float = TIMEOUT) -> None:
        self._file = open_plain(path)
        status = os.fstat(self._file.fileno())
        self.total_bytes: int = status.st_size
        self._was = status.st_size, status.st_mtime_ns
        self._made = self._answered = 0
        self._chunk = chunk
        self._timeout = timeout
        self._sha256 = hashlib.sha256()
        self._at = 0
        self._over = False
        #: How the first targets failed that did; "" where none did.
        self.failed = ""
        #: Until the targets have said what they have.
        self.stop_and_wait = True

    def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, float]:
        """See ``ObjectProducer``."""
        if self._over:
            return None, 0.0
        self._made += 1
        if self.stop_and_wait:
            return _chunk(b"", 0), self._timeout
        data = self._file.read(min(self._chunk, self.total_bytes - self._at))
        self._sha256.update(data)
        obj = _chunk(data, self._at)
        self._at += len(data)
        if self._at >= self.total_bytes or not data:
            self._over = True
            now = os.fstat(self._file.fileno())
            if (now.st_size, now.st_mtime_ns) != self._was or self._at != self.total_bytes:
                raise ValueError("the file changed while it was sent")
            obj[FileKey.EOF] = True
            obj[FileKey.SHA256] = self._sha256.hexdigest()
        return obj, self._timeout

    def process_replies(
        self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> Any | None:
        """See ``ObjectProducer``: False where a target failed; at the end, where the file is at each of them."""
        self._answered += 1
        bad = {name: reply for name, reply in replies.items() if reply.get_return_code() != ReturnCode.OK}
        if bad:
            said = [f"{name}: {r.get_return_code()} {r.get_header(WHY, '')}".strip() for name, r in bad.items()]
            self.failed = "; ".join(said)[:500]
            return False
        if self.stop_and_wait:
            self._skip(min(_offset(reply, self.total_bytes) for reply in replies.values()))
            self.stop_and_wait = False
            return None
        if not self._over or self._answered < self._made:
            return None
        # A receiver of another make does not say where it is.
        return {name: str(reply.get_header(FileKey.LOCATION) or "") for name, reply in replies.items()}

    def _skip(self, count: int) -> None:
        """Go on behind what all targets have; the digest is of the whole file all the same."""
        while self._at < count:
            data = self._file.read(min(BLOCK, count - self._at))
            if not data:
                break
            self._sha256.update(data)
            self._at += len(data)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class FileConsumer(ObjectConsumer):
    """Writes a file beside its place, and renames it once it is whole.

    Args:
        folder: where it goes.
        ctx: the stream's context.

    Raises:
        ValueError: the file came, or comes, in a stream that began later.
    """

    def __init__(self, folder: Path, ctx: StreamContext) -> None:
        self._folder = folder
        self._part = self.part_of(folder, ctx)
        self._id = self._part.stem
        self._lock = threading.Lock()
        self._gave_way = self._gone = False
        self._name = safe_name(str(ctx.get(FileKey.NAME, "")), self._id)
        self._size = ctx.get(FileKey.SIZE)
        self._note = folder / INCOMING / f"{self._id}.json"
        self._part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        told = read_json(self._note) or {}
        tx = str(ctx[StreamContextKey.TX_ID])
        if str(told.get("tx") or "") > tx:  # ids begin with their time
            raise ValueError(OLDER)
        done = Path(str(told.get("done", "")))
        #: Where it is, if it came whole before.
        self._done = done if told.get("done") and done.is_file() and done.parent == folder else None
        #: How objects lie in the file: where the first begins that has data, and how long each is.
        self._plan: dict[str, Any] = {"start": None, "chunk": None, "tx": tx}
        if told.get("tx") == tx:
            self._plan |= {"start": told.get("start"), "chunk": told.get("chunk")}
        else:
            write_json(self._note, {**told, **self._plan})
        self._file: BinaryIO = self._part.open("ab")
        self._at = self._file.seek(0, os.SEEK_END)
        # Of a part that is here already, the digest is taken at the end, from the disk.
        self._sha256 = hashlib.sha256() if self._at == 0 else None

    @staticmethod
    def part_of(folder: Path, ctx: StreamContext) -> Path:
        """Where the file grows: the same place for the same content of the same sender."""
        told = ctx.get(FileKey.ID)
        name = told if is_file_id(told) else str(ctx[StreamContextKey.TX_ID])
        return folder / INCOMING / f"{safe_name(str(name), 'file')}.part"

    def give_way(self, ctx: StreamContext) -> None:
        """Another stream brings the same file: write no more; raises ``ValueError`` where it is an older one."""
        if self._plan["tx"] > str(ctx[StreamContextKey.TX_ID]):
            raise ValueError(OLDER)
        with self._lock:
            self._gave_way = True
            self._file.close()

    def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable | None]:
        """See ``ObjectConsumer``.

        Raises:
            OSError: it cannot be written. ValueError: it is not the file that was sent.
        """
        with self._lock:
            if self._gave_way:
                raise ValueError("the file comes in another stream by now")
            return self._consume(shareable, stream_ctx)

    def _consume(self, shareable: Shareable, stream_ctx: StreamContext) -> tuple[bool, Shareable | None]:
        data, eof = shareable.get(FileKey.DATA), bool(shareable.get(FileKey.EOF))
        offset = shareable.get(FileKey.OFFSET, self._at)
        if not isinstance(data, bytes) or not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            raise ValueError(f"{FileKey.DATA} must be bytes, and {FileKey.OFFSET} a number from 0")
        if isinstance(self._size, int) and offset + len(data) > self._size:
            raise ValueError(f"the file was to have {self._size} bytes, and more come")
        if not data and not eof:  # the question
            size = self._done.stat().st_size if self._done else self._at
            return True, make_reply(ReturnCode.OK, {FileKey.OFFSET: size})
        if self._done is None:
            self._write(data, offset)
        if not eof:
            return True, None
        sha256 = shareable.get(FileKey.SHA256)
        if self._done is not None and digest_of(self._done) != sha256:
            self._gone = True
            raise ValueError(f"{self._done.name} is here, with another content; the next try sends it whole")
        location = self._done or self._finish(sha256)
        stream_ctx[FileKey.LOCATION] = str(location)
        return False, make_reply(ReturnCode.OK, {FileKey.LOCATION: location.name})

    def _write(self, data: bytes, at: int) -> None:
        if at > self._at:
            raise ValueError(f"the file has a gap: {self._at} bytes are here, and the next are for {at}")
        if self._plan["start"] is None:
            self._plan |= {"start": at, "chunk": len(data)}
            write_json(self._note, self._plan)
        fresh = data[self._at - at :]
        self._file.write(fresh)
        if self._sha256 is not None:
            self._sha256.update(fresh)
        self._file.flush()  # a process that dies now leaves it to the kernel
        self._at += len(fresh)

    def _finish(self, sha256: object) -> Path:
        os.fsync(self._file.fileno())
        self._file.close()
        if isinstance(self._size, int) and self._at != self._size:
            raise ValueError(f"the file has {self._at} bytes, and was to have {self._size}")
        whole = self._sha256.hexdigest() if self._sha256 is not None else digest_of(self._part)
        if isinstance(sha256, str) and whole != sha256:
            raise ValueError("the file is not the one that was sent: its digest differs")
        place = self._placed()
        sync_folder(self._folder)
        write_json(self._note, {**self._plan, "done": str(place)})
        self._done = place
        return place

    def _placed(self) -> Path:
        """Give the part its name; where that is taken, with a part of its id, and a number."""
        plain = Path(self._name)
        for number in itertools.count():
            more = "" if number == 0 else f".{self._id[:8]}" + (f".{number}" if number > 1 else "")
            place = self._folder / f"{plain.stem}{more}{plain.suffix}"
            try:
                os.link(self._part, place)
            except FileExistsError:
                continue
            self._part.unlink()
            return place
        raise AssertionError("unreachable")

    def resume(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> int | None:
        """See ``ObjectConsumer``: what is on the disk is safe."""
        start, chunk = self._plan["start"], self._plan["chunk"]
        if not isinstance(start, int) or not chunk:
            return 1  # no more than the question was answered
        if self._done is not None:
            return 1 + max(0, self._done.stat().st_size - start - 1) // int(chunk)  # the last is welcome again
        safe = 1 + (self._at - start) // int(chunk)
        last = 1 + max(0, self._at - start - 1) // int(chunk)
        if isinstance(self._size, int):
            return min(safe, last) if self._at >= self._size else safe
        # Whether this was the last is not known, and the last has to come again if it was not answered.
        return max(last, int(stream_ctx.get(StreamContextKey.ANSWERED, 0)))

    def finalize(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        """See ``ObjectConsumer``: a part is kept where the rest may still come."""
        self._file.close()
        if self._gave_way:
            return
        if self._gone:
            self._note.unlink(missing_ok=True)
        if self._done is not None or stream_ctx.get(StreamContextKey.RC) == ReturnCode.EXECUTION_EXCEPTION:
            self._part.unlink(missing_ok=True)
        if stream_ctx.get(StreamContextKey.RC) == ReturnCode.EXECUTION_EXCEPTION:
            self._note.unlink(missing_ok=True)


class FileFactory(ConsumerFactory):
    """Files into a folder.

    Args:
        folder: made where it is missing; a sender's files go into a folder of its name below it.

    Raises:
        ArgumentInvalid: it is no folder.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).resolve()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            raise ArgumentInvalid(f"{folder} is no folder", "name another", field="folder") from None
        self._live: dict[Path, FileConsumer] = {}
        self._lock = threading.Lock()
        self._sweep()

    def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        """See ``ConsumerFactory``; one that still waits for the same file, of a sender that died, gives way."""
        folder = self.folder / str(stream_ctx[StreamContextKey.SENDER])
        folder.mkdir(mode=0o700, exist_ok=True)
        if time.monotonic() - self._swept > SWEEP_EVERY:
            self._sweep()
        with self._lock:
            part = FileConsumer.part_of(folder, stream_ctx)
            before = self._live.get(part)
            if before is not None:
                before.give_way(stream_ctx)
            made = self._live[part] = FileConsumer(folder, stream_ctx)
            return made

    def return_consumer(self, consumer: ObjectConsumer, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        """See ``ConsumerFactory``."""
        with self._lock:
            self._live = {part: one for part, one in self._live.items() if one is not consumer}

    def _sweep(self) -> None:
        """Parts that nobody completed."""
        self._swept = time.monotonic()
        for path in self.folder.glob(f"*/{INCOMING}/*"):
            if path.is_file() and time.time() - path.stat().st_mtime > KEPT:
                path.unlink(missing_ok=True)


def _chunk(data: bytes, at: int) -> Shareable:
    return Shareable({FileKey.DATA: data, FileKey.DATA_SIZE: len(data), FileKey.EOF: False, FileKey.OFFSET: at})


def _offset(reply: Shareable, size: int) -> int:
    """How much a target has; nothing where it does not say, as a receiver of another make."""
    told = reply.get_header(FileKey.OFFSET)
    return min(told, size) if isinstance(told, int) and told > 0 else 0


def is_file_id(value: object) -> bool:
    """Whether this can name a file that comes in parts."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32}", value) is not None


def safe_name(given: str, otherwise: str) -> str:
    """A file's own name, of what a sender says: no path, nothing hidden, nothing that a shell would trip over."""
    name = re.sub(r"[^\w.@+=-]", "_", given.replace("\\", "/").rpartition("/")[2]).lstrip(".")
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix) > LONGEST // 8:
        stem, dot, suffix = name, "", ""
    room = LONGEST - len(os.fsencode(dot + suffix))
    return os.fsencode(stem)[:room].decode(errors="ignore") + dot + suffix if name else otherwise


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Sending files: what is to be sent is kept in the workspace, so that it goes on when the engine is back."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from engine.actors import acting_as, current_actor, current_reason
from engine.cell.digests import Digests
from engine.constants import ReturnCode
from engine.context import FLContext
from engine.core import Core
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid, CellMissing, HostError, JobUnknown, StreamerDown
from engine.files import FileLock, read_json, write_json
from engine.ids import check_job_id
from engine.streaming.files import CHANNEL, CHUNK, TOPIC, FileKey, FileProducer
from engine.streaming.spec import StreamContext
from engine.streaming.streamer import check_targets
from engine.streaming.streams import Streams
from events.envelope import Actor
from events.errors import FlightlogError, LogUnavailable

log = logging.getLogger("flightlog.stream")

FOLDER = "sending"
AT_ONCE = 4  # files that are gone on with
#: Seconds after each try to go on with a file: when the site is back, its server may not be yet.
PAUSES = (2.0, 5.0, 15.0, 60.0, 0.0)


class SentFile(NamedTuple):
    """What came of a file: a return code, words for it, and where it is at each target (by its name there)."""

    code: str
    why: str = ""
    locations: dict[str, str] | None = None

    @property
    def ok(self) -> bool:
        """It is whole at each target."""
        return self.code == ReturnCode.OK and self.locations is not None


class Files:
    """Files that a site sends.

    Args:
        core: of the engine.
        streams: its streams.
        contexts: makes a context.
    """

    def __init__(self, core: Core, streams: Streams, contexts: Any) -> None:
        self._core = core
        self._streams = streams
        self._contexts = contexts
        self._folder = core.site.workspace.flight / FOLDER
        self._digests = Digests(core.site.workspace.flight)

    def send(
        self,
        path: Path | str,
        targets: list[str],
        *,
        job: str | None = None,
        channel: str = CHANNEL,
        topic: str = TOPIC,
        chunk: int = CHUNK,
        secure: bool = False,
        optional: bool = False,
        fl_ctx: FLContext | None = None,
    ) -> SentFile:
        """See ``ClientEngine.send_file``."""
        method = "send_file"
        call = self._core.call(method, str(path)[:500], str(targets)[:500])
        place, told = self._core.guarded(call, method, job, lambda: self._asked(path, targets, job, chunk))
        said: dict[str, Any] = {
            "path": str(place),
            **told,
            "targets": targets,
            "job": job,
            "channel": channel,
            "topic": topic,
            "chunk": chunk,
            "secure": bool(secure),
            "optional": bool(optional),
            "actor": current_actor().model_dump(mode="json"),
            "reason": current_reason(),
        }
        return self._send(self._id(said), said, fl_ctx)

    def _send(self, file_id: str, said: dict[str, Any], fl_ctx: FLContext | None, *, keep: bool = False) -> SentFile:
        """Send a file, with a note of it in the workspace meanwhile; ``keep`` leaves the note where that fails."""
        lock = FileLock(self._folder / f"{file_id}.lock")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not lock.acquire() or not _is_there(lock):
            lock.release()
            return SentFile(ReturnCode.ERROR, "it is being sent already, by another process or thread")
        note = self._folder / f"{file_id}.json"
        try:
            write_json(note, said)
            sent = self._stream(file_id, said, fl_ctx)
            if sent.ok or not (keep or self._streams.down):
                note.unlink(missing_ok=True)  # else the next engine goes on
            return sent
        except (Exception, KeyboardInterrupt):
            if not keep:  # whoever asked is told, and nothing of it is sent later behind their back
                note.unlink(missing_ok=True)
            raise
        finally:
            (self._folder / f"{file_id}.lock").unlink(missing_ok=True)
            lock.release()

    def _stream(self, file_id: str, said: dict[str, Any], fl_ctx: FLContext | None) -> SentFile:
        name = os.fsencode(Path(said["path"]).name).decode(errors="replace")
        ctx = StreamContext({FileKey.NAME: name, FileKey.SIZE: said["size"], FileKey.ID: file_id})
        if said["job"]:
            ctx["__run_num__"] = said["job"]
        producer = FileProducer(Path(said["path"]), chunk=said["chunk"])
        try:
            code, result = self._streams.stream(
                said["channel"],
                said["topic"],
                ctx,
                said["targets"],
                producer,
                fl_ctx or self._contexts(),
                optional=said["optional"],
                secure=said["secure"],
                method="send_file",
                kind="file",
                file=name,
            )
        finally:
            producer.close()
        why = "" if result else producer.failed or "it was aborted, or a target failed"
        return SentFile(code if result or code != ReturnCode.OK else ReturnCode.ERROR, why, result or None)

    def resume(self) -> threading.Thread | None:
        """Go on with files whose engine died over them; None where there are none."""
        notes = sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []
        if not notes:
            return None
        thread = threading.Thread(target=self._resume_all, args=(notes,), name="files", daemon=True)
        thread.start()
        return thread

    def _resume_all(self, notes: list[Path]) -> None:
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="file") as pool:
            for note in notes:
                pool.submit(self._resume, note)

    def _resume(self, note: Path) -> None:
        if self._streams.down:
            return
        said = read_json(note)
        try:
            if said is None:
                raise ArgumentInvalid(f"{note} cannot be read")
            _, told = self._checked(said["path"], said["chunk"])
            if told != {name: said[name] for name in told}:
                raise ArgumentInvalid(f"{said['path']} has changed since it was begun to be sent")
            for pause in PAUSES:
                with acting_as(Actor(**said["actor"]), reason=said["reason"]):
                    sent = self._send(note.stem, said, None, keep=True)
                if sent.ok or self._streams.wait_down(pause):
                    break
            if not self._streams.down:
                note.unlink(missing_ok=True)
            log.warning("%s: %s", said["path"], "sent" if sent.ok else f"not sent: {sent.code} {sent.why}")
        except (StreamerDown, CellMissing, LogUnavailable) as error:
            log.warning("a file is sent on by the next engine: %s", error)
        except (FlightlogError, OSError, KeyError, TypeError, ValueError) as error:
            log.error("a file is not sent on: %s", error)
            note.unlink(missing_ok=True)

    def _asked(self, path: object, targets: object, job: object, chunk: object) -> tuple[Path, dict[str, Any]]:
        """What ``_checked`` gives, once that all arguments are what they have to be."""
        if not isinstance(path, str | Path) or "\0" in str(path):
            raise ArgumentTypeInvalid(f"path must be a path but got {path!r:.80}", "name a file", field="path")
        check_targets(targets, self._core.site.name)
        if job is not None and not self._core.site.jobs.load(check_job_id(job)).known:
            raise JobUnknown(f"{job} is not on the record", "flightlog list shows the jobs that are")
        return self._checked(path, chunk)

    def _checked(self, path: Path | str, chunk: object) -> tuple[Path, dict[str, Any]]:
        """The file's place, and what tells this content from another.

        Raises:
            ArgumentInvalid: bad input. HostError: it cannot be read.
        """
        most = self._core.site.settings.payload_max
        if not isinstance(chunk, int) or isinstance(chunk, bool) or not 1 <= chunk <= most:
            raise ArgumentInvalid(
                f"chunk is {str(chunk)[:40]}", f"bytes of one object, from 1 to {most}", field="chunk"
            )
        try:
            place = Path(path).resolve(strict=True)
            if not place.is_file():
                raise ArgumentInvalid(f"{path} is no file", "name a regular file", field="path")
            status = place.stat()
            with place.open("rb"):
                return place, {"size": status.st_size, "mtime": status.st_mtime_ns, "ctime": status.st_ctime_ns}
        except FileNotFoundError:
            raise ArgumentInvalid(f"{path} does not exist", "name a file", field="path") from None
        except OSError as error:
            raise HostError(f"{path} cannot be read: {error.strerror}", "look at its permissions") from error

    def _id(self, said: dict[str, Any]) -> str:
        """The same for the same content on its way to the same targets, so that a second try goes on."""
        parts = [said["path"], said["size"], said["mtime"], said["ctime"], sorted(said["targets"]), said["job"]]
        return self._digests.of(hashlib.sha256(os.fsencode(repr(parts))).digest())[:32]


def _is_there(lock: FileLock) -> bool:
    """Whether the file that we have locked is the one of its name: its last holder may have removed it just now."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), lock.path.stat())
    except FileNotFoundError:
        return False

"""Files that are whole or not there, and locks that the kernel keeps."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.errors import DiskFull


def write_whole(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file so that it is there whole, on disk, or not at all.

    Raises:
        DiskFull: there is no room; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no room to write {path}", f"free some space on the disk of {path.parent}") from error
        raise


def write_json(path: Path, value: Any, mode: int = 0o600) -> None:
    """``write_whole`` of a JSON value."""
    write_whole(path, json.dumps(value, sort_keys=True).encode(), mode)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None where there is no file."""
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return value


def sync_folder(path: Path) -> None:
    """Put a folder's entries on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(root: Path) -> None:
    """Put every file and folder below ``root``, and ``root`` itself, on disk."""
    for folder, _, names in os.walk(root):
        for name in names:
            fd = os.open(Path(folder, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(folder))


class FileLock:
    """An exclusive or shared ``flock``, held by this object until it is released or the process dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """This object holds the lock."""
        return self._fd is not None

    def acquire(self, *, shared: bool = False, timeout: float | None = 0) -> bool:
        """Take the lock within ``timeout`` seconds (0: at once or not; None: however long it takes)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.002
        while True:
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if end is not None and time.monotonic() >= end:
                    os.close(fd)
                    return False
                time.sleep(pause)
                pause = min(pause * 2, 0.05)
            else:
                self._fd = fd
                return True

    def upgrade(self) -> bool:
        """From shared to exclusive, where nobody else holds it."""
        assert self._fd is not None  # noqa: S101 - a caller's slip, not an input
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let go."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class JobLocked(Exception):
    """A lock is held by another process, and could not be had in time."""


@contextmanager
def locked(path: Path, *, timeout: float | None = None) -> Iterator[None]:
    """Hold a lock for a block; raises ``JobLocked`` where it cannot be had in time."""
    lock = FileLock(path)
    if not lock.acquire(timeout=timeout):
        raise JobLocked(f"{path} is held by another process")
    try:
        yield
    finally:
        lock.release()

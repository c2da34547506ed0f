"""Files that are whole or not there, and locks that the kernel keeps."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

from engine.errors import DiskFull
from events.durable import replace, sync_folder

log = logging.getLogger("flightlog.files")

#: What a file system says that has no files without a name, or no second names.
_NOT_HERE = frozenset((errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.EPERM, errno.ENOSYS))


def write_whole(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file so that it is there whole, on disk, or as it was before.

    Raises:
        DiskFull: there is no room; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _room_for(path):
        replace(path, data, mode)


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Turn "no space left" into the catalogue's error, which names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no room to write {path}", f"free some space on the disk of {path.parent}") from error
        raise


@contextmanager
def new_file(path: Path) -> Iterator[BufferedRandom]:
    """A file for its owner alone, which has no name until all is done that is done with it: then it is there, whole.

    Whoever dies on the way leaves nothing; where a file system has no files without a name, a hidden one.

    Raises:
        FileExistsError: there is one of that name. DiskFull: there is no room.
    """
    _check_free(path)
    try:
        fd = os.open(path.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        hidden = None
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with _room_for(path), os.fdopen(fd, "w+b") as file:
        try:
            yield file
            sync(file)
            _name(fd, hidden, path)
        finally:
            if hidden is not None:
                hidden.unlink(missing_ok=True)
    sync_folder(path.parent)


def _name(fd: int, hidden: Path | None, path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # With a folder's descriptor the kernel is asked to follow the link in /proc, and without one it is not.
        os.link(f"/proc/self/fd/{fd}", path.name, dst_dir_fd=folder)
    except OSError as error:
        if hidden is None or error.errno not in _NOT_HERE:
            raise
        _check_free(path)  # without links it can only be renamed
        hidden.rename(path)
    finally:
        os.close(folder)


def _check_free(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def sync(file: BufferedRandom) -> None:
    """Put what was written into a file on disk."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """What is made as a folder is gone again where it cannot be finished."""
    with undone(lambda: shutil.rmtree(path, ignore_errors=True)):
        yield


@contextmanager
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """Take back what was begun, where it fails or is interrupted."""
    try:
        yield
    except BaseException:
        undo()
        raise


def write_json(path: Path, value: Any, mode: int = 0o600) -> None:
    """``write_whole`` of a JSON value."""
    write_whole(path, json.dumps(value, sort_keys=True).encode(), mode)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None where there is no file, or one that nobody can read."""
    try:
        value = json.loads(read_plain(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read: %s", path, error)
        return None
    return value if isinstance(value, dict) else None


def read_plain(path: Path, limit: int = 2**26) -> bytes:
    """Bytes of a regular file. An app may put a pipe or a link in its place: that is refused, not waited for.

    Raises:
        OSError: it is none, or cannot be read.
    """
    with open_plain(path) as file:
        return file.read(limit)


def open_plain(path: Path) -> BufferedReader:
    """A regular file, opened for reading.

    Raises:
        OSError: it is a link, a pipe or anything else, or cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(fd, "rb")


def open_within(root: Path, path: Path) -> BufferedReader:
    """A regular file below ``root``, with no link on the way: whoever may write there may have put some.

    Raises:
        OSError: there is none, or a link is in the way.
    """
    *folders, name = path.relative_to(root).parts
    way = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            below = os.open(folder, way | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        fd = os.open(name, way | os.O_NONBLOCK, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(fd, "rb")


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

    def fileno(self) -> int:
        """The descriptor that holds the lock; a child that inherits it holds it too."""
        assert self._fd is not None  # noqa: S101 - a caller's slip, not an input
        os.set_inheritable(self._fd, True)
        return self._fd

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

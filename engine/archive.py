"""App archives: what a zip says, what it really holds, and how a folder becomes one.

`inspect` tells what can be told without writing anything; `unpack` checks the same again and
counts the bytes that really come out, since a header can lie; `pack` is the way in. Stricter than
the reference, whose unzip guards against ``..`` only (reference 3.1, step 3).
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from engine.errors import ArgumentInvalid, ArgumentTypeInvalid, BadArchive, BadConfig, DiskFull

CONFIG = "config/config_fed_client.json"
SIGNATURE = ".__nvfl_sig.json"
#: The reference's notes leave the dot out, its files have it; both are read.
SIGNATURES = (SIGNATURE, "__nvfl_sig.json")

_CHUNK = 64 * 1024
_CONFIG_MAX = 2**20  # bytes
_RATIO_FROM = 2**20  # bytes: what unpacks to less than this is no bomb, whatever its ratio
_PATH_MAX = 1024  # bytes, below the target folder
_PART_MAX = 255  # bytes, what file systems allow
_CENTRAL = b"PK\x01\x02"
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_SKIPPED = {"__pycache__", ".git"}
_FIX = "zip the app's folder with: flightlog deploy JOB FOLDER"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much an archive may hold.

    Attributes:
        files: files and folders together.
        bytes: bytes of the archive itself, and of what comes out of it.
        ratio: unpacked bytes per archived byte; looked at from 1 MiB unpacked on.
    """

    files: int = 10_000
    bytes: int = 512 * 2**20
    ratio: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What an archive says it holds.

    Attributes:
        names: its files, as clean relative paths, in the archive's order.
        size: unpacked bytes, as declared.
        custom: whether there is a ``custom`` folder, code of the app's own (BYOC).
        signed: whether there is a signature file at the top.
        config: the bytes of ``config/config_fed_client.json``, None where there is none.
    """

    names: tuple[str, ...]
    size: int
    custom: bool
    signed: bool
    config: bytes | None


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out: the number of files and their bytes."""

    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    folder: bool
    info: zipfile.ZipInfo


def inspect(data: object, limits: Limits | None = None) -> Contents:
    """Check everything that can be told without unpacking.

    Args:
        data: the archive, bytes.
        limits: how much it may hold; `Limits()` by default.

    Raises:
        ArgumentTypeInvalid: ``data`` is not bytes.
        BadArchive: not a zip, or one that is not safe to unpack; names the entry.
        BadConfig: the config is larger than 1 MiB.
    """
    if not isinstance(data, bytes):
        raise ArgumentTypeInvalid(f"app_data must be bytes, not {type(data).__name__}", _FIX, field="app_data")
    with _opened(data, limits or Limits()) as (archive, entries, _):
        files = {entry.name: entry for entry in entries if not entry.folder}
        return Contents(
            names=tuple(files),
            size=sum(entry.info.file_size for entry in files.values()),
            custom=any(entry.name.split("/")[0] == "custom" for entry in entries),
            signed=any(name in files for name in SIGNATURES),
            config=_config(archive, files[CONFIG]) if CONFIG in files else None,
        )


def read_all(data: bytes, limits: Limits | None = None) -> dict[str, bytes]:
    """The archive's files by clean name, in memory: what a signature is checked against.

    Raises:
        BadArchive: as for `inspect`, or an entry is damaged.
    """
    with _opened(data, limits or Limits()) as (archive, entries, _):
        files = {}
        for entry in entries:
            if not entry.folder:
                with _reading(entry.name):
                    files[entry.name] = b"".join(_chunks(archive, entry))
        return files


def unpack(data: bytes | Path, target: Path, limits: Limits | None = None) -> Unpacked:
    """Unpack into ``target``. Putting it on disk is the caller's part (``engine.files.sync_tree``).

    Files get mode 0644, or 0755 where the archive says that the owner may execute them;
    folders get 0755. On any error ``target`` is removed.

    Args:
        data: the archive, or the path of it.
        target: a folder that is empty or not there yet.
        limits: how much may come out; `Limits()` by default.

    Raises:
        ArgumentInvalid: ``target`` holds something already.
        BadArchive: not a zip, not safe, damaged, or more comes out than `limits` allows.
        DiskFull: no room.
    """
    limits = limits or Limits()
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise ArgumentInvalid(f"target {target} is not an empty folder", "name a new folder", field="target")
    name = str(target)
    try:
        with _opened(data, limits) as (archive, entries, allowed):
            _make_folder(target)
            folders = {target}
            written = 0
            for entry in entries:
                name = entry.name
                parts = name.split("/")
                for depth in range(1, len(parts) + entry.folder):
                    folder = target.joinpath(*parts[:depth])
                    if folder not in folders:
                        _make_folder(folder)
                        folders.add(folder)
                if not entry.folder:
                    written += _write(archive, entry, target / name, allowed - written)
            return Unpacked(sum(not entry.folder for entry in entries), written)
    except BaseException as error:
        shutil.rmtree(target, ignore_errors=True)
        if is_disk_full(error):
            raise DiskFull(
                f"the disk of {target.parent} was full when {name} was unpacked",
                f"free some space in {target.parent} and deploy again",
                folder=str(target.parent),
            ) from error
        raise


def pack(folder: Path) -> bytes:
    """Zip an app's folder; the same files give the same bytes.

    Sorted, with fixed dates; the owner's execute bit is kept; ``__pycache__`` and ``.git``
    are left out.

    Raises:
        BadArchive: no such folder, nothing in it, or a link or device in it.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise BadArchive(f"the app folder {folder} {what}", "name the folder that holds config/", field="app_data")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in _walk(folder):
            name = _clean(path.relative_to(folder).as_posix())
            if path.is_dir():
                archive.writestr(_info(f"{name}/", stat.S_IFDIR | 0o755), b"")
            else:
                executable = path.stat().st_mode & stat.S_IXUSR
                info = _info(name, stat.S_IFREG | (0o755 if executable else 0o644))
                archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)
        if not archive.namelist():
            raise BadArchive(f"the app folder {folder} is empty", "name the folder that holds config/")
    return out.getvalue()


def is_disk_full(error: BaseException) -> bool:
    """Whether the error says that there is no room (the disk's, or the user's quota of it)."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


# --- reading -----------------------------------------------------------------------------


@contextmanager
def _opened(data: bytes | Path, limits: Limits) -> Iterator[tuple[zipfile.ZipFile, list[_Entry], int]]:
    """The zip, its checked entries, and how many bytes may come out of it."""
    with _source(data) as source:
        size = source.seek(0, os.SEEK_END)
        if size > limits.bytes:
            raise BadArchive(f"app_data has {size} bytes, {limits.bytes} are allowed", _limit("zip_bytes"))
        # Python's reader builds an object per entry before anybody can count them. Nested
        # zips hold the mark too, hence the factor.
        if _marks(source) > 10 * limits.files:
            raise BadArchive(f"app_data has more than {limits.files} entries", _limit("zip_files"))
        with _reading():
            archive = zipfile.ZipFile(source)
        with archive:
            entries = _check(archive.infolist(), limits)
            allowed = min(limits.bytes, max(limits.ratio * size, _RATIO_FROM))
            declared = sum(entry.info.file_size for entry in entries)
            if declared > allowed:
                raise _bomb(f"declares {declared} bytes", allowed)
            yield archive, entries, allowed


@contextmanager
def _source(data: bytes | Path) -> Iterator[IO[bytes]]:
    if isinstance(data, Path):
        try:
            source: IO[bytes] = data.open("rb")
        except OSError as error:
            raise BadArchive(f"the archive {data} cannot be read: {error.strerror}", "deploy it again") from error
    else:
        source = io.BytesIO(data)
    with source:
        yield source


def _marks(source: IO[bytes]) -> int:
    source.seek(0)
    count, tail = 0, b""
    while chunk := source.read(16 * _CHUNK):
        count += (tail + chunk).count(_CENTRAL)
        tail = chunk[-3:]
    return count


@contextmanager
def _reading(name: str = "") -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        ValueError,
        OverflowError,
        NotImplementedError,
        RuntimeError,
        OSError,
    ) as error:
        what = f"app_data: the entry {name!r} is damaged" if name else "app_data is not a zip"
        raise BadArchive(f"{what} ({error})", _FIX, field="app_data", entry=name) from error


def _chunks(archive: zipfile.ZipFile, entry: _Entry) -> Iterator[bytes]:
    with _reading(entry.name), archive.open(entry.info) as source:
        while chunk := source.read(_CHUNK):
            yield chunk


def _config(archive: zipfile.ZipFile, entry: _Entry) -> bytes:
    config = bytearray()
    for chunk in _chunks(archive, entry):
        config += chunk
        if len(config) > _CONFIG_MAX:
            raise BadConfig(f"{CONFIG} has more than {_CONFIG_MAX} bytes", "move the data to a file of its own")
    return bytes(config)


# --- checking ----------------------------------------------------------------------------


def _check(infos: list[zipfile.ZipInfo], limits: Limits) -> list[_Entry]:
    if not infos:
        raise BadArchive("app_data is a zip with nothing in it", _FIX, field="app_data")
    seen: dict[str, tuple[str, bool]] = {}
    entries = []
    for info in infos:
        name = _clean(info.orig_filename)
        folder = info.orig_filename.endswith("/")
        _check_kind(name, folder, info)
        if not name:
            continue  # "./", the app's own folder
        parts = name.split("/")
        for depth in range(1, len(parts) + 1):
            _claim(seen, "/".join(parts[:depth]), folder=folder or depth < len(parts))
            # Folders count as well: deep names make many of them out of few entries.
            if len(seen) > limits.files:
                raise BadArchive(
                    f"app_data has more than {limits.files} files and folders",
                    _limit("zip_files"),
                    field="app_data",
                )
        entries.append(_Entry(name, folder, info))
    return entries


def _clean(name: str) -> str:
    """The name as a relative path without empty parts and dots, if it stays below its folder."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    try:
        encoded = [part.encode() for part in parts]
    except UnicodeEncodeError:
        raise _refuse(name, "has a name that is not Unicode") from None
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise _refuse(name, "has an absolute path")
    if "\\" in name:
        raise _refuse(name, "has a backslash in its path")
    if ".." in parts:
        raise _refuse(name, "has .. in its path")
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise _refuse(name, "has a control character in its name")
    if any(len(part) > _PART_MAX for part in encoded) or sum(map(len, encoded)) + len(parts) > _PATH_MAX:
        raise _refuse(name[:64] + "...", "has a name that is too long")
    return "/".join(parts)


def _check_kind(name: str, folder: bool, info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise _refuse(name, "is a symbolic link")
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise _refuse(name, "is a device, a pipe or a socket")
    if (kind == stat.S_IFDIR and not folder) or (kind == stat.S_IFREG and folder) or (folder and info.file_size):
        raise _refuse(name, "is a file and a folder at once")
    if info.flag_bits & 0x41:
        raise _refuse(name, "is encrypted")
    if info.compress_type not in _METHODS:
        raise _refuse(name, f"is compressed by method {info.compress_type}, only store and deflate are read")


def _claim(seen: dict[str, tuple[str, bool]], path: str, *, folder: bool) -> None:
    """Note a path; refuse it where it and an earlier one would be the same file somewhere."""
    key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
    if key not in seen:
        seen[key] = (path, folder)
        return
    earlier, was_folder = seen[key]
    if folder and was_folder and earlier == path:
        return
    if folder != was_folder:
        raise _refuse(path, f"collides with {earlier!r}: one is a file, the other a folder")
    raise _refuse(path, "is there twice" if earlier == path else f"collides with {earlier!r}")


def _refuse(name: str, why: str) -> BadArchive:
    return BadArchive(f"app_data: the entry {name!r} {why}", _FIX, field="app_data", entry=name)


def _bomb(what: str, allowed: int) -> BadArchive:
    return BadArchive(
        f"app_data {what} unpacked, {allowed} are allowed for an archive of its size",
        _limit("zip_bytes") + " (or zip_ratio)",
        field="app_data",
    )


def _limit(setting: str) -> str:
    return f"send a smaller app, or have the site raise its setting {setting}"


# --- writing -----------------------------------------------------------------------------


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # whatever the umask


def _write(archive: zipfile.ZipFile, entry: _Entry, path: Path, allowed: int) -> int:
    executable = (entry.info.external_attr >> 16) & stat.S_IXUSR
    written = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as out:
        for chunk in _chunks(archive, entry):
            written += len(chunk)
            if written > allowed:
                raise _bomb(f"gives more and more bytes at {entry.name!r}", allowed)
            out.write(chunk)
        os.fchmod(fd, 0o755 if executable else 0o644)
    return written


def _walk(folder: Path) -> Iterator[Path]:
    """Files and empty folders, sorted."""
    for path in sorted(folder.iterdir(), key=lambda child: child.name):
        if path.name in _SKIPPED:
            continue
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise BadArchive(f"{path} is a symbolic link", "put the file itself in its place", field="app_data")
        if stat.S_ISDIR(mode):
            inside = list(_walk(path))
            yield from inside or [path]
        elif stat.S_ISREG(mode):
            yield path
        else:
            raise BadArchive(f"{path} is a device, a pipe or a socket", "take it out of the app", field="app_data")


def _info(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 3  # Unix, so that the mode counts
    info.external_attr = mode << 16
    return info

"""App archives by their digest: ``<workspace>/.flightlog/blobs/<sha256>``.

The log holds digests only (invariant L6); a worker finds the bytes here.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Collection
from pathlib import Path

from engine.archive import is_disk_full
from engine.errors import ArgumentInvalid, BadArchive, DiskFull
from events.durable import sync_folder

_PART = ".part-"  # a put under way


class Blobs:
    """The store of one workspace. Safe with several processes: a blob appears whole or not at all."""

    def __init__(self, workspace: Path) -> None:
        self.folder = workspace / ".flightlog" / "blobs"

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be.

        Raises:
            ArgumentInvalid: not a SHA-256 digest in lower-case hex.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ArgumentInvalid(f"digest {digest!r} is not one", "give 64 hex digits", field="digest")
        return self.folder / digest

    def put(self, data: bytes) -> str:
        """Store the bytes, on disk when this returns; returns their SHA-256 in hex.

        Raises:
            DiskFull: no room; nothing is left behind.
        """
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        try:
            if path.stat().st_size == len(data):
                os.utime(path)  # young again, for a sweep that runs at the same time
                return digest
        except FileNotFoundError:
            pass
        try:
            self._write(path, data)
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise DiskFull(
                f"the disk of {self.folder} has no room for an app of {len(data)} bytes",
                f"free some space in {self.folder.parent.parent} and deploy again",
                folder=str(self.folder),
            ) from error
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes.

        Raises:
            ArgumentInvalid: not a digest.
            BadArchive: the blob is gone, or is not what was put.
        """
        path = self.path(digest)
        fix = "deploy the app again"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise BadArchive(f"the app's archive {path} is missing", fix, digest=digest) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise BadArchive(f"the app's archive {path} was altered: its digest is another", fix, digest=digest)
        return data

    def remove(self, digest: str) -> None:
        """Remove the blob; nothing happens where there is none."""
        self.path(digest).unlink(missing_ok=True)

    def sweep(self, keep: Collection[str], *, older_than: float, now: float) -> list[str]:
        """Remove what nobody needs, and what a crash left of a put.

        Args:
            keep: digests that the record still refers to.
            older_than: seconds since the last put; a younger blob's event may not be on the
                record yet.
            now: seconds since the epoch.

        Returns:
            The digests that were removed.
        """
        removed = []
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else []:
            try:
                if path.name in keep or now - path.stat().st_mtime <= older_than:
                    continue
                path.unlink()
            except FileNotFoundError:
                continue  # somebody else's sweep, or their put's rename
            if not path.name.startswith(_PART):
                removed.append(path.name)
        return removed

    def _write(self, path: Path, data: bytes) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder.parent)
        fd, part = tempfile.mkstemp(prefix=_PART, dir=self.folder)
        try:
            with os.fdopen(fd, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        sync_folder(self.folder)

"""Keyed digests of messages: they prove which payload it was to who has it and the key, and tell others nothing."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from engine.files import FileLock, write_whole

NAME = "digest.key"
BYTES = 32


class Digests:
    """Digests under a workspace's key, which is made once.

    Args:
        folder: the workspace's ``.flightlog``.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / NAME
        if not path.exists():
            lock = FileLock(folder / f"{NAME}.lock")
            lock.acquire(timeout=None)
            try:
                if not path.exists():
                    write_whole(path, secrets.token_bytes(BYTES))
            finally:
                lock.release()
        self._key = path.read_bytes()

    def of(self, sha256: bytes) -> str:
        """HMAC-SHA256 over the SHA-256 of a payload, in hex."""
        return hmac.new(self._key, sha256, hashlib.sha256).hexdigest()

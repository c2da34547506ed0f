"""Personal fields, locked away: each job has a key of its own, and without it they are nobody's any more.

What names a person or holds free text enters the log and everything that derives from it only as a
token, ``~e1.<key>.<ciphertext>~``. Tokens are deterministic (AES-SIV, RFC 5297): the same text of the same
job is the same token, so folds and comparisons work on tokens and need no key. To forget a job is to
destroy its key; the log's bytes, and the tree over them, stay as they are.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from pydantic_core import from_json, to_json

from events.bodies.base import Body, personal

MARK = "~e1."
_TOKEN = re.compile(r"~e1\.([0-9a-f]{16})\.([A-Za-z0-9_-]+)~")
KEY_BYTES = 64
#: What stands for a field whose key was destroyed; and for one whose key is not here.
ERASED, LOCKED = "[erased]", "[locked]"
LOOK_EVERY = 1.0  # seconds for which a key is believed to be still there
CACHED = 8192  # tokens
#: Actors that are no persons: their ids stay readable.
_NO_PERSONS = ("system", "job")


class Vault:
    """The keys of one site, in a folder that no other user may read; one file per job and life.

    Args:
        folder: made where it is missing, once a key is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._keys: dict[str, tuple[AESSIV | None, bool, float]] = {}
        self._current: dict[str, tuple[str, float]] = {}
        self._tokens: OrderedDict[tuple[str, bytes], str] = OrderedDict()
        self._own: bytes | None = None

    # -- hiding ----------------------------------------------------------------------------

    def hide_body(self, job: str, body: Body) -> Body:
        """A body with its personal fields as tokens."""
        changes: dict[str, Any] = {}
        for name, mark in personal(type(body)).items():
            value = getattr(body, name)
            if isinstance(value, str):
                changes[name] = self.hide(job, value)
            elif isinstance(value, list):
                changes[name] = [self.hide(job, one) for one in value]
            elif isinstance(value, dict):
                changes[name] = {
                    key: one if key in mark.plain or one is None else self._hidden(job, b"j" + to_json(one))
                    for key, one in value.items()
                }
        return body.model_copy(update=changes) if changes else body

    def hide_actor(self, job: str, actor: Mapping[str, Any]) -> dict[str, Any]:
        """The personal fields of an actor that an event would show, as tokens."""
        changes = {} if actor["kind"] in _NO_PERSONS else {"id": self.hide(job, actor["id"])}
        if actor.get("claimed"):
            changes["claimed"] = self.hide(job, actor["claimed"])
        return changes

    def hide(self, job: str, text: str) -> str:
        """A text as a token of this job."""
        return self._hidden(job, b"t" + text.encode("utf-8", "replace"))

    def _hidden(self, job: str, plain: bytes) -> str:
        name = self._name_for(job)
        known = self._tokens.get((name, plain))
        if known is not None:
            return known
        key = self._key(name)[0]
        if key is None:  # destroyed at this very moment: nobody will read it
            return f"{MARK}{name}.{'A' * 22}~"
        sealed = base64.urlsafe_b64encode(key.encrypt(plain, [name.encode()])).rstrip(b"=").decode()
        token = self._tokens[name, plain] = f"{MARK}{name}.{sealed}~"
        while len(self._tokens) > CACHED:
            with contextlib.suppress(KeyError):  # another thread was faster
                self._tokens.popitem(last=False)
        return token

    def knows(self, job: str) -> bool:
        """There is, or was, a key of this job."""
        return job in self._current or self._path(key_name(job, 0)).exists()

    # -- revealing -------------------------------------------------------------------------

    def reveal(self, text: str) -> str:
        """A text with every token in it made readable."""
        return _TOKEN.sub(self._text, text) if MARK in text else text

    def reveal_json(self, value: Any) -> Any:
        """A JSON value with every token in its strings made readable; it may share parts with what was given."""
        if isinstance(value, str):
            if MARK not in value:
                return value
            whole = _TOKEN.fullmatch(value)
            return self._plain(whole) if whole else self.reveal(value)
        if isinstance(value, dict):
            return {key: self.reveal_json(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.reveal_json(one) for one in value]
        return value

    def _text(self, token: re.Match[str]) -> str:
        plain = self._plain(token)
        return plain if isinstance(plain, str) else to_json(plain).decode()

    def _plain(self, token: re.Match[str]) -> Any:
        name, sealed = token.groups()
        key, erased = self._key(name)
        if key is None:
            return ERASED if erased else LOCKED
        try:
            plain = key.decrypt(base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4)), [name.encode()])
        except (InvalidTag, ValueError):
            return token.group()  # nobody's token: a text that looks like one
        return from_json(plain[1:]) if plain[:1] == b"j" else plain[1:].decode()

    # -- forgetting ------------------------------------------------------------------------

    def next_life(self, job: str) -> int:
        """Have what is hidden of a job from now on under another key; how many keys there were before."""
        before = len(self._lives(job))
        self._write(self._path(key_name(job, before)), secrets.token_bytes(KEY_BYTES))
        self._forget()
        return before

    def destroy(self, job: str, lives: int | None = None) -> int:
        """Destroy the first keys of a job, or all; how many of them were still there.

        What is hidden of it from now on has another. Twice is once.
        """
        count = 0
        for path in self._lives(job)[:lives]:
            if path.stat().st_size == 0:
                continue
            with path.open("r+b") as file:
                file.write(secrets.token_bytes(KEY_BYTES))  # where the disk writes in place
                file.flush()
                os.fsync(file.fileno())
                file.truncate(0)
                os.fsync(file.fileno())
            count += 1
        self._forget()
        return count

    def _forget(self) -> None:
        self._keys.clear()
        self._current.clear()
        self._tokens.clear()

    def keys_of(self, job: str) -> dict[str, str]:
        """The keys of a job that are there, by name, in base64: for an export that is to be read elsewhere."""
        return {
            _name(path): base64.b64encode(path.read_bytes()).decode()
            for path in self._lives(job)
            if path.stat().st_size
        }

    def erased_of(self, job: str) -> list[str]:
        """Names of those keys of a job that were destroyed."""
        return [_name(path) for path in self._lives(job) if not path.stat().st_size]

    def adopt(self, keys: Mapping[str, str], erased: Sequence[str] = ()) -> None:
        """Take in keys from an export, and which were destroyed there; one that was destroyed here stays so.

        Raises:
            ValueError: a name or a key is none.
        """
        found = {name: base64.b64decode(key, validate=True) for name, key in keys.items()} | dict.fromkeys(
            erased, b""
        )
        for name, data in found.items():
            if not _TOKEN.fullmatch(f"{MARK}{name}.A~") or len(data) not in (0, KEY_BYTES):
                raise ValueError(f"{str(name)[:40]!r} has no key of {KEY_BYTES} bytes")
            if not self._path(name).exists():
                self._write(self._path(name), data)

    def pseudonym(self, text: str) -> str:
        """A name for a text by which it can be looked for, and not be read: 16 hex digits, keyed."""
        if self._own is None:
            path = self.folder / "site"
            if not path.exists():
                self._write(path, secrets.token_bytes(KEY_BYTES))
            self._own = path.read_bytes()
        return hmac.new(self._own, text.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:16]

    # -- keys ------------------------------------------------------------------------------

    def _name_for(self, job: str) -> str:
        known = self._current.get(job)
        now = time.monotonic()
        if known is not None and now - known[1] < LOOK_EVERY:
            return known[0]
        lives = self._lives(job)
        if lives and lives[-1].stat().st_size:
            name = _name(lives[-1])
        else:
            name = key_name(job, len(lives))
            self._write(self._path(name), secrets.token_bytes(KEY_BYTES))
        self._current[job] = (name, now)
        return name

    def _lives(self, job: str) -> list[Path]:
        paths: list[Path] = []
        while (path := self._path(key_name(job, len(paths)))).exists():
            paths.append(path)
        return paths

    def _key(self, name: str) -> tuple[AESSIV | None, bool]:
        known = self._keys.get(name)
        now = time.monotonic()
        if known is not None and now - known[2] < LOOK_EVERY:
            return known[:2]
        try:
            key = self._path(name).read_bytes()
        except FileNotFoundError:
            key, erased = b"", False
        else:
            erased = not key
        if len(self._keys) > CACHED:
            self._keys.clear()
        found = known[0] if known and known[0] and key else AESSIV(key) if len(key) == KEY_BYTES else None
        self._keys[name] = (found, erased, now)
        return found, erased

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name[2:]

    def _write(self, path: Path, key: bytes) -> None:
        """Put a key on disk for good before anything is locked with it; whoever is first wins."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, key)
            os.fsync(fd)
        finally:
            os.close(fd)
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
        part.unlink()
        for folder in (path.parent, self.folder):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def key_name(job: str, life: int) -> str:
    """The name of a job's key: 16 hex digits. A job whose key was destroyed gets another for its next life."""
    return hashlib.sha256(f"{job}\0{life}".encode()).hexdigest()[:16]


def _name(path: Path) -> str:
    return path.parent.name + path.name

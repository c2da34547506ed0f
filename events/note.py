"""Checkpoints: what a tree was, signed (C2SP signed-note, tlog-checkpoint and tlog-cosignature, Ed25519).

A checkpoint reads::

    flightlog/<site>/<log>/<epoch>
    <size>
    <root, base64>
    position <position of the last event>

    — <name> <base64 of key id and signature>
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE, COSIGNATURE = 1, 4  # algorithm bytes of C2SP: Ed25519; cosignature/v1
_DASH = "\u2014 "


class NoteInvalid(ValueError):
    """A text is no signed note, or no checkpoint."""


@dataclass(frozen=True)
class Verifier:
    """A public key by name, as ``<name>+<key id>+<base64>`` writes it."""

    name: str
    public: bytes
    algorithm: int = SIGNATURE

    @property
    def key_id(self) -> bytes:
        """Four bytes that say which key signed."""
        return hashlib.sha256(f"{self.name}\n".encode() + bytes((self.algorithm,)) + self.public).digest()[:4]

    def __str__(self) -> str:
        key = base64.b64encode(bytes((self.algorithm,)) + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{key}"

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """A key from its text; raises ``NoteInvalid``."""
        try:
            name, key_id, key = text.strip().split("+", 2)
            data = base64.b64decode(key, validate=True)
            found = cls(name, data[1:], data[0])
        except (ValueError, IndexError) as error:
            raise NoteInvalid(f"{text[:80]!r} is no key: <name>+<key id>+<base64>") from error
        if found.key_id.hex() != key_id or len(found.public) != 32:
            raise NoteInvalid(f"{text[:80]!r} is no key: its id does not fit")
        return found

    def verify(self, text: str, signature: bytes) -> int | None:
        """Whether it signed a note's text; the time (s) where it said one, else 0; None where it did not."""
        said, message = 0, text.encode()
        if self.algorithm == COSIGNATURE:
            said, signature = int.from_bytes(signature[:8], "big"), signature[8:]
            message = _cosigned(text, said)
        return said if self.signed(message, signature) else None

    def signed(self, message: bytes, signature: bytes) -> bool:
        """Whether it signed these very bytes."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer:
    """A private key by name.

    Args:
        name: without blanks and ``+``.
        key: of Ed25519.
        algorithm: ``SIGNATURE``, or ``COSIGNATURE`` for a witness.
    """

    def __init__(self, name: str, key: Ed25519PrivateKey, algorithm: int = SIGNATURE) -> None:
        self.key = key
        self.verifier = Verifier(
            name,
            key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw),
            algorithm,
        )

    @classmethod
    def new(cls, name: str, algorithm: int = SIGNATURE) -> Signer:
        """With a fresh key."""
        return cls(name, Ed25519PrivateKey.generate(), algorithm)

    @classmethod
    def parse(cls, text: str) -> Signer:
        """From what ``str`` wrote; raises ``NoteInvalid``."""
        try:
            name, algorithm, seed = text.strip().split(" ")
            return cls(name, Ed25519PrivateKey.from_private_bytes(base64.b64decode(seed)), int(algorithm))
        except ValueError as error:
            raise NoteInvalid("this file is no signing key") from error

    def __str__(self) -> str:
        seed = self.key.private_bytes(
            serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
        )
        return f"{self.verifier.name} {self.verifier.algorithm} {base64.b64encode(seed).decode()}\n"

    def line(self, text: str, *, now: float | None = None) -> str:
        """The signature line for a note's text."""
        if self.verifier.algorithm == COSIGNATURE:
            said = int(time.time() if now is None else now)
            signature = said.to_bytes(8, "big") + self.key.sign(_cosigned(text, said))
        else:
            signature = self.key.sign(text.encode())
        return f"{_DASH}{self.verifier.name} {base64.b64encode(self.verifier.key_id + signature).decode()}\n"


def _cosigned(text: str, said: int) -> bytes:
    return f"cosignature/v1\ntime {said}\n{text}".encode()


@dataclass(frozen=True)
class Checkpoint:
    """What a tree was."""

    origin: str
    size: int
    root: bytes
    position: str = ""

    def text(self) -> str:
        """What is signed."""
        head = f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"
        return head + (f"position {self.position}\n" if self.position else "")

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """From a note's text; raises ``NoteInvalid``."""
        try:
            origin, size, root, *more = text.removesuffix("\n").split("\n")
            found = cls(
                origin,
                int(size),
                base64.b64decode(root, validate=True),
                next((line[9:] for line in more if line.startswith("position ")), ""),
            )
        except (ValueError, binascii.Error) as error:
            raise NoteInvalid("this is no checkpoint: origin, size and root, a line each") from error
        if len(found.root) != 32 or found.size < 0 or not found.origin:
            raise NoteInvalid("this is no checkpoint: its root has not 32 bytes, or its size is below 0")
        return found


@dataclass(frozen=True)
class Note:
    """A text and its signature lines."""

    text: str
    lines: tuple[str, ...]

    @classmethod
    def parse(cls, note: str) -> Note:
        """From its text and lines; raises ``NoteInvalid``."""
        head, gap, tail = note.rpartition("\n\n")
        lines = tuple(line + "\n" for line in tail.removesuffix("\n").split("\n"))
        if not gap or not head or not all(line.startswith(_DASH) for line in lines):
            raise NoteInvalid("this is no signed note: a text, an empty line, and signature lines")
        return cls(head + "\n", lines)

    def __str__(self) -> str:
        return f"{self.text}\n{''.join(self.lines)}"

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that it is; raises ``NoteInvalid``."""
        return Checkpoint.parse(self.text)

    def signed_by(self, keys: Iterable[Verifier]) -> Mapping[str, int]:
        """Names of those keys that signed it -> the time (s) that they say, or 0."""
        found: dict[str, int] = {}
        wanted = {(key.name, key.key_id): key for key in keys}
        for line in self.lines:
            name, _, data = line[len(_DASH) :].strip().partition(" ")
            try:
                raw = base64.b64decode(data, validate=True)
            except ValueError:
                continue
            key = wanted.get((name, raw[:4]))
            said = key.verify(self.text, raw[4:]) if key else None
            if said is not None:
                found[name] = said
        return found

    def names(self) -> list[str]:
        """Whoever its lines say has signed it."""
        return [line[len(_DASH) :].partition(" ")[0] for line in self.lines]

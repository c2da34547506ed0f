"""What a job's process is given when it is launched, through an inherited descriptor: who it is, and its run key.

The environment would show it to every process of the same user. With the key it signs what it says of itself, and
the record has the public half (``AppSpawned.run_key``): nobody else can say that the job has started.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: The descriptor on which the process finds its grant.
FD = 3
MOST = 65_536  # bytes: it has to fit into a pipe, since nobody reads while it is written


@dataclass(frozen=True, kw_only=True)
class Grant:
    """Who a job's process is."""

    job: str
    attempt: int
    server: str
    run_key: str = field(repr=False)
    settings: dict[str, Any] = field(repr=False)

    @classmethod
    def read(cls, fd: int) -> Grant:
        """Take the grant from a descriptor, and close it.

        Raises:
            ValueError: there is none.
        """
        with os.fdopen(fd, "rb") as pipe:
            return cls(**json.loads(pipe.read(MOST)))

    def encode(self) -> bytes:
        """The bytes to write into the pipe."""
        return json.dumps(asdict(self)).encode()

    def sign(self, status: int) -> dict[str, Any]:
        """What this run says of itself, signed."""
        said = statement(self.job, self.attempt, status)
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self.run_key))
        return {"job": self.job, "attempt": self.attempt, "status": status, "signature": key.sign(said).hex()}


def new_run_key() -> tuple[str, str]:
    """A run's secret and its public half, in hex."""
    seed = secrets.token_bytes(32)
    return seed.hex(), Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw().hex()


def statement(job: str, attempt: int, status: int) -> bytes:
    """The bytes that are signed."""
    return json.dumps(["flightlog run status", job, attempt, status]).encode()


def signed_by(run_key: str, job: str, attempt: int, status: int, signature: str) -> bool:
    """Whether a run with this public key said that."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(run_key))
        key.verify(bytes.fromhex(signature), statement(job, attempt, status))
    except (InvalidSignature, ValueError):
        return False
    return True

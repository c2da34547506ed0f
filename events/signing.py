"""Keys that sign a site's log: which it has had, and who holds the private one."""

from __future__ import annotations

import base64
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from events.durable import sync_folder, write
from events.errors import RecordDamaged
from events.note import Checkpoint, Note, NoteInvalid, Signer, Verifier

#: Given a size that was signed before: the proof that what is to be signed begins with it.
Prove = Callable[[int], list[bytes]]


class Custodian(Protocol):
    """Who holds the private key in the site's stead: a process of another user."""

    def chain(self) -> list[str]:
        """As ``Keys.chain``."""

    def sign(self, checkpoint: Checkpoint, prove: Prove) -> str:
        """The signature line; raises ``HistoryBroken`` where it does not go on from what was signed before."""

    def rotate(self) -> None:
        """Take another key, signed by the old one."""


class Keys:
    """The site's signing key, and those that it had before.

    Args:
        folder: ``key`` is the private one, ``signers`` has the public ones.
        custodian: who has the private one, once it was handed over or where there never was one here.
    """

    def __init__(self, folder: Path, custodian: Custodian | None = None) -> None:
        self.folder = folder
        self.path = folder / "key"
        self.custodian = custodian

    @property
    def apart(self) -> bool:
        """Somebody else holds the private key."""
        return self.custodian is not None and not self.path.exists()

    def sign(self, name: str, checkpoint: Checkpoint, prove: Prove) -> Note:
        """Sign a checkpoint.

        Raises:
            HistoryBroken: the custodian has signed another history. RecordDamaged: the key is gone, or not ours.
            EngineDown: the custodian is away.
        """
        text = checkpoint.text()
        with self.held():
            if self.custodian is None or not self.apart:
                return Note(text, (self.signer(name).line(text),))
            note = Note(text, (self.custodian.sign(checkpoint, prove),))
            if not note.signed_by(self.verifiers()[-1:]):
                self._follow(self.custodian.chain())
                if not note.signed_by(self.verifiers()[-1:]):
                    raise RecordDamaged(
                        "the signer signs with a key that it does not name", "look at who runs it: FLIGHTLOG_SIGNER"
                    )
            return note

    def signer(self, name: str) -> Signer:
        """The key to sign with, made where there never was one.

        Raises:
            RecordDamaged: there was one, and it is gone.
        """
        if not self.path.exists():
            if self.chain():
                raise RecordDamaged(
                    f"the key that signs this log is not in {self.path}",
                    "name the signer that holds it (FLIGHTLOG_SIGNER), or put the file back from a backup; if it is "
                    "lost, carry the history into a fresh site: flightlog export, flightlog import",
                )
            write(self.path, str(Signer.new(name)))
        try:
            signer = Signer.parse(self.path.read_text())
        except ValueError as error:
            raise RecordDamaged(f"{self.path} is no signing key", "put it back from a backup") from error
        if not self.chain():
            self._add(signer.verifier)  # the public half can be had again
        return signer

    def rotate(self, name: str) -> tuple[Verifier, Verifier, str]:
        """Take another key; the old one, the new one, and the old one's signature over the new.

        A key of the site's own is handed over, where there is a custodian: from then on that one has it.
        """
        with self.held():
            if self.custodian is not None and self.apart:
                self._follow(self.custodian.chain())
                self.custodian.rotate()
                self._follow(self.custodian.chain())
                return (*self.verifiers()[-2:], self.chain()[-1].partition(" ")[2])  # type: ignore[return-value]
            old = self.signer(name)
            if self.custodian is not None:
                new = Verifier.parse(self.custodian.chain()[-1].partition(" ")[0])
            else:
                fresh = Signer.new(name)
                new = fresh.verifier
            proof = base64.b64encode(old.key.sign(str(new).encode())).decode()
            # In this order: who dies in between goes on with the old key, which is in the chain as well.
            self._add(new, proof)
            if self.custodian is not None:
                self.path.unlink()
                sync_folder(self.folder)
            else:
                write(self.path, str(fresh))
        return old.verifier, new, proof

    @property
    def newest(self) -> Verifier:
        """The public key that is signed with now; raises ``RecordDamaged`` where none is there."""
        known = self.verifiers()
        if not known:
            raise RecordDamaged(f"there is no public key in {self.folder / 'signers'}", "put it back from a backup")
        return known[-1]

    def verifiers(self) -> list[Verifier]:
        """All public keys of this site, the oldest first."""
        try:
            return [Verifier.parse(line.partition(" ")[0]) for line in self.chain()]
        except NoteInvalid as error:
            raise RecordDamaged(f"{self.folder / 'signers'}: {error}", "put it back from a backup") from error

    def chain(self) -> list[str]:
        """A line per public key, the oldest first: the key, and after a blank the one before's signature over it."""
        path = self.folder / "signers"
        try:
            return path.read_text().splitlines() if path.exists() else []
        except ValueError as error:
            raise RecordDamaged(f"{path} is no text", "put it back from a backup") from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody signs, and nobody rotates, at the same time."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.folder / "key.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _follow(self, theirs: list[str]) -> None:
        """Take over what the custodian's chain has and ours has not."""
        mine = self.chain()
        known = {line.partition(" ")[0] for line in mine}
        fresh = [line for line in theirs if line.partition(" ")[0] not in known]
        named = self.verifiers()
        if mine and len(chained(fresh, named)) != len(named) + len(fresh):
            raise RecordDamaged(
                "the signer's key does not follow from this site's",
                "name the signer that holds it: FLIGHTLOG_SIGNER; a key of another one is no key of this log",
            )
        if fresh:
            self._put([*mine, *fresh])

    def _add(self, key: Verifier, proof: str = "") -> None:
        self._put([*self.chain(), f"{key} {proof}".strip()])

    def _put(self, lines: list[str]) -> None:
        write(self.folder / "signers", "".join(f"{line}\n" for line in lines))


def chained(lines: Sequence[str], known: Sequence[Verifier]) -> list[Verifier]:
    """Keys of a chain that follow from a known one: each was signed by the one before it."""
    trusted = list(known)
    for line in lines:
        text, _, proof = line.partition(" ")
        key = Verifier.parse(text)
        if key in trusted:
            continue
        try:
            signature = base64.b64decode(proof, validate=True)
        except ValueError:
            continue
        if trusted and any(one.signed(text.encode(), signature) for one in trusted):
            trusted.append(key)
    return trusted

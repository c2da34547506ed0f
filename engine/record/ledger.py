"""What was signed in one place of each log, so that nothing is signed that contradicts it.

It holds nothing of a log but sizes, roots and signatures. Witnesses have one, and so has the signer of a site that
does not hold its own key.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.files import locked, write_json
from events.durable import write
from events.merkle import consistent
from events.note import Checkpoint, Note, NoteInvalid, Verifier

BODY_MAX = 64 * 1024


class Declined(Exception):
    """A checkpoint is not signed; with the HTTP status and what the caller is told."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class Ledger:
    """All logs that were seen in one place.

    Args:
        folder: for what was seen.
        whose: ``witness`` or ``signer``: the command of whoever runs it.
    """

    def __init__(self, folder: Path, whose: str) -> None:
        self.folder = folder
        self.whose = whose

    @contextmanager
    def of(self, log: str) -> Iterator[Entry]:
        """One log, and nobody else at any meanwhile."""
        # One lock for all: whoever invents names of logs makes no files of them.
        with locked(self.folder / "logs.lock"):
            yield Entry(self, log, self._read(self._path(log)))

    def accept(self, origin: str) -> None:
        """Sign an epoch of a known log from now on, that does not begin with what was seen: an operator's word."""
        accepted = sorted({*self.accepted(), origin})
        write(self.folder / "accepted", "".join(f"{one}\n" for one in accepted))

    def accepted(self) -> list[str]:
        """Epochs that an operator has given their word for."""
        path = self.folder / "accepted"
        return path.read_text().splitlines() if path.exists() else []

    def last(self, log: str) -> list[str]:
        """The last checkpoint of each epoch of a log that was signed here, the newest epoch first."""
        epochs = self._read(self._path(log))["epochs"]
        return [str(epochs[epoch]["note"]) for epoch in sorted(epochs, key=int, reverse=True)]

    def logs(self) -> list[dict[str, Any]]:
        """All logs that were seen."""
        return [self._read(path) for path in sorted((self.folder / "logs").glob("*.json"))]

    def put(self, log: str, seen: dict[str, Any]) -> None:
        """What was seen of a log, on disk."""
        write_json(self._path(log), {"log": log, **seen})

    def _read(self, path: Path) -> dict[str, Any]:
        """What was seen; raises ``Declined`` (503) where that is not to be had: it must not be forgotten."""
        try:
            seen: dict[str, Any] = json.loads(path.read_bytes())
            for epoch, one in seen["epochs"].items():
                if not (
                    _number(epoch) and one["size"] >= 0 and len(bytes.fromhex(one["root"])) == 32 and one["note"]
                ):
                    raise ValueError(epoch)
            for key in seen["keys"]:
                Verifier.parse(key)
        except FileNotFoundError:
            return {"keys": [], "epochs": {}}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Declined(
                503,
                f"what was seen of this log cannot be read, and nothing is signed without it: {path}: {error!r}; "
                "put it back from a backup\n",
            ) from error
        return seen

    def _path(self, log: str) -> Path:
        return self.folder / "logs" / f"{hashlib.sha256(log.encode()).hexdigest()[:32]}.json"


class Entry:
    """What was seen of one log."""

    def __init__(self, ledger: Ledger, log: str, seen: dict[str, Any]) -> None:
        self._ledger = ledger
        self._log = log
        self._epochs: dict[str, Any] = seen["epochs"]
        #: The log's keys, as they were known last.
        self.keys = [Verifier.parse(text) for text in seen["keys"]]

    def check(self, old: int, proof: list[bytes], checkpoint: Checkpoint) -> None:
        """Whether a checkpoint goes on from what was seen.

        Args:
            old: size that the caller believes to be the last that was seen; 0: none.
            proof: of consistency, from there.
            checkpoint: what is to be signed.

        Raises:
            Declined: 409 another size was the last, 422 it is another history.
        """
        epoch = checkpoint.origin.rpartition("/")[2]
        known = self._epochs.get(epoch)
        size, root = (known["size"], bytes.fromhex(known["root"])) if known else (0, b"")
        if old != size:
            raise Declined(409, f"{size}\n")
        if size and not consistent(size, root, checkpoint.size, checkpoint.root, proof):
            raise Declined(
                422, f"a log that does not begin with the {size} events seen before: this is another history"
            )
        if not _number(epoch):
            raise Declined(422, f"{epoch!r} is no epoch")
        newest = max(map(int, self._epochs), default=0)
        if int(epoch) < newest:
            raise Declined(422, f"epoch {epoch} is over: this log goes on in epoch {newest}")
        if known is None and self._epochs and checkpoint.origin not in self._ledger.accepted():
            # Whoever has the key can begin one, and leave out what he likes: that is for people to settle.
            whose = self._ledger.whose
            raise Declined(
                422,
                f"epoch {epoch} is another history of a log that was seen before: whoever runs this {whose} "
                f"has to accept it (flightlog {whose} --accept {checkpoint.origin})",
            )

    def put(self, note: Note, keys: list[Verifier]) -> None:
        """Remember what is signed, before anybody gets the signature."""
        checkpoint = note.checkpoint
        epoch = checkpoint.origin.rpartition("/")[2]
        seen = {"size": checkpoint.size, "root": checkpoint.root.hex(), "note": str(note)}
        self._ledger.put(self._log, {"keys": [str(key) for key in keys], "epochs": {**self._epochs, epoch: seen}})


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def asking(old: int, proof: list[bytes], text: str) -> bytes:
    """The request to sign a checkpoint, or a note of one, as C2SP tlog-witness writes it."""
    steps = "".join(base64.b64encode(step).decode() + "\n" for step in proof)
    return f"old {old}\n{steps}\n{text}".encode()


def asked(body: bytes) -> tuple[int, list[bytes], str]:
    """What ``asking`` wrote; raises ``NoteInvalid`` or another ``ValueError``."""
    head, _, text = body.decode().partition("\n\n")
    first, *steps = head.split("\n")
    word, _, old = first.partition(" ")
    if word != "old" or not (old.isascii() and old.isdigit() and len(old) < 20):
        raise NoteInvalid("the first line reads: old <size>")
    return int(old), [base64.b64decode(step, validate=True) for step in steps], text

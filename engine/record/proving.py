"""Proofs that an event was in the log: for one, or for all of a job's."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Any

from engine.errors import Unverifiable
from engine.record.sealed import log_name
from engine.record.sources import chain_of
from engine.record.witnessing import witness_keys
from engine.site import Site
from events.envelope import Event
from events.errors import RecordDamaged
from events.merkle import Tree
from events.note import Note, NoteInvalid, Verifier
from events.seal import kept_notes, leaf_of


class Prover:
    """Makes inclusion proofs from what the sealer kept.

    Args:
        site: opened.
        covering: sequence up to which it is to prove something; 0: not known.

    Raises:
        Unverifiable: nothing was sealed.
    """

    def __init__(self, site: Site, covering: int = 0) -> None:
        folder = site.workspace.seal
        self.tree = Tree(folder / "tree", readonly=True)
        self.chain = chain_of(site.workspace)
        self.witnesses = [str(key) for key in witness_keys(site.workspace)]
        keys = witness_keys(site.workspace)
        notes = [note for note in kept_notes(folder) if note.checkpoint.size <= self.tree.size]
        fit = [note for note in notes if self.tree.root(note.checkpoint.size) == note.checkpoint.root]
        #: The largest checkpoint that a witness cosigned, and the largest at all: of one log.
        self.witnessed, self.last = self._best(fit, log_name(site.workspace), keys)
        if covering and (self.witnessed is None or self.witnessed.checkpoint.size < covering):
            # A history that was taken in may be vouched for better where it came from.
            for log in {_log(note) for note in fit}:
                seen, last = self._best(fit, log, keys)
                if seen is not None and seen.checkpoint.size >= covering:
                    self.witnessed, self.last = seen, last

    def _known(self) -> list[Verifier]:
        try:
            return [Verifier.parse(line.partition(" ")[0]) for line in self.chain]
        except NoteInvalid as error:
            raise RecordDamaged(f"the site's public keys cannot be read: {error}", "flightlog verify") from error

    def _best(self, notes: list[Note], log: str, keys: list[Verifier]) -> tuple[Note | None, Note]:
        own = [note for note in notes if _log(note) == log]
        if not own:
            raise Unverifiable("nothing of this log is sealed yet", "flightlog up seals it, within a second")
        if not any(note.signed_by(self._known()) for note in own):
            raise RecordDamaged("the keys that this log was signed with are not its signers", "flightlog verify")
        seen = [note for note in own if note.signed_by(keys)]
        return max(seen, key=_size, default=None), max(own, key=_size)

    def close(self) -> None:
        """Let go of the files."""
        self.tree.close()

    def note_for(self, seq: int) -> Note:
        """The best checkpoint over an event: a witnessed one, where there is one.

        Raises:
            Unverifiable: none is over it yet.
        """
        for note in (self.witnessed, self.last):
            if note is not None and note.checkpoint.size >= seq:
                return note
        raise Unverifiable(f"event {seq} is not sealed yet", "call again in a second, while the site is up")

    def path(self, seq: int, note: Note) -> list[str]:
        """The hashes from an event up to a checkpoint's root, base64."""
        return [base64.b64encode(step).decode() for step in self.tree.inclusion(seq - 1, note.checkpoint.size)]

    def check(self, event: Event) -> None:
        """Raise ``RecordDamaged`` where an event is not what was sealed: nothing false goes out."""
        if event.seq <= self.tree.size and self.tree.leaf(event.seq - 1) != leaf_of(event):
            raise RecordDamaged(f"event {event.position} is not the event that was sealed", "flightlog verify")

    def proof(self, event: Event) -> dict[str, Any]:
        """All that is needed to verify one event elsewhere, and the event to be read."""
        note = self.note_for(event.seq)
        self.check(event)
        return {
            "format": "flightlog-proof/1",
            "event": {
                "position": event.position,
                "type": event.type,
                "subject": event.subject,
                "version": event.version,
                "d": event.raw,
            },
            "proof": self.path(event.seq, note),
            "checkpoint": str(note),
            "keys": self.chain,
            "witnesses": self.witnesses,
            "readable": event.as_dict(),
        }

    def lines(self, events: Iterable[Event]) -> Iterator[str]:
        """A proof a line."""
        for event in events:
            yield json.dumps(self.proof(event), ensure_ascii=False) + "\n"


def _log(note: Note) -> str:
    return note.checkpoint.origin.rpartition("/")[0]


def _size(note: Note) -> int:
    return note.checkpoint.size

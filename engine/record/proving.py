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
from events.note import Note
from events.seal import kept_notes, leaf_of


class Prover:
    """Makes inclusion proofs from what the sealer kept.

    Args:
        site: opened.

    Raises:
        Unverifiable: nothing was sealed.
    """

    def __init__(self, site: Site) -> None:
        folder = site.workspace.seal
        self.tree = Tree(folder / "tree", readonly=True)
        self.chain = chain_of(site.workspace)
        self.witnesses = [str(key) for key in witness_keys(site.workspace)]
        keys = witness_keys(site.workspace)
        notes = [note for note in kept_notes(folder) if note.checkpoint.size <= self.tree.size]
        # Of this log alone: what vouches for a history that was taken in is of another one.
        log = log_name(site.workspace)
        notes = [note for note in notes if note.checkpoint.origin.rpartition("/")[0] == log]
        own = [note for note in notes if self.tree.root(note.checkpoint.size) == note.checkpoint.root]
        if not own:
            raise Unverifiable("nothing of this log is sealed yet", "flightlog up seals it, within a second")
        #: The largest checkpoint that a witness cosigned, and the largest at all.
        self.last = max(own, key=lambda note: note.checkpoint.size)
        seen = [note for note in own if note.signed_by(keys)]
        self.witnessed = max(seen, key=lambda note: note.checkpoint.size) if seen else None

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

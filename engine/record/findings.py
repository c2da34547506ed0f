"""What is to be verified, and what verification found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from events.bodies.record import Verdict, Verified
from events.envelope import Event
from events.merkle import Tree
from events.note import Note, Verifier


class Problem(NamedTuple):
    """One thing that is wrong: with which event, and what."""

    seq: int
    position: str
    what: str


@dataclass
class Source:
    """What is to be verified.

    ``log`` is what its checkpoints have to be of (empty: whatever they say); ``chain`` are the site's public keys
    (``events.signing.Keys.chain``); ``witnesses`` those that one believes, whatever the site says; ``tree`` the
    hashes that the sealer kept, which tell which event was changed; ``cuts`` what each epoch that began after a loss
    kept of the log (epoch -> events), where not the whole log is verified.
    """

    events: Iterable[Event]
    notes: Sequence[Note] = ()
    chain: Sequence[str] = ()
    witnesses: Sequence[Verifier] = ()
    tree: Tree | None = None
    anchor: Verifier | None = None
    log: str = ""
    cuts: Mapping[int, int] = field(default_factory=dict)


def verified(report: Mapping[str, Any]) -> Verified:
    """A report's JSON, as it is recorded."""
    names = ("verdict", "first", "last", "witnessed", "signed")
    return Verified(problems=len(report["problems"]), **{name: report[name] for name in names})


def reach(found: Mapping[str, Any]) -> int:
    """The event up to which a verdict holds, of a report or of an event's body: it is not said of more."""
    upto: Mapping[str, int] = {"WITNESSED": found["witnessed"], "SITE-SIGNED": found["signed"]}
    return min(int(found["last"]), upto.get(found["verdict"], int(found["last"])))


@dataclass
class Report:
    """What verification found. ``signed`` and ``witnessed`` are the events up to which each vouches."""

    first: int = 0
    last: int = 0
    events: int = 0
    problems: list[Problem] = field(default_factory=list)
    signed: int = 0
    witnessed: int = 0
    witnessed_by: list[str] = field(default_factory=list)
    checkpoints: int = 0
    losses: list[str] = field(default_factory=list)
    erased: list[str] = field(default_factory=list)
    root: str = ""

    @property
    def verdict(self) -> Verdict:
        """In one word."""
        if self.problems:
            return "DAMAGED"
        if self.witnessed >= self.first > 0:
            return "WITNESSED"
        return "SITE-SIGNED" if self.signed >= self.first > 0 else "UNSEALED"

    def found(self) -> Verified:
        """As it is recorded."""
        return verified(self.as_dict())

    def spans(self) -> list[tuple[Verdict, int, int]]:
        """Which part is vouched for by whom: (word, first, last)."""
        found: list[tuple[Verdict, int, int]] = []
        low = self.first
        for word, upto in (("WITNESSED", self.witnessed), ("SITE-SIGNED", self.signed), ("UNSEALED", self.last)):
            if min(upto, self.last) >= low > 0:
                found.append((word, low, min(upto, self.last)))  # type: ignore[arg-type]
                low = min(upto, self.last) + 1
        return found

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "verdict": self.verdict,
            "events": self.events,
            "first": self.first,
            "last": self.last,
            "root": self.root,
            "spans": [{"verdict": word, "first": low, "last": high} for word, low, high in self.spans()],
            "problems": [problem._asdict() for problem in self.problems],
            "signed": self.signed,
            "witnessed": self.witnessed,
            "checkpoints": self.checkpoints,
            "witnesses": self.witnessed_by,
            "losses": self.losses,
            "erased": self.erased,
        }

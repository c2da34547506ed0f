"""A log in a test tube: sealed and witnessed, to be attacked."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.jobs import Jobs
from engine.record.findings import Report, Source
from engine.record.verify import Verification
from engine.record.witness import Witness
from events.bodies.record import CheckpointSigned, CheckpointWitnessed
from events.envelope import Event
from events.merkle import Tree
from events.note import Checkpoint, Note, Signer
from events.read import read
from events.seal import leaf_of
from events.signing import Keys
from events.store import Store
from events.vault import Vault
from tests.histories import body
from tests.support import fake_store, new_call

LOG = "flightlog/site-1/ab"
LIFE = (
    "DeployRequested",
    "DeploySucceeded",
    "StartRequested",
    "AppSpawned",
    "AppStarted",
    "AppStopping",
    "AppFinished",
)


@dataclass
class Lab:
    """A history, everything that was signed of it, and who signed."""

    store: Store
    keys: Keys
    witness: Witness
    events: list[Event] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    tree: Tree = field(default_factory=Tree)
    witnessed: int = 0

    def live(self, job: str, upto: int = len(LIFE)) -> None:
        """A job's life, or the beginning of one."""
        for kind in LIFE[:upto]:
            Jobs(self.store).transact(new_call(), job, lambda state, kind=kind: [body(kind)])  # type: ignore[misc]

    def note(self, kind: str, job: str | None = None) -> None:
        """A note about a job, or the site."""
        Jobs(self.store).note(new_call(), [body(kind)], job)

    def seal(self, *, witnessed: bool = False) -> Note:
        """What a sealer does, and a witness."""
        self.events = list(read(self.store))
        self.tree.append([leaf_of(event) for event in self.events[self.tree.size :]])
        note = sign(self.keys.signer(LOG), self.tree, self.events)
        if witnessed:
            old = self.witnessed
            proof = self.tree.consistency(old, self.tree.size) if old else []
            note = replace(note, lines=(*note.lines, self.witness.add(old, proof, note, self.keys.chain())))
            self.witnessed = self.tree.size
            told = CheckpointWitnessed(
                size=self.tree.size,
                root=self.tree.root().hex(),
                witness=str(self.witness.signer.verifier),
                note=str(note),
            )
        else:
            told = CheckpointSigned(size=self.tree.size, root=self.tree.root().hex(), key="k")  # type: ignore[assignment]
        Jobs(self.store).note(new_call(), [told])
        self.notes.append(note)
        self.events = list(read(self.store))
        return note

    def source(self, *, events: list[Event] | None = None, hashes: bool = True) -> Source:
        """All that a verifier gets to see."""
        return Source(
            events=self.events if events is None else events,
            notes=list(self.notes),
            chain=self.keys.chain(),
            witnesses=[self.witness.signer.verifier],
            tree=self.tree if hashes else None,
            log=LOG,
        )

    def verify(self, events: list[Event] | None = None, *, hashes: bool = True) -> Report:
        """Verify a history with what was signed."""
        return Verification(self.source(events=events, hashes=hashes)).run()


def sign(signer: Signer, tree: Tree, events: list[Event], epoch: int = 1) -> Note:
    """A checkpoint over a tree."""
    text = Checkpoint(f"{LOG}/{epoch}", tree.size, tree.root(), events[tree.size - 1].position).text()
    return Note(text, (signer.line(text),))


def lab(folder: Path, *, seed: int = 0, jobs: int = 4) -> Lab:
    """A history of some jobs with notes between, sealed now and then, and witnessed twice."""
    store = fake_store()
    store.vault = Vault(folder / "keys")
    made = Lab(store, Keys(folder / "seal"), Witness(folder / "witness", "witness.example"))
    dice = random.Random(seed)
    made.note("EngineOpened")
    for number in range(jobs):
        made.live(f"job-{number}", dice.choice([3, 5, len(LIFE)]))
        for _ in range(dice.randint(0, 3)):
            made.note(dice.choice(["CallRefused", "CallRepeated"]), f"job-{number}")
        if number % 2 == 0:
            made.seal(witnessed=number == jobs // 2)
    made.seal()
    made.note("WorkRerung")
    made.events = list(read(store))
    return made


def changed(event: Event, **changes: object) -> Event:
    """An event with something else in it."""
    return replace(event, **changes)  # type: ignore[arg-type]


def with_body(event: Event, name: str, value: object) -> Event:
    """An event with another fact."""
    rest = json.loads(event.raw)
    rest["body"][name] = value
    return replace(event, raw=json.dumps(rest, separators=(",", ":")))

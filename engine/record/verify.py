"""Verification: what a log says of itself, held against its tree, its signatures and its witnesses.

It needs nothing but the events and the checkpoints: no server, no network, and no key but public ones.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic_core import from_json

from engine.fold import TABLE, Fact, Illegal, JobState, changes
from engine.lifecycle import OPENS_EPOCH
from engine.record.findings import Problem, Report, Source
from events.bodies import BODIES
from events.bodies.record import (
    CheckpointSigned,
    CheckpointWitnessed,
    HistoryLost,
    Imported,
    KeyRotated,
)
from events.envelope import Actor, Event, iso
from events.errors import RecordDamaged
from events.merkle import Tree
from events.note import COSIGNATURE, Checkpoint, Note, NoteInvalid, Verifier
from events.seal import leaf_of
from events.segments import order
from events.signing import chained
from events.subjects import SITE, job_of

BATCH = 4096  # events
SHOWN = 20  # problems, after which there is no use in looking on


@cache
def _shape(kind: str) -> TypeAdapter[Any]:
    """The whole of ``d`` for a type, at the schema of today."""
    whole = create_model(
        f"Stored{kind}",
        __config__=ConfigDict(extra="forbid"),
        epoch=(int, ...),
        number=(int, Field(alias="schema")),
        call=(str, ...),
        step=(str, ...),
        arguments=(str, ...),
        cause=(str | None, ...),
        correlation=(str, ...),
        actor=(Actor, ...),
        body=(BODIES[kind], ...),
    )
    return TypeAdapter(whole)


class Verification:
    """One run over a log.

    Args:
        source: what is verified.
        first: sequence to begin with; the hashes of what comes before are the sealer's.
        last: sequence to end with; None: the end.
    """

    def __init__(self, source: Source, *, first: int = 1, last: int | None = None) -> None:
        self.source = source
        self.report = Report(first=first)
        self._last = last
        #: Of a part it cannot be told what was taken in before or after it.
        self._everything = first == 1 and last is None
        self._tree = Tree()
        self._versions: dict[str, int] = {}
        self._states: dict[str, JobState] = {}
        self._notes = list(source.notes)
        self._claimed: list[tuple[int, str, int, str]] = []
        self._cuts = dict(source.cuts)
        self._imported: dict[str, int] = {}
        self._ms, self._epoch = 0, 0
        self._stopped = False  # before the end, over what was found: of what comes after nothing is known
        if first > 1 and source.tree is not None:
            self._tree.append(source.tree.leaves(0, min(first - 1, source.tree.size)))

    def run(self) -> Report:
        """Look at everything; the report."""
        keys = self.keys()
        batch: list[Event] = []
        try:
            for event in self.source.events:
                if self._last is not None and event.seq > self._last:
                    break
                batch.append(event)
                if len(batch) == BATCH:
                    self._take(batch)
                    batch = []
                    if len(self.report.problems) >= SHOWN:
                        self._stopped = True
                        break
        except RecordDamaged as error:
            self._stopped = True
            self._take(batch)
            batch = []
            self.bad(self.report.last + 1, "", error.what)
        self._take(batch)
        self._sealed(keys)
        self.report.problems.sort(key=lambda problem: problem.seq)
        del self.report.problems[SHOWN:]
        return self.report

    def bad(self, seq: int, position: str, what: str) -> None:
        """Something is wrong with an event."""
        self.report.problems.append(Problem(seq, position, what))

    # -- event by event --------------------------------------------------------------------

    def _take(self, batch: list[Event]) -> None:
        leaves = []
        for event in batch:
            self._one(event)
            leaves.append(leaf_of(event))
        before = self._tree.size
        self._tree.append(leaves)
        self._compare(batch, before, leaves)

    def _one(self, event: Event) -> None:
        report = self.report
        expected = (report.last or report.first - 1) + 1
        ms, seq = order(event.position)
        report.events += 1
        report.last = seq
        if seq != expected:
            what = (
                f"event {expected} is missing before it" if seq > expected else "it comes a second time, or too late"
            )
            self.bad(min(seq, expected), event.position, what)
        if ms < self._ms:
            self.bad(seq, event.position, f"its time is before that of the event before it ({iso(self._ms)})")
        self._ms = ms
        known = self._versions.get(event.subject)
        if known is None and report.first > 1:
            known = event.version - 1  # what came before was not asked for
        if event.version != (known or 0) + 1:
            self.bad(
                seq, event.position, f"it is version {event.version} of {event.subject}, after version {known or 0}"
            )
        self._versions[event.subject] = event.version
        if event.type not in BODIES:
            self.bad(seq, event.position, f"there is no event type {event.type[:60]!r}")
            return
        job = job_of(event.subject)
        if job is None and event.subject != SITE:
            self.bad(seq, event.position, f"{event.subject[:60]!r} is no subject")
            return
        try:
            whole = _shape(event.type).validate_json(event.current())
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or "it"
            self.bad(seq, event.position, f"{event.type} does not fit its schema: {name}: {first['msg'].lower()}")
            return
        if whole.epoch != self._epoch:
            self._new_epoch(event, whole.epoch)
        if job is not None and event.type in TABLE:
            self._legal(event, job, whole)
        elif event.type in _OF_THE_RECORD:
            self._of_the_record(event, whole.body)
        elif event.type == "Erased":
            report.erased.append(f"{event.subject} at event {seq}")

    def _new_epoch(self, event: Event, epoch: int) -> None:
        began = self._epoch or (1 if self.report.first == 1 else epoch)
        if epoch != began and (epoch < began or event.type not in OPENS_EPOCH):
            self.bad(event.seq, event.position, f"epoch {epoch} begins here, and nothing says why")
        self._epoch = epoch

    def _legal(self, event: Event, job: str, whole: Any) -> None:
        state = self._states.get(job)
        if state is None:
            if self.report.first > 1 and event.version > 1:
                return  # its life began before what was asked for
            state = self._states[job] = JobState()
        rest = from_json(event.raw)
        fact = Fact(event.type, event.ms, event.position, rest["actor"], rest["correlation"], rest["body"])
        try:
            state.update(changes(state, fact))
        except (Illegal, LookupError, ValueError, TypeError) as error:
            self.bad(event.seq, event.position, f"{event.subject}: {error}")

    def _of_the_record(self, event: Event, body: Any) -> None:
        if isinstance(body, CheckpointSigned):
            self._claimed.append((body.size, body.root, event.seq, event.position))
        elif isinstance(body, CheckpointWitnessed):
            self._claimed.append((body.size, body.root, event.seq, event.position))
            try:
                self._notes.append(Note.parse(body.note))
            except NoteInvalid as error:
                self.bad(event.seq, event.position, str(error))
        elif isinstance(body, HistoryLost):
            self._cuts[self._epoch] = body.first - 1
            self.report.losses.append(
                f"events {body.first} to {body.last} of the epoch before were lost; disclosed at event {event.seq}"
            )
        elif isinstance(body, Imported):
            self._imported[body.origin] = min(body.events, event.seq - 1)
        elif isinstance(body, KeyRotated):
            keys = [str(key) for key in self._chain_keys()]
            if body.new not in keys:
                self.bad(event.seq, event.position, "it names a key that the site does not have")

    # -- the tree --------------------------------------------------------------------------

    def _compare(self, batch: list[Event], before: int, leaves: list[bytes]) -> None:
        """With the sealer's hashes one sees which event it is; whether those can be believed comes later."""
        tree = self.source.tree
        if tree is None or len(self.report.problems) >= SHOWN:
            return
        kept = tree.leaves(before, min(before + len(leaves), tree.size)) if before < tree.size else []
        for event, mine, its in zip(batch, leaves, kept, strict=False):
            if mine != its:
                self.bad(event.seq, event.position, "it is not the event that was sealed")
                return

    def _chain_keys(self) -> list[Verifier]:
        """Keys that it names; none where one of them is none, which is told once."""
        try:
            return [Verifier.parse(str(line).partition(" ")[0]) for line in self.source.chain]
        except NoteInvalid as error:
            problem = Problem(0, "", f"the site's keys: {error}")
            if problem not in self.report.problems:
                self.report.problems.append(problem)
            return []

    def keys(self) -> list[Verifier]:
        """Keys that checkpoints may be signed with."""
        named = self._chain_keys()
        anchor = self.source.anchor
        if anchor is not None and anchor not in named:
            self.bad(0, "", f"the key {anchor.name}+{anchor.key_id.hex()} that you trust is not this site's")
        # A site that took in another's history has that one's keys, too; each log's begin with its first.
        trusted: list[Verifier] = []
        for log in dict.fromkeys(key.name for key in named):
            of_log = [key for key in named if key.name == log]
            first = anchor if anchor is not None and anchor.name == log else of_log[0]
            trusted += chained([line for line in self.source.chain if line.startswith(f"{log}+")], [first])
        for number, key in enumerate(named):
            if anchor is not None and anchor in named[number:]:
                continue  # before the one you know: it vouches for nothing, and nothing is wrong with that
            if key not in trusted:
                self.bad(0, "", f"the key {key.name}+{key.key_id.hex()} was not signed by the one before it")
        # Once a key is known, no other log's is believed: anybody can make one, and have it cosigned.
        return trusted if anchor is None else [key for key in trusted if key.name == anchor.name]

    def _ours(self, log: str, size: int) -> bool:
        """Whether a checkpoint is of this log, or of one that was taken into it up to there."""
        return not self.source.log or log == self.source.log or size <= self._imported.get(log, 0)

    def _witnesses(self) -> list[Verifier]:
        """Those that can be one: the site's own key is none, whatever it is listed as."""
        own = {key.public for key in self._chain_keys()}
        return [key for key in self.source.witnesses if key.algorithm == COSIGNATURE and key.public not in own]

    def vouching(self, note: Note) -> list[str]:
        """Names and ids of the witnesses that cosigned a checkpoint."""
        return sorted(f"{key.name}+{key.key_id.hex()}" for key in self._witnesses() if note.signed_by([key]))

    def _sealed(self, keys: list[Verifier]) -> None:
        """Hold the tree over the events against what was signed."""
        report, size = self.report, self._tree.size
        report.root = self._tree.root().hex()
        if report.problems and any("missing" in p.what or "second time" in p.what for p in report.problems):
            return  # no tree is comparable any more
        # Of what was asked for up to an end, that end is there, or was cut.
        whole = self._last is None or report.last < self._last
        if not whole and self.source.tree is not None and self.source.tree.size > size:
            # What comes after it: the sealer's hashes of events, and nothing that was made of them.
            self._tree.append(self.source.tree.leaves(size, self.source.tree.size))
        self._whose()
        for claimed, root, seq, position in self._claimed:
            if claimed >= seq or self._tree.root(min(claimed, size)).hex() != root:
                self.bad(seq, position, f"the tree over {claimed} events is not the one that was signed")
        checkpoints = self._checkpoints(size if whole and not self._stopped else None)
        wrong = [point for _, point in checkpoints if self._tree.root(point.size) != point.root]
        first = min(wrong, key=lambda point: point.size, default=None)
        for note, point in checkpoints:
            if point not in wrong:
                self._vouched(note, point, keys)
        if first is not None and not any(problem.seq <= first.size for problem in report.problems):
            good = max((point.size for _, point in checkpoints if point.size < first.size), default=0)
            which = f"one of the events {good + 1} to {first.size} was changed"
            self.bad(
                first.size,
                first.position,
                f"the tree over {first.size} events is not the one that was signed: {which}",
            )

    def _whose(self) -> None:
        """Whether the log is the one whose key is known."""
        log, anchor = self.source.log, self.source.anchor
        if log and anchor is not None and anchor.name not in (log, *self._imported) and self._everything:
            self.bad(0, "", f"this is the log {log[:80]}, and the key that you trust is of {anchor.name[:80]}")

    def _checkpoints(self, end: int | None) -> list[tuple[Note, Checkpoint]]:
        """Those that say something of these events.

        Args:
            end: size that the log has; None: more of it may be there than was looked at.
        """
        found: list[tuple[Note, Checkpoint]] = []
        seen: set[str] = set()
        for note in self._notes:
            try:
                point = note.checkpoint
            except NoteInvalid as error:
                self.bad(0, "", str(error))
                continue
            log, _, number = point.origin.rpartition("/")
            if not self._ours(log, point.size):
                if self._everything:
                    self.bad(0, "", f"a checkpoint of another log is among its own: {point.origin[:80]}")
                continue
            self.report.checkpoints += note.text not in seen
            seen.add(note.text)
            epoch = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 0
            kept = min((cut for after, cut in self._cuts.items() if after > epoch), default=None)
            if kept is not None and point.size > kept:
                continue  # of what was lost, as the log itself says
            if point.size <= self._tree.size:
                found.append((note, point))
            elif end is not None:
                self.bad(end, "", f"the log ends with event {end}, and {point.size} were signed: its end was cut")
        return found

    def _vouched(self, note: Note, point: Checkpoint, keys: list[Verifier]) -> None:
        """Who signed a checkpoint that fits."""
        report, log = self.report, point.origin.rpartition("/")[0]
        if not keys:
            return  # without the site's keys nothing can be said of its signatures
        if not note.signed_by([key for key in keys if key.name == log]):
            if not note.signed_by([key for key in self._chain_keys() if key.name == log]):
                names = ", ".join(note.names())[:80]
                self.bad(
                    point.size, point.position, f"its checkpoint is signed by {names}, not with a key of the site"
                )
            return  # else with a key from before the one that is known, or of a log whose key is not
        report.signed = max(report.signed, point.size)
        if note.signed_by(self._witnesses()) and point.size >= report.witnessed:
            report.witnessed = point.size
            report.witnessed_by = sorted({*report.witnessed_by, *self.vouching(note)})


_OF_THE_RECORD = frozenset(
    body.name() for body in (CheckpointSigned, CheckpointWitnessed, HistoryLost, Imported, KeyRotated)
)

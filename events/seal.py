"""Sealing: a Merkle tree over the log, and signed checkpoints of it.

The sealer follows the log and never stands in an append's way. What it has on disk, in this order: the tree's
hashes, then the checkpoint over them. A crash in between leaves a tree that is too long, which is cut; so for
one size of an epoch there is one root for ever.
"""

from __future__ import annotations

import json
import os
import time
from itertools import islice
from pathlib import Path
from typing import cast

import redis

from events.bodies.record import HistoryLost
from events.durable import write
from events.envelope import Event
from events.errors import HistoryBroken, RecordDamaged
from events.merkle import Tree, canonical, leaf_hash
from events.note import Checkpoint, Note
from events.read import read
from events.signing import Custodian, Keys
from events.store import Store, allowed_when_full, translated

BATCH = 20_000  # events of one checkpoint, at most,
BATCH_BYTES = 32 * 2**20  # and bytes of them
PAGE = 200  # events that are fetched at once: what waits to be sent counts as the server's memory
FSYNC_PATIENCE = 5_000  # ms
#: Events of the sealer itself: they are sealed with what comes next, and are no reason to sign.
QUIET = frozenset(("CheckpointSigned", "CheckpointWitnessed", "WitnessRefused", "SegmentWritten"))


class Sealer:
    """Seals one site's log.

    Args:
        store: the site's record.
        folder: of the seal.
        log: what names this log in checkpoints, ``flightlog/<site>/<id>``; the epoch comes after it.
        custodian: who has the key, where it is not the site itself.
    """

    def __init__(self, store: Store, folder: Path, log: str, custodian: Custodian | None = None) -> None:
        self.store = store
        self.folder = folder
        self.log = log
        self.keys = Keys(folder, custodian)
        self.tree = Tree(folder / "tree")
        self.note: Note | None = None
        self.position = "0-0"
        #: Types of the events that the last checkpoint is the first over.
        self.types: frozenset[str] = frozenset()

    def close(self) -> None:
        """Let go of the files."""
        self.tree.close()

    @property
    def size(self) -> int:
        """Events that are sealed."""
        return self.tree.size

    def begin(self) -> None:
        """Go on from what was sealed last.

        Raises:
            HistoryBroken: the log ends before that, or does not begin with it.
        """
        note = latest(self.folder)
        if note is None:
            self.tree.cut(0)
            return
        checkpoint = note.checkpoint
        size, position = checkpoint.size, checkpoint.position
        lost = self._lost_since(checkpoint)
        if lost is not None:
            size, position = lost
        if lost is not None:
            self.tree.cut(size)
        if self.tree.size < size or not self.tree.whole or (lost is None and self.tree.root(size) != checkpoint.root):
            self.tree.cut(0)
            self._grow_again(size)
        self.tree.cut(size)
        if lost is None:
            self._same(checkpoint)
        self.note, self.position = note, position

    def _next(self) -> list[Event]:
        events, size = [], 0
        for event in islice(read(self.store, after=self.position, page=PAGE), BATCH):
            events.append(event)
            size += len(event.raw)
            if size > BATCH_BYTES:
                break
        return events

    def _same(self, checkpoint: Checkpoint) -> None:
        if self.tree.root() != checkpoint.root:
            raise HistoryBroken(
                f"the log does not begin with the {checkpoint.size} events that were sealed", "flightlog verify"
            )
        self._as_long_as_sealed()

    def _as_long_as_sealed(self) -> None:
        with translated():
            end = cast("str | None", self.store.client.hget(self.store.keys.heads, "@seq"))
        if end is not None and int(end) < self.tree.size:
            raise HistoryBroken(
                f"the log ends with event {end}, and {self.tree.size} were sealed",
                "a backup or a failover is disclosed with: flightlog new-epoch --reason TEXT",
            )

    def _lost_since(self, checkpoint: Checkpoint) -> tuple[int, str] | None:
        """Size and position up to which an epoch that began after a checkpoint has kept what was sealed."""
        was = int(checkpoint.origin.rpartition("/")[2])
        with translated():
            now = int(self.store.client.hget(self.store.keys.heads, "@epoch") or was)
        if now == was:
            return None
        cuts = [
            int(event.body["first"]) - 1
            for event in read(self.store)
            if event.type == HistoryLost.name() and int(event.stored()["epoch"]) > was
        ]
        if not cuts or min(cuts) > checkpoint.size:
            return None
        size = min(cuts)
        before = next((event.position for event in read(self.store) if event.seq == size), "0-0")
        return size, before

    def _grow_again(self, size: int) -> None:
        """The tree's hashes, anew from the log."""
        events = read(self.store)
        while batch := list(islice(events, min(BATCH, size - self.tree.size))):
            self.tree.append([leaf_of(event) for event in batch])
            if self.tree.size == size:
                break

    def step(self) -> Note | None:
        """Seal what is new; the checkpoint, or None where there is nothing worth one.

        Raises:
            RecordDamaged: the log has a gap. HistoryBroken: it is shorter than what was sealed.
            LogUnavailable: the server is away.
        """
        events = self._next()
        if not events:
            self._as_long_as_sealed()
        if all(event.type in QUIET for event in events):
            return None
        expected = self.tree.size
        for event in events:
            expected += 1
            if event.seq != expected:
                raise RecordDamaged(
                    f"event {expected} is missing: after it comes {event.position}", "flightlog verify"
                )
        wait_fsynced(self.store)
        epoch = events[-1].stored()["epoch"]
        self.tree.append([leaf_of(event) for event in events])
        self.tree.sync()
        checkpoint = Checkpoint(f"{self.log}/{epoch}", self.tree.size, self.tree.root(), events[-1].position)
        note = self.keys.sign(self.log, checkpoint, lambda since: self.tree.consistency(since, checkpoint.size))
        write(self.folder / "checkpoint", str(note))
        self.note, self.position = note, events[-1].position
        self.types = frozenset(event.type for event in events)
        return note


def kept(store: Store, folder: Path) -> int:
    """How many of the events that were sealed the log still begins with."""
    tree, size = Tree(folder / "tree", readonly=True), 0
    try:
        events = read(store)
        while batch := list(islice(events, BATCH)):
            leaves = tree.leaves(size, min(size + len(batch), tree.size))
            for event, leaf in zip(batch, leaves, strict=False):
                if leaf_of(event) != leaf:
                    return size
                size += 1
            if size == tree.size:
                break
        return size
    finally:
        tree.close()


def leaf_of(event: Event) -> bytes:
    """The hash of an event as a leaf."""
    return leaf_hash(canonical(event.position, event.type, event.subject, event.version, event.raw))


def latest(folder: Path) -> Note | None:
    """The last checkpoint that was signed; None where there is none."""
    try:
        return Note.parse((folder / "checkpoint").read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:  # NoteInvalid is one, and what is no text
        raise RecordDamaged(
            f"the last checkpoint, {folder / 'checkpoint'}, cannot be read: {error}", "restore it from a backup"
        ) from error


def keep_note(folder: Path, note: Note) -> None:
    """Keep a checkpoint for ever, beside the last."""
    with (folder / "notes").open("a+b") as file:
        torn = file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n"
        # A crash, or a full disk, may have left half a line: what comes now is one of its own.
        file.write(b"\n" * bool(torn) + json.dumps(str(note)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def kept_notes(folder: Path) -> list[Note]:
    """Checkpoints that were kept, and the last one; a line that was cut off by a crash is left out."""
    path = folder / "notes"
    try:
        lines = path.read_text().splitlines() if path.exists() else []
        notes = [Note.parse(json.loads(line)) for line in lines if line.endswith('"')]
    except (ValueError, TypeError, AttributeError) as error:
        raise RecordDamaged(
            f"the checkpoints in {path} cannot be read: {error}", "restore it from a backup"
        ) from error
    last = latest(folder)
    if last is not None and last.text not in {note.text for note in notes}:
        notes.append(last)
    return notes


_MARK = "return redis.call('SET', KEYS[1], '1', 'PX', 60000)"


def wait_fsynced(store: Store) -> None:
    """Return when all that was read from the log so far is on the server's disk.

    A server that knows ``WAITAOF`` says so itself; of another one it is known a moment later, since it syncs
    every second.
    """
    with translated():
        pipe = store.client.pipeline(transaction=False)
        # On one connection: WAITAOF is about what this very connection has written.
        pipe.eval(allowed_when_full(store.client, _MARK), 1, store.keys.cursor("sealer"))
        pipe.execute_command("WAITAOF", 1, 0, FSYNC_PATIENCE)  # type: ignore[no-untyped-call]
        try:
            answer = pipe.execute()[1]
        except redis.ResponseError as error:
            if "unknown command" not in str(error).lower():
                raise
            time.sleep(1.1)
            info = cast("dict[str, object]", store.client.info("persistence"))
            answer = [info.get("aof_last_write_status") == "ok" and not info.get("aof_pending_bio_fsync")]
    if not answer[0]:
        raise RecordDamaged("the record server does not get its log onto its disk", "look at that disk")

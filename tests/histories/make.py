"""Makes the golden histories of a release, once: ``python -P -m tests.histories.make tests/histories/0.1.0``.

What the suite's own sites recorded (``tests.histories.scenarios``) is put beside them, and into ``SHA256SUMS``.

They are never made again: what was released replays for ever, and a test holds that no byte of them changes.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from engine.fold import TABLE
from engine.jobs import Jobs
from engine.lifecycle import WORK
from engine.record.exporting import ExportFile
from events.bodies import BODIES
from events.envelope import Event
from events.read import read, read_job
from events.store import Store
from tests.histories import LIFE_OF, Player, body, played
from tests.histories.replay import replayed
from tests.support import fake_store, new_call


def every_row() -> list[Event]:
    """Every event in every state that it may come in: the fewest jobs of those that were tried."""
    covered: set[tuple[str, str]] = set()
    useful = [number for number in range(1500) if _lived(fake_store(), number, covered)]
    store, covered = fake_store(), set()
    for number in useful:
        _lived(store, number, covered)
    return list(read(store))


def _lived(store: Store, number: int, covered: set[tuple[str, str]]) -> bool:
    """A job that goes where none has been; whether it found such a place."""
    player, dice, found = Player(store, (f"row-{number}",)), random.Random(number), False
    idle = 0
    while idle < 8:
        before = player.jobs.load(player.names[0])
        state = before.state.get("state", "new")
        moves = [move for move in player.moves(player.names[0], "why") if played(move)]
        fresh = [move for move in moves if (played(move), state) not in covered]
        dice.choice(fresh or moves).make(new_call())
        # What came of it, which is not always what its name says.
        made = [event.type for event in read_job(store, player.names[0], after=before.version)]
        new = {(kind, state) for kind in made[:1] if kind in TABLE} - covered
        idle = 0 if new else idle + 1
        found |= bool(new)
        covered |= new
    return found


def every_type() -> list[Event]:
    """Every event type there is, in a log of its own making."""
    store = fake_store()
    jobs = Jobs(store)
    for kind in LIFE_OF:
        jobs.transact(new_call(), "job-1", lambda state, kind=kind: [body(kind)])  # type: ignore[misc]
    skipped = {"CheckpointSigned", "CheckpointWitnessed", "KeyRotated", "HistoryLost", "BackupRestored", "Imported"}
    for kind, cls in BODIES.items():
        if not cls.lifecycle and kind not in skipped:
            extra = {}
            if "-aux" in WORK.get(kind, ""):  # each outcome has a message of its own
                extra = {"id": f"{len(kind):032x}"}
                jobs.note(new_call(), [body("AuxRequested", **extra)])
            about = "job-1" if kind in ("HoldSet", "HoldLifted", "Erased", "TaskDone", "OutputClosed") else None
            jobs.note(new_call(), [body(kind, **extra)], about)
    return list(read(store))


def at_random(seed: int) -> list[Event]:
    """A player's moves on three jobs."""
    store: Store = fake_store()
    player, dice = Player(store, ("one", "two", "three")), random.Random(seed)
    for _ in range(120):
        player.step(dice.randrange(10**9))
    return list(read(store))


def broken(events: list[Event]) -> dict[str, list[Event]]:
    """Histories that must never be taken for good ones."""
    deploy = next(i for i, event in enumerate(events) if event.type == "DeploySucceeded")
    finished = next(i for i, event in enumerate(events) if event.type == "AppFinished")
    spoilt = json.loads(events[deploy].raw)
    spoilt["body"]["files"] = "many"
    return {
        "gap": events[:deploy] + events[deploy + 1 :],
        "double": [*events[: deploy + 1], events[deploy], *events[deploy + 1 :]],
        "swapped": [*events[:deploy], events[deploy + 1], events[deploy], *events[deploy + 2 :]],
        "illegal": [*events[:finished], replace(events[finished], type="DeploySucceeded"), *events[finished + 1 :]],
        "unknown-type": [*events[:deploy], replace(events[deploy], type="NoSuchThing"), *events[deploy + 1 :]],
        "wrong-field": [*events[:deploy], replace(events[deploy], raw=json.dumps(spoilt)), *events[deploy + 1 :]],
        "no-subject": [*events[:deploy], replace(events[deploy], subject="nowhere"), *events[deploy + 1 :]],
    }


def write(folder: Path, name: str, events: Iterable[Event]) -> None:
    """A history, a stored event a line."""
    path = folder / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps([e.position, e.type, e.subject, e.version, e.raw]) for e in events]
    path.write_text("\n".join(lines) + "\n")


def main(arguments: list[str]) -> int:
    """Make them; further arguments are exports of real sites."""
    folder = Path(arguments[0])
    if folder.exists():
        print(f"{folder} is there: golden histories are made once")
        return 1
    makers: dict[str, Callable[[], list[Event]]] = {"every-row": every_row, "every-type": every_type}
    makers |= {f"random-{seed}": (lambda seed=seed: at_random(seed)) for seed in range(4)}  # type: ignore[misc]
    for name, make in makers.items():
        write(folder, name, make())
    for path in map(Path, arguments[1:]):
        write(folder, f"real-{path.name.partition('.')[0]}", ExportFile(path).events())
    for name, events in broken(every_type()).items():
        write(folder / "broken", name, events)
    expected = {str(path.relative_to(folder)): replayed(path) for path in sorted(folder.rglob("*.jsonl"))}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
    sums = {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

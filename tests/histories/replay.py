"""Replays golden histories: ``python -P -m tests.histories.replay FOLDER`` prints one digest of all that came of it.

It needs only what Flightlog itself needs, so that any Python can be asked.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from engine.fold import Illegal, JobState, apply, fact_of
from engine.record.findings import Source
from engine.record.verify import Verification
from events.envelope import Event
from events.subjects import job_of

SCENARIOS = "scenarios.zst"


def history(path: Path) -> list[Event]:
    """The events of a file."""
    return [Event(*json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def replayed(path: Path) -> dict[str, Any]:
    """What the history in a file comes to."""
    return result(history(path))


def result(events: list[Event]) -> dict[str, Any]:
    """What a history comes to: every job's state, field by field, the root, and what verification says."""
    report = Verification(Source(events)).run()
    first = report.problems[0] if report.problems else None
    if first is not None:
        return {"verdict": report.verdict, "problem": [first.seq, first.what]}
    states: dict[str, JobState] = {}
    for event in events:
        job = job_of(event.subject)
        if job is not None:
            try:
                states[job] = apply(states.get(job) or JobState(), fact_of(event))
            except Illegal as error:
                return {"verdict": "DAMAGED", "problem": [event.seq, str(error)]}
    return {
        "verdict": report.verdict,
        "events": len(events),
        "root": report.root,
        "jobs": {job: dict(sorted(state.items())) for job, state in sorted(states.items())},
    }


def scenarios(folder: Path) -> Iterator[tuple[str, list[Event], dict[str, Any]]]:
    """What the suite's real sites recorded: name, history, and what it came to."""
    path = folder / SCENARIOS
    if not path.exists():
        return
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as lines:
        for line in io.TextIOWrapper(lines, "utf-8"):
            one = json.loads(line)
            yield one["name"], [Event(*fields) for fields in one["events"]], one["expected"]


def main(folder: Path) -> int:
    """All histories of a folder against what they came to when they were released."""
    expected = json.loads((folder / "expected.json").read_text("utf-8"))
    found = {str(path.relative_to(folder)): replayed(path) for path in sorted(folder.rglob("*.jsonl"))}
    for name, events, was in scenarios(folder):
        found[name], expected[name] = result(events), was
    different = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
    for name in different:
        print(f"{name}: came to {json.dumps(found.get(name))[:300]}, and was {json.dumps(expected.get(name))[:300]}")
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    print(f"{platform.python_version()} {folder.name} {len(found)} histories {digest}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

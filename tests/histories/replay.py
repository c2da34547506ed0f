"""Replays golden histories: ``python -P -m tests.histories.replay FOLDER`` prints one digest of all that came of it.

It needs only what Flightlog itself needs, so that any Python can be asked.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

from engine.fold import Illegal, JobState, apply, fact_of
from engine.record.verify import Source, Verification
from events.envelope import Event
from events.subjects import job_of


def history(path: Path) -> list[Event]:
    """The events of a file."""
    return [Event(*json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def replayed(path: Path) -> dict[str, Any]:
    """What a history comes to: every job's state, field by field, the root, and what verification says."""
    events = history(path)
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


def main(folder: Path) -> int:
    """All histories of a folder against what they came to when they were released."""
    expected = json.loads((folder / "expected.json").read_text("utf-8"))
    found = {str(path.relative_to(folder)): replayed(path) for path in sorted(folder.rglob("*.jsonl"))}
    different = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
    for name in different:
        print(f"{name}: came to {json.dumps(found.get(name))[:300]}, and was {json.dumps(expected.get(name))[:300]}")
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    print(f"{platform.python_version()} {folder.name} {len(found)} histories {digest}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

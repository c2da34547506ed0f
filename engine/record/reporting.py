"""A period of a site's record, in one page of text."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from engine.egress import Egress, counts
from engine.fold import TABLE
from engine.jobs import Jobs
from engine.lifecycle import OF_THE_RECORD
from events.envelope import iso
from events.read import read
from events.subjects import job_of

ENDS = {"AppFinished": "finished", "AppFailed": "failed", "AppAborted": "aborted", "AppLost": "lost"}
ASKS = ("DeployRequested", "StartRequested", "AbortRequested", "DeleteRequested")


def period(jobs: Jobs, first: int, last: int, actor: str | None = None) -> dict[str, Any]:
    """What happened from one time (ms) to another: who asked what, how it ended, what left, who looked.

    Args:
        jobs: of the site.
        first: from this time on, ms.
        last: up to this one, ms.
        actor: only what this one asked, and what came of it.
    """
    asked: dict[str, Counter[str]] = defaultdict(Counter)
    ends: Counter[str] = Counter()
    types: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    record: list[dict[str, Any]] = []
    seen: set[str] = set()
    of_actor: set[str] = set()
    left: dict[str, dict[str, Any]] = {}
    egress = Egress(jobs.store.site, left, {})
    for event in read(jobs.store, upto=f"{last}-{2**63}"):
        egress.take(event)
        if int(event.ms) < first:
            continue
        rest = event.rest()
        who = str(rest["actor"]["id"])
        if actor is not None and who == actor:
            of_actor.add(rest["correlation"])
        if actor is not None and who != actor and rest["correlation"] not in of_actor:
            continue
        types[event.type] += 1
        job = job_of(event.subject)
        if job is not None and event.type in TABLE:
            seen.add(job)
        if event.type in ASKS:
            asked[who][event.type] += 1
        elif event.type in ENDS:
            ends[ENDS[event.type]] += 1
        elif event.type == "CallRefused":
            refused[str(rest["body"]["code"])] += 1
        elif event.type in OF_THE_RECORD:
            record.append({"time": iso(event.ms), "type": event.type, "by": who, "facts": rest["body"]})
    gone = [row for row in left.values() if counts(row) and iso(first) <= row["time"] <= iso(last)]
    targets: Counter[str] = Counter()
    for row in gone:
        if actor is None or row["job"] in seen:
            targets[str(row["target"])] += int(row["size"])
    return {
        "site": jobs.store.site,
        "from": iso(first),
        "to": iso(last),
        "actor": actor,
        "events": sum(types.values()),
        "jobs": len(seen),
        "asked": {who: dict(what) for who, what in sorted(asked.items())},
        "ends": dict(ends),
        "refused": dict(refused),
        "bytes_out": dict(targets.most_common()),
        "record": record,
    }

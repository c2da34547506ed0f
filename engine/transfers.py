"""Transfers as people look at them, from the log alone: how far each is, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from events.envelope import Event, iso
from events.subjects import job_of

TYPES = frozenset(("TransferOpened", "TransferProgress", "TransferResumed", "TransferClosed"))


def transfers(events: Iterable[Event], *, job: str | None = None, now: int) -> list[dict[str, Any]]:
    """A row per transfer and end, the oldest first.

    Args:
        events: of the site, oldest first.
        job: only of this job.
        now: ms since the epoch, for the speed of those that are under way.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        if event.type not in TYPES or (job is not None and job_of(event.subject) != job):
            continue
        body = event.body
        key = (body["id"], body["direction"])
        if event.type == "TransferOpened":
            found[key] = _opened(event)
        elif (row := found.get(key)) is not None:
            _further(row, event)
    for row in found.values():
        end = row["ended_ms"] or now
        row["seconds"] = round(max(0, end - row["ms"]) / 1000, 3)
        row["bytes_per_second"] = round(row["bytes"] / row["seconds"]) if row["seconds"] else None
    return list(found.values())


def _opened(event: Event) -> dict[str, Any]:
    rest = event.rest()
    body = rest["body"]
    return {
        "id": body["id"],
        "direction": body["direction"],
        "job": job_of(event.subject),
        "what": body["file"] or f"{body['channel']}:{body['topic']}",
        "kind": body["kind"],
        "peers": body["targets"] if body["direction"] == "out" else [body["sender"]],
        "state": "under way",
        "objects": 0,
        "bytes": 0,
        "total": None,
        "resumed": 0,
        "sealed": body["secure"],
        "asked_by": rest["actor"]["id"],
        "since": iso(event.ms),
        "ms": int(event.ms),
        "ended_ms": None,
        "code": None,
        "why": None,
        "digest": None,
        "position": event.position,
    }


def _further(row: dict[str, Any], event: Event) -> None:
    body = event.body
    if event.type == "TransferResumed":
        row["resumed"] += 1
        return
    row["objects"], row["bytes"] = max(row["objects"], body["objects"]), max(row["bytes"], body["bytes"])
    if event.type == "TransferProgress":
        row["total"] = body["total"]
        return
    row |= {
        "state": "done" if body["code"] == "OK" else "failed",
        "code": body["code"],
        "why": body["why"] or None,
        "digest": body["digest"],
        "ended_ms": int(event.ms),
    }

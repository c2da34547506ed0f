"""Transfers as people look at them, from the log alone: how far each is, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any

from events.envelope import Event, iso
from events.subjects import job_of

TYPES = frozenset(("TransferOpened", "TransferProgress", "TransferResumed", "TransferClosed"))


class Transfers:
    """Folds a site's events into a row per transfer and end, the oldest first.

    Args:
        job: only of this job.
        rows: where rows are kept, by direction and id; a row that changes is put again.
    """

    def __init__(self, job: str | None = None, rows: MutableMapping[str, dict[str, Any]] | None = None) -> None:
        self._job = job
        self._rows: MutableMapping[str, dict[str, Any]] = {} if rows is None else rows

    def take(self, event: Event) -> dict[str, Any] | None:
        """See an event; the row that it changes."""
        if event.type not in TYPES or (self._job is not None and job_of(event.subject) != self._job):
            return None
        key = f"{event.body['direction']} {event.body['id']}"
        known = self._rows.get(key)
        if event.type == "TransferOpened":
            known = self._rows[key] = _opened(event)
        elif known is not None:
            known = self._rows[key] = {**known, **_further(known, event)}
        return known

    def rows(self, now: int) -> list[dict[str, Any]]:
        """All of them; ``now`` is ms since the epoch, for the speed of those that are under way."""
        return [timed(row, now) for row in self._rows.values()]


def timed(row: dict[str, Any], now: int) -> dict[str, Any]:
    """A row with how long it took, or has taken so far, and its speed."""
    seconds = round(max(0, (row["ended_ms"] or now) - row["ms"]) / 1000, 3)
    return {**row, "seconds": seconds, "bytes_per_second": round(row["bytes"] / seconds) if seconds else None}


def transfers(events: Iterable[Event], *, job: str | None = None, now: int) -> list[dict[str, Any]]:
    """The rows after these events, the oldest first."""
    folded = Transfers(job)
    for event in events:
        folded.take(event)
    return folded.rows(now)


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
        "process": body["process"],
    }


def _further(row: dict[str, Any], event: Event) -> dict[str, Any]:
    """What changes of a row."""
    body = event.body
    if event.type == "TransferResumed":
        return {"resumed": row["resumed"] + 1}
    change = {"objects": max(row["objects"], body["objects"]), "bytes": max(row["bytes"], body["bytes"])}
    if event.type == "TransferProgress":
        return {**change, "total": body["total"]}
    return {
        **change,
        "state": "done" if body["code"] == "OK" else "failed",
        "code": body["code"],
        "why": body["why"] or None,
        "digest": body["digest"],
        "ended_ms": int(event.ms),
    }

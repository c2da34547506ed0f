"""Messages as people look at them, from the log alone: what was sent, what came in, and what came of each."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from events.envelope import Event, iso
from events.subjects import job_of

#: Outcome event -> what is said of the message.
ENDS = {
    "AuxSent": "sent",
    "AuxReplied": "answered",
    "AuxFailed": "failed",
    "AuxOutcomeUnknown": "unknown",
    "AuxReplyLost": "answer lost",
    "AuxHandled": "handled",
}


class MessageRows:
    """Folds a site's events into a row for each message and direction.

    Args:
        rows: where rows are kept; a row that changes is put again.
    """

    def __init__(self, rows: MutableMapping[str, dict[str, Any]]) -> None:
        self._rows = rows

    def take(self, event: Event) -> None:
        """See the next event."""
        if event.type == "AuxRequested":
            self._rows[f"out {event.body['id']}"] = _row(event, "out", event.body["target"], "waiting")
        elif event.type == "AuxReceived":
            self._rows[f"in {event.body['id']}"] = _row(event, "in", event.body["sender"], "received")
        elif event.type == "SendStarted":
            for message in event.body["ids"]:
                self._change(f"out {message}", state="under way")
        elif event.type in ENDS:
            body = event.body
            way = "in" if event.type == "AuxHandled" else "out"
            end = {name: body[name] for name in ("code", "ms", "why") if name in body}
            self._change(f"{way} {body['id']}", state=ENDS[event.type], ended=iso(event.ms), **end)

    def _change(self, key: str, **change: Any) -> None:
        row = self._rows.get(key)
        if row is not None:
            self._rows[key] = {**row, **change}


def _row(event: Event, way: str, peer: str, state: str) -> dict[str, Any]:
    rest = event.rest()
    body = rest["body"]
    return {
        "id": body["id"],
        "direction": way,
        "peer": peer,
        "job": job_of(event.subject),
        "state": state,
        "position": event.position,
        **{name: body[name] for name in ("channel", "topic", "size", "digest")},
        "sealed": body["secure"],
        "since": iso(event.ms),
        "asked_by": rest["actor"]["id"],
        "ended": None,
        "code": None,
        "ms": None,
        "why": None,
    }

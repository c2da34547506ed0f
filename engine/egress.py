"""What left the site through Flightlog, from the log alone: requests that were sent, and answers that were given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from engine.cell.protocol import root_of
from engine.streaming.chunk import Topic
from events.envelope import Event, iso
from events.subjects import job_of

#: Outcome event -> what is said of the message.
_SAID = {
    "AuxSent": "sent",
    "AuxReplied": "answered",
    "AuxOutcomeUnknown": "unknown",
}

#: Topics of aux requests that carry a stream, which is counted as one.
STREAMED = (Topic.REQUEST, Topic.ABORT)

BLIND = (
    "It lists what was sent through Flightlog: messages, results, answers, streams. What an app sends through "
    "sockets of its own is not seen; whether its run had the network is said here (flightlog start --network none)."
)


def egress(events: Iterable[Event], site: str, *, job: str | None = None, since: int = 0) -> Iterator[dict[str, Any]]:
    """A row per message that went, or may have gone, to somebody else, oldest first.

    Args:
        events: of the site, oldest first.
        site: its name; what stays within it is left out.
        job: only of this job.
        since: only from this time on, in ms since the epoch.
    """
    rows: dict[str, dict[str, Any]] = {}
    fold = Egress(site, rows, {})
    for event in events:
        fold.take(event)
    yield from (row for row in rows.values() if (job is None or row["job"] == job) and row["ms"] >= since)


class Egress:
    """The fold: a row for each message and target.

    Args:
        site: its name; what stays within it is left out.
        rows: by a key of their own; a row that changes is put again.
        beside: what is kept to make rows of: networks of jobs' runs, streams that are under way.
    """

    def __init__(
        self, site: str, rows: MutableMapping[str, dict[str, Any]], beside: MutableMapping[str, dict[str, Any]]
    ) -> None:
        self._site = site
        self._rows = rows
        self._beside = beside

    def take(self, event: Event) -> None:
        """See the next event."""
        rule = _RULES.get(event.type)
        if rule is not None:
            rule(self, event)

    def _spawned(self, event: Event) -> None:
        self._beside[f"network {job_of(event.subject)}"] = {"network": event.body["network"]}

    def _asked(self, event: Event) -> None:
        if event.body["topic"] not in STREAMED:
            row = self._row(event)
            self._put(row["id"], row)

    def _sending(self, event: Event) -> None:
        for message in event.body["ids"]:
            self._said(message, "under way")

    def _failed(self, event: Event) -> None:
        message, code = event.body["id"], event.body["code"]
        row = self._rows.get(message)
        left = row is not None and row["outcome"] == "under way" and code == "timeout"
        self._said(message, "not answered" if left else f"not sent ({code})")

    def _closed(self, event: Event) -> None:
        self._said(event.body["id"], _SAID[event.type])

    def _handled(self, event: Event) -> None:
        if event.body["reply"]:
            row = {**self._row(event), "outcome": "answer"}
            self._put(f"{row['id']} answer", row)

    def _opened(self, event: Event) -> None:
        row, stream = self._row(event, target="", size=0, digest=None), event.body["id"]
        if event.body["direction"] == "in":
            self._beside[f"in {stream}"] = row
            return
        self._beside[f"out {stream}"] = {"targets": event.body["targets"]}
        for target in event.body["targets"]:
            self._put(f"{stream} {target}", {**row, "target": target, "outcome": "under way"})

    def _streamed(self, event: Event) -> None:
        body, over = event.body, event.type == "TransferClosed"
        side = f"{body['direction']} {body['id']}"
        known = self._beside.get(side)
        if known is None:
            return
        if over:
            del self._beside[side]
        if body["direction"] == "out":
            for key in (f"{body['id']} {target}" for target in known["targets"]):
                row = self._rows.get(key)
                if row is not None:
                    self._rows[key] = _closed(row, body) if over else {**row, "size": max(row["size"], body["bytes"])}
        elif over:
            for target, size in body["left"].items():
                if size:  # what went back to the sender of a stream that came in: the replies to its objects
                    at = {"time": iso(event.ms), "ms": int(event.ms), "position": event.position}
                    row = {**known, **at, "target": target, "size": size, "outcome": "answers"}
                    self._put(f"{body['id']} {target} answers", row)

    def _row(self, event: Event, **instead: Any) -> dict[str, Any]:
        rest = event.rest()
        body, job = {**rest["body"], **instead}, job_of(event.subject)
        return {
            "time": iso(event.ms),
            "ms": int(event.ms),
            "position": event.position,
            "id": body["id"],
            "target": body["target"],
            "channel": body["channel"],
            "topic": body["topic"],
            "job": job,
            "size": body["size"],
            "digest": body["digest"],
            "sealed": body["secure"],
            "asked_by": rest["actor"]["id"],
            "network": self._beside.get(f"network {job}", {}).get("network") if job else None,
            "outcome": "waiting",
        }

    def _put(self, key: str, row: dict[str, Any]) -> None:
        if root_of(row["target"]) != self._site:
            self._rows[key] = row

    def _said(self, key: str, outcome: str) -> None:
        row = self._rows.get(key)
        if row is not None:
            self._rows[key] = {**row, "outcome": outcome}


_RULES: dict[str, Callable[[Egress, Event], None]] = {
    "AppSpawned": Egress._spawned,
    "AuxRequested": Egress._asked,
    "SendStarted": Egress._sending,
    "AuxFailed": Egress._failed,
    **dict.fromkeys(_SAID, Egress._closed),
    "AuxHandled": Egress._handled,
    "TransferOpened": Egress._opened,
    "TransferProgress": Egress._streamed,
    "TransferClosed": Egress._streamed,
}


def counts(row: Mapping[str, Any]) -> bool:
    """Whether it left, or may have: what was not sent, or still waits, does not count."""
    return not (row["outcome"].startswith("not sent") or row["outcome"] == "waiting")


def _closed(row: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """A stream's row at its end: what was handed over for a target counts, whether it took it in or not."""
    size = max(row["size"], body["left"].get(row["target"], 0))
    code = body["codes"].get(row["target"], body["code"])
    code = code if code != "OK" else body["code"]
    least = " at least" if body["at_least"] else ""
    outcome = "streamed" if code == "OK" else f"streamed in part{least} ({code})"
    if not size and not body["at_least"]:
        outcome = f"not sent ({code})"
    return {**row, "size": size, "digest": body["digest"], "outcome": outcome}


def totals(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages and bytes by target, topic and job; what was not sent counts apart."""
    found: dict[tuple[str, str, str | None], dict[str, Any]] = {}
    for row in rows:
        key = (row["target"], row["topic"], row["job"])
        total = found.setdefault(
            key, {"target": key[0], "topic": key[1], "job": key[2], "messages": 0, "bytes": 0, "not_sent": 0}
        )
        if counts(row):
            total["messages"] += 1
            total["bytes"] += row["size"]
        else:
            total["not_sent"] += 1
    return list(found.values())

"""What left the site through Flightlog, from the log alone: requests that were sent, and answers that were given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    "sockets of its own is not seen; `network` says whether its run had the network (start it with --network none)."
)


def egress(events: Iterable[Event], site: str, *, job: str | None = None, since: int = 0) -> Iterator[dict[str, Any]]:
    """A row per message that went, or may have gone, to somebody else, oldest first.

    Args:
        events: of the site, oldest first.
        site: its name; what stays within it is left out.
        job: only of this job.
        since: only from this time on, in ms since the epoch.
    """
    rows: list[dict[str, Any]] = []
    asked: dict[str, dict[str, Any]] = {}
    streams: dict[str, list[dict[str, Any]]] = {}
    came: dict[str, Event] = {}
    networks: dict[str, str] = {}
    for event in events:
        subject = job_of(event.subject)
        if event.type == "AppSpawned" and subject:
            networks[subject] = event.body["network"]
        elif event.type == "AuxRequested" and event.body["topic"] not in STREAMED:
            row = _row(event, subject, networks)
            if _counts(row, site, job, since):
                asked[row["id"]] = row
                rows.append(row)
        elif event.type == "SendStarted":
            for message in event.body["ids"]:
                if message in asked:
                    asked[message]["outcome"] = "under way"
        elif event.type == "AuxFailed" and (begun := asked.get(event.body["id"])):
            left = begun["outcome"] == "under way" and event.body["code"] == "timeout"
            begun["outcome"] = "not answered" if left else f"not sent ({event.body['code']})"
        elif event.type in _SAID and (done := asked.get(event.body["id"])):
            done["outcome"] = _SAID[event.type]
        elif event.type == "TransferOpened" and event.body["direction"] == "out":
            streams[event.body["id"]] = [
                r for r in _stream_rows(event, subject, networks) if _counts(r, site, job, since)
            ]
            rows += streams[event.body["id"]]
        elif event.type in ("TransferProgress", "TransferClosed") and event.body["direction"] == "out":
            _streamed(streams.get(event.body["id"], []), event)
        elif event.type == "TransferOpened":
            came[event.body["id"]] = event
        elif event.type == "TransferClosed" and event.body["id"] in came:
            answered = _answer_rows(event, came[event.body["id"]], subject, networks)
            rows += [r for r in answered if _counts(r, site, job, since)]
        elif event.type == "AuxHandled" and event.body["reply"]:
            row = _row(event, subject, networks)
            row["outcome"] = "answer"
            if _counts(row, site, job, since):
                rows.append(row)
    yield from rows


def totals(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages and bytes by target, topic and job; what was not sent counts apart."""
    found: dict[tuple[str, str, str | None], dict[str, Any]] = {}
    for row in rows:
        key = (row["target"], row["topic"], row["job"])
        total = found.setdefault(
            key, {"target": key[0], "topic": key[1], "job": key[2], "messages": 0, "bytes": 0, "not_sent": 0}
        )
        if row["outcome"].startswith("not sent") or row["outcome"] == "waiting":
            total["not_sent"] += 1
        else:
            total["messages"] += 1
            total["bytes"] += row["size"]
    return list(found.values())


def _row(event: Event, job: str | None, networks: dict[str, str], **instead: Any) -> dict[str, Any]:
    rest = event.rest()
    body = {**rest["body"], **instead}
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
        "network": networks.get(job) if job else None,
        "outcome": "waiting",
    }


def _stream_rows(event: Event, job: str | None, networks: dict[str, str]) -> list[dict[str, Any]]:
    """A row for each target of a stream."""
    return [
        {**_row(event, job, networks, target=target, size=0, digest=None), "outcome": "under way"}
        for target in event.body["targets"]
    ]


def _answer_rows(closed: Event, opened: Event, job: str | None, networks: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What went back to the sender of a stream that came in: the replies to its objects."""
    for target, size in closed.body["left"].items():
        if size:
            yield {
                **_row(opened, job, networks, target=target, size=size, digest=None),
                "time": iso(closed.ms),
                "ms": int(closed.ms),
                "position": closed.position,
                "outcome": "answers",
            }


def _streamed(rows: Iterable[dict[str, Any]], event: Event) -> None:
    """What left of a stream so far, or in all: what was handed over for a target counts, whether it took it in."""
    body = event.body
    for row in rows:
        if event.type == "TransferProgress":
            row["size"] = max(row["size"], body["bytes"])
            continue
        row["size"] = max(row["size"], body["left"].get(row["target"], 0))
        row["digest"] = body["digest"]
        code = body["codes"].get(row["target"], body["code"])
        code = code if code != "OK" else body["code"]
        least = " at least" if body["at_least"] else ""
        row["outcome"] = "streamed" if code == "OK" else f"streamed in part{least} ({code})"
        if not row["size"] and not body["at_least"]:
            row["outcome"] = f"not sent ({code})"


def _counts(row: dict[str, Any], site: str, job: str | None, since: int) -> bool:
    return root_of(row["target"]) != site and (job is None or row["job"] == job) and row["ms"] >= since

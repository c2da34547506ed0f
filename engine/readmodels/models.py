"""The models: what each takes from an event, and what it writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import redis

from engine.egress import Egress, counts
from engine.fold import TABLE
from engine.lifecycle import EVENTS, OF_THE_RECORD, OPENS_EPOCH
from engine.messages import MessageRows
from engine.readmodels.docs import Docs, Rows, Table
from engine.readmodels.names import Names
from engine.transfers import TYPES as TRANSFERS
from engine.transfers import Transfers
from events.envelope import Event, iso
from events.store import Store
from events.subjects import job_of

#: Rows that are kept of each kind, the newest; the log has the others.
KEPT = {"messages": 50_000, "transfers": 20_000, "egress": 50_000}
ACTS = 1000  # events about the record itself
#: Upper bounds of the buckets that durations are counted in, seconds.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86_400)
#: What a person asks of a job.
ASKED = frozenset(("DeployRequested", "StartRequested", "AbortRequested", "DeleteRequested"))
#: What a time line shows of a job: its life, and what it did.
LIFE = frozenset(TABLE) | {"JobSettled"}
TASKS = frozenset(("TaskStarted", "TaskDone", "TransferOpened", "TransferClosed"))
#: Outcome -> (kind of work, how it ended); it took from its cause to its own time.
OUTCOMES = {
    "DeploySucceeded": ("deploy", "ok"),
    "DeployFailed": ("deploy", "failed"),
    "DeployExpired": ("deploy", "expired"),
    "AppSpawned": ("launch", "ok"),
    "LaunchFailed": ("launch", "failed"),
    "LaunchExpired": ("launch", "expired"),
    "DeleteSucceeded": ("delete", "ok"),
    "DeleteAbandoned": ("delete", "failed"),
    "AppFinished": ("app", "ok"),
    "AppFailed": ("app", "failed"),
    "AppAborted": ("app", "aborted"),
    "AppLost": ("app", "lost"),
    "AuxReplied": ("aux", "ok"),
    "AuxFailed": ("aux", "failed"),
    "AuxOutcomeUnknown": ("aux", "unknown"),
    "TaskDone": ("task", "done"),
    "TransferClosed": ("transfer", "done"),
}


class Model(Protocol):
    """One read model."""

    def take(self, event: Event, job: str | None) -> None:
        """See the next event."""

    def write(self, pipe: redis.client.Pipeline, store: Store) -> None:
        """Put what has changed into a transaction."""

    def written(self) -> None:
        """The transaction is over, one way or the other."""


class JobIndex:
    """Jobs by creation, name, app and actor; the time line and the attempts of each."""

    def __init__(self, names: Names, docs: Docs) -> None:
        self._names = names
        self._docs = docs
        self._members: dict[str, dict[str, float]] = {}
        self._life: dict[str, list[str]] = {}

    def take(self, event: Event, job: str | None) -> None:
        """See the next event."""
        if job is None:
            return
        names = self._names
        if event.version == 1:
            self._member(names.created, job, event.ms)
            self._member(names.ids, job, "0")
        if event.type in LIFE or event.type in TASKS:
            key = names.life(job) if event.type in LIFE else names.tasks(job)
            self._life.setdefault(key, []).append(event.position)
        if event.type in ASKED:
            rest = event.rest()
            if rest["actor"]["kind"] != "system":
                self._member(names.actor(rest["actor"]["id"]), job, event.ms)
            if event.type == "DeployRequested":
                self._member(names.app(rest["body"]["app"]), job, event.ms)
        if event.type in _OF_ATTEMPTS:
            self._attempt(job, event)

    def _member(self, key: str, job: str, score: str) -> None:
        self._members.setdefault(key, {}).setdefault(job, float(score))

    def _attempt(self, job: str, event: Event) -> None:
        rest = event.rest()
        body, key = rest["body"], self._names.attempts(job)
        number = str(body.get("attempt") or "")
        if event.type != "StartRequested":
            known = self._docs.get(key, number)
        else:
            known = {"attempt": body["attempt"], "asked_by": rest["actor"]["id"], "reason": body["reason"]}
            known |= {"asked": iso(event.ms), "state": "starting", "resources": body["resources"], "positions": {}}
        if known is not None:
            positions = {**known["positions"], STEPS.get(event.type, "ended"): event.position}
            self._docs.put(key, number, {**known, **_OF_ATTEMPTS[event.type](body, event), "positions": positions})

    def write(self, pipe: redis.client.Pipeline, store: Store) -> None:
        """Put what has changed into a transaction."""
        for key, members in self._members.items():
            pipe.zadd(key, members, nx=True)
        for key, positions in self._life.items():
            pipe.rpush(key, *positions)

    def written(self) -> None:
        """The transaction is over, one way or the other."""
        self._members.clear()
        self._life.clear()


def _ended(state: str) -> Callable[[Mapping[str, Any], Event], dict[str, Any]]:
    def change(body: Mapping[str, Any], event: Event) -> dict[str, Any]:
        end = {name: body.get(name) for name in ("exit_code", "signal", "outcome", "duration", "killed")}
        why = body.get("reason") or body.get("error") or body.get("why")
        return {**end, "state": state, "ended": iso(event.ms), "why": why}

    return change


#: Event -> the step of an attempt that it is; the others end it.
STEPS = {"StartRequested": "asked", "AppSpawned": "spawned", "AppStarted": "started"}
_OF_ATTEMPTS: dict[str, Callable[[Mapping[str, Any], Event], dict[str, Any]]] = {
    "StartRequested": lambda body, event: {},
    "AppSpawned": lambda body, event: {
        **{"host": body["host"], "pid": body["pid"], "network": body["network"], "spawned": iso(event.ms)}
    },
    "AppStarted": lambda body, event: {"state": "running", "started": iso(event.ms)},
    "AppFinished": _ended("finished"),
    "AppFailed": _ended("failed"),
    "AppAborted": _ended("aborted"),
    "AppLost": _ended("lost"),
    "LaunchFailed": _ended("launch_failed"),
    "LaunchExpired": _ended("launch_failed"),
}
assert set(_OF_ATTEMPTS) <= set(EVENTS)  # noqa: S101 - checked once, at import


class Acts:
    """What was done with the record itself: looked at, carried away, forgotten, lost."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._new: list[str] = []
        self._losses: list[str] = []
        self._last: dict[str, str] = {}

    def take(self, event: Event, job: str | None) -> None:
        """See the next event."""
        if event.type in OF_THE_RECORD:
            self._new.append(event.position)
            self._last[event.type] = event.position
        if event.type in OPENS_EPOCH:
            self._losses.append(event.position)

    def write(self, pipe: redis.client.Pipeline, store: Store) -> None:
        """Put what has changed into a transaction."""
        if self._new:
            pipe.rpush(self._names.record, *self._new)
            pipe.ltrim(self._names.record, -ACTS, -1)
        for kind, position in self._last.items():
            pipe.hset(self._names.last_acts, kind, position)
        if self._losses:
            pipe.rpush(self._names.losses, *self._losses)

    def written(self) -> None:
        """The transaction is over, one way or the other."""
        self._new.clear()
        self._losses.clear()
        self._last.clear()


class Counts:
    """Events by type, outcomes of work, and how long it took."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._types: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._buckets: Counter[str] = Counter()
        self._sums: dict[str, float] = {}

    def take(self, event: Event, job: str | None) -> None:
        """See the next event."""
        self._types[event.type] += 1
        if event.type not in OUTCOMES:
            return
        kind, how = OUTCOMES[event.type]
        rest = event.rest()
        body, cause = rest["body"], rest["cause"]
        self._outcomes[f"{kind} {how}"] += 1
        if "duration" in body:
            seconds = float(body["duration"])
        elif "ms" in body:
            seconds = body["ms"] / 1000
        elif cause and event.type != "AppLost":
            seconds = (int(event.ms) - int(cause.partition("-")[0])) / 1000
        else:
            return
        bucket = next((number for number, bound in enumerate(BUCKETS) if seconds <= bound), len(BUCKETS))
        self._buckets[f"{kind} {bucket}"] += 1
        self._sums[kind] = self._sums.get(kind, 0.0) + seconds

    def write(self, pipe: redis.client.Pipeline, store: Store) -> None:
        """Put what has changed into a transaction."""
        for key, counter in (
            (self._names.types, self._types),
            (self._names.outcomes, self._outcomes),
            (self._names.durations, self._buckets),
        ):
            for field, count in counter.items():
                pipe.hincrby(key, field, count)
        for kind, seconds in self._sums.items():
            pipe.hincrbyfloat(self._names.durations, f"{kind} sum", round(seconds, 6))

    def written(self) -> None:
        """The transaction is over, one way or the other."""
        for counter in (self._types, self._outcomes, self._buckets):
            counter.clear()
        self._sums.clear()


class Left:
    """What left the site: a row for each message and target, sums by day, and which apps had the network."""

    def __init__(self, names: Names, docs: Docs, site: str) -> None:
        self._names = names
        self._docs = docs
        self._rows = Rows(docs, names.rows("egress"), names.order("egress"), KEPT["egress"])
        self._fold = Egress(site, _Counted(self), Table(docs, names.rows("egress:beside")))
        self._apps = Table(docs, names.rows("egress:apps"))
        self._bytes: Counter[str] = Counter()
        self._count: Counter[str] = Counter()
        self._runs: Counter[str] = Counter()

    def take(self, event: Event, job: str | None) -> None:
        """See the next event."""
        self._fold.take(event)
        if event.type == "DeployRequested" and job:
            self._apps[job] = {"app": event.body["app"]}
        elif event.type == "AppSpawned" and job:
            self._runs[json.dumps([self._apps.get(job, {}).get("app", ""), event.body["network"]])] += 1

    def put(self, key: str, row: dict[str, Any]) -> None:
        """Keep a row, and add to the sums what it has become more."""
        before = self._rows.get(key)
        self._rows[key] = row
        field = json.dumps([row["time"][:10], row["target"], row["topic"], row["job"] or ""])
        self._bytes[field] += _size(row) - (_size(before) if before else 0)
        self._count[field] += int(counts(row)) - int(before is not None and counts(before))

    def get(self, key: str) -> dict[str, Any] | None:
        """A row."""
        return self._rows.get(key)

    def write(self, pipe: redis.client.Pipeline, store: Store) -> None:
        """Put what has changed into a transaction."""
        self._rows.write(pipe, store)
        for key, counter in (
            (self._names.days_bytes, self._bytes),
            (self._names.days_count, self._count),
            (self._names.networks, self._runs),
        ):
            for field, count in counter.items():
                if count:
                    pipe.hincrby(key, field, count)

    def written(self) -> None:
        """The transaction is over, one way or the other."""
        self._rows.written()
        for counter in (self._bytes, self._count, self._runs):
            counter.clear()


class _Counted(dict[str, dict[str, Any]]):
    """Rows of the fold, with the sums told of each change."""

    def __init__(self, left: Left) -> None:
        super().__init__()
        self._left = left

    def __setitem__(self, key: str, row: dict[str, Any]) -> None:
        self._left.put(key, row)

    def get(self, key: str, default: Any = None) -> Any:
        found = self._left.get(key)
        return default if found is None else found


def _size(row: Mapping[str, Any]) -> int:
    return int(row["size"]) if counts(row) else 0


class Messages:
    """A row for each message that was sent, or came in."""

    def __init__(self, names: Names, docs: Docs) -> None:
        self._rows = Rows(docs, names.rows("messages"), names.order("messages"), KEPT["messages"])
        self._fold = MessageRows(self._rows)

    def take(self, event: Event, job: str | None) -> None:
        """See the next event."""
        self._fold.take(event)

    def write(self, pipe: redis.client.Pipeline, store: Store) -> None:
        """Put what has changed into a transaction."""
        self._rows.write(pipe, store)

    def written(self) -> None:
        """The transaction is over, one way or the other."""
        self._rows.written()


class Streams:
    """A row for each transfer and end."""

    def __init__(self, names: Names, docs: Docs) -> None:
        self._rows = Rows(docs, names.rows("transfers"), names.order("transfers"), KEPT["transfers"])
        self._fold = Transfers(rows=self._rows)

    def take(self, event: Event, job: str | None) -> None:
        """See the next event."""
        if event.type in TRANSFERS:
            self._fold.take(event)

    def write(self, pipe: redis.client.Pipeline, store: Store) -> None:
        """Put what has changed into a transaction."""
        self._rows.write(pipe, store)

    def written(self) -> None:
        """The transaction is over, one way or the other."""
        self._rows.written()


class Models:
    """All of them, fed and written together.

    Args:
        store: the site's record.
    """

    def __init__(self, store: Store) -> None:
        self.names = Names(store)
        self.docs = Docs(store)
        names, docs = self.names, self.docs
        self.each: tuple[Model, ...] = (
            JobIndex(names, docs),
            Acts(names),
            Counts(names),
            Left(names, docs, store.site),
            Messages(names, docs),
            Streams(names, docs),
        )

    def take(self, event: Event) -> None:
        """See the next event."""
        job = job_of(event.subject)
        for model in self.each:
            model.take(event, job)

    def write(self, pipe: redis.client.Pipeline, store: Store) -> None:
        """Put all changes into a transaction."""
        for model in self.each:
            model.write(pipe, store)
        self.docs.write(pipe)

    def over(self, *, done: bool) -> None:
        """The transaction went through, or not."""
        for model in self.each:
            model.written()
        self.docs.written() if done else self.docs.forget()

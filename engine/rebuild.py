"""The projections, folded anew from the log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine.fold import COUNTERS, LAST_WRITER, TABLE, Fact, Illegal, JobState, changes, work_id
from engine.lifecycle import WORK
from engine.projection import lane_of, opened
from events.append import REMEMBERED
from events.envelope import Event
from events.errors import RecordDamaged
from events.rebuild import rebuild
from events.store import Store
from events.subjects import job_of

_OPENS = frozenset(event for event, effects in WORK.items() if "+" in effects)
_WORKS = frozenset(WORK) | {"WorkClaimed", "SendStarted"}
#: Event types that leave a trace in a projection or in open work.
_MATTERS = frozenset(TABLE) | frozenset(COUNTERS) | frozenset(LAST_WRITER) | _WORKS


class Works:
    """Open work as the log tells it: id -> fields of the work's hash, with its ``deadline``."""

    def __init__(self) -> None:
        self.open: dict[str, dict[str, str]] = {}
        #: Calls whose work was closed a moment ago: they are remembered for a while from then on.
        self.just_closed: set[str] = set()

    def apply(self, job_id: str, after: JobState, fact: Fact, call: str = "", *, recent: bool = False) -> None:
        """Take in a job's event; ``after`` is the job's state with it, ``recent``: calls are remembered."""
        if fact.type == "WorkClaimed":
            self._claimed(fact)
            return
        if fact.type == "SendStarted":
            self._sending(fact)
            return
        for effect in WORK.get(fact.type, "").split():
            kind = effect[1:]
            name = work_id(kind, job_id, after, fact.body)
            if effect[0] == "-":
                closed = self.open.pop(name, None)
                if closed is not None and recent:
                    self.just_closed.add(closed["call"])
                continue
            deadline, fields = opened(kind, job_id, after, fact)
            known = self.open.get(name)
            if known is None:
                self.open[name] = {**fields, "call": call, "deadline": deadline}
            else:
                known.update(fields)

    def _claimed(self, fact: Fact) -> None:
        work = self.open.get(fact.body["work"])
        if work is None:
            return
        if work.get("token") != fact.body["token"]:
            work["attempts"] = str(int(work.get("attempts", "0")) + 1)
        work |= {
            "token": fact.body["token"],
            "claimed_by": fact.body["worker"],
            "until": str(fact.body["until"]),
        }

    def _sending(self, fact: Fact) -> None:
        for message in fact.body["ids"]:
            work = self.open.get(f"aux_{message}")
            if work is not None:
                work["attempts"] = str(int(work.get("attempts", "0")) + 1)
                work |= {"token": fact.body["token"], "claimed_by": fact.body["worker"], "until": "0"}

    def lanes(self) -> Iterable[tuple[str, str, bool]]:
        """(lane, message, its send has begun) of every message that waits, in order."""
        for name, work in self.open.items():
            if work["kind"] == "aux" and work["transport"] == "lane":
                yield lane_of(work), name.removeprefix("aux_"), "token" in work


class JobProjector:
    """Folds a site's log into all that ``events.rebuild`` is to write.

    Args:
        store: for key names and the time, which says which calls are still remembered.
    """

    def __init__(self, store: Store) -> None:
        self.keys = store.keys
        self.states: dict[str, JobState] = {}
        self.works = Works()
        self.calls: dict[str, tuple[str, list[str], dict[str, tuple[int, int]]]] = {}
        self.revisions: dict[str, int] = {}
        self.remember_from = store.now_ms() - REMEMBERED * 1000

    def apply(self, event: Event) -> None:
        """Take in the next event."""
        kind = event.type
        ms = event.position.partition("-")[0]
        recent = int(ms) >= self.remember_from
        if kind in TABLE:
            self.revisions[event.subject] = self.revisions.get(event.subject, 0) + 1
        job = job_of(event.subject)
        if not recent and kind not in (_WORKS if job is None else _MATTERS):
            return
        rest = event.stored()
        remembered = recent or kind in _OPENS
        name = f"call:{rest['call']}:{rest['step']}" if remembered else ""
        fact = Fact(kind, ms, event.position, rest["actor"], rest["correlation"], rest["body"])
        if job is not None:
            self._fold(job, fact, name, recent)
        elif kind in _WORKS:
            self.works.apply("", JobState(), fact, name, recent=recent)
        if remembered:
            call = self.calls.setdefault(name, (rest["arguments"] or "-", [], {}))
            call[1].append(event.position)
            call[2][event.subject] = (event.version, self.revisions.get(event.subject, 0))

    def _fold(self, job: str, fact: Fact, call: str, recent: bool) -> None:
        state = self.states.get(job)
        if state is None:
            state = self.states[job] = JobState()
        try:
            state.update(changes(state, fact))
        except Illegal as error:
            raise RecordDamaged(
                f"event {fact.position} of job {job}: {error}",
                "somebody wrote to the log; restore it from a backup",
            ) from error
        if fact.type in _WORKS:
            self.works.apply(job, state, fact, call, recent=recent)

    def open_work(self) -> int:
        """How many pieces of work are open."""
        return len(self.works.open)

    def writes(self) -> Iterable[tuple[Any, ...]]:
        """The commands that write hashes, sets, open work and remembered calls."""
        prefix = self.keys.prefix
        for job, state in self.states.items():
            if not state:
                continue
            yield ("HSET", self.keys.job(job), *_flat(state))
            if "state" in state:
                yield ("ZADD", self.keys.state(state["state"]), state["since"], job)
                yield ("ZADD", self.keys.by_time, state["since"], job)
        held = {work["call"] for work in self.works.open.values()}
        for name, work in self.works.open.items():
            fields = {key: value for key, value in work.items() if key != "deadline"}
            yield ("HSET", self.keys.work(name), *_flat(fields))
            yield ("ZADD", self.keys.open, work["deadline"], name)
        for lane, message, begun in self.works.lanes():
            yield ("SADD", self.keys.lanes, lane)
            if begun:
                yield ("SADD", self.keys.flying(lane), message)
            else:
                yield ("RPUSH", self.keys.outbox(lane), message)
        for name, (digest, positions, heads) in self.calls.items():
            ms, _, seq = positions[0].partition("-")
            told = " ".join(f"{subject} {version} {revision}" for subject, (version, revision) in heads.items())
            value = f"{digest} {ms} {seq} {told}"
            if name in held:
                yield ("SET", prefix + name, value)
            elif name in self.works.just_closed or int(ms) >= self.remember_from:
                yield ("SET", prefix + name, value, "EX", REMEMBERED)


def _flat(fields: dict[str, str]) -> list[str]:
    return [part for pair in fields.items() for part in pair]


def rebuild_site(store: Store) -> int | None:
    """Write heads, indexes, projections, open work and remembered calls anew from the log."""
    return rebuild(store, lambda: JobProjector(store))

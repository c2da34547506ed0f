"""Histories of jobs for tests: a valid body for every event, the moves that a state has, a player that makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.decide import (
    Abort,
    Accepted,
    Command,
    Delete,
    Deploy,
    NotifyStarted,
    NotifyStopped,
    Repeated,
    Start,
    decide,
)
from engine.fold import Fact, Illegal, JobState, changes, fact_of
from engine.jobs import Jobs
from engine.lifecycle import EVENTS
from engine.rebuild import Works
from events.append import Appended, Ops, WorkRefused
from events.bodies import BODIES
from events.bodies.base import Body
from events.bodies.job import DeployRequested
from events.envelope import Call, Event
from events.store import Store
from tests.support import TESTER, new_call

EXIT = {
    "exit_code": 0,
    "signal": None,
    "outcome": 0,
    "code_source": "process",
    "duration": 1.5,
    "signalled_before": False,
    "killed": 0,
}
#: event type -> fields of a valid body; the attempt is added where there is one
FIELDS: dict[str, dict[str, Any]] = {
    "DeployRequested": {
        "app": "app",
        "sha256": "ab" * 32,
        "size": 10,
        "meta_sha256": "cd" * 32,
        "meta": {"job_id": "j", "scope": "s", "name": "not a drift key"},
        "byoc": False,
        "deadline": 60.0,
        "attempts": 3,
    },
    "DeploySucceeded": {"files": 3, "bytes": 100},
    "DeployFailed": {"code": "BAD_ARCHIVE", "error": "a bomb"},
    "DeployExpired": {"why": "deadline"},
    "AbortRequested": {"origin": "user", "grace": 2.0},
    "DeleteRequested": {"deadline": 60.0, "attempts": 3},
    "DeleteSucceeded": {"existed": True, "bytes": 100},
    "DeleteFailed": {"error": "busy"},
    "DeleteAbandoned": {"why": "attempts"},
    "CallRefused": {"method": "start_app", "code": "JOB_LIVE", "message": "no"},
    "CallRepeated": {"method": "abort_app", "state": "aborting"},
    "WorkClaimed": {"work": "deploy_j_1", "token": "t", "worker": "h:1:2", "until": 10},
    "ReadsObserved": {"method": "get", "result": "ok", "count": 2, "first": 1, "last": 2},
    "StartRequested": {"resources": {"gpu": [0, 1]}, "manager": "m", "deadline": 60.0, "attempts": 3},
    "LaunchFailed": {"code": "COMMAND_NOT_FOUND", "error": "no such file"},
    "LaunchExpired": {"why": "deadline"},
    "AppSpawned": {
        "host": "h",
        "keeper_pid": 10,
        "pid": 11,
        "start_ticks": 12,
        "argv_sha256": "ef" * 32,
        "started_by": "notify",
        "started_within": 60.0,
        "isolation": "none",
        "network": "open",
    },
    "AppStarted": {"by": "launcher"},
    "AppStopping": {"by": "job", "ends_within": 60.0},
    "AppFinished": EXIT,
    "AppFailed": {**EXIT, "exit_code": 3, "outcome": 1},
    "AppAborted": {**EXIT, "exit_code": None, "signal": 15, "outcome": 9, "signalled_before": True, "killed": 2},
    "AppLost": {"reason": "its keeper died"},
    "AbortSignalled": {"signal": "SIGTERM", "pids": [11, 12]},
    "AppAdopted": {"caretaker": "h:3:4", "host": "h"},
    "LateExit": EXIT,
    "OutputClosed": {"bytes": 5, "sha256": "12" * 32},
    "ResourcesRestored": {"resources": {}},
    "ResourcesFreed": {"attempt": None, "resources": {}, "why": "refused"},
    "JobSettled": {"freed": "yes", "completed_fired": True},
    "AuxRequested": {
        "id": "a" * 32,
        "channel": "aux_communication",
        "topic": "t",
        "target": "server",
        "size": 10,
        "digest": "ab" * 32,
        "reply": True,
        "reply_key": "cd" * 32,
        "secure": False,
        "optional": False,
        "transport": "lane",
        "deadline": 5.0,
        "attempts": 3,
    },
    "SendStarted": {"lane": "aux:server", "token": "t", "worker": "h:1:2", "ids": ["a" * 32]},
    "AuxSent": {"id": "a" * 32},
    "AuxReplied": {"id": "a" * 32, "code": "ok", "size": 3, "digest": "ef" * 32, "ms": 2},
    "AuxFailed": {"id": "a" * 32, "code": "timeout", "why": "no answer"},
    "AuxOutcomeUnknown": {"id": "a" * 32, "why": "its worker died"},
    "AuxReplyLost": {"id": "a" * 32, "code": "PAYLOAD_LOST", "why": "gone"},
    "AuxReceived": {
        "id": "b" * 32,
        "channel": "aux_communication",
        "topic": "t",
        "sender": "server",
        "size": 10,
        "digest": "ab" * 32,
        "secure": False,
        "reply": True,
    },
    "AuxHandled": {
        "id": "b" * 32,
        "channel": "aux_communication",
        "topic": "t",
        "target": "server",
        "code": "ok",
        "size": 10,
        "digest": "ab" * 32,
        "secure": False,
        "reply": True,
        "ms": 1,
    },
    "MessageRefused": {"id": "c" * 32, "code": "SEAL_BROKEN", "why": "forged", "sender": "server"},
    "RepliesDropped": {"count": 1, "last": "a" * 32},
    "CellAttached": {"fqcn": "site-1", "kind": "engine.cell.cell.FabricCell"},
    "HandlerRegistered": {"topic": "t", "handler": "m.f"},
    "TransferOpened": {
        "id": "d" * 32,
        "direction": "out",
        "channel": "models",
        "topic": "final",
        "sender": "site-1",
        "targets": ["server"],
        "secure": False,
        "window": 16,
        "stall": 60.0,
        "process": "h:1:2",
    },
    "TransferProgress": {"id": "d" * 32, "direction": "out", "objects": 3, "bytes": 30},
    "TransferResumed": {"id": "d" * 32, "direction": "out", "at": 3, "why": "the fabric was away"},
    "TransferClosed": {
        "id": "d" * 32,
        "direction": "out",
        "code": "OK",
        "why": "",
        "objects": 3,
        "bytes": 30,
        "ms": 7,
        "codes": {"server": "OK"},
        "acknowledged": {"server": 3},
        "left": {"server": 30},
    },
    "LogSharingSet": {"what": "live"},
    "TaskReceived": {"task_id": "1", "task": "train", "sender": "server", "size": 10},
    "TaskStarted": {"task_id": "1", "task": "train"},
    "TaskDone": {"task_id": "1", "task": "train", "code": "OK", "size": 10, "ms": 5},
    "AddressChanged": {"fqcn": "site-1", "ours": False},
    "RunEndRequested": {"sender": "server"},
    "TaskAbortRequested": {},
    "JobLogConfigured": {"config": "DEBUG"},
    "ErrorsReset": {},
    "EngineOpened": {"role": "owner", "host": "h", "pid": 1, "release": "0.1.0"},
    "EngineClosed": {"role": "client", "pid": 1},
    "ApiOpened": {"host": "h", "pid": 1, "address": "127.0.0.1", "port": 8787},
    "ApiClosed": {"host": "h", "pid": 1},
    "AccessChanged": {"who": "mia", "role": "viewer"},
    "PoolStarted": {"host": "h", "pid": 1, "workers": 2},
    "PoolStopped": {"host": "h", "pid": 1},
    "WorkerDied": {"worker": "h:1", "returncode": -9},
    "WorkerKilled": {"worker": "h:1:2", "work": "launch_j_1"},
    "TaskRefused": {"queue": "q", "job": "j", "why": "not ours"},
    "WorkRerung": {"works": ["launch_j_1"]},
    "ServerAdopted": {"server": "record", "pid": 1, "started": True},
    "SpoolDrained": {"orders": 1},
    "ComponentAdded": {"component_id": "c", "kind": "K"},
    "AgentSet": {"kind": "K"},
    "FLEventFired": {"event": "_start_run", "handlers": 2},
    "FLHandlerFailed": {"event": "_start_run", "handler": "H", "error": "boom"},
    "ShutdownRequested": {"live_jobs": ["j"]},
    "RestartRequested": {"live_jobs": []},
    "ProjectionRebuilt": {"why": "heads missing", "events": 3, "jobs": 1},
    "CheckpointSigned": {"size": 3, "root": "ab" * 32, "key": "flightlog/site-1/1+ab"},
    "CheckpointWitnessed": {"size": 3, "root": "ab" * 32, "witness": "w+00+x", "note": "n"},
    "WitnessRefused": {"size": 3, "url": "http://127.0.0.1:1", "why": "another log"},
    "KeyRotated": {"old": "a", "new": "b", "proof": "c"},
    "SegmentWritten": {"first": 1, "last": 3, "sha256": "ab" * 32, "size": 9},
    "HistoryLost": {"first": 2, "last": 3, "note": "n", "reason": "a backup"},
    "RoomLow": {"what": "memory", "used": 8, "limit": 10, "full": False},
    "Verified": {"verdict": "SITE-SIGNED", "first": 1, "last": 3, "problems": 0, "witnessed": 0, "signed": 3},
    "ReviewRecorded": {"until": "1-1", "note": "all is well"},
    "Exported": {"what": "cloudevents", "first": 1, "last": 3, "events": 3, "sha256": "ab" * 32},
    "Imported": {"origin": "flightlog/site-1/x/1", "events": 3, "root": "ab" * 32, "sha256": "ab" * 32},
    "BackupRestored": {"taken": "2026-11-24T03:00:00Z", "last": 3, "reason": "the disk died"},
    "Erased": {"reason": "asked for", "lives": 1},
    "HoldSet": {"reason": "a court"},
    "HoldLifted": {"reason": "it is over"},
}


def body(type_: str, attempt: int = 1, **fields: Any) -> Body:
    """A valid body of a type."""
    cls = BODIES[type_]
    given = {**FIELDS[type_], **fields}
    if "attempt" in cls.model_fields:
        given.setdefault("attempt", attempt)
    return cls.model_validate(given)


def event(type_: str, state: JobState, **fields: Any) -> Body:
    """A body that fits a state: the next attempt's for a start, else the current one's."""
    return body(type_, max(state.attempt + (type_ == "StartRequested"), 1), **fields)


def fact(new: Body, ms: str = "1000", position: str = "1000-1") -> Fact:
    """The fact of a body, as if it were stored."""
    actor = TESTER.model_dump(mode="json")
    return Fact(new.name(), ms, position, actor, "corr", new.model_dump(mode="json", exclude={"type"}))


def legal(state: JobState, new: Body) -> bool:
    """Whether the fold takes a body in a state."""
    try:
        changes(state, fact(new))
    except Illegal:
        return False
    return True


def commands(text: str | None = None) -> list[Command]:
    """Every command, with the variants that are decided differently."""
    return [
        Deploy(request=DeployRequested.model_validate({**FIELDS["DeployRequested"], "reason": text})),
        Start(deadline=60.0, attempts=3, reason=text, resources={"gpu": [0]}, manager="m"),
        Start(deadline=60.0, attempts=3, meta={"job_id": "j", "scope": "s"}, network="none"),
        Start(deadline=60.0, attempts=3, meta={"job_id": "another"}),
        Abort(origin="user", grace=2.0, reason=text),
        Abort(origin="heartbeat", grace=0.5),
        Abort(origin="deadline", grace=0.5),
        Delete(deadline=60.0, attempts=3, reason=text),
        NotifyStarted(by="job"),
        NotifyStopped(by="job", ends_within=60.0),
    ]


def decided(state: JobState, command: Command) -> list[Body]:
    """What a command records in a state."""
    decision = decide(state, command)
    if isinstance(decision, Accepted):
        return list(decision.bodies)
    return [decision.body] if isinstance(decision, Repeated) else []


#: Outcomes that come as several events of one append.
TOGETHER = (
    ("AppSpawned", "AppStarted"),
    ("AppSpawned", "AppStarted", "AppFinished"),
    ("AppSpawned", "AppFailed"),
    ("DeleteFailed", "DeleteAbandoned"),
    ("AppStopping", "AppLost"),
)
NOTES = (
    "CallRefused",
    "CallRepeated",
    "AbortSignalled",
    "AppAdopted",
    "LateExit",
    "OutputClosed",
    "ResourcesFreed",
    "JobSettled",
)


def outcomes(state: JobState, text: str = "why") -> list[list[Body]]:
    """Every legal append of lifecycle events that no command brings."""
    free = {"reason": text} if text else {}
    found = []
    for group in [(name,) for name in EVENTS] + list(TOGETHER):
        now, bodies = state, []
        for name in group:
            extra = free if "reason" in BODIES[name].model_fields else {}
            extra = {"error": text} if "error" in BODIES[name].model_fields else extra
            new = event(name, now, **extra)
            if not legal(now, new):
                break
            bodies.append(new)
            now = JobState({**now, **changes(now, fact(new))})
        else:
            found.append(bodies)
    return found


@dataclass
class Move:
    """Something that can be done to a job now."""

    name: str
    make: Callable[[Call], Appended | None]


class Player:
    """Makes moves on jobs of one record. ``made`` remembers every call with its first answer."""

    def __init__(self, store: Store, jobs: tuple[str, ...] = ("one", "two")) -> None:
        self.store = store
        self.jobs = Jobs(store)
        self.names = jobs
        self.made: list[tuple[Call, Appended]] = []

    def moves(self, job: str, text: str) -> list[Move]:
        """What can be done to a job now, in a fixed order."""
        state = self.jobs.load(job).state
        found = []
        for command in commands(text):
            bodies = decided(state, command)
            if bodies:
                found.append(self._transact(job, command.method, bodies))
        for bodies in outcomes(state, text):
            found.append(self._transact(job, "+".join(b.name() for b in bodies), bodies))
        if state:
            for name in NOTES:
                # Of another attempt too: what is late still counts and still settles.
                for attempt in sorted({max(state.attempt, 1), max(state.attempt - 1, 1)}):
                    found.append(self._note(job, body(name, attempt)))
            for name, work in self.jobs.open_work():
                if work["job"] == job:
                    found += self._claims(job, name, int(work["max"]))
        found.append(self._site())
        return found

    def step(self, choice: int, text: str = "why") -> str:
        """Make the move that a number names; gives its name."""
        job = self.names[choice % len(self.names)]
        moves = self.moves(job, text)
        move = moves[choice // len(self.names) % len(moves)]
        call = new_call()
        call = Call(call_id=call.call_id, actor=TESTER, arguments=f"{choice:016x}")
        appended = move.make(call)
        if appended is not None:
            self.made.append((call, appended))
        return move.name

    def _transact(self, job: str, name: str, bodies: list[Body]) -> Move:
        def make(call: Call) -> Appended | None:
            recorded = self.jobs.transact(call, job, lambda state: bodies)
            return recorded.appended if recorded else None

        return Move(name, make)

    def _note(self, job: str, new: Body) -> Move:
        return Move(new.name(), lambda call: self.jobs.note(call, [new], job))

    def _site(self) -> Move:
        return Move("site", lambda call: self.jobs.note(call, [body("AgentSet")]))

    def _claims(self, job: str, work: str, attempts: int) -> list[Move]:
        found = []
        for token in ("red", "blue"):
            for lasts in (60_000, -1):
                until = self.store.now_ms() + lasts

                def make(call: Call, token: str = token, until: int = until) -> Appended | None:
                    claimed = body("WorkClaimed", work=work, token=token, until=until)
                    ops = Ops().claim(work, token=token, worker="h:1:2", until=until, attempts=attempts or 3)
                    try:
                        return self.jobs.note(call, [claimed], job, ops)
                    except WorkRefused:
                        return None

                found.append(Move(f"claim {work} by {token}", make))
        return found


def folded_works(events: list[Event]) -> dict[str, dict[str, str]]:
    """Open work by replay of a log."""
    states: dict[str, JobState] = {}
    works = Works()
    for one in events:
        if one.subject.startswith("job/"):
            job = one.subject.removeprefix("job/")
            told, rest = fact_of(one), one.rest()
            state = states.setdefault(job, JobState())
            state.update(changes(state, told))
            works.apply(job, state, told, f"call:{rest['call']}:{rest['step']}")
    return {name: {**work, "deadline": work["deadline"].lstrip("+")} for name, work in works.open.items()}


def live_works(store: Store) -> dict[str, dict[str, str]]:
    """Open work as it stands in Redis, raw."""
    scores = dict(store.client.zrange(store.keys.open, 0, -1, withscores=True))
    start = len(store.keys.work(""))
    found = {name[start:]: store.client.hgetall(name) for name in store.client.keys("*:work:*")}
    assert set(found) == set(scores), "open work and its hashes differ"
    return {name: {**found[name], "deadline": f"{score:.0f}"} for name, score in scores.items()}


#: A whole life, event by event.
LIFE_OF = (
    *("DeployRequested", "DeploySucceeded", "StartRequested", "AppSpawned", "AppStarted", "AppStopping"),
    "AppFinished",
)
#: Commands of the engine, as ``decided`` names its moves -> the event that each records.
_OF_COMMANDS = {
    "deploy_app": "DeployRequested",
    "start_app": "StartRequested",
    "abort_app": "AbortRequested",
    "delete_run": "DeleteRequested",
    "notify_started": "AppStarted",
    "notify_stopped": "AppStopping",
}


def played(move: Move) -> str | None:
    """The first lifecycle event of a move, where it has one."""
    first = move.name.split("+")[0]
    return _OF_COMMANDS.get(first, first if first in EVENTS else None)

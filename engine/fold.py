"""Status is a fold: ``apply(state, fact) -> state``, pure, the same live and in replay.

A job's state is the very content of its projection hash: text by name. Nothing in it comes from
"now". Where an event's time or position enters, the live path passes a stand-in that the append
script fills in (``events.append.ms_of``), so one function serves both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from engine.lifecycle import (
    AT_REST,
    CLIENT_STATUS,
    LIVE,
    State,
    compiled_events,
)
from events.envelope import Event
from events.errors import FlightlogError
from events.standin import StandIn
from events.subjects import job_of
from events.vault import Vault

#: event -> source -> destination
TABLE = compiled_events()
DRIFT_KEYS = ("job_id", "resource_spec", "launcher_spec", "scope", "study")
_LIVE = frozenset(state.value for state in LIVE)
_AT_REST = frozenset(state.value for state in AT_REST)
_FURTHER = {"starting": 1, "started": 2, "stopped": 3}


class Fact(NamedTuple):
    """What the fold needs of an event. ``ms`` and ``position`` may be stand-ins."""

    type: str
    ms: str
    position: str
    actor: Mapping[str, Any]
    correlation: str
    body: Mapping[str, Any]


def fact_of(event: Event) -> Fact:
    """The fact of a stored event."""
    rest = event.stored()
    return Fact(event.type, event.ms, event.position, rest["actor"], rest["correlation"], rest["body"])


class Illegal(FlightlogError):
    """An event cannot come in the state that the job is in.

    Internal: whoever wanted to record it looks again. In a stored log it means that somebody
    else has written there.
    """

    code, http, retry = "ILLEGAL_TRANSITION", 409, "no"


class JobState(dict[str, str]):
    """A job's state: the fields of its projection, with names for those that code asks for.

    Personal fields are tokens in it (``events.vault``); ``told`` makes them readable.
    """

    vault: Vault | None = None

    def seen_with(self, vault: Vault | None) -> JobState:
        """This state, to be told with the keys of a vault."""
        self.vault = vault
        return self

    @property
    def state(self) -> State:
        """Where the job stands; ``new`` for one that never was."""
        return State(self.get("state", "new"))

    @property
    def attempt(self) -> int:
        """Number of the last start; 0 before the first."""
        return int(self.get("attempt") or 0)

    @property
    def spawned(self) -> bool:
        """The current attempt has had a process."""
        return self.get("spawned") == "1"

    @property
    def live(self) -> bool:
        """An app is being launched, runs, or is about to end."""
        return self.get("state", "new") in _LIVE

    @property
    def at_rest(self) -> bool:
        """Nothing will happen by itself."""
        return self.get("state", "new") in _AT_REST

    def told(self, name: str) -> str:
        """A field to be read by people: personal parts of it are made readable, as far as their key is there."""
        value = self.get(name, "")
        return self.vault.reveal(value) if self.vault is not None else value

    @property
    def client_status(self) -> str:
        """The reference's status text."""
        state = self.state
        if state is State.ABORTING:
            return self.get("furthest") or "starting"
        return CLIENT_STATUS[state]

    @property
    def resources(self) -> dict[str, Any]:
        """What the last attempt was given."""
        value: dict[str, Any] = json.loads(self.get("resources") or "{}")
        return value

    @property
    def deployed_meta(self) -> dict[str, Any]:
        """The metadata keys that a start must not change."""
        value: dict[str, Any] = json.loads(self.get("meta") or "{}")
        return value


def later(ms: str, seconds: float) -> str:
    """A time some seconds after ``ms``, which may be a stand-in."""
    plus = int(seconds * 1000)
    if isinstance(ms, StandIn):
        return StandIn(f"{ms}+{plus}")
    return str(int(ms) + plus)


def _asked(fact: Fact) -> dict[str, str]:
    return {
        "asked": fact.type,
        "asked_by": str(fact.actor["id"]),
        "asked_kind": str(fact.actor["kind"]),
        "asked_via": str(fact.actor["via"]),
        "asked_at": fact.position,
        "reason": str(fact.body.get("reason") or ""),
        "correlation": fact.correlation,
    }


def _deploy_requested(state: JobState, fact: Fact) -> dict[str, str]:
    body = fact.body
    meta = {key: body["meta"][key] for key in DRIFT_KEYS if body["meta"].get(key) is not None}
    return {
        **_asked(fact),
        "deploys": str(int(state.get("deploys") or 0) + 1),
        "created": state.get("created") or fact.ms,
        "next_app": body["app"],
        "next_sha256": body["sha256"],
        "next_size": str(body["size"]),
        "next_meta": json.dumps(meta, sort_keys=True),
        "waiting_for": "a worker to unpack the app",
        "deadline": later(fact.ms, body["deadline"]),
        "error": "",
    }


def _deploy_succeeded(state: JobState, fact: Fact) -> dict[str, str]:
    return {
        "app": state.get("next_app", ""),
        "sha256": state.get("next_sha256", ""),
        "size": state.get("next_size", ""),
        "meta": state.get("next_meta", ""),
        "waiting_for": "",
        "deadline": "",
    }


def _failed(field: str) -> Callable[[JobState, Fact], dict[str, str]]:
    def change(state: JobState, fact: Fact) -> dict[str, str]:
        body = fact.body
        why = (
            f"{body['code']}: {body['error']}"
            if "code" in body
            else f"{field} {'withdrawn' if body['why'] == 'withdrawn' else 'expired'} ({body['why']})"
        )
        if body.get("error") and "code" not in body:
            why += f": {body['error']}"
        return {"waiting_for": "", "deadline": "", "error": why}

    return change


def _start_requested(state: JobState, fact: Fact) -> dict[str, str]:
    body = fact.body
    return {
        **_asked(fact),
        "attempt": str(body["attempt"]),
        "start_position": fact.position,
        "resources": json.dumps(body["resources"], sort_keys=True),
        "manager": body["manager"] or "",
        "spawned": "",
        "run_key": "",
        "task": "",
        "task_since": "",
        "furthest": "starting",
        "abort_origin": "",
        "pid": "",
        "keeper_pid": "",
        "start_ticks": "",
        "host": "",
        "network": "",
        "exit_code": "",
        "signal": "",
        "outcome": "",
        "duration": "",
        "started_at": "",
        "ended_at": "",
        "error": "",
        "waiting_for": "a worker to launch the app",
        "deadline": later(fact.ms, body["deadline"]),
    }


def _launch_ended(state: JobState, fact: Fact) -> dict[str, str]:
    return {**_failed("launch")(state, fact), "ended_at": fact.ms}


def _spawned(state: JobState, fact: Fact) -> dict[str, str]:
    body = fact.body
    change = {
        "spawned": "1",
        "pid": str(body["pid"]),
        "keeper_pid": str(body["keeper_pid"]),
        "start_ticks": str(body["start_ticks"]),
        "host": body["host"],
        "network": body["network"],
        "run_key": body.get("run_key") or "",
    }
    if state.get("state") == State.STARTING:
        change["waiting_for"] = "the app to say that it has started"
        change["deadline"] = later(fact.ms, body["started_within"]) if body["started_within"] else ""
    return change


def _furthest(state: JobState, status: str) -> dict[str, str]:
    known = _FURTHER.get(state.get("furthest", ""), 0)
    return {"furthest": status} if _FURTHER[status] > known else {}


def _started(state: JobState, fact: Fact) -> dict[str, str]:
    change = {"started_at": state.get("started_at") or fact.ms, **_furthest(state, "started")}
    if state.get("state") == State.STARTING:
        change |= {"waiting_for": "the app to end", "deadline": ""}
    return change


def _stopping(state: JobState, fact: Fact) -> dict[str, str]:
    change = _furthest(state, "stopped")
    if state.get("state") != State.ABORTING:
        change |= {
            "waiting_for": "the app's process to end",
            "deadline": later(fact.ms, fact.body["ends_within"]),
        }
    return change


def _abort_requested(state: JobState, fact: Fact) -> dict[str, str]:
    body = fact.body
    return {
        **_asked(fact),
        "abort_origin": body["origin"],
        "waiting_for": "the caretaker to end the app",
        "deadline": later(fact.ms, body["grace"] + 5),
    }


def _ended(state: JobState, fact: Fact) -> dict[str, str]:
    body = fact.body
    known = body.get("exit_code") is not None
    return {
        "exit_code": str(body["exit_code"]) if known else "",
        "signal": str(body["signal"]) if body.get("signal") else "",
        "outcome": str(body["outcome"]),
        "duration": str(body["duration"]),
        "ended_at": fact.ms,
        "waiting_for": "",
        "deadline": "",
    }


def _lost(state: JobState, fact: Fact) -> dict[str, str]:
    return {
        "exit_code": "",
        "signal": "",
        "outcome": "",
        "ended_at": fact.ms,
        "waiting_for": "",
        "deadline": "",
        "error": "lost: " + fact.body["reason"],
    }


def _delete_requested(state: JobState, fact: Fact) -> dict[str, str]:
    return {
        **_asked(fact),
        "deletes": str(int(state.get("deletes") or 0) + 1),
        "waiting_for": "the caretaker to remove the run folder",
        "deadline": later(fact.ms, fact.body["deadline"]),
        "error": "",
    }


def _delete_failed(state: JobState, fact: Fact) -> dict[str, str]:
    return {"error": str(fact.body["error"])}


def _deleted(state: JobState, fact: Fact) -> dict[str, str]:
    return {"waiting_for": "", "deadline": "", "error": ""}


RULES: dict[str, Callable[[JobState, Fact], dict[str, str]]] = {
    "DeployRequested": _deploy_requested,
    "DeploySucceeded": _deploy_succeeded,
    "DeployFailed": _failed("deploy"),
    "DeployExpired": _failed("deploy"),
    "StartRequested": _start_requested,
    "LaunchFailed": _launch_ended,
    "LaunchExpired": _launch_ended,
    "AppSpawned": _spawned,
    "AppStarted": _started,
    "AppStopping": _stopping,
    "AbortRequested": _abort_requested,
    "AppFinished": _ended,
    "AppFailed": _ended,
    "AppAborted": _ended,
    "AppLost": _lost,
    "DeleteRequested": _delete_requested,
    "DeleteSucceeded": _deleted,
    "DeleteFailed": _delete_failed,
    "DeleteAbandoned": _failed("delete"),
}

#: Notes that count: event -> counter. The only fields that an append without a revision adds to.
COUNTERS = {
    "CallRefused": "refusals",
    "CallRepeated": "repeats",
    "WorkClaimed": "claims",
    "AbortSignalled": "abort_signals",
    "AppAdopted": "adoptions",
    "LateExit": "late_exits",
    "AuxRequested": "messages_out",
    "AuxFailed": "messages_failed",
    "AuxOutcomeUnknown": "messages_unknown",
    "AuxReceived": "messages_in",
    "TransferOpened": "transfers",
    "TaskReceived": "tasks",
    "TaskDone": "tasks_done",
}
#: Notes whose last writer wins, by nature: event -> the field it sets and how.
LAST_WRITER: dict[str, Callable[[Fact], dict[str, str]]] = {
    "OutputClosed": lambda fact: {
        "output_bytes": str(fact.body["bytes"]),
        "output_sha256": fact.body["sha256"],
    },
    "JobSettled": lambda fact: {"settled": str(fact.body["attempt"])},
    "HoldSet": lambda fact: {"hold": fact.position},
    "HoldLifted": lambda fact: {"hold": ""},
    "Erased": lambda fact: {"erased": fact.ms},
    "LogSharingSet": lambda fact: {"log_sharing": fact.body["what"]},
    "TaskStarted": lambda fact: {"task": fact.body["task"], "task_since": fact.ms},
    "TaskDone": lambda fact: {"task": "", "task_since": "", "last_task": f"{fact.body['task']} {fact.body['code']}"},
}


def counter_of(kind: str, body: Mapping[str, Any]) -> str | None:
    """The counter that an event adds to; what the engine asks its own jobs is nobody's message."""
    return None if body.get("inside") else COUNTERS.get(kind)


def next_state(state: str, event: str) -> str | None:
    """Where a lifecycle event leads from a state; None where it is illegal."""
    return TABLE[event].get(state)


def changes(state: JobState, fact: Fact) -> dict[str, str]:
    """The fields that an event sets.

    Raises:
        Illegal: the event cannot come in this state, or concerns another attempt.
    """
    kind = fact.type
    row = TABLE.get(kind)
    if row is None:
        rule = LAST_WRITER.get(kind)
        change = rule(fact) if rule else {}
        counter = counter_of(kind, fact.body)
        if counter is not None:
            change[counter] = str(int(state.get(counter) or 0) + 1)
        return change
    here = state.get("state", "new")
    there = row.get(here)
    if there is None:
        raise Illegal(f"{kind} cannot come in state {here}")
    attempt = fact.body.get("attempt")
    if attempt is not None:
        expected = state.attempt + (1 if kind == "StartRequested" else 0)
        if attempt != expected:
            raise Illegal(f"{kind} of attempt {attempt}, but the job is at attempt {expected}")
        if kind in ("LaunchFailed", "LaunchExpired") and state.spawned:
            raise Illegal(f"{kind} although the attempt has spawned")
        if kind == "AppSpawned" and state.spawned:
            return {}
    change = RULES[kind](state, fact)
    change["position"] = fact.position
    if there != here:
        change["state"] = there
        change["since"] = fact.ms
    return change


def apply(state: JobState, fact: Fact) -> JobState:
    """The state after an event; raises ``Illegal``."""
    after = JobState(state).seen_with(state.vault)
    after.update(changes(state, fact))
    return after


def work_id(kind: str, job_id: str, state: Mapping[str, str], body: Mapping[str, Any] | None = None) -> str:
    """The id of a job's work, from its state after the event: letters, digits, ``-`` and ``_``.

    A message's and a transfer's have their own id, and a settlement's the attempt that its event names.
    """
    if kind == "aux":
        return f"aux_{body['id'] if body else ''}"
    if kind == "transfer" and body:
        return f"transfer_{'in_' if body['direction'] == 'in' else ''}{body['id']}"  # both ends may be on one record
    if kind == "settle" and body and "attempt" in body:
        return f"settle_{job_id}_{body['attempt']}"
    number = {"deploy": "deploys", "delete": "deletes"}.get(kind, "attempt")
    return f"{kind}_{job_id}_{state.get(number) or 0}"


def fold(events: list[Event]) -> dict[str, JobState]:
    """The states of all jobs after these events."""
    states: dict[str, JobState] = {}
    for event in events:
        job = job_of(event.subject)
        if job is not None:
            states[job] = apply(states.get(job) or JobState(), fact_of(event))
    return states

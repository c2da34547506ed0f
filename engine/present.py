"""A job as people and programs see it: from its projection, with what only reading can tell."""

from __future__ import annotations

import json
from typing import Any

from engine.decide import allowed
from engine.fold import JobState
from engine.jobs import Loaded
from engine.refusals import reasons
from engine.workspace import Workspace, host_name
from events.envelope import iso

OUTCOMES = {
    0: "success",
    1: "execution error",
    9: "aborted",
    101: "exception",
    102: "unsafe component",
    103: "config error",
    104: "infrastructure error",
    127: "unknown",
}


def job(job_id: str, loaded: Loaded, workspace: Workspace | None = None) -> dict[str, Any]:
    """A job's status.

    Args:
        job_id: which job.
        loaded: as the record has it.
        workspace: where given, it is looked up whether a caretaker is there to see the app's end.
    """
    state = loaded.state
    return {
        "job_id": job_id,
        "state": state.state.value,
        "client_status": state.client_status,
        "version": loaded.version,
        "revision": loaded.revision,
        "attempt": state.attempt,
        "app": state.get("app") or state.get("next_app") or None,
        "since": _time(state, "since"),
        "created": _time(state, "created"),
        "asked_by": state.told("asked_by") or None,
        "asked": state.get("asked") or None,
        "reason": state.told("reason") or None,
        "waiting_for": waiting_for(state, workspace),
        "deadline": _time(state, "deadline"),
        "host": state.get("host") or None,
        "network": state.get("network") or None,
        "pid": _number(state, "pid") if state.live else None,
        "task": state.get("task") or None,
        "task_since": _time(state, "task_since"),
        "tasks_done": _number(state, "tasks_done") or 0,
        "messages_out": _number(state, "messages_out") or 0,
        "messages_failed": (_number(state, "messages_failed") or 0) + (_number(state, "messages_unknown") or 0),
        "messages_in": _number(state, "messages_in") or 0,
        "started": _time(state, "started_at"),
        "ended": _time(state, "ended_at"),
        "duration": float(state["duration"]) if state.get("duration") else None,
        "exit_code": _number(state, "exit_code"),
        "signal": _number(state, "signal"),
        "outcome": _number(state, "outcome"),
        "outcome_text": OUTCOMES.get(_number(state, "outcome") or 0) if state.get("outcome") else None,
        "error": state.told("error") or None,
        "resources": json.loads(state.get("resources") or "{}"),
        "output_bytes": _number(state, "output_bytes"),
        "refusals": _number(state, "refusals") or 0,
        "position": loaded.last or None,
        "tasks": _number(state, "tasks") or 0,
        "last_task": state.get("last_task") or None,
        "transfers": _number(state, "transfers") or 0,
        "log_sharing": state.get("log_sharing") or None,
        "settled": _number(state, "settled") == state.attempt if state.attempt else None,
        "held": bool(state.get("hold")),
        "erased": _time(state, "erased"),
        **commands(job_id, state),
    }


def commands(job_id: str, state: JobState) -> dict[str, Any]:
    """What may be asked of a job now, and of all else the code and the reason why not."""
    answers = allowed(state)
    return {
        "allowed": [command for command, code in answers.items() if not code],
        "refused": reasons({command: code for command, code in answers.items() if code}, job_id, state),
    }


def waiting_for(state: JobState, workspace: Workspace | None = None) -> str | None:
    """What a job waits for; a caretaker that is not there is named first."""
    text = state.get("waiting_for") or None
    if text is None or workspace is None or not (state.spawned or "caretaker" in text):
        return text
    host = state.get("host") or host_name()
    if host != host_name():
        return text
    if caretaker_there(workspace):
        return text
    return f"host {host}, which has no caretaker (flightlog up), since {iso(state['since'])}"


def caretaker_there(workspace: Workspace) -> bool:
    """Whether a caretaker of this workspace lives: it holds its lock."""
    from engine.files import FileLock

    probe = FileLock(workspace.flight / "caretaker.lock")
    free = probe.acquire(shared=True, timeout=0)
    probe.release()
    return not free


def _time(state: JobState, name: str) -> str | None:
    return iso(state[name]) if state.get(name) else None


def _number(state: JobState, name: str) -> int | None:
    return int(state[name]) if state.get(name) else None

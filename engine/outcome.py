"""From what the keeper saw to what is recorded: the exit code rules of the reference (2.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.fold import JobState
from engine.lifecycle import State
from events.bodies.app import AppAborted, AppFailed, AppFinished, AppSpawned, AppStarted, LateExit
from events.bodies.app import LaunchExpired as Expired
from events.bodies.app import LaunchFailed as Failed
from events.bodies.base import Body

SUCCESS, EXECUTION_ERROR, ABORTED, INFRASTRUCTURE_ERROR = 0, 1, 9, 104


def resolve(exit_: Mapping[str, Any], *, starting: bool) -> tuple[int, str]:
    """The reference's return code, and where it comes from.

    Args:
        exit_: what the keeper wrote: ``code``, ``signal``, ``signalled_before``, ``rc_file``.
        starting: the app never said that it had started.
    """
    code = exit_["code"]
    outcome = code if code in (SUCCESS, EXECUTION_ERROR, ABORTED) else EXECUTION_ERROR
    source = "process"
    told = _number(exit_.get("rc_file"))
    if told is not None:
        outcome, source = told, "rc_file"
    if exit_["signalled_before"]:
        outcome, source = ABORTED, "process"
    if starting and outcome == EXECUTION_ERROR:
        outcome, source = INFRASTRUCTURE_ERROR, "launcher"
    return outcome, source


def _number(text: str | None) -> int | None:
    lines = (text or "").strip().splitlines()
    try:
        return int(lines[0]) if lines else None
    except ValueError:
        return None


def spawn_bodies(state: JobState, attempt: int, identity: Mapping[str, Any], spec: Mapping[str, Any]) -> list[Body]:
    """What the disk proves of a spawn, where the record does not have it yet."""
    bodies: list[Body] = [
        AppSpawned(
            attempt=attempt,
            host=spec["host"],
            keeper_pid=identity["inner"][0],
            pid=identity["pid"],
            start_ticks=identity["start_ticks"],
            argv_sha256=spec["argv_sha256"],
            started_by=spec["started_by"],
            started_within=spec["started_within"] if spec["started_by"] == "notify" else None,
            isolation="none",
            # It had just that: an app that cannot be taken off the network is not run. Older specs do not say.
            network=spec.get("network", "open"),
            run_key=spec.get("run_key"),
        )
    ]
    if spec["started_by"] == "launcher" and state.state in (State.STARTING, State.ABORTING):
        bodies.append(AppStarted(attempt=attempt, by="launcher"))
    return bodies


def end_bodies(
    state: JobState,
    attempt: int,
    exit_: Mapping[str, Any],
    identity: Mapping[str, Any] | None,
    spec: Mapping[str, Any] | None,
) -> list[Body]:
    """What is to be recorded of an attempt's end, in this state; nothing where it is recorded already.

    Args:
        state: the job's state now.
        attempt: whose end it is.
        exit_: what the keeper wrote at the end.
        identity: what it wrote at the spawn.
        spec: what it was given.
    """
    current = state.live and state.attempt == attempt
    if not exit_["ran"]:
        if not current or state.spawned:
            return []
        if exit_["why"] == "aborted":
            return [Expired(attempt=attempt, why="aborted")]
        return [Failed(attempt=attempt, code=exit_["why"], error=exit_["error"])]
    before: list[Body] = []
    if current and not state.spawned and identity is not None and spec is not None:
        before = spawn_bodies(state, attempt, identity, spec)
    started = state.state is not State.STARTING or any(isinstance(b, AppStarted) for b in before)
    outcome, source = resolve(exit_, starting=not started)
    cls: type[AppFinished | AppFailed | AppAborted | LateExit]
    if not current:
        cls = LateExit
    elif outcome == SUCCESS:
        cls = AppFinished
    elif outcome == ABORTED:
        cls = AppAborted
    else:
        cls = AppFailed
    end = cls.model_validate(
        {
            "attempt": attempt,
            "exit_code": exit_["code"],
            "signal": exit_["signal"],
            "outcome": outcome,
            "code_source": source,
            "duration": round(max(0.0, exit_["seconds"]), 3),
            "signalled_before": exit_["signalled_before"],
            "killed": exit_["killed"],
        }
    )
    return [*before, end]

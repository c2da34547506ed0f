"""From what the keeper saw to what is recorded: the exit code rules of the reference (2.3)."""

from __future__ import annotations

from typing import Any

import pytest

from engine.fold import JobState, apply
from engine.outcome import end_bodies, resolve, spawn_bodies
from events.bodies.base import Body
from tests.histories import event, fact, legal

IDENTITY = {"inner": [10, 100], "outer": [9, 99], "pid": 11, "start_ticks": 12}
SPEC = {"host": "h", "argv_sha256": "ab", "started_by": "launcher", "started_within": 60.0}
BY_NOTIFY = {**SPEC, "started_by": "notify"}


def an_exit(**fields: Any) -> dict[str, Any]:
    """What a keeper writes at the end."""
    return {
        "ran": True,
        "code": 0,
        "signal": None,
        "signalled_before": False,
        "rc_file": None,
        "seconds": 1.23456,
        "killed": 0,
        **fields,
    }


def a_job(*names: str) -> JobState:
    """A job with a first attempt that has come to some point."""
    state = JobState()
    for name in ("DeployRequested", "DeploySucceeded", "StartRequested", *names):
        state = apply(state, fact(event(name, state)))
    return state


def told(bodies: list[Body]) -> list[str]:
    """Types."""
    return [body.name() for body in bodies]


#: (code, rc_file, signalled before, never said that it had started) -> (outcome, source)
RULES = [
    ((0, None, False, False), (0, "process")),
    ((1, None, False, False), (1, "process")),
    ((9, None, False, False), (9, "process")),
    # A code that the reference's launcher does not know is an execution error.
    ((2, None, False, False), (1, "process")),
    ((101, None, False, False), (1, "process")),
    ((104, None, False, False), (1, "process")),
    ((127, None, False, False), (1, "process")),
    ((255, None, False, False), (1, "process")),
    # A signal that was not ours: no code, hence an execution error.
    ((None, None, False, False), (1, "process")),
    # The file that the app leaves goes over the process's code.
    ((0, "101", False, False), (101, "rc_file")),
    ((1, "0", False, False), (0, "rc_file")),
    ((None, "103\n", False, False), (103, "rc_file")),
    ((0, "102\nmore\n", False, False), (102, "rc_file")),
    ((0, "  9  \n", False, False), (9, "rc_file")),
    # What cannot be read leaves the process's code.
    ((3, "", False, False), (1, "process")),
    ((0, "not a number", False, False), (0, "process")),
    ((0, "\n\n", False, False), (0, "process")),
    ((0, "1.5", False, False), (0, "process")),
    # An end after our signal is an abort, whatever the code says.
    ((0, None, True, False), (9, "process")),
    ((None, None, True, False), (9, "process")),
    ((1, "101", True, False), (9, "process")),
    # An execution error before it said that it had started is the infrastructure's.
    ((1, None, False, True), (104, "launcher")),
    ((None, None, False, True), (104, "launcher")),
    ((77, None, False, True), (104, "launcher")),
    ((0, "1", False, True), (104, "launcher")),
    ((0, None, False, True), (0, "process")),
    ((9, None, False, True), (9, "process")),
    ((1, "101", False, True), (101, "rc_file")),
    ((1, None, True, True), (9, "process")),
]


@pytest.mark.parametrize(("seen", "expected"), RULES, ids=[str(seen) for seen, _ in RULES])
def test_the_return_code_in_the_references_terms(seen, expected):
    code, rc_file, signalled, starting = seen
    given = an_exit(code=code, rc_file=rc_file, signalled_before=signalled)
    assert resolve(given, starting=starting) == expected


def test_an_exit_without_a_return_code_file_needs_no_field_for_it():
    given = an_exit(code=1)
    del given["rc_file"]
    assert resolve(given, starting=False) == (1, "process")


@pytest.mark.parametrize(
    ("given", "type_", "outcome"),
    [
        (an_exit(), "AppFinished", 0),
        (an_exit(code=1), "AppFailed", 1),
        (an_exit(code=5), "AppFailed", 1),
        (an_exit(code=9), "AppAborted", 9),
        (an_exit(code=None, signal=9), "AppFailed", 1),
        (an_exit(code=None, signal=15, signalled_before=True, killed=2), "AppAborted", 9),
        (an_exit(code=0, signalled_before=True), "AppAborted", 9),
        (an_exit(code=0, rc_file="103"), "AppFailed", 103),
        (an_exit(code=1, rc_file="0"), "AppFinished", 0),
    ],
)
@pytest.mark.parametrize("point", ["running", "finishing", "aborting"])
def test_the_end_of_a_live_app_is_recorded_with_its_code(point, given, type_, outcome):
    more = {"finishing": ("AppStopping",), "aborting": ("AbortRequested",)}.get(point, ())
    state = a_job("AppSpawned", "AppStarted", *more)
    assert state.state == point
    (end,) = end_bodies(state, 1, given, IDENTITY, SPEC)
    assert end.name() == type_
    facts = end.model_dump()
    assert (facts["exit_code"], facts["signal"], facts["outcome"]) == (given["code"], given["signal"], outcome)
    assert (facts["attempt"], facts["duration"], facts["killed"]) == (1, 1.235, given["killed"])
    assert legal(state, end)


def test_an_app_that_dies_before_it_said_started_failed_by_the_infrastructure():
    state = a_job("AppSpawned")
    (end,) = end_bodies(state, 1, an_exit(code=1), IDENTITY, BY_NOTIFY)
    assert (end.name(), end.outcome, end.code_source, end.exit_code) == ("AppFailed", 104, "launcher", 1)


def test_an_app_that_ended_well_while_it_was_being_aborted_but_before_any_signal_has_finished():
    state = a_job("AppSpawned", "AppStarted", "AbortRequested")
    (end,) = end_bodies(state, 1, an_exit(), IDENTITY, SPEC)
    assert end.name() == "AppFinished"
    assert apply(state, fact(end)).state == "finished"


@pytest.mark.parametrize(
    ("spec", "types", "outcome"),
    [
        (SPEC, ["AppSpawned", "AppStarted", "AppFailed"], 1),
        (BY_NOTIFY, ["AppSpawned", "AppFailed"], 104),
    ],
)
def test_l5_an_end_whose_spawn_nobody_recorded_is_recorded_with_the_spawn_that_the_disk_proves(spec, types, outcome):
    state = a_job()
    bodies = end_bodies(state, 1, an_exit(code=1), IDENTITY, spec)
    assert told(bodies) == types
    assert bodies[-1].outcome == outcome
    spawned = bodies[0]
    assert (spawned.pid, spawned.keeper_pid, spawned.start_ticks, spawned.host) == (11, 10, 12, "h")
    for body in bodies:
        assert legal(state, body)
        state = apply(state, fact(body))
    assert state.state == "failed"


@pytest.mark.parametrize("notice", ["AppStarted", "AppStopping"])
def test_l5_an_end_can_be_recorded_although_a_notice_overtook_the_record_of_the_spawn(notice):
    state = a_job()
    if legal(state, event(notice, state)):  # it may as well be refused until the spawn is on the record
        state = apply(state, fact(event(notice, state)))
    bodies = end_bodies(state, 1, an_exit(), IDENTITY, BY_NOTIFY)
    assert bodies
    for body in bodies:
        assert legal(state, body), f"{body.name()} cannot come in {state.state}"
        state = apply(state, fact(body))
    assert state.state == "finished"


def test_a_spawn_says_who_will_say_that_the_app_has_started_and_within_what_time():
    (spawned, started) = spawn_bodies(a_job(), 1, IDENTITY, SPEC)
    assert (spawned.started_by, spawned.started_within) == ("launcher", None)
    assert (started.name(), started.by) == ("AppStarted", "launcher")
    (spawned,) = spawn_bodies(a_job(), 1, IDENTITY, BY_NOTIFY)
    assert (spawned.started_by, spawned.started_within) == ("notify", 60.0)


def test_an_app_that_never_ran_is_a_launch_that_failed_or_was_aborted():
    given = {"ran": False, "why": "COMMAND_NOT_FOUND", "error": "no such file"}
    (failed,) = end_bodies(a_job(), 1, given, None, SPEC)
    assert (failed.name(), failed.code, failed.error) == ("LaunchFailed", "COMMAND_NOT_FOUND", "no such file")
    (expired,) = end_bodies(a_job("AbortRequested"), 1, {**given, "why": "aborted"}, None, SPEC)
    assert (expired.name(), expired.why) == ("LaunchExpired", "aborted")


@pytest.mark.parametrize("end", ["AppFinished", "AppLost", "AppAborted"])
def test_l4_the_end_of_an_attempt_that_is_closed_is_a_late_exit(end):
    state = a_job("AppSpawned", "AppStarted", end)
    assert told(end_bodies(state, 1, an_exit(code=1), IDENTITY, SPEC)) == ["LateExit"]
    later = apply(state, fact(event("StartRequested", state)))
    assert told(end_bodies(later, 1, an_exit(), IDENTITY, SPEC)) == ["LateExit"], "the second attempt is not touched"


def test_l4_a_launch_that_never_ran_is_not_recorded_twice():
    given = {"ran": False, "why": "BAD_CONFIG", "error": "x"}
    assert end_bodies(a_job("LaunchFailed"), 1, given, None, None) == []
    assert end_bodies(a_job("AppSpawned"), 1, given, IDENTITY, SPEC) == []
    again = a_job("LaunchFailed", "StartRequested")
    assert end_bodies(again, 1, given, None, None) == []
    assert told(end_bodies(again, 2, given, None, None)) == ["LaunchFailed"]


def test_an_end_without_a_duration_that_makes_sense_is_recorded_as_none():
    (end,) = end_bodies(a_job("AppSpawned", "AppStarted"), 1, an_exit(seconds=-3.0), IDENTITY, SPEC)
    assert end.duration == 0.0

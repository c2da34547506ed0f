"""``kill -9`` of one half of a keeper, of the other, of both, of the caretaker, and of the app itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.rig import Rig, counting_app, one, runs_of, types
from tests.support import kill, processes_with, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]


@pytest.mark.parametrize("half", ["inner", "outer"])
def test_L5_the_exit_code_is_seen_when_half_of_the_keeper_is_killed(rig: Rig, tmp_path: Path, half: str) -> None:
    go, runs = tmp_path / "go", tmp_path / "runs"
    rig.start()
    rig.deploy("job", *counting_app(runs, f"while [ ! -e {go} ]; do sleep 0.05; done", "exit 42"))
    rig.start_app("job")
    kill(rig.identity("job")[half][0])
    go.touch()
    rig.in_state("job", "failed")
    assert one(rig.check(), "job", "AppFailed")["exit_code"] == 42
    assert runs_of(runs) == ["1"]


def test_L8_an_abort_works_with_half_a_keeper(rig: Rig) -> None:
    rig.start()
    rig.deploy("job", "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    rig.start_app("job")
    kill(rig.identity("job")["inner"][0])
    with rig.client(grace=0.3) as engine:
        engine.abort_app("job")
    rig.in_state("job", "aborted")
    body = one(rig.check(), "job", "AppAborted")
    assert body["signalled_before"] is True
    assert body["killed"] >= 1


def test_L5_both_halves_gone_is_lost_without_an_invented_code_and_nothing_is_left(rig: Rig, tmp_path: Path) -> None:
    mark = f"lost-{tmp_path.name}"
    rig.start()
    rig.deploy("job", "sh", "-c", f"(setsid sleep 1000 & ) ; sleep 1000; echo {mark}")
    rig.start_app("job")
    identity = rig.identity("job")
    until(lambda: len(_sleepers(rig)) >= 3, 10)
    kill(identity["inner"][0])
    kill(identity["outer"][0])
    rig.in_state("job", "failed")
    events = rig.check()
    lost = one(events, "job", "AppLost")
    assert "exit_code" not in lost
    with rig.looking() as jobs:
        assert jobs.load("job").state["exit_code"] == ""
    assert _sleepers(rig) == []


def _sleepers(rig: Rig) -> list[int]:
    return processes_with(f"FLIGHTLOG_RUN_DIR={rig.workspace.run('job')}")


@pytest.mark.parametrize("when", ["while it runs", "as it exits"])
def test_L5_the_exit_is_recorded_when_the_caretaker_is_killed(rig: Rig, tmp_path: Path, when: str) -> None:
    go = tmp_path / "go"
    rig.start()
    rig.deploy("job", "sh", "-c", f"while [ ! -e {go} ]; do sleep 0.05; done; exit 13")
    rig.start_app("job")
    pool = rig.pool_pid()
    if when == "as it exits":
        go.touch()
        until((rig.workspace.attempt("job", 1) / "exit.json").exists, 20)
        kill(pool)
    else:
        kill(pool)
        go.touch()
    rig.in_state("job", "failed")
    assert one(rig.check(), "job", "AppFailed")["exit_code"] == 13


def test_an_app_that_is_killed_from_outside_failed_with_that_signal(rig: Rig) -> None:
    rig.start()
    rig.deploy("job", "sleep", "1000")
    rig.start_app("job")
    kill(rig.identity("job")["pid"])
    rig.in_state("job", "failed")
    body = one(rig.check(), "job", "AppFailed")
    assert (body["exit_code"], body["signal"], body["signalled_before"]) == (None, 9, False)


def test_an_app_that_exits_in_no_time_is_recorded_in_order(rig: Rig, tmp_path: Path) -> None:
    rig.start()
    for number in range(5):
        job = f"job-{number}"
        rig.deploy(job, "true")
        rig.start_app(job)
        rig.in_state(job, "finished")
    events = rig.check()
    for number in range(5):
        told = [t for t in types(events, f"job-{number}") if t.startswith("App")]
        assert told == ["AppSpawned", "AppStarted", "AppFinished"]


def test_an_app_that_was_declared_lost_may_not_run_on_and_its_end_is_a_late_exit(rig: Rig) -> None:
    rig.start()
    rig.deploy("job", "sleep", "1000")
    rig.start_app("job")
    with rig.client() as engine:
        engine.declare_lost("job", "the host will not come back")
    rig.in_state("job", "failed")
    with rig.looking() as jobs:
        until(lambda: jobs.load("job").state.get("late_exits") == "1", 20)
    events = rig.check()
    assert one(events, "job", "LateExit")["signalled_before"] is True
    assert one(events, "job", "AppLost")["declared_by"]


def _remove(folder: Path) -> None:
    """Remove a folder in which somebody may be writing just now."""

    def gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    until(gone, 5)


def test_L5_an_app_whose_keepers_papers_were_removed_is_ended_and_lost(rig: Rig) -> None:
    rig.start()
    rig.deploy("job", "sleep", "1000")
    rig.start_app("job")
    pid = rig.identity("job")["pid"]
    _remove(rig.workspace.attempt("job", 1))
    rig.in_state("job", "failed")
    until(lambda: not Path(f"/proc/{pid}").exists(), 10, "the app runs on, unseen")
    one(rig.check(), "job", "AppLost")

"""``kill -9`` of the engine, and what must come of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.rig import Rig, counting_app, one, runs_of, types
from tests.support import until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]


def test_L1_a_deploy_survives_the_engine_that_asked_for_it(rig: Rig) -> None:
    rig.start()
    rig.fault("deploy-staged", "stop")
    rig.ask_deploy("job", "true")
    rig.struck("deploy-staged")
    rig.kill_up()
    rig.start()
    rig.in_state("job", "deployed")
    events = rig.check()
    assert types(events, "job").count("DeploySucceeded") == 1
    until(lambda: not list(rig.workspace.staging.iterdir()), 20, "what the dead worker unpacked stays")


def test_L1_a_launch_survives_the_engine_that_asked_for_it(rig: Rig, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    rig.start()
    rig.deploy("job", *counting_app(runs, "exit 4"))
    rig.fault("launch-claimed", "stop")
    rig.ask_start("job")
    rig.struck("launch-claimed")
    rig.kill_up()
    rig.start()
    rig.in_state("job", "failed")
    events = rig.check()
    assert one(events, "job", "AppFailed")["exit_code"] == 4
    assert runs_of(runs) == ["1"]


def test_L5_a_running_app_outlives_the_engine_and_is_taken_back(rig: Rig, tmp_path: Path) -> None:
    go, runs = tmp_path / "go", tmp_path / "runs"
    rig.start()
    rig.deploy("job", *counting_app(runs, f"while [ ! -e {go} ]; do sleep 0.05; done", "exit 42"))
    rig.start_app("job")
    pid = rig.identity("job")["pid"]
    rig.kill_up()
    rig.start()
    with rig.looking() as jobs:
        assert jobs.load("job").state["pid"] == str(pid)
        until(lambda: jobs.load("job").state.get("adoptions") == "1", 20)
    go.touch()
    rig.in_state("job", "failed")
    events = rig.check()
    assert one(events, "job", "AppFailed")["exit_code"] == 42
    assert "AppAdopted" in types(events, "job")
    assert runs_of(runs) == ["1"]


def test_L5_an_app_that_ends_while_nobody_is_there_is_recorded_by_the_next_engine(rig: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"
    rig.start()
    rig.deploy("job", "sh", "-c", f"while [ ! -e {go} ]; do sleep 0.05; done; exit 7")
    rig.start_app("job")
    exit_file = rig.workspace.attempt("job", 1) / "exit.json"
    rig.kill_up()
    until(rig.pool_gone, 20)
    go.touch()
    until(exit_file.exists, 20)
    rig.start()
    rig.in_state("job", "failed")
    assert one(rig.check(), "job", "AppFailed")["exit_code"] == 7

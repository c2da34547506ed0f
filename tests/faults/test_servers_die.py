"""``kill -9`` of the record and of the fabric, and the loss of everything that derives from the log."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from events.read import read
from events.store import connect
from tests.faults.rig import Rig, counting_app, one, runs_of, types
from tests.support import kill, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]


def test_L5_the_record_dies_while_the_app_runs(rig: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"
    rig.start()
    rig.deploy("job", "sh", "-c", f"while [ ! -e {go} ]; do sleep 0.05; done; exit 21")
    rig.start_app("job")
    rig.kill_server("record")
    go.touch()
    rig.in_state("job", "failed")
    assert one(rig.check(), "job", "AppFailed")["exit_code"] == 21


def test_L5_the_record_dies_exactly_as_the_app_exits(rig: Rig, tmp_path: Path) -> None:
    rig.start()
    for number in range(4):
        go, job = tmp_path / f"go-{number}", f"job-{number}"
        rig.deploy(job, "sh", "-c", f"while [ ! -e {go} ]; do :; done; exit 22")
        rig.start_app(job)
        pid = until(rig.server("record").pid, 10)
        go.touch()
        if number % 2:
            until((rig.workspace.attempt(job, 1) / "exit.json").exists, 20)
        kill(pid)
        rig.in_state(job, "failed")
    events = rig.check()
    for number in range(4):
        assert one(events, f"job-{number}", "AppFailed")["exit_code"] == 22


def test_L2_the_fabric_dies_while_work_is_queued(rig: Rig) -> None:
    rig.start(pool="elsewhere")
    rig.ask_deploy("job", "true")
    rig.kill_server("fabric")
    rig.stop()
    rig.start()
    rig.in_state("job", "deployed")
    events = rig.check()
    with rig.looking() as jobs:
        until(lambda: "WorkRerung" in [event.type for event in read(jobs.store)], 10)
    assert types(events, "job").count("DeploySucceeded") == 1


@pytest.mark.parametrize("place", ["deploy-claimed", "launch-claimed"])
def test_L2_the_fabric_dies_while_work_runs(rig: Rig, tmp_path: Path, place: str) -> None:
    runs = tmp_path / "runs"
    rig.start()
    if place == "launch-claimed":
        rig.deploy("job", *counting_app(runs, "exit 0"))
    rig.fault(place, "stop")
    if place == "launch-claimed":
        rig.ask_start("job")
    else:
        rig.ask_deploy("job", *counting_app(runs, "exit 0"))
    rig.struck(place)
    rig.kill_server("fabric")
    if place == "deploy-claimed":
        rig.in_state("job", "deployed")
        rig.start_app("job")
    rig.in_state("job", "finished")
    rig.check()
    assert runs_of(runs) == ["1"]


@pytest.mark.parametrize("when", ["deploying", "launching", "running", "exited"])
def test_L2_all_that_derives_from_the_log_is_deleted(rig: Rig, tmp_path: Path, when: str) -> None:
    runs, go = tmp_path / "runs", tmp_path / "go"
    app = counting_app(runs, f"while [ ! -e {go} ]; do sleep 0.05; done", "exit 11")
    rig.start()
    if when == "deploying":
        rig.fault("deploy-staged", "stop")
        rig.ask_deploy("job", *app)
        rig.struck("deploy-staged")
        wipe(rig)
        rig.in_state("job", "deployed")
    else:
        rig.deploy("job", *app)
    if when == "launching":
        rig.fault("launch-claimed", "stop")
        rig.ask_start("job")
        rig.struck("launch-claimed")
        wipe(rig)
    else:
        rig.start_app("job")
    rig.in_state("job", "running")
    if when == "running":
        wipe(rig)
    go.touch()
    if when == "exited":
        until((rig.workspace.attempt("job", 1) / "exit.json").exists, 20)
        wipe(rig)
    rig.in_state("job", "failed")
    events = rig.check()
    assert one(events, "job", "AppFailed")["exit_code"] == 11
    assert runs_of(runs) == ["1"]
    with rig.looking() as jobs:
        until(lambda: "ProjectionRebuilt" in [event.type for event in read(jobs.store)], 10)


def wipe(rig: Rig) -> None:
    """Delete every projection, counter, dedupe key and RQ key; waits for a server that is on its way back."""
    record, fabric = _back(rig, "record"), _back(rig, "fabric")
    # At once: who writes them anew meanwhile would find a half of them.
    if names := [name for name in record.scan_iter(match="*", count=1000) if not name.endswith(":log")]:
        record.delete(*names)
    record.close()
    if names := list(fabric.scan_iter(match="*", count=1000)):
        fabric.delete(*names)
    fabric.close()


def _back(rig: Rig, role: str) -> Redis:
    server = connect(rig.server(role).url)

    def answers() -> bool:
        try:
            return bool(server.ping())
        except RedisError:
            return False

    until(answers, 20, f"the {role} does not come back: {rig.said()}")
    return server

"""``kill -9`` and SIGSTOP of workers, at every place between claim and record."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from engine.network import on_network
from engine.overview import overview
from tests.faults.rig import Rig, counting_app, one, runs_of, types
from tests.support import kill, processes_with, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]


@pytest.mark.parametrize("action", ["kill", "stop"])
@pytest.mark.parametrize("place", ["deploy-claimed", "deploy-staged", "deploy-locked", "deploy-before-record"])
def test_L4_a_deploy_happens_once_whatever_its_worker_comes_to(rig: Rig, place: str, action: str) -> None:
    rig.start()
    rig.fault(place, action)
    rig.ask_deploy("job", "true")
    rig.struck(place)
    rig.in_state("job", "deployed")
    events = rig.check()
    assert types(events, "job").count("DeploySucceeded") == 1
    assert (rig.workspace.app("job") / "config" / "config_fed_client.json").exists()


@pytest.mark.parametrize("action", ["kill", "stop"])
@pytest.mark.parametrize("place", ["launch-claimed", "launch-locked", "launch-before-record"])
def test_L4_an_app_is_launched_once_whatever_its_worker_comes_to(
    rig: Rig, tmp_path: Path, place: str, action: str
) -> None:
    runs, go = tmp_path / "runs", tmp_path / "go"
    rig.start()
    rig.deploy("job", *counting_app(runs, f"while [ ! -e {go} ]; do sleep 0.05; done", "exit 5"))
    rig.fault(place, action)
    rig.ask_start("job")
    rig.struck(place)
    rig.in_state("job", "running")
    go.touch()
    rig.in_state("job", "failed")
    events = rig.check()
    assert types(events, "job").count("AppSpawned") == 1
    assert one(events, "job", "AppFailed")["exit_code"] == 5
    assert runs_of(runs) == ["1"]


@pytest.mark.parametrize("place", ["launch-claimed", "launch-locked", "launch-before-record"])
def test_L4_a_launch_that_passes_to_a_second_worker_takes_the_app_off_the_network_all_the_same(
    rig: Rig, tmp_path: Path, place: str
) -> None:
    seen = tmp_path / "seen"
    rig.start()
    rig.deploy("job", "sh", "-c", f"cut -d: -f1 -s /proc/net/dev >> {seen}")
    rig.fault(place, "kill")
    with on_network("none"):
        rig.ask_start("job")
    rig.struck(place)
    rig.in_state("job", "finished")
    assert one(rig.check(), "job", "AppSpawned")["network"] == "none"
    assert seen.read_text().split() == ["lo"]


def test_L5_an_app_that_ended_before_its_launch_was_recorded_has_both_on_the_record(rig: Rig, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    rig.start()
    rig.deploy("job", *counting_app(runs, "exit 6"))
    rig.fault("launch-before-record", "kill")
    rig.ask_start("job")
    rig.struck("launch-before-record")
    rig.in_state("job", "failed")
    events = rig.check()
    assert one(events, "job", "AppFailed")["exit_code"] == 6
    assert types(events, "job").count("AppSpawned") == 1
    assert runs_of(runs) == ["1"]


def test_L4_a_worker_that_was_stopped_until_its_twin_had_finished_changes_nothing(rig: Rig, tmp_path: Path) -> None:
    """It claims from another host's name, so that no caretaker here may end it: only the fence is left."""
    go = tmp_path / "go"
    rig.start(pool="elsewhere")
    rig.fault("deploy-staged", "stop")
    slow = rig.worker("unshare", "--uts", "sh", "-c", 'hostname elsewhere; exec "$0" "$@"')
    rig.ask_deploy("job", "sh", "-c", f"while [ ! -e {go} ]; do sleep 0.05; done")
    stopped = rig.struck("deploy-staged")
    rig.stop()
    rig.start()
    rig.in_state("job", "deployed")
    rig.start_app("job")
    receipt = rig.workspace.receipt("job")
    inode = rig.workspace.run("job").stat().st_ino
    os.kill(stopped, signal.SIGCONT)
    until(lambda: not list(rig.workspace.staging.iterdir()), 20, "the late worker did not clean up")
    slow.terminate()
    slow.wait(20)
    assert rig.workspace.receipt("job") == receipt
    assert rig.workspace.run("job").stat().st_ino == inode
    go.touch()
    rig.in_state("job", "finished")
    events = rig.check()
    assert types(events, "job").count("DeploySucceeded") == 1


def test_a_worker_that_dies_is_replaced_and_that_is_on_the_record(rig: Rig) -> None:
    rig.start(workers=1)
    rig.deploy("job", "true")
    pool = rig.pool_pid()
    children = [int(p) for p in Path(f"/proc/{pid_task(pool)}/children").read_text().split()]
    for child in children:
        if b"worker" in Path(f"/proc/{child}/cmdline").read_bytes():
            kill(child)
    rig.deploy("job", "true")
    events = rig.check()
    assert any(e.type == "WorkerDied" and e.body["returncode"] == -9 for e in events)


def pid_task(pid: int) -> str:
    """The main thread of a process, below /proc."""
    return f"{pid}/task/{pid}"


def test_work_whose_every_worker_dies_is_failed_after_its_attempts(rig: Rig) -> None:
    rig.start(lease=4.0)
    rig.fault("deploy-staged", "kill")
    rig.ask_deploy("job", "true")
    for _ in range(2):
        rig.struck("deploy-staged")
        rig.fault("deploy-staged", "kill")
    rig.in_state("job", "deploy_failed", seconds=60)
    assert one(rig.check(), "job", "DeployFailed")["code"] == "ATTEMPTS"


def test_L8_an_abort_is_not_held_up_by_a_worker_that_was_stopped_with_the_jobs_lock(rig: Rig, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    rig.start(lease=6.0)
    rig.deploy("job", *counting_app(runs, "sleep 1000"))
    with rig.client(abort_timeout=0.1) as engine:
        rig.fault("launch-locked", "stop")
        rig.ask_start("job")
        rig.struck("launch-locked")
        engine.abort_app("job")
    rig.in_state("job", "aborted")
    rig.check()
    assert runs_of(runs) == []


def test_workers_whose_pool_was_killed_end_and_those_of_the_next_pool_remain(rig: Rig) -> None:
    rig.start()

    def workers() -> set[int]:
        return set(processes_with("workers\0worker\0")) & set(processes_with(str(rig.root)))

    until(lambda: len(workers()) == 2, 20)
    before = workers()
    kill(rig.pool_pid())
    until(lambda: len(workers()) == 2 and not workers() & before, 30, "the old pool's workers stay")
    rig.deploy("job", "true")
    rig.check()


def test_workers_are_back_within_seconds_of_a_fabric_that_was_away(rig: Rig) -> None:
    rig.start()
    rig.deploy("job", "true")
    for _ in range(2):
        rig.kill_server("fabric")
        time.sleep(1.0)
    began = time.monotonic()
    rig.deploy("job", "true")
    assert time.monotonic() - began < 10
    with rig.client() as engine:
        until(lambda: len(overview(engine.site)["workers"]) == 2, 40, "the workers are not registered again")

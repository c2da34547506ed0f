"""Intents that nobody takes, that come late, or that cannot be carried out; two engines on one site."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from engine.errors import NoWorker
from tests.faults.rig import Rig, counting_app, one, runs_of, types
from tests.support import in_state, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]


def test_L1_an_intent_that_outlived_its_deadline_never_fires(rig: Rig, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    rig.start()
    rig.deploy("job", *counting_app(runs, "true"))
    rig.stop()
    from engine.calls.start import Allotment, start

    with rig.client(pool="elsewhere", claim_deadline=0.5) as engine:
        start(engine.core, engine.core.call("start_app", "job"), "job", None, Allotment(), timeout=0)
        deadline = int(engine.site.jobs.load("job").state["deadline"])
        until(lambda: engine.site.jobs.store.now_ms() > deadline, 10)
    rig.start()
    rig.in_state("job", "launch_failed")
    assert one(rig.check(), "job", "LaunchExpired")["why"] == "deadline"
    assert runs_of(runs) == []


def test_L1_a_start_that_its_caller_withdrew_never_fires(rig: Rig, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    rig.start()
    rig.deploy("job", *counting_app(runs, "true"))
    rig.stop()
    with rig.client(pool="elsewhere", start_timeout=0.3) as engine, pytest.raises(NoWorker, match="withdrawn"):
        engine.start_app("job", {})
    rig.start()
    rig.deploy("job", *counting_app(runs, "true"))  # the bell of the withdrawn start has been heard by now
    rig.in_state("job", "deployed")
    events = rig.check()
    assert one(events, "job", "LaunchExpired")["why"] == "withdrawn"
    assert runs_of(runs) == []


def test_a_delete_that_cannot_finish_is_given_up_and_says_why(rig: Rig) -> None:
    rig.start()
    rig.deploy("job", "true")
    stuck = rig.workspace.app("job") / "stuck"
    stuck.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(stuck)], check=True)
    try:
        with rig.client() as engine:
            from engine.calls.delete import delete

            delete(engine.core, "job", timeout=0)
        rig.in_state("job", "delete_failed")
        events = rig.check()
        assert types(events, "job").count("DeleteFailed") == 3
        assert "busy" in one(events, "job", "DeleteAbandoned")["error"].lower()
    finally:
        found = next(path for path in rig.root.rglob("stuck") if path.is_mount())
        subprocess.run(["umount", str(found)], check=True)
    with rig.client(delete_timeout=30) as engine:
        assert engine.delete_run("job").startswith("Delete run folder")
    rig.check()
    assert not list(rig.workspace.trash.iterdir())


def test_a_second_engine_on_a_site_is_a_client(rig: Rig) -> None:
    rig.start()
    with rig.client() as engine:
        assert engine.role == "client"
        assert engine.get_component("nothing") is None
        rig.deploy("job", "sleep", "1000")
        assert engine.start_app("job", {}) == "Start the client app..."
        assert engine.get_all_job_ids() == ["job"]
        engine.abort_app("job")
    rig.in_state("job", "aborted")
    with rig.looking() as jobs:
        until(lambda: jobs.load("job").state.get("settled") == "1", 20)
    events = rig.check()
    assert [e.body["event"] for e in events if e.type == "FLEventFired"].count("_job_completed") == 1


def test_two_starts_at_once_launch_one_app(rig: Rig, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    runs = tmp_path / "runs"
    rig.start()
    done = tmp_path / "done"
    rig.deploy("job", *counting_app(runs, f"while [ ! -e {done} ]; do sleep 0.05; done"))
    with rig.client() as one_engine, rig.client() as other, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(_outcome, engine, "job") for engine in (one_engine, other, one_engine, other)]
        answers = [future.result() for future in asked]
        done.touch()
        assert sum(answer == "Start the client app..." for answer in answers) == 1, answers
        in_state(one_engine.site.jobs, "job", "finished")
    rig.check()
    assert runs_of(runs) == ["1"]


def _outcome(engine, job: str) -> str:  # type: ignore[no-untyped-def]
    try:
        return engine.start_app(job, {})
    except RuntimeError as error:
        return str(error)

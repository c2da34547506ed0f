"""Aborts: from every live state, while launching, with Redis down, and of trees that do not want to go (L8)."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.calls.start import Allotment, start
from engine.orders import start_ticks
from events.store import connect
from tests.faults.rig import Rig, counting_app, one, runs_of, types
from tests.support import processes_with, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]


def test_L8_an_abort_while_launching_holds(rig: Rig, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    rig.start(lease=6.0)
    rig.deploy("job", *counting_app(runs, "sleep 1000"))
    with rig.client(abort_timeout=0.1) as engine:
        rig.fault("launch-claimed", "stop")
        rig.ask_start("job")
        rig.struck("launch-claimed")
        assert engine.abort_app("job") == "Abort signal has been sent to the client App."
    rig.in_state("job", "aborted")
    events = rig.check()
    assert one(events, "job", "LaunchExpired")["why"] == "aborted"
    assert runs_of(runs) == []


def test_L8_an_abort_of_a_queued_start_withdraws_it_for_good(rig: Rig, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    rig.start(workers=1, lease=6.0)
    rig.deploy("job", *counting_app(runs, "true"))
    rig.deploy("other", "true")
    with rig.client() as engine:
        rig.fault("deploy-claimed", "stop")
        rig.ask_deploy("other", "true")  # the only worker is busy from here on, for as long as its lease
        rig.struck("deploy-claimed")
        start(engine.core, engine.core.call("start_app", "job"), "job", None, Allotment(), timeout=0)
        engine.abort_app("job")
    rig.in_state("job", "aborted")
    rig.in_state("other", "deployed")
    rig.check()
    assert runs_of(runs) == []


def test_L8_an_abort_of_a_queued_start_with_redis_down_never_launches(rig: Rig, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    rig.start()
    rig.deploy("job", *counting_app(runs, "sleep 1000"))
    rig.stop()
    with rig.client(pool="elsewhere") as engine:
        rig.ask_start("job")
        until(lambda: engine.core.view.get("job"), 10)
        # The record goes away and stays away while the abort is given.
        lock = rig.server("record").runtime / "record.lock"
        from engine.files import FileLock

        hold = FileLock(lock)
        assert hold.acquire(timeout=5)
        rig.kill_server("record")
        assert engine.abort_app("job") == "Abort signal has been sent to the client App."
        assert list(rig.workspace.spool.iterdir())
        hold.release()
    rig.start()
    rig.in_state("job", "aborted")
    events = rig.check()
    told = types(events, "job")
    assert told.index("AbortRequested") < told.index("LaunchExpired")
    assert list(rig.workspace.spool.iterdir()) == []
    assert runs_of(runs) == []


def test_L8_an_abort_with_redis_down_ends_a_running_app_at_once(rig: Rig, tmp_path: Path) -> None:
    rig.start()
    rig.deploy("job", "sleep", "1000")
    rig.start_app("job")
    pid = rig.identity("job")["pid"]
    from engine.files import FileLock

    with rig.client() as engine:
        until(lambda: engine.core.view.get("job"), 10)
        hold = FileLock(rig.server("record").runtime / "record.lock")
        assert hold.acquire(timeout=5)
        rig.kill_server("record")
        engine.abort_app("job")
        until(lambda: not Path(f"/proc/{pid}").exists(), 10, "the app runs on")
        hold.release()
    rig.in_state("job", "aborted")
    events = rig.check()
    body = one(events, "job", "AppAborted")
    assert body["signalled_before"] is True
    assert "AbortRequested" in types(events, "job")


def test_L8_the_whole_tree_is_gone_within_the_grace_time(rig: Rig, tmp_path: Path) -> None:
    """An app that ignores SIGTERM, with grandchildren that daemonised and ignore it too."""
    app = tmp_path / "stubborn.py"
    app.write_text(STUBBORN)
    rig.start()
    rig.deploy("job", "python", str(app))
    rig.start_app("job")
    marker = f"FLIGHTLOG_RUN_DIR={rig.workspace.run('job')}"
    until(lambda: len(processes_with(marker)) >= 4, 20)
    with rig.client(grace=1.0) as engine:
        began = time.monotonic()
        engine.abort_app("job")
        took = time.monotonic() - began
    rig.in_state("job", "aborted")
    assert processes_with(marker) == []
    assert took < 1.0 + 3.0, "far over the grace time"
    body = one(rig.check(), "job", "AppAborted")
    assert body["killed"] >= 4
    assert body["outcome"] == 9


STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() > 0:
            os._exit(0)
        while True:
            time.sleep(0.1)
while True:
    time.sleep(0.1)
"""


@pytest.mark.parametrize("seed", range(8))
def test_L8_an_abort_that_races_a_natural_exit_ends_in_one_outcome(rig: Rig, tmp_path: Path, seed: int) -> None:
    rig.start()
    pause = seed * 0.02
    with rig.client() as engine:
        for number in range(3):
            job = f"job-{number}"
            rig.deploy(job, "sh", "-c", f"sleep {0.15 + pause / 2}; exit 0")
            engine.start_app(job, {})
            time.sleep(pause + number * 0.03)
            assert engine.abort_app(job) in (
                "Abort signal has been sent to the client App.",
                "Client app already stopped.",
            )
            rig.in_state(job, "finished", "aborted")
    rig.check()


def test_L8_a_users_abort_goes_over_a_heartbeats(rig: Rig) -> None:
    rig.start()
    rig.deploy("job", "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    rig.start_app("job")
    with rig.client(grace=5, abort_timeout=0) as engine:
        engine.abort_app("job", heartbeat_cleanup=True)
        engine.abort_app("job", heartbeat_cleanup=True)
        with engine.acting_as("the operator", reason="it must go"):
            engine.abort_app("job")
        engine.abort_app("job", heartbeat_cleanup=True)
    rig.in_state("job", "aborted")
    events = rig.check()
    told = [e.body["origin"] for e in events if e.type == "AbortRequested"]
    assert told == ["heartbeat", "user"]
    with rig.looking() as jobs:
        assert jobs.load("job").state.told("reason") == "it must go"


def test_an_app_that_never_says_that_it_started_is_aborted(rig: Rig) -> None:
    rig.start(started_deadline=1)
    rig.deploy("job", "sleep", "1000", started_by="notify")
    rig.start_app("job")
    rig.in_state("job", "aborted")
    events = rig.check()
    assert one(events, "job", "AbortRequested")["origin"] == "deadline"


def test_an_app_that_says_it_is_over_and_stays_is_aborted(rig: Rig) -> None:
    rig.start()
    rig.deploy("job", "sleep", "1000")
    rig.start_app("job")
    with rig.client(finishing_deadline=1) as engine:
        engine.notify_job_status("job", 3)
    rig.in_state("job", "aborted")
    assert one(rig.check(), "job", "AbortRequested")["origin"] == "deadline"


def test_what_an_app_leaves_behind_ends_with_it(rig: Rig, tmp_path: Path) -> None:
    rig.start()
    rig.deploy("job", "sh", "-c", "(setsid sleep 1000 &) ; exit 0")
    rig.start_app("job")
    rig.in_state("job", "finished")
    assert processes_with(f"FLIGHTLOG_RUN_DIR={rig.workspace.run('job')}") == []
    rig.check()


@pytest.mark.parametrize(
    ("setting", "refuses", "takes"), [("maxmemory", 1, 0), ("min-replicas-to-write", 1, 0)], ids=["full", "read only"]
)
def test_L8_an_abort_with_a_record_that_takes_no_writes_ends_the_app_and_is_recorded_once_it_does(
    rig: Rig, tmp_path: Path, setting: str, refuses: int, takes: int
) -> None:
    rig.start()
    rig.deploy("job", *counting_app(tmp_path / "runs", "sleep 1000"))
    rig.start_app("job")
    pid = rig.identity("job")["pid"]
    record = connect(rig.server("record").url)
    record.config_set(setting, refuses)
    told = subprocess.run(
        [Path(sys.executable).with_name("flightlog"), "abort", "job", "-w", str(rig.root), "--grace", "1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
    assert "on disk" in told.stderr
    until(lambda: start_ticks(pid) is None, 15, "the app runs on")
    record.config_set(setting, takes)
    record.close()
    rig.in_state("job", "aborted")
    rig.check()

"""Things that are not dead and do not move: a stopped server, stopped keepers, pipes where files should be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.overview import caretaker_seen
from engine.owner import owner_of
from tests.faults.rig import Rig, one
from tests.support import SITE, command_of, kill, processes_with, until
from workers import keeper

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]


@pytest.mark.parametrize("role", ["record", "fabric"])
def test_L7_a_server_that_stalls_is_waited_for_and_never_doubled(rig: Rig, role: str) -> None:
    rig.start()
    rig.deploy("job", "sh", "-c", "sleep 1; exit 4")
    rig.start_app("job")
    pid = until(rig.server(role).pid, 10)
    os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    until(lambda: time.monotonic() - stopped > 9, 20)  # longer than every look at it takes
    assert processes_with(str(rig.server(role).data)) == [pid], "a second server on the same files"
    os.kill(pid, signal.SIGCONT)
    rig.in_state("job", "failed")
    assert one(rig.check(), "job", "AppFailed")["exit_code"] == 4
    assert rig.server(role).pid() == pid


def test_L8_stopped_keepers_do_not_save_an_app_from_its_abort(rig: Rig) -> None:
    rig.start()
    rig.deploy("job", "sleep", "1000")
    rig.start_app("job")
    identity = rig.identity("job")
    for half in ("inner", "outer"):
        os.kill(identity[half][0], signal.SIGSTOP)
    with rig.client() as engine:
        engine.abort_app("job")
    rig.in_state("job", "aborted")
    assert one(rig.check(), "job", "AppAborted")["signalled_before"] is True


def test_L5_papers_of_one_job_that_nobody_can_read_are_not_the_other_jobs_trouble(rig: Rig) -> None:
    rig.start()
    for job in ("bad", "good"):
        rig.deploy(job, "sleep", "1000")
        rig.start_app(job)
    (rig.workspace.attempt("bad", 1) / "identity.json").write_text("garbage")
    with rig.client() as engine:
        engine.abort_app("good")
    rig.in_state("good", "aborted")
    with rig.client() as engine:
        engine.abort_app("bad")
    rig.in_state("bad", "aborted", "failed")
    rig.check()
    assert processes_with(f"FLIGHTLOG_RUN_DIR={rig.workspace.run('bad')}") == []


PIPES = {
    "its return code": "mkfifo $FLIGHTLOG_RUN_DIR/_process_rc.txt; exit 5",
    "its output": (
        "rm $FLIGHTLOG_RUN_DIR/../.flightlog/jobs/job/1/log.txt; "
        "mkfifo $FLIGHTLOG_RUN_DIR/../.flightlog/jobs/job/1/log.txt; exit 5"
    ),
    "its end": "mkfifo $FLIGHTLOG_RUN_DIR/../.flightlog/jobs/job/abort; exit 5",
}


@pytest.mark.parametrize("what", PIPES)
def test_a_pipe_that_an_app_leaves_in_place_of_a_file_holds_nobody_up(rig: Rig, what: str) -> None:
    rig.start()
    rig.deploy("job", "sh", "-c", PIPES[what])
    rig.start_app("job")
    rig.in_state("job", "failed")
    assert one(rig.check(), "job", "AppFailed")["exit_code"] == 5
    rig.deploy("next", "true")
    rig.start_app("next")
    rig.in_state("next", "finished")


def test_a_folder_in_place_of_a_file_does_not_stand_in_the_way_of_the_next_start(rig: Rig) -> None:
    rig.start()
    rig.deploy("job", "sh", "-c", "mkdir -p $FLIGHTLOG_RUN_DIR/_process_rc.txt/x; exit 0")
    for _ in range(2):
        rig.start_app("job")
        rig.in_state("job", "finished")
    rig.check()


def test_a_pool_that_hangs_does_not_outlive_its_engine(rig: Rig) -> None:
    rig.start()
    pool = rig.pool_pid()
    os.kill(pool, signal.SIGSTOP)
    assert rig.up is not None
    rig.up.send_signal(signal.SIGTERM)
    rig.up.wait(40)
    until(lambda: not Path(f"/proc/{pool}").exists(), 10, "the hung pool lives on, with the caretaker's lock")
    rig.start()
    rig.deploy("job", "true")
    rig.start_app("job")
    rig.in_state("job", "finished")


def test_a_caretaker_that_does_not_look_any_more_can_be_seen(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.start()
    until(lambda: caretaker_seen(rig.workspace).startswith("looked"), 20)
    pool = rig.pool_pid()
    os.kill(pool, signal.SIGSTOP)
    try:
        monkeypatch.setattr("engine.overview.CARETAKER_LATE", 1.5)
        until(lambda: caretaker_seen(rig.workspace).startswith("STUCK"), 10)
    finally:
        os.kill(pool, signal.SIGCONT)


def test_L5_what_the_next_attempt_says_of_its_return_code_is_not_removed_with_the_last_ones(tmp_path: Path) -> None:
    spec, path = {"run": str(tmp_path)}, tmp_path / keeper.RC_FILE
    path.write_text("9")
    text, which = keeper.rc_file(spec)
    assert text == "9"
    path.unlink()  # by the launch of the next
    for _ in range(50):  # until the inode is the same, where the file system is quick to use it again
        path.write_text("3")
        keeper.forget_rc(spec, which)
        assert path.read_text() == "3"
        path.unlink()
    path.write_text("9")
    keeper.forget_rc(spec, keeper.rc_file(spec)[1])
    assert not path.exists()
    assert keeper.rc_file(spec) == (None, ())


def test_of_several_ups_at_once_one_owns_the_site_and_the_others_say_so(rig: Rig) -> None:
    env = {**os.environ, "FLIGHTLOG_LEASE": "1.5"}
    command = [sys.executable, "-P", "-m", "engine.cli", "up", "--site", SITE, "-w", str(rig.root), "--workers", "1"]
    ups = [
        subprocess.Popen([*command, "--detach"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [up.communicate(timeout=60) for up in ups]
    codes = sorted(up.returncode for up in ups)
    assert codes == [0, 6, 6], said
    owner = owner_of(rig.workspace)
    assert owner is not None
    assert any(f"process {owner['pid']}" in out for out, _ in said)
    # A child is its parent's twin until it runs its own program.
    until(
        lambda: [p for p in processes_with(str(rig.root)) if "\0up\0" in command_of(p)] == [owner["pid"]],
        20,
        "an up that lost stays",
    )
    assert subprocess.call([*command[:4], "down", "-w", str(rig.root)], env=env) == 0
    assert owner_of(rig.workspace) is None


def test_up_waits_for_a_command_that_has_the_site_and_down_does_not_end_it(rig: Rig) -> None:
    env = {**os.environ, "FLIGHTLOG_LEASE": "1.5"}
    flightlog = [sys.executable, "-P", "-m", "engine.cli"]
    from tests.support import make_app

    app = make_app(rig.tmp / "app", "sleep", "6")
    run = subprocess.Popen([*flightlog, "run", str(app), "--job", "job", "-w", str(rig.root)], env=env)
    until(lambda: (owner_of(rig.workspace) or {}).get("purpose") == "flightlog run", 20)
    assert subprocess.call([*flightlog, "down", "-w", str(rig.root)], env=env) == 6
    up = subprocess.call([*flightlog, "up", "-w", str(rig.root), "--workers", "1", "--detach"], env=env)
    assert up == 0
    assert run.wait(30) == 0, "the command was ended"
    assert (owner_of(rig.workspace) or {}).get("purpose") == "up"
    assert subprocess.call([*flightlog, "down", "-w", str(rig.root)], env=env) == 0


def test_L7_a_log_with_a_gap_or_a_double_is_found(rig: Rig) -> None:
    from engine.replay import statuses
    from events.errors import RecordDamaged

    rig.start()
    rig.deploy("job", "true")
    with rig.looking() as jobs:
        assert statuses(jobs.store) == {"job": "deployed"}
        position = jobs.store.command("LINDEX", jobs.store.keys.index("job"), 1)
        jobs.store.command("XDEL", jobs.store.keys.log, position)
        with pytest.raises(RecordDamaged, match="gap or a double"):
            statuses(jobs.store)
    kill(rig.up.pid if rig.up else 0)


def test_a_pipe_in_place_of_what_a_keeper_reads_is_nothing_to_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "abort")
    assert keeper.read(str(tmp_path / "abort")) == {}

"""Real apps, launched by the engine: how they end, what they get, what they leave, who hears of it."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.archive import CONFIG, pack
from engine.calls.delete import delete
from engine.calls.deploy import deploy
from engine.calls.start import Allotment, start
from engine.client_engine import ClientEngine
from engine.component import FLComponent
from engine.constants import ClientStatus, EventType, FLContextKey
from engine.errors import BadArchive, CallTimeout, CommandNotFound, MetaDiffers, ResourcesLacking, StillRegistered
from engine.resources.gpu import GPUResourceConsumer, GPUResourceManager
from events.envelope import Event
from events.errors import FlightlogError
from events.read import read, read_job
from tests.support import (
    SITE,
    check_record,
    in_state,
    kill,
    make_app,
    opened,
    processes_with,
    ready,
    state_of,
    types_of,
    until,
    zip_of,
)

STARTED = "Start the client app..."
SLEEP = ("python", "-c", "import time; time.sleep(600)")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, runtime_folder: Path) -> Iterator[ClientEngine]:
    """One engine for apps that need none of their own."""
    folder = tmp_path_factory.mktemp("apps") / "ws"
    try:
        with opened(folder) as engine:
            yield ready(engine)
            check_record(engine.site.jobs.store)
    finally:
        for pid in processes_with(str(folder)):
            kill(pid)


_names = iter(range(10**6))


@pytest.fixture
def job() -> str:
    """A job id of its own."""
    return f"job-{next(_names)}"


def put(engine: ClientEngine, job: str, folder: Path, *command: str, **config: Any) -> None:
    assert engine.deploy_app("app", job, {}, SITE, zip_of(folder, *command, **config)) == ""


def run(engine: ClientEngine, job: str, folder: Path, *command: str, **config: Any) -> Event:
    """Deploy and start an app; its end."""
    put(engine, job, folder, *command, **config)
    assert engine.start_app(job, {}) == STARTED
    return ended(engine, job)


def ended(engine: ClientEngine, job: str, attempt: int = 1) -> Event:
    """Wait for an attempt's end and all that it brings."""

    def look() -> Event | None:
        events = list(read_job(engine.site.jobs.store, job))
        mine = [e for e in events if e.body.get("attempt") == attempt]
        types = {e.type for e in mine}
        over = [e for e in mine if e.type in ENDS]
        whole = "JobSettled" in types and ("OutputClosed" in types or "AppSpawned" not in types)
        return over[0] if over and whole else None

    return until(look, 30, f"{job}: {types_of(engine.site.jobs.store, job)}")


ENDS = ("AppFinished", "AppFailed", "AppAborted", "AppLost", "LaunchFailed", "LaunchExpired")


def output(engine: ClientEngine, job: str, name: str = "log.txt") -> str:
    return (engine.site.workspace.run(job) / name).read_text()


def py(*lines: str) -> tuple[str, ...]:
    return ("python", "-c", "\n".join(lines))


# --- how they end ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "end", "state", "outcome"),
    [
        (0, "AppFinished", "finished", 0),
        (1, "AppFailed", "failed", 1),
        (3, "AppFailed", "failed", 1),
        (9, "AppAborted", "aborted", 9),
        (101, "AppFailed", "failed", 1),
        (255, "AppFailed", "failed", 1),
    ],
)
def test_L5_an_exit_code_is_recorded_as_it_is_and_as_the_references_outcome(
    shared, job, tmp_path, code, end, state, outcome
):
    event = run(shared, job, tmp_path, "sh", "-c", f"exit {code}")
    assert event.type == end
    assert event.body["exit_code"] == code
    assert event.body["outcome"] == outcome
    assert event.body["signal"] is None
    assert event.body["code_source"] == "process"
    assert event.body["signalled_before"] is False
    now = state_of(shared.site.jobs, job)
    assert (now.state.value, now["exit_code"], now["outcome"]) == (state, str(code), str(outcome))
    assert now.client_status == "stopped"


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGSEGV", "SIGABRT"])
def test_L5_an_end_by_a_signal_that_is_not_ours_is_a_failure_without_an_invented_code(shared, job, tmp_path, name):
    event = run(shared, job, tmp_path, *py("import os, signal", f"os.kill(os.getpid(), signal.{name})"))
    assert event.type == "AppFailed"
    assert event.body["exit_code"] is None
    assert event.body["signal"] == getattr(signal, name)
    assert event.body["outcome"] == 1


@pytest.mark.parametrize(
    ("rc", "code", "end", "outcome", "source"),
    [
        ("0", 5, "AppFinished", 0, "rc_file"),
        ("103", 0, "AppFailed", 103, "rc_file"),
        ("101\\nmore", 0, "AppFailed", 101, "rc_file"),
        ("9", 0, "AppAborted", 9, "rc_file"),
        ("garbage", 0, "AppFinished", 0, "process"),
        ("", 3, "AppFailed", 1, "process"),
        ("0x0", 3, "AppFailed", 1, "process"),
    ],
)
def test_what_an_app_writes_about_its_own_return_code_counts_where_it_is_a_number(
    shared, job, tmp_path, rc, code, end, outcome, source
):
    event = run(shared, job, tmp_path, "sh", "-c", f'printf "{rc}" > $FLIGHTLOG_RUN_DIR/_process_rc.txt; exit {code}')
    assert event.type == end
    assert (event.body["exit_code"], event.body["outcome"]) == (code, outcome)
    assert event.body["code_source"] == source
    until(lambda: not (shared.site.workspace.run(job) / "_process_rc.txt").exists())


def test_a_return_code_of_an_earlier_attempt_does_not_count_for_the_next(shared, job, tmp_path):
    put(shared, job, tmp_path, "sh", "-c", "exit 0")
    (shared.site.workspace.run(job) / "_process_rc.txt").write_text("103")
    assert shared.start_app(job, {}) == STARTED
    assert ended(shared, job).type == "AppFinished"


def test_code_1_of_an_app_that_never_said_it_had_started_counts_as_an_infrastructure_error(shared, job, tmp_path):
    event = run(shared, job, tmp_path, "sh", "-c", "exit 1", started_by="notify")
    assert event.type == "AppFailed"
    assert (event.body["exit_code"], event.body["outcome"]) == (1, 104)
    assert event.body["code_source"] == "launcher"
    assert "AppStarted" not in types_of(shared.site.jobs.store, job)


def test_code_1_of_an_app_that_had_said_it_had_started_is_its_own(shared, job, tmp_path):
    put(
        shared,
        job,
        tmp_path,
        "sh",
        "-c",
        'while ! [ -e "$FLIGHTLOG_RUN_DIR/go" ]; do sleep 0.02; done; exit 1',
        started_by="notify",
    )
    assert shared.start_app(job, {}) == STARTED
    assert state_of(shared.site.jobs, job).client_status == "starting"
    shared.notify_job_status(job, ClientStatus.STARTED)
    assert in_state(shared.site.jobs, job, "running").client_status == "started"
    shared.notify_job_status(job, ClientStatus.STOPPED)
    assert in_state(shared.site.jobs, job, "finishing").client_status == "stopped"
    shared.notify_job_status(job, ClientStatus.STARTED)
    assert state_of(shared.site.jobs, job).state == "finishing"
    (shared.site.workspace.run(job) / "go").touch()
    event = ended(shared, job)
    assert (event.type, event.body["outcome"]) == ("AppFailed", 1)
    refused = [e for e in read_job(shared.site.jobs.store, job) if e.type == "CallRefused"]
    assert [e.body["code"] for e in refused] == ["BACKWARDS"]


def test_an_app_that_ends_in_five_milliseconds_has_its_spawn_start_and_end_on_the_record(shared, job, tmp_path):
    event = run(shared, job, tmp_path, "true")
    assert event.type == "AppFinished"
    types = [t for t in types_of(shared.site.jobs.store, job) if t != "WorkClaimed"]
    assert types[: types.index("AppFinished") + 1] == [
        "DeployRequested",
        "DeploySucceeded",
        "StartRequested",
        "AppSpawned",
        "AppStarted",
        "AppFinished",
    ]
    check_record(shared.site.jobs.store)


def test_a_child_that_an_app_leaves_running_is_ended_with_it(shared, job, tmp_path):
    event = run(
        shared,
        job,
        tmp_path,
        "sh",
        "-c",
        'trap "" TERM; setsid sh -c \'trap "" TERM; sleep 1234.5 & wait; sleep 1234.5\' & sleep 0.2; exit 4',
    )
    assert event.body["exit_code"] == 4
    assert event.body["killed"] >= 1
    assert not processes_with("sleep\0" + "1234.5")


# --- what they print -------------------------------------------------------------------------------


def test_output_and_errors_go_to_the_log_in_their_order_and_their_digest_to_the_record(shared, job, tmp_path):
    import hashlib

    run(
        shared,
        job,
        tmp_path,
        "sh",
        "-c",
        "echo one; echo two >&2; echo three; printf '\\377\\000'; read x || echo no input",
    )
    log = shared.site.workspace.run(job) / "log.txt"
    assert log.read_bytes() == b"one\ntwo\nthree\n\xff\0no input\n"
    closed = until(lambda: [e for e in read_job(shared.site.jobs.store, job) if e.type == "OutputClosed"])[0]
    assert closed.body["bytes"] == len(log.read_bytes())
    assert closed.body["sha256"] == hashlib.sha256(log.read_bytes()).hexdigest()


def test_each_attempt_has_a_log_of_its_own_and_the_earlier_ones_are_kept(shared, job, tmp_path):
    run(shared, job, tmp_path, "sh", "-c", "echo attempt $FLIGHTLOG_ATTEMPT; exit 1")
    assert output(shared, job) == "attempt 1\n"
    for attempt in (2, 3):
        assert shared.start_app(job, {}) == STARTED
        assert ended(shared, job, attempt).body["attempt"] == attempt
    assert output(shared, job) == "attempt 3\n"
    assert output(shared, job, "log.1.txt") == "attempt 1\n"
    assert output(shared, job, "log.2.txt") == "attempt 2\n"


def test_the_log_of_an_attempt_survives_a_redeploy(shared, job, tmp_path):
    run(shared, job, tmp_path / "a", "sh", "-c", "echo first")
    put(shared, job, tmp_path / "b", "sh", "-c", "echo second")
    assert shared.start_app(job, {}) == STARTED
    ended(shared, job, 2)
    assert output(shared, job) == "second\n"
    assert (shared.site.workspace.attempt(job, 1) / "log.txt").read_text() == "first\n"


# --- what they get ---------------------------------------------------------------------------------


def test_an_app_gets_its_place_and_never_a_credential_of_ours(workspace, tmp_path, monkeypatch):
    secrets = {
        "FLIGHTLOG_SECRET_OF_OURS": "s1",
        "FLIGHTLOG_API_TOKEN": "s2",
        "REDIS_URL": "redis://:s3@127.0.0.1/",
        "REDIS_PASSWORD": "s4",
        "RQ_REDIS_URL": "redis://:s5@127.0.0.1/",
        "VALKEY_AUTH": "s6",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OF_THE_HOST", "yes")
    with opened(workspace) as engine:
        root = engine.site.workspace.root
        dump = "import json, os; print(json.dumps({'env': dict(os.environ), 'cwd': os.getcwd()}))"
        run(engine, "job", tmp_path, "python", "-c", dump, env={"MINE": "ü", "OF_THE_HOST": "overridden"})
        said = json.loads(output(engine, "job"))
        env = said["env"]
        assert said["cwd"] == str(root / "job" / "app_site-1")
        ours = {name: value for name, value in env.items() if name.startswith("FLIGHTLOG_")}
        marker = ours.pop("FLIGHTLOG_MARKER")
        assert len(marker) == 32
        assert ours == {
            "FLIGHTLOG_JOB_ID": "job",
            "FLIGHTLOG_SITE": SITE,
            "FLIGHTLOG_RUN_DIR": str(root / "job"),
            "FLIGHTLOG_ATTEMPT": "1",
        }
        assert not [name for name in env if name.startswith(("REDIS_", "RQ_", "VALKEY_"))]
        assert not [name for name, value in env.items() if value in secrets.values()]
        text = json.dumps(said)
        assert engine.site.servers.record_url not in text
        assert "record.sock" not in text
        assert "fabric.sock" not in text
        assert env["MINE"] == "ü"
        assert env["OF_THE_HOST"] == "overridden"
        assert env["PYTHONPATH"] == str(root / "job" / "app_site-1" / "custom")
        assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
        check_record(engine.site.jobs.store)


def test_an_app_inherits_no_open_file_of_ours(shared, job, tmp_path):
    listing = (
        "import os",
        "print(sorted(os.readlink(f'/proc/self/fd/{f}') for f in '012'))",
        "here = [f'/proc/self/fd/{f}' for f in os.listdir('/proc/self/fd') if int(f) > 2]",
        "print([os.readlink(path) for path in here if os.path.lexists(path)])",
    )
    run(shared, job, tmp_path, *py(*listing))
    first, second = output(shared, job).splitlines()
    assert "/dev/null" in first
    assert second == "[]"


def test_a_program_that_an_app_brings_along_starts_by_its_relative_path(shared, job, tmp_path):
    app = make_app(tmp_path / "app", "./bin/start.sh", "with", "words")
    (app / "bin").mkdir()
    (app / "bin" / "start.sh").write_text('#!/bin/sh\necho "$0 $*"\npwd\n')
    (app / "bin" / "start.sh").chmod(0o755)
    assert shared.deploy_app("app", job, {}, SITE, pack(app)) == ""
    assert shared.start_app(job, {}) == STARTED
    assert ended(shared, job).type == "AppFinished"
    assert output(shared, job) == f"./bin/start.sh with words\n{shared.site.workspace.app(job)}\n"


def test_a_program_of_the_app_that_may_not_be_executed_says_so(shared, job, tmp_path):
    app = make_app(tmp_path / "app", "custom/start.sh")
    (app / "custom").mkdir()
    (app / "custom" / "start.sh").write_text("#!/bin/sh\n")

    def both() -> None:
        shared.deploy_app("app", job, {}, SITE, pack(app))
        shared.start_app(job, {})

    with pytest.raises(CommandNotFound) as caught:
        both()
    assert "custom/start.sh" in caught.value.what
    assert "ermission" in caught.value.what or "execut" in caught.value.what
    assert not state_of(shared.site.jobs, job).live


OURS = ("engine.py", "events.py", "workers.py", "redis.py", "rq.py", "pydantic.py", "typing.py", "sitecustomize.py")


def test_an_app_with_modules_named_as_ours_runs_and_shadows_nothing_of_ours(workspace, tmp_path):
    app = make_app(tmp_path / "app", "python", "custom/main.py")
    custom = app / "custom"
    custom.mkdir()
    # Each notes down who imports it.
    shout = "with open(__file__ + '.by', 'a') as by:\n    by.write(open('/proc/self/cmdline').read() + '\\n')\n"
    for name in (*OURS, "json.py"):
        (custom / name).write_text(f"{shout}name = 'mine'\n")
    (custom / "main.py").write_text(
        "import engine, events, redis, json\n"
        "print(engine.name, events.name, redis.name, json.name, engine.__file__)\n"
    )
    with opened(workspace) as engine:
        assert engine.deploy_app("app", "job", {}, SITE, pack(app)) == ""
        assert engine.start_app("job", {}) == STARTED
        event = ended(engine, "job")
        assert event.type == "AppFinished", output(engine, "job")
        assert output(engine, "job") == f"mine mine mine mine {engine.site.workspace.app('job')}/custom/engine.py\n"
        by = {
            path.name: set(path.read_text().splitlines()) for path in engine.site.workspace.app("job").rglob("*.by")
        }
        assert {"engine.py.by", "events.py.by", "redis.py.by", "json.py.by", "sitecustomize.py.by"} <= set(by)
        assert set().union(*by.values()) == {"python\0custom/main.py\0"}
        # Everything of ours goes on: another deploy, launch and end by the same workers, and a delete.
        run(engine, "other", tmp_path / "other", "true")
        after = engine.site.workspace.app("job").rglob("*.by")
        assert {path.name: set(path.read_text().splitlines()) for path in after} == by
        assert engine.delete_run("job").startswith("Delete run folder: ")
        check_record(engine.site.jobs.store)


# --- resources ---------------------------------------------------------------------------------------


class Counting(GPUResourceManager):
    """Counts what is freed, by token."""

    def __init__(self) -> None:
        super().__init__(2, 16, ignore_host=True)
        self.allocated: list[str] = []
        self.freed: list[str] = []

    def allocate_resources(self, resource_requirement, token, fl_ctx):  # type: ignore[no-untyped-def]
        self.allocated.append(token)
        return super().allocate_resources(resource_requirement, token, fl_ctx)

    def free_resources(self, resources, token, fl_ctx):  # type: ignore[no-untyped-def]
        self.freed.append(token)
        super().free_resources(resources, token, fl_ctx)

    def left_now(self) -> dict[str, Any]:
        return self.report_resources(None)  # type: ignore[arg-type]


ALL = {"0": 16, "1": 16}
NEED = {"num_of_gpus": 1, "mem_per_gpu_in_GiB": 16}


@pytest.fixture
def gpus(workspace: Path) -> Iterator[tuple[ClientEngine, Counting]]:
    """A site with two GPUs that it only believes in."""
    manager = Counting()
    components = {"resource_manager": manager, "resource_consumer": GPUResourceConsumer(ignore_host=True)}
    with opened(workspace, components=components) as engine:
        yield engine, manager
        check_record(engine.site.jobs.store)


def freed_on_record(engine: ClientEngine) -> int:
    return len([e for e in read(engine.site.jobs.store) if e.type == "ResourcesFreed"])


def freed_once(engine: ClientEngine, manager: Counting, starts: int = 1) -> None:
    """All is free again, each allocation was freed once, and the record says so once."""
    until(lambda: manager.left_now() == ALL, why=str(manager.left_now()))
    until(lambda: not [w for _, w in engine.site.jobs.open_work()])
    assert len(manager.allocated) == starts
    assert sorted(manager.freed) == sorted(manager.allocated)
    assert freed_on_record(engine) == starts


def test_an_app_sees_its_gpu_and_the_engine_does_not(gpus, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    engine, manager = gpus
    put(engine, "one", tmp_path / "1", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; sleep 600")
    put(engine, "two", tmp_path / "2", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; sleep 600")
    put(engine, "none", tmp_path / "3", "sh", "-c", 'echo "${CUDA_VISIBLE_DEVICES-unset}"')
    engine.start_with_resources("one", {}, NEED)
    engine.start_with_resources("two", {}, NEED)
    assert manager.left_now() == {"0": 0, "1": 0}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert engine.start_app("none", {}) == STARTED
    ended(engine, "none")
    assert output(engine, "none") == "unset\n"
    until(lambda: output(engine, "one") == "0\n")
    until(lambda: output(engine, "two") == "1\n")
    assert state_of(engine.site.jobs, "two").resources == {"1": 16}
    put(engine, "three", tmp_path / "4", "true")
    with pytest.raises(ResourcesLacking) as caught:
        engine.start_with_resources("three", {}, NEED)
    assert isinstance(caught.value, RuntimeError)
    assert "flightlog status" in caught.value.fix
    refused = [e for e in read(engine.site.jobs.store) if e.type == "CallRefused"]
    assert [e.body["code"] for e in refused] == ["RESOURCES_LACKING"]
    for job in ("one", "two"):
        engine.abort_app(job)
        ended(engine, job)
    freed_once(engine, manager, 2)


@pytest.mark.parametrize(("code", "end"), [(0, "AppFinished"), (1, "AppFailed"), (3, "AppFailed")])
def test_L4_resources_are_freed_once_when_the_app_ends(gpus, tmp_path, code, end):
    engine, manager = gpus
    put(engine, "job", tmp_path, "sh", "-c", f"exit {code}")
    engine.start_with_resources("job", {}, NEED)
    assert ended(engine, "job").type == end
    freed_once(engine, manager)
    settled = [e for e in read_job(engine.site.jobs.store, "job") if e.type == "JobSettled"]
    assert [e.body["freed"] for e in settled] == ["yes"]


def test_L4_resources_are_freed_once_when_the_app_is_aborted(gpus, tmp_path):
    engine, manager = gpus
    put(engine, "job", tmp_path, *SLEEP)
    engine.start_with_resources("job", {}, NEED)
    assert manager.left_now() == {"0": 0, "1": 16}
    assert engine.abort_app("job") == "Abort signal has been sent to the client App."
    assert ended(engine, "job").type == "AppAborted"
    freed_once(engine, manager)


def test_L4_resources_are_freed_once_when_the_start_is_refused_because_the_app_runs(gpus, tmp_path):
    engine, manager = gpus
    put(engine, "job", tmp_path, *SLEEP)
    engine.start_with_resources("job", {}, NEED)
    context = engine.new_context()
    enough, token = manager.check_resources(NEED, context)
    assert enough
    given = manager.allocate_resources(NEED, token, context)
    assert engine.start_app("job", {}, given, token, manager) == "Client app already started."
    assert manager.left_now() == {"0": 0, "1": 16}
    assert manager.freed == [token]
    engine.abort_app("job")
    ended(engine, "job")
    freed_once(engine, manager, 2)
    # The attempt that was refused is not the next one's: nothing of it is freed again.
    put(engine, "job", tmp_path / "again", "true")
    assert engine.start_app("job", {}) == STARTED
    ended(engine, "job", 2)
    freed_once(engine, manager, 2)


@pytest.mark.parametrize("job", ["nobody", "../x"])
def test_L4_resources_are_freed_once_when_the_start_is_refused_for_its_job(gpus, job):
    engine, manager = gpus
    with pytest.raises(FlightlogError):
        engine.start_with_resources(job, {}, NEED)
    freed_once(engine, manager, len(manager.allocated))


def test_L4_resources_are_freed_once_when_the_metadata_differs(gpus, tmp_path):
    engine, manager = gpus
    put(engine, "job", tmp_path, "true")
    with pytest.raises(MetaDiffers):
        engine.start_with_resources("job", {"scope": "other"}, NEED)
    freed_once(engine, manager)


@pytest.mark.parametrize("raises", [StillRegistered, MetaDiffers])
def test_L4_a_start_that_raises_leaves_the_resources_to_its_caller_as_the_reference_does(gpus, tmp_path, raises):
    engine, manager = gpus
    put(engine, "job", tmp_path, *SLEEP, started_by="notify")
    if raises is StillRegistered:
        assert engine.start_app("job", {}) == STARTED
    context = engine.new_context()
    _, token = manager.check_resources(NEED, context)
    given = manager.allocate_resources(NEED, token, context)
    with pytest.raises(raises):
        engine.start_app("job", {"scope": "x"} if raises is MetaDiffers else {}, given, token, manager)
    assert manager.freed == []
    manager.free_resources(given, token, context)
    if raises is StillRegistered:
        engine.abort_app("job")
        ended(engine, "job")
    assert engine.start_app("job", {}) == STARTED
    engine.abort_app("job")
    ended(engine, "job", 2 if raises is StillRegistered else 1)
    assert manager.freed == [token]
    assert manager.left_now() == ALL
    assert freed_on_record(engine) == 0


def vanishing(tmp_path: Path) -> Path:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


def test_L4_resources_are_freed_once_when_the_command_is_gone_at_the_launch(gpus, tmp_path):
    engine, manager = gpus
    program = vanishing(tmp_path)
    put(engine, "job", tmp_path / "app", str(program))
    program.unlink()
    with pytest.raises(CommandNotFound) as caught:
        engine.start_with_resources("job", {}, NEED)
    assert str(program) in caught.value.what
    ended(engine, "job")
    freed_once(engine, manager)
    types = types_of(engine.site.jobs.store, "job")
    assert "AppSpawned" not in types
    failed = next(e for e in read_job(engine.site.jobs.store, "job") if e.type == "LaunchFailed")
    assert failed.body["code"] == "COMMAND_NOT_FOUND"
    state = state_of(engine.site.jobs, "job")
    assert (state.state.value, state.client_status) == ("launch_failed", "exception")


def test_L4_a_launch_that_fails_leaves_given_resources_to_the_caller_of_start_app(gpus, tmp_path):
    engine, manager = gpus
    program = vanishing(tmp_path)
    put(engine, "job", tmp_path / "app", str(program))
    program.unlink()
    context = engine.new_context()
    _, token = manager.check_resources(NEED, context)
    given = manager.allocate_resources(NEED, token, context)
    with pytest.raises(FlightlogError):
        engine.start_app("job", {}, given, token, manager)
    manager.free_resources(given, token, context)
    ended(engine, "job")
    assert manager.freed == [token]
    settled = [e for e in read_job(engine.site.jobs.store, "job") if e.type == "JobSettled"]
    assert [e.body["freed"] for e in settled] == ["caller"]


def test_a_launch_that_failed_can_be_started_again_once_the_command_is_back(shared, job, tmp_path):
    program = vanishing(tmp_path)
    put(shared, job, tmp_path / "app", str(program))
    program.unlink()
    with pytest.raises(CommandNotFound):
        shared.start_app(job, {})
    vanishing(tmp_path)
    assert shared.start_app(job, {}) == STARTED
    assert ended(shared, job, 2).type == "AppFinished"


def test_what_is_not_known_in_time_is_said_to_be_pending_until_when_and_comes_in_the_end(shared, job, tmp_path):
    """A worker has claimed it, and waits for the job's lock, which is held here."""
    core, workspace = shared.core, shared.site.workspace
    data = zip_of(tmp_path, *SLEEP)
    pending = r"is pending until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    with workspace.lock(job):
        with pytest.raises(CallTimeout, match=f"the deploy of {job} {pending}") as caught:
            deploy(core, "app", job, {}, SITE, data, timeout=5)
        assert caught.value.fix == f"flightlog wait {job}"
        assert state_of(shared.site.jobs, job).state == "deploying"
        assert shared.start_app(job, {}).startswith("NVFLARE_ERROR: DEPLOY_IN_PROGRESS")
        assert shared.deploy_app("app", job, {}, SITE, data).startswith("NVFLARE_ERROR: DEPLOY_IN_PROGRESS")
        assert shared.delete_run(job).startswith("NVFLARE_ERROR: JOB_BUSY")
    in_state(shared.site.jobs, job, "deployed")
    with workspace.lock(job):
        with pytest.raises(CallTimeout, match=f"the start of {job} {pending}"):
            start(core, core.call("start_app", job), job, None, Allotment(), timeout=5)
        assert state_of(shared.site.jobs, job).state == "starting"
    in_state(shared.site.jobs, job, "running")
    shared.abort_app(job)
    ended(shared, job)
    with (
        workspace.lock(job),
        pytest.raises(CallTimeout, match=f"the delete of {job} {pending}"),
    ):
        delete(core, job, timeout=1)
    in_state(shared.site.jobs, job, "deleted")


def test_L2_resources_of_a_running_app_are_taken_hold_of_again_when_the_site_opens_anew(workspace, tmp_path):
    def components(manager: Counting) -> dict[str, Any]:
        return {"resource_manager": manager, "resource_consumer": GPUResourceConsumer(ignore_host=True)}

    first = Counting()
    with opened(workspace, components=components(first)) as engine:
        put(engine, "job", tmp_path, *SLEEP)
        engine.start_with_resources("job", {}, NEED)
    assert first.freed == []
    second = Counting()
    with opened(workspace, components=components(second)) as engine:
        assert second.left_now() == {"0": 0, "1": 16}
        assert "job" in engine.get_all_job_ids()
        with pytest.raises(ResourcesLacking):
            engine.start_with_resources("job", {}, {"num_of_gpus": 2, "mem_per_gpu_in_GiB": 16})
        engine.abort_app("job")
        assert ended(engine, "job").type == "AppAborted"
        until(lambda: second.left_now() == ALL)
        assert len(second.freed) == 1
        assert freed_on_record(engine) == 1
        assert types_of(engine.site.jobs.store, "job").count("ResourcesRestored") == 1
        check_record(engine.site.jobs.store)


# --- redeploys -------------------------------------------------------------------------------------------


def damaged(folder: Path) -> bytes:
    """A zip that only unpacking shows to be damaged: its config is whole, another entry's CRC is wrong."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(CONFIG, json.dumps({"command": ["true"]}))
        archive.writestr("data.bin", b"0123456789abcdef")
    return out.getvalue().replace(b"0123456789abcdef", b"0123456789abcdeX")


def test_a_redeploy_replaces_the_whole_app(shared, job, tmp_path):
    app = make_app(tmp_path / "a", "sh", "-c", "ls")
    (app / "old.txt").write_text("old")
    assert shared.deploy_app("first", job, {"name": "1"}, SITE, pack(app)) == ""
    app = make_app(tmp_path / "b", "sh", "-c", "ls")
    (app / "new.txt").write_text("new")
    assert shared.deploy_app("second", job, {"name": "2"}, SITE, pack(app)) == ""
    run_folder = shared.site.workspace.run(job)
    assert sorted(p.name for p in shared.site.workspace.app(job).iterdir()) == ["config", "new.txt"]
    assert (run_folder / "fl_app.txt").read_text() == "second\n"
    assert json.loads((run_folder / "meta.json").read_text())["name"] == "2"
    assert shared.start_app(job, {}) == STARTED
    ended(shared, job)
    assert output(shared, job) == "config\nnew.txt\n"
    assert state_of(shared.site.jobs, job)["app"] == "second"
    assert list(shared.site.workspace.staging.iterdir()) == []


def test_L9_a_redeploy_that_fails_while_unpacking_keeps_the_old_app(shared, job, tmp_path):
    put(shared, job, tmp_path, "sh", "-c", "echo old")
    before = {p: p.read_bytes() for p in shared.site.workspace.run(job).rglob("*") if p.is_file()}
    with pytest.raises(BadArchive) as caught:
        shared.deploy_app("broken", job, {}, SITE, damaged(tmp_path))
    assert "data.bin" in caught.value.what
    assert {p: p.read_bytes() for p in shared.site.workspace.run(job).rglob("*") if p.is_file()} == before
    failed = next(e for e in read_job(shared.site.jobs.store, job) if e.type == "DeployFailed")
    assert failed.body["code"] == "BAD_ARCHIVE"
    state = state_of(shared.site.jobs, job)
    assert (state.state.value, state["app"]) == ("deployed", "app")
    assert list(shared.site.workspace.staging.iterdir()) == []
    assert shared.start_app(job, {}) == STARTED
    ended(shared, job)
    assert output(shared, job) == "old\n"


def test_L9_a_first_deploy_that_fails_while_unpacking_leaves_nothing_and_can_be_done_again(shared, job, tmp_path):
    with pytest.raises(BadArchive):
        shared.deploy_app("broken", job, {}, SITE, damaged(tmp_path))
    assert state_of(shared.site.jobs, job).state == "deploy_failed"
    assert not shared.site.workspace.run(job).exists()
    assert shared.start_app(job, {}).startswith("NVFLARE_ERROR: Client app does not exist.")
    put(shared, job, tmp_path / "good", "true")
    assert state_of(shared.site.jobs, job).state == "deployed"


# --- who hears of it -------------------------------------------------------------------------------------------


class Listens(FLComponent):
    """Writes down what it hears; may fail on some of it."""

    def __init__(self, name: str, heard: list[tuple[str, str, Any]], fails_on: str | None = None) -> None:
        self._name, self._heard, self._fails_on = name, heard, fails_on

    @property
    def name(self) -> str:
        return self._name

    def handle_event(self, event_type, fl_ctx):  # type: ignore[no-untyped-def]
        self._heard.append((self._name, str(event_type), fl_ctx.get_prop(FLContextKey.CURRENT_JOB_ID)))
        if event_type == self._fails_on:
            raise ValueError(f"{self._name} fails")


def test_components_hear_of_a_job_in_the_references_order_and_one_that_fails_stops_nobody(workspace, tmp_path):
    heard: list[tuple[str, str, Any]] = []
    components = {
        "first": Listens("first", heard),
        "fails": Listens("fails", heard, EventType.BEFORE_JOB_LAUNCH),
        "fails too": Listens("fails too", heard, EventType.JOB_COMPLETED),
        "last": Listens("last", heard),
    }
    with opened(workspace, components=components) as engine:
        late = Listens("late", heard)
        engine.add_component("late", late)
        heard.clear()
        run(engine, "job", tmp_path, "true")
        order = [EventType.BEFORE_JOB_LAUNCH, EventType.AFTER_JOB_LAUNCH, EventType.JOB_COMPLETED]
        names = ["first", "fails", "fails too", "last", "late"]
        until(lambda: len(heard) >= 15)
        assert heard == [(name, event.value, "job") for event in order for name in names]
        events = [e for e in read(engine.site.jobs.store) if e.type in ("FLEventFired", "FLHandlerFailed")]
        fired = [(e.body["event"], e.body["handlers"], e.body["job"]) for e in events if e.type == "FLEventFired"]
        assert fired == [(event.value, 5, "job") for event in order]
        failed = [
            (e.body["event"], e.body["handler"], e.body["error"]) for e in events if e.type == "FLHandlerFailed"
        ]
        assert failed == [
            (order[0].value, "fails", "ValueError: fails fails"),
            (order[2].value, "fails too", "ValueError: fails too fails"),
        ]
        check_record(engine.site.jobs.store)


def test_a_launch_that_failed_fires_no_job_completed(workspace, tmp_path):
    heard: list[tuple[str, str, Any]] = []
    with opened(workspace, components={"listens": Listens("listens", heard)}) as engine:
        program = vanishing(tmp_path)
        put(engine, "job", tmp_path / "app", str(program))
        program.unlink()
        with pytest.raises(CommandNotFound):
            engine.start_app("job", {})
        ended(engine, "job")
        assert [event for _, event, _ in heard] == [EventType.BEFORE_JOB_LAUNCH]


def test_a_start_that_is_refused_fires_nothing(workspace, tmp_path):
    heard: list[tuple[str, str, Any]] = []
    with opened(workspace, components={"listens": Listens("listens", heard)}) as engine:
        assert engine.start_app("nobody", {}).startswith("NVFLARE_ERROR")
        put(engine, "job", tmp_path, "true")
        with pytest.raises(MetaDiffers):
            engine.start_app("job", {"study": "other"})
        with pytest.raises(ValueError, match="job_id"):
            engine.start_app("../x", {})
        assert heard == []
        assert not [e for e in read(engine.site.jobs.store) if e.type == "FLEventFired"]


def test_two_starts_at_once_of_one_job_give_one_process(shared, job, tmp_path):
    put(shared, job, tmp_path, *SLEEP)
    answers: list[str] = []
    gate = threading.Barrier(4)

    def begin() -> None:
        gate.wait()
        try:
            answers.append(shared.start_app(job, {}))
        except RuntimeError as error:
            answers.append(type(error).__name__)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count(STARTED) == 1, answers
    assert set(answers) <= {STARTED, "StillRegistered", "Client app already started."}
    assert types_of(shared.site.jobs.store, job).count("AppSpawned") == 1
    shared.abort_app(job)
    assert ended(shared, job).type == "AppAborted"

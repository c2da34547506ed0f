"""What an engine asks of a job's process: in which state it gets an answer, and which."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.calls.abort import abort
from engine.cell.cell import FabricCell
from engine.cell.message import CellReturnCode, Message, MessageHeaderKey
from engine.client_engine import ClientEngine
from engine.comm import ring_of
from engine.constants import ClientStatus, EventType, ReturnCode
from engine.errors import ArgumentInvalid, JobIdInvalid
from events.errors import FlightlogError
from tests.integration.test_apps import STARTED, ended
from tests.integration.test_aux import Since, acting, since
from tests.integration.test_job_process import SLEEP, Peer, app, begin, events, job, peer, running, shared
from tests.support import SITE, in_state, make_app, state_of, until, zip_of

__all__ = ["job", "peer", "shared", "since"]  # fixtures
SENT = "Abort signal has been sent to the current task."
WAIT = "Client app is starting, please wait for started before abort_task."
DEAF = ("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
CHANNEL = "edge_request"


@pytest.fixture(scope="module")
def stays(shared: ClientEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A job for tests that leave it as it is."""
    begin(shared, "stays", app(tmp_path_factory.mktemp("stays")))
    yield "stays"
    shared.abort_app("stays")


@contextmanager
def cell_of(engine: ClientEngine, job: str) -> Iterator[FabricCell]:
    """A cell at a job's address, for an app that has none of ours; it answers with what it got."""
    cell = FabricCell(engine.site.servers.fabric_url, f"{SITE}.{job}", ring=ring_of(engine.site.workspace)).start()
    cell.register_request_cb("*", "*", lambda m: Message(payload=[m.get_header(MessageHeaderKey.TOPIC), m.payload]))
    try:
        yield cell
    finally:
        cell.stop()


def brought_to(engine: ClientEngine, job: str, state: str, folder: Path) -> None:
    """Bring a job with a command of its own into a state."""
    command = DEAF if state == "aborting" else SLEEP
    assert engine.deploy_app("app", job, {}, SITE, zip_of(folder, *command, started_by="notify", grace=2)) == ""
    if state == "deployed":
        return
    assert engine.start_app(job, {}) == STARTED
    until(lambda: state_of(engine.site.jobs, job).spawned)
    for word in {"starting": (), "finishing": (2, 3)}.get(state, (2,)):
        engine.notify_job_status(job, ClientStatus(word))
    if state in ("aborting", "aborted"):
        abort(engine.core, job, origin="heartbeat", grace=20.0 if state == "aborting" else None, timeout=0)
    in_state(engine.site.jobs, job, state)


# -- abort_task --------------------------------------------------------------------------------------------


def test_a_task_that_is_aborted_is_given_up_and_the_job_does_the_next(
    shared: ClientEngine, peer: Peer, job: str, tmp_path: Path
) -> None:
    with running(shared, job, app(tmp_path)):
        task_id, _ = peer.begins(job, "wait", tmp_path)
        with shared.acting_as("anna", reason="wrong data"):
            assert shared.abort_task(job) == SENT
        assert peer.result(task_id, 5).get_return_code() == ReturnCode.TASK_ABORTED
        (asked,) = events(shared, job, "TaskAbortRequested")
        assert (asked.body["reason"], asked.rest()["actor"]["claimed"]) == ("wrong data", "anna")
        assert events(shared, job, "TaskDone")[0].body["code"] == ReturnCode.TASK_ABORTED
        assert peer.does(job, "echo", data=2)["data"] == 2
        assert state_of(shared.site.jobs, job).state == "running"


def test_an_abort_while_no_task_runs_does_not_hit_the_next(
    shared: ClientEngine, peer: Peer, stays: str, tmp_path: Path
) -> None:
    assert shared.abort_task(stays) == SENT
    task_id, go = peer.begins(stays, "wait", tmp_path)
    go.touch()
    result = peer.result(task_id)
    assert (result.get_return_code(), result["value"]) == (ReturnCode.OK, None)


def test_an_abort_of_the_running_task_does_not_hit_the_one_that_waits(
    shared: ClientEngine, peer: Peer, stays: str, tmp_path: Path
) -> None:
    first, _ = peer.begins(stays, "wait", tmp_path)
    second = peer.given(stays, "echo", data=2)
    assert shared.abort_task(stays) == SENT
    assert peer.result(first).get_return_code() == ReturnCode.TASK_ABORTED
    assert peer.result(second)["data"] == 2


def test_a_job_that_is_starting_is_not_told_to_give_up_a_task(shared: ClientEngine, job: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    gate = {"id": "gate", "path": "work.Gate", "args": {EventType.START_RUN: str(go)}}
    assert shared.deploy_app("app", job, {}, SITE, app(tmp_path, components=[gate])) == ""
    assert shared.start_app(job, {}) == STARTED
    assert shared.abort_task(job) == WAIT
    assert not events(shared, job, "TaskAbortRequested")

    def asked() -> Message:
        return shared.send_to_job(job, "client_command", "show_stats", Message(), 2.0, optional=True)

    answer = until(lambda: a if (a := asked()).return_code == CellReturnCode.OK else None, 10)
    assert answer.payload["job_id"] == job
    assert state_of(shared.site.jobs, job).state == "starting"
    go.touch()
    in_state(shared.site.jobs, job, "running")
    assert shared.abort_task(job) == SENT
    shared.abort_app(job)


@pytest.mark.parametrize("state", ["running", "finishing", "aborting"])
def test_an_app_with_a_cell_of_its_own_is_told_to_give_up_its_task_in_every_later_state(
    shared: ClientEngine, job: str, tmp_path: Path, state: str
) -> None:
    with cell_of(shared, job):
        brought_to(shared, job, state, tmp_path)
        assert shared.abort_task(job) == SENT
        shared.abort_app(job)


def test_an_app_with_a_command_and_no_cell_cannot_be_told_and_nobody_says_it_was(
    shared: ClientEngine, job: str, tmp_path: Path
) -> None:
    brought_to(shared, job, "running", tmp_path)
    assert shared.abort_task(job).startswith("NVFLARE_ERROR: ")
    assert events(shared, job, "AuxFailed")
    assert state_of(shared.site.jobs, job).state == "running"
    shared.abort_app(job)


def test_a_job_that_said_it_runs_is_told_though_its_engine_has_not_seen_it_yet(
    shared: ClientEngine, job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cell_of(shared, job):
        brought_to(shared, job, "starting", tmp_path)
        monkeypatch.setattr(shared._core.view, "_take", lambda event: None)
        shared.notify_job_status(job, ClientStatus.STARTED)
        assert shared.abort_task(job) == SENT
        monkeypatch.undo()
        shared.abort_app(job)


def test_a_job_that_is_in_place_and_was_never_started_has_no_task(
    shared: ClientEngine, since: Since, job: str, tmp_path: Path
) -> None:
    brought_to(shared, job, "deployed", tmp_path)
    assert shared.abort_task(job) == "Client app has not started."
    assert not since.of("TaskAbortRequested", "AuxRequested")


@pytest.mark.parametrize("state", ["unknown", "aborted", "launch_failed"])
def test_a_job_that_has_no_process_is_not_said_to_have_been_told(
    shared: ClientEngine, since: Since, job: str, tmp_path: Path, state: str
) -> None:
    if state == "aborted":
        brought_to(shared, job, state, tmp_path)
    elif state == "launch_failed":
        script = make_app(tmp_path, "./run")
        (script / "run").write_text("#!/nowhere/at/all\n")
        (script / "run").chmod(0o755)
        assert shared.deploy_app("app", job, {}, SITE, zip_of(script, "./run")) == ""
        with pytest.raises(FlightlogError):
            shared.start_app(job, {})
        in_state(shared.site.jobs, job, state)
    answer = shared.abort_task(job)
    code = "JOB_UNKNOWN" if state == "unknown" else "NOT_LIVE"
    assert answer.startswith(f"NVFLARE_ERROR: {code}: ")
    assert [e.body["code"] for e in since.of("CallRefused")] == [code]
    assert not since.of("TaskAbortRequested", "AuxRequested")


# -- run info, errors -----------------------------------------------------------------------------------------


def test_run_info_names_the_task_that_runs_and_since_when_and_between_tasks_none(
    shared: ClientEngine, peer: Peer, job: str, tmp_path: Path
) -> None:
    with running(shared, job, app(tmp_path)):
        before = time.time() * 1000
        task_id, go = peer.begins(job, "wait", tmp_path, task="more")
        info = shared.get_current_run_info(job)
        assert (info.job_id, info.current_task_name) == (job, "more")
        assert before - 1 <= (info.start_time or 0) <= time.time() * 1000 + 1
        assert (info["tasks"], info["tasks_done"]) == (1, 0)
        go.touch()
        peer.result(task_id)
        info = until(lambda: i if (i := shared.get_current_run_info(job))["tasks_done"] == 1 else None, 5)
        assert (info.current_task_name, info.start_time) == ("", None)
        assert (info["tasks"], info["tasks_done"]) == (1, 1)
        assert "error" not in info
    ended(shared, job)
    info = shared.get_current_run_info(job)
    assert (info.job_id, info.current_task_name, info.start_time) == (job, "", None)
    assert (info["tasks"], info["tasks_done"]) == (1, 1)
    assert info["error"]
    assert shared.get_errors(job) is None
    assert shared.get_current_run_info("no-such-job")["error"]


def test_to_be_asked_is_not_counted_as_a_message_that_the_job_has_sent(shared: ClientEngine, stays: str) -> None:
    first, second = (shared.get_current_run_info(stays)["messages_sent"] for _ in range(2))
    assert first == second


def test_errors_are_kept_until_somebody_resets_them(shared: ClientEngine, peer: Peer, stays: str) -> None:
    peer.does(stays, "log", level=40, text="the data has a gap")
    peer.does(stays, "log", level=30, text="only a warning")
    found = shared.get_errors(stays)
    assert found is not None
    assert found["job_id"] == stays
    assert [e["message"] for e in found["errors"]][-1:] == ["the data has a gap"]
    assert shared.reset_errors(stays) is None
    assert shared.get_errors(stays) == {"job_id": stays, "errors": []}
    assert events(shared, stays, "ErrorsReset")


# -- the log ---------------------------------------------------------------------------------------------------


def level(peer: Peer, job: str) -> int:
    return int(peer.does(job, "log", level=10, text="detail")["level"])


def test_a_jobs_log_is_configured_by_a_level_or_a_dictionary(shared: ClientEngine, peer: Peer, stays: str) -> None:
    assert level(peer, stays) == 20
    assert shared.configure_job_log(stays, "debug") is None
    assert level(peer, stays) == 10
    secret = "name-of-a-logger"
    assert shared.configure_job_log(stays, {"root": {"level": "WARNING"}, "loggers": {secret: {}}}) is None
    assert level(peer, stays) == 30
    peer.does(stays, "log", level=40, text="still kept")
    assert shared.get_errors(stays)["errors"][-1]["message"] == "still kept"  # type: ignore[index]
    first, second = (e.body["config"] for e in events(shared, stays, "JobLogConfigured")[-2:])
    assert first == "debug"
    assert second.startswith("sha256 ")
    assert shared.configure_job_log(stays, "INFO") is None


@pytest.mark.parametrize(
    "config",
    ["LOUD", "10", "logging.yaml", {"handlers": 5}, {"root": {"level": "LOUD"}}, {"version": 7}, {"loggers": [1]}],
    ids=str,
)
def test_L9_a_log_config_that_makes_no_sense_is_told_and_changes_nothing(
    shared: ClientEngine, peer: Peer, stays: str, config: Any
) -> None:
    before = level(peer, stays)
    told = shared.configure_job_log(stays, config)
    assert told
    assert "Error" in told
    assert level(peer, stays) == before
    peer.does(stays, "log", level=40, text=f"kept after {config}")
    assert shared.get_errors(stays)["errors"][-1]["message"] == f"kept after {config}"  # type: ignore[index]


@pytest.mark.parametrize("config", ["", None, 10, ["DEBUG"], {"x": {1, 2}}], ids=str)
def test_L9_what_is_no_log_config_is_refused_before_anything_is_sent(
    shared: ClientEngine, since: Since, stays: str, config: Any
) -> None:
    with acting(shared), pytest.raises(ArgumentInvalid):
        shared.configure_job_log(stays, config)
    assert [e.body["code"] for e in since.of("CallRefused")] == ["ARGUMENT_INVALID"]
    assert not since.of("AuxRequested", "JobLogConfigured")


def test_the_log_of_a_job_without_a_process_is_not_said_to_be_configured(shared: ClientEngine) -> None:
    assert "JOB_UNKNOWN" in (shared.configure_job_log("no-such-job", "DEBUG") or "")


# -- send_to_job -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["starting", "running", "finishing", "aborting"])
def test_a_message_reaches_a_jobs_process_in_every_live_state(
    shared: ClientEngine, job: str, tmp_path: Path, state: str
) -> None:
    with cell_of(shared, job):
        brought_to(shared, job, state, tmp_path)
        answer = shared.send_to_job(job, CHANNEL, "topic", Message(payload={"x": 1}), 10.0)
        assert answer.return_code == CellReturnCode.OK
        assert answer.payload == ["topic", {"x": 1}]
        assert state_of(shared.site.jobs, job).state == state
        assert [e.body["target"] for e in events(shared, job, "AuxRequested")] == [f"{SITE}.{job}"]
        shared.abort_app(job)


@pytest.mark.parametrize(("state", "code"), [("unknown", "JOB_UNKNOWN"), ("deployed", "NOT_LIVE")])
def test_a_message_to_a_job_without_a_process_is_answered_at_once_and_recorded(
    shared: ClientEngine, since: Since, job: str, tmp_path: Path, state: str, code: str
) -> None:
    if state != "unknown":
        brought_to(shared, job, state, tmp_path)
    began = time.monotonic()
    answer = shared.send_to_job(job, CHANNEL, "topic", Message(), 30.0)
    assert answer.return_code == CellReturnCode.TARGET_UNREACHABLE
    assert code in answer.get_header("error")
    assert time.monotonic() - began < 5
    assert [e.body["code"] for e in since.of("CallRefused")] == [code]


def test_a_message_that_waits_for_no_answer_is_on_its_way(shared: ClientEngine, stays: str) -> None:
    assert shared.send_to_job(stays, CHANNEL, "quick", Message(payload=1), 0).return_code == CellReturnCode.OK
    until(lambda: [e for e in events(shared, stays, "AuxReceived") if e.body["topic"] == "quick"])


@pytest.mark.parametrize(
    "change",
    [
        {"timeout": -1},
        {"timeout": math.nan},
        {"timeout": math.inf},
        {"timeout": "5"},
        {"timeout": None},
        {"timeout": True},
        {"msg": {"x": 1}},
        {"msg": None},
        {"job_id": "../x"},
        {"job_id": None},
        {"channel": ""},
        {"channel": 5},
        {"topic": ""},
        {"topic": "x" * 100_000},
        {"msg": Message(payload=object())},
    ],
    ids=lambda change: str(change)[:30],
)
def test_L9_a_message_that_cannot_be_sent_is_refused_and_recorded_and_nothing_leaves(
    shared: ClientEngine, since: Since, stays: str, change: dict[str, Any]
) -> None:
    given = {"job_id": stays, "channel": CHANNEL, "topic": "t", "msg": Message(payload=1), "timeout": 5.0, **change}
    with acting(shared):
        if isinstance(change.get("msg"), Message):
            assert shared.send_to_job(**given).return_code != CellReturnCode.OK
        else:
            with pytest.raises(ArgumentInvalid if "job_id" not in change else JobIdInvalid):
                shared.send_to_job(**given)
    assert len(since.of("CallRefused")) == 1
    assert not since.of("AuxRequested")


METHODS = ("abort_task", "get_current_run_info", "get_errors", "reset_errors")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["../etc", "", None, 5, "a b"], ids=str)
def test_L9_a_job_id_that_is_none_is_refused_by_every_question(
    shared: ClientEngine, since: Since, method: str, name: Any
) -> None:
    with acting(shared), pytest.raises(JobIdInvalid):
        getattr(shared, method)(name)
    assert [e.body["code"] for e in since.of("CallRefused")] == ["JOB_ID_INVALID"]
    assert not since.of("AuxRequested")

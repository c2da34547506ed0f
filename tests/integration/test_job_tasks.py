"""Tasks of a job: each is taken once, runs, is on the job's record, and its result comes back, whatever it is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.client_engine import ClientEngine
from engine.constants import ReturnCode
from engine.job.metrics import NAME
from engine.job.tasks import QUEUED
from engine.shareable import Shareable
from engine.tasking import TASK_ID, TASK_NAME, TaskTopic
from events.read import read
from tests.integration.test_apps import STARTED, ended, output
from tests.integration.test_job_process import Peer, app, begin, events, job, peer, running, shared
from tests.support import SITE, in_state, kill, state_of, until

__all__ = ["job", "peer", "shared"]  # fixtures
STAYS = "stays"


@pytest.fixture(scope="module")
def stays(shared: ClientEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A job for tasks that leave it as it is; in the end it is told that the run is over."""
    folder = tmp_path_factory.mktemp("stays")
    components = [{"id": "gate", "path": "work.Gate", "args": {}}]
    begin(shared, STAYS, app(folder, args={"greeting": "hello"}, components=components))
    yield STAYS
    shared.abort_app(STAYS)


# -- what comes back ---------------------------------------------------------------------------------------


def test_a_task_is_done_its_result_comes_back_and_all_of_it_is_on_the_jobs_record(
    shared: ClientEngine, peer: Peer, job: str, tmp_path: Path
) -> None:
    with running(shared, job, app(tmp_path, args={"greeting": "hello"})):
        first, second = peer.given(job, "echo", data=[1, "x", b"y"]), peer.given(job, "echo", task="more")
        found = peer.result(first)
        assert found.get_return_code() == ReturnCode.OK
        assert (found["task"], found["data"], found["greeting"]) == ("work", [1, "x", b"y"], "hello")
        assert peer.result(second)["task"] == "more"
        until(lambda: len(events(shared, job, "AuxReplied")) == 2)
        for task_id, name in ((first, "work"), (second, "more")):
            (received,) = [e for e in events(shared, job, "TaskReceived") if e.body["task_id"] == task_id]
            (done,) = [e for e in events(shared, job, "TaskDone") if e.body["task_id"] == task_id]
            assert (received.body["task"], received.body["sender"]) == (name, "server")
            assert (done.body["task"], done.body["code"], done.body["size"] > 0) == (name, ReturnCode.OK, True)
            assert received.position < done.position
            assert {e.rest()["actor"]["id"] for e in (received, done)} == {f"{SITE}.{job}"}
        sent = events(shared, job, "AuxRequested")
        assert {(e.body["channel"], e.body["topic"], e.body["target"]) for e in sent} == {
            ("task", TaskTopic.RESULT, "server")
        }
        assert len(sent) == 2
        state = state_of(shared.site.jobs, job)
        assert (state["tasks"], state["tasks_done"], state["task"]) == ("2", "2", "")
        assert state["last_task"] == "more OK"


def test_L6_what_a_task_is_about_is_not_on_the_record(shared: ClientEngine, peer: Peer, stays: str) -> None:
    secret = "weights-of-a-hospital"
    assert peer.does(stays, "echo", data=secret)["data"] == secret
    assert secret not in "".join(str(e.rest()) for e in read(shared.site.jobs.store))


CODES = {
    "fail": ReturnCode.EXECUTION_EXCEPTION,
    "no_such_method": ReturnCode.EXECUTION_EXCEPTION,
    "leave": ReturnCode.EXECUTION_EXCEPTION,
    "nothing": ReturnCode.EXECUTION_RESULT_ERROR,
    "text": ReturnCode.EXECUTION_RESULT_ERROR,
    "unsendable": ReturnCode.EXECUTION_RESULT_ERROR,
    "endless": ReturnCode.EXECUTION_RESULT_ERROR,
    "headless": ReturnCode.EXECUTION_RESULT_ERROR,
    "odd_code": ReturnCode.EXECUTION_RESULT_ERROR,
    "own_code": "MY_OWN_CODE",
}


@pytest.mark.parametrize("how", CODES)
def test_whatever_an_executor_does_the_server_hears_of_it_and_the_job_does_the_next_task(
    shared: ClientEngine, peer: Peer, job: str, tmp_path: Path, how: str
) -> None:
    with running(shared, job, app(tmp_path)):
        task_id = peer.given(job, how)
        until(lambda: peer.all_of(task_id) or not state_of(shared.site.jobs, job).live)
        assert state_of(shared.site.jobs, job).state == "running"
        assert peer.result(task_id).get_return_code() == CODES[how]
        (done,) = events(shared, job, "TaskDone")
        assert done.body["code"] == CODES[how]
        if CODES[how] != "MY_OWN_CODE":
            assert shared.get_errors(job)["errors"], "the site can ask what went wrong"  # type: ignore[index]
        assert peer.does(job, "echo", data=2)["data"] == 2


def test_what_an_executor_raised_is_kept_for_who_asks_and_is_not_told_to_the_server(
    shared: ClientEngine, peer: Peer, stays: str
) -> None:
    shared.reset_errors(stays)
    result = peer.does(stays, "fail")
    (error,) = shared.get_errors(stays)["errors"]  # type: ignore[index]
    assert "no such column: age" in error["message"]
    assert "no such column" not in repr(result)


# -- what is not taken ---------------------------------------------------------------------------------------


def test_L9_a_task_that_nobody_executes_is_refused_and_leaves_no_task_on_the_record(
    shared: ClientEngine, peer: Peer, stays: str
) -> None:
    before = state_of(shared.site.jobs, stays).get("tasks", "0")
    _, code = peer.offer(stays, "echo", task="no-such-task")
    assert code == ReturnCode.TASK_UNKNOWN
    assert state_of(shared.site.jobs, stays).get("tasks", "0") == before
    assert any("no-such-task" in e["message"] for e in shared.get_errors(stays)["errors"])  # type: ignore[index]


@pytest.mark.parametrize(
    ("headers", "payload"),
    [
        ({}, None),
        ({TASK_ID: "x"}, None),
        ({TASK_NAME: "work"}, None),
        ({TASK_ID: 7, TASK_NAME: "work"}, None),
        ({TASK_ID: "", TASK_NAME: "work"}, None),
        ({TASK_ID: "x" * 150, TASK_NAME: "work"}, None),
        ({TASK_ID: "x", TASK_NAME: ["work"]}, None),
        ({TASK_ID: "x", TASK_NAME: "work"}, "echo"),
        ({TASK_ID: "x", TASK_NAME: "work"}, {"how": "echo"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_L9_a_task_of_another_shape_is_refused_and_the_job_does_the_next(
    shared: ClientEngine, peer: Peer, stays: str, headers: dict[str, Any], payload: Any
) -> None:
    payload = Shareable({"how": "echo"}) if payload is None else payload
    answer = peer.tell(stays, TaskTopic.ASSIGN, payload, **headers)
    assert answer.payload.get_return_code() == ReturnCode.BAD_TASK_DATA
    assert peer.does(stays, "echo", data=1)["data"] == 1


def test_L4_a_task_that_is_given_twice_runs_once(
    shared: ClientEngine, peer: Peer, stays: str, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    for _ in range(3):
        peer.given(stays, "mark", id="twice", mark=mark)
    peer.result("twice")
    peer.given(stays, "mark", id="twice", mark=mark)
    peer.does(stays, "echo")
    assert mark.read_text() == "x"
    assert len(peer.all_of("twice")) == 1
    assert len([e for e in events(shared, stays, "TaskDone") if e.body["task_id"] == "twice"]) == 1


def test_L1_a_task_id_that_another_job_had_before_is_on_this_jobs_record_all_the_same(
    shared: ClientEngine, peer: Peer, job: str, tmp_path: Path
) -> None:
    with running(shared, job, app(tmp_path)), running(shared, f"{job}-b", app(tmp_path)):
        for each in (job, f"{job}-b"):
            peer.given(each, "echo", id=f"round-1-of-{job}")
        until(lambda: len(peer.all_of(f"round-1-of-{job}")) == 2)
        for each in (job, f"{job}-b"):
            assert [e.type for e in events(shared, each, "TaskReceived", "TaskDone")] == ["TaskReceived", "TaskDone"]
            assert state_of(shared.site.jobs, each)["tasks_done"] == "1"


def test_L4_a_task_that_found_no_room_is_done_when_it_is_offered_again(
    shared: ClientEngine, peer: Peer, job: str, tmp_path: Path
) -> None:
    with running(shared, job, app(tmp_path)):
        _, go = peer.begins(job, "wait", tmp_path)
        codes = [peer.offer(job, "echo", id=f"{job}-{number}") for number in range(QUEUED + 1)]
        assert [code for _, code in codes] == [ReturnCode.OK] * QUEUED + [ReturnCode.SERVICE_UNAVAILABLE]
        assert peer.offer(job, "echo", id=f"{job}-{QUEUED}")[1] == ReturnCode.SERVICE_UNAVAILABLE
        go.touch()
        for task_id, _ in codes[:-1]:
            peer.result(task_id)
        assert peer.offer(job, "echo", id=f"{job}-{QUEUED}")[1] == ReturnCode.OK
        peer.result(f"{job}-{QUEUED}", 5)
        assert state_of(shared.site.jobs, job)["tasks_done"] == str(QUEUED + 2)


def test_the_projection_names_the_task_that_runs_not_one_that_waits(
    shared: ClientEngine, peer: Peer, job: str, tmp_path: Path
) -> None:
    with running(shared, job, app(tmp_path)):
        first, go = peer.begins(job, "wait", tmp_path)
        mark, last = tmp_path / "second", tmp_path / "last"
        peer.given(job, "wait", task="more", mark=mark, go=last)
        assert state_of(shared.site.jobs, job)["task"] == "work"
        go.touch()
        peer.result(first)
        until(mark.exists)
        assert state_of(shared.site.jobs, job)["task"] == "more"
        last.touch()


# -- what executors have ---------------------------------------------------------------------------------------


def test_an_executor_finds_components_and_can_ask_the_server_on_the_jobs_record(
    shared: ClientEngine, peer: Peer, stays: str
) -> None:
    assert peer.does(stays, "component", which="gate")["name"] == "Gate"
    assert peer.does(stays, "component", which="nothing")["name"] == "NoneType"
    assert peer.does(stays, "ask", topic="from-a-task")["answer"] == 42
    (asked,) = [e for e in events(shared, stays, "AuxRequested") if e.body["topic"] == "from-a-task"]
    assert asked.rest()["actor"]["id"] == f"{SITE}.{stays}"
    until(lambda: [e for e in events(shared, stays, "AuxReplied") if e.body["id"] == asked.body["id"]])


def test_metrics_of_tasks_are_rows_in_the_run_folder(shared: ClientEngine, peer: Peer, stays: str) -> None:
    for number in range(3):
        peer.does(stays, "row", round=number)
    lines = (shared.site.workspace.run(stays) / NAME).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert all(abs(row["time"] - time.time()) < 60 for row in rows)


TRAP = "raise SystemExit('shadowed')\n"


def test_an_app_shadows_nothing_of_ours_and_nothing_of_pythons(
    shared: ClientEngine, peer: Peer, job: str, tmp_path: Path
) -> None:
    names = ("engine/__init__.py", "events/__init__.py", "workers/__init__.py", "json.py", "sitecustomize.py")
    data = app(tmp_path, files=dict.fromkeys(names, TRAP))
    with running(shared, job, data):
        custom = str(shared.site.workspace.app(job))
        found = peer.does(job, "where")
        assert {found[name].startswith(custom) for name in ("engine", "events", "workers", "json")} == {False}
        assert "PYTHONPATH" not in peer.does(job, "process")["keys"]


# -- apps that cannot begin ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"path": "nowhere.Work"}, "ModuleNotFoundError"),
        ({"path": "work.Nobody"}, "AttributeError"),
        ({"args": {"learning_rate": 1}}, "TypeError"),
        ({"path": "leaves.Work", "files": {"leaves.py": "import sys\nsys.exit(0)\n"}}, "SystemExit"),
        ({"path": "pathlib.Path"}, "which has no execute()"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_L9_an_app_whose_executor_cannot_be_made_ends_with_code_103_and_the_reason(
    shared: ClientEngine, job: str, tmp_path: Path, config: dict[str, Any], text: str
) -> None:
    assert shared.deploy_app("app", job, {}, SITE, app(tmp_path, **config)) == ""
    assert shared.start_app(job, {}) == STARTED
    end = ended(shared, job)
    assert end.type == "AppFailed"
    assert end.body["exit_code"] == 103
    assert text in output(shared, job)
    assert "executors[0].executor" in output(shared, job)
    assert "AppStarted" not in [e.type for e in events(shared, job, "AppStarted")]
    assert end.body["outcome"] == 103, "the server is to read config error"


# -- the end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["wait", "stubborn"])
def test_L8_an_abort_ends_a_job_that_is_in_a_task_within_its_grace(
    shared: ClientEngine, peer: Peer, job: str, tmp_path: Path, how: str
) -> None:
    begin(shared, job, app(tmp_path))
    peer.begins(job, how, tmp_path)
    began = time.monotonic()
    shared.abort_app(job)
    end = ended(shared, job)
    assert (end.type, end.body["outcome"]) == ("AppAborted", 9)
    assert (end.body["killed"] > 0) == (how == "stubborn")
    assert time.monotonic() - began < (2 if how == "wait" else 5)
    assert state_of(shared.site.jobs, job).state == "aborted"


def test_the_end_of_the_run_gives_up_the_task_that_runs_and_takes_no_further_one(
    shared: ClientEngine, peer: Peer, job: str, tmp_path: Path
) -> None:
    begin(shared, job, app(tmp_path))
    first, _ = peer.begins(job, "wait", tmp_path)
    second = peer.given(job, "mark", mark=tmp_path / "never")
    peer.tell(job, TaskTopic.END_RUN)
    assert ended(shared, job).type == "AppFinished"
    assert peer.result(first).get_return_code() == ReturnCode.TASK_ABORTED
    assert {r.get_return_code() for r in peer.all_of(second)} <= {ReturnCode.TASK_ABORTED}
    assert not (tmp_path / "never").exists()


def test_L5_a_job_that_is_killed_in_a_task_ends_without_a_result_and_the_next_attempt_begins_with_none(
    shared: ClientEngine, peer: Peer, job: str, tmp_path: Path
) -> None:
    begin(shared, job, app(tmp_path))
    peer.begins(job, "wait", tmp_path)
    kill(int(state_of(shared.site.jobs, job)["pid"]))
    end = ended(shared, job)
    assert (end.type, end.body["signal"]) == ("AppFailed", 9)
    assert shared.start_app(job, {}) == STARTED
    state = in_state(shared.site.jobs, job, "running")
    assert (state["task"], state["task_since"]) == ("", "")
    assert peer.does(job, "echo", data=1)["data"] == 1
    shared.abort_app(job)

"""``kill -9`` of a job's own process, and of its site's engine, in the middle of a task and of its messages."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from engine.archive import pack
from engine.cell.message import CellChannel, CellReturnCode, Message
from engine.client_engine import ClientEngine
from engine.constants import ReturnCode
from engine.shareable import Shareable
from engine.tasking import TASK_ID, TASK_NAME, TaskTopic
from tests.faults.peer import Peer, each_has_one_outcome, peer
from tests.faults.rig import Rig, one, types
from tests.support import QUICK, SITE, in_state, kill, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]

SPAM = """
from engine.job.executor import Executor
from engine.shareable import Shareable

class Spam(Executor):
    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        for number in range(shareable["count"]):
            if abort_signal.triggered:
                break
            fl_ctx.get_engine().send_aux_request("spam", Shareable({"number": number}), 3.0, fl_ctx)
            abort_signal.wait(shareable["pause"])
        return Shareable({"sent": number + 1})
"""


def spam_app(folder: Path) -> bytes:
    """An app whose one task sends aux requests."""
    (folder / "config").mkdir(parents=True)
    (folder / "custom").mkdir()
    (folder / "custom" / "spam.py").write_text(SPAM)
    (folder / "config" / "config_fed_client.json").write_text(
        '{"format_version": 2, "executors": [{"tasks": ["spam"], "executor": {"path": "spam.Spam"}}]}'
    )
    return pack(folder)


def running(engine: ClientEngine, tmp: Path) -> None:
    """The job runs and has said so."""
    assert engine.deploy_app("spam", "job", {}, SITE, spam_app(tmp / "spam-app")) == ""
    engine.start_app("job", {})
    in_state(engine.site.jobs, "job", "running")


def assign(server: Peer, count: int, pause: float) -> None:
    """Give the job its task."""
    message = Message(
        {TASK_ID: f"task-{time.time_ns()}", TASK_NAME: "spam"}, Shareable({"count": count, "pause": pause})
    )
    answer = server.send_request(CellChannel.SERVER_MAIN, TaskTopic.ASSIGN, f"{SITE}.job", message, 10.0)
    assert answer.payload.get_return_code() == ReturnCode.OK, answer.headers


def client(rig: Rig) -> ClientEngine:
    """An engine of this process beside the one that is up."""
    return ClientEngine.open(site=SITE, workspace=rig.root, **{**QUICK, "job_query_timeout": 2.0})


def test_a_job_that_dies_in_a_task_leaves_every_message_with_one_outcome(rig: Rig, tmp_path: Path) -> None:
    rig.start()
    with peer(rig.server("fabric").url, delay=0.02) as server, client(rig) as engine:
        running(engine, tmp_path)
        assign(server, 1000, 0.0)
        until(lambda: len(server.handled) > 20, 20)
        kill(rig.identity("job")["pid"])
        in_state(engine.site.jobs, "job", "failed", "aborted")
        each_has_one_outcome(engine.site.jobs.store)
        assert set(server.handled.values()) == {1}
        assert int(engine.site.jobs.load("job").state["messages_out"]) >= len(server.handled)
    rig.check()


def test_who_asks_a_job_that_dies_is_answered_in_time(rig: Rig, tmp_path: Path) -> None:
    rig.start()
    with peer(rig.server("fabric").url) as server, client(rig) as engine:
        running(engine, tmp_path)
        assign(server, 3, 5.0)
        pid = rig.identity("job")["pid"]
        answers: list[tuple[float, str]] = []

        def ask() -> None:
            began = time.monotonic()
            answer = engine.send_to_job("job", "nobody", "hears", Message(payload=Shareable()), 2.0)
            answers.append((time.monotonic() - began, answer.return_code))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        kill(pid)
        for thread in threads:
            thread.join(10)
        assert len(answers) == 8
        assert max(seconds for seconds, _ in answers) < 4.0
        assert {code for _, code in answers} <= {
            CellReturnCode.INVALID_REQUEST,
            CellReturnCode.TIMEOUT,
            CellReturnCode.TARGET_UNREACHABLE,
        }
        in_state(engine.site.jobs, "job", "failed", "aborted")
        until(lambda: not engine.core.view.get("job").live, 10)
        dead = engine.send_to_job("job", "nobody", "hears", Message(payload=Shareable()), 2.0)
        assert dead.return_code == CellReturnCode.TARGET_UNREACHABLE
        assert "NOT_LIVE" in dead.get_header("error")
        each_has_one_outcome(engine.site.jobs.store)


def test_L5_a_job_in_a_task_outlives_engine_and_workers_and_its_result_arrives(rig: Rig, tmp_path: Path) -> None:
    rig.start()
    results: list[Message] = []
    with peer(rig.server("fabric").url) as server:

        def result(message: Message) -> Message:
            results.append(message)
            return Message(payload=Shareable())

        server.register_request_cb(CellChannel.SERVER_MAIN, TaskTopic.RESULT, result)
        with client(rig) as engine:
            running(engine, tmp_path)
            assign(server, 4, 0.7)
        rig.kill_up()
        until(lambda: rig.pool_gone(), 20)
        rig.start()
        until(lambda: results, 30)
        assert results[0].payload["sent"] == 4
        assert (
            server.send_request(
                CellChannel.SERVER_MAIN, TaskTopic.END_RUN, f"{SITE}.job", Message(payload=Shareable()), 5.0
            ).return_code
            == CellReturnCode.OK
        )
        rig.in_state("job", "finished")
        with rig.looking() as jobs:
            each_has_one_outcome(jobs.store)
        events = rig.check()
        assert one(events, "job", "TaskDone")["code"] == ReturnCode.OK
        assert types(events, "job").count("AppStopping") == 1
        assert one(events, "job", "AppFinished")["exit_code"] == 0

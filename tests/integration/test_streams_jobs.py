"""Jobs and streams: a job's process streams and is streamed to, and its log goes where the site lets it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.cell.message import CellChannel, Message
from engine.client_engine import ClientEngine
from engine.constants import ReturnCode
from engine.egress import egress
from engine.errors import ArgumentInvalid, JobUnknown
from engine.federation.server import FederationServer
from engine.shareable import Shareable
from engine.tasking import TASK_ID, TASK_NAME, TaskTopic
from events.envelope import Event
from events.read import read, read_job
from tests.integration.streams import Numbers, Taking
from tests.integration.test_apps import STARTED
from tests.integration.test_aux import site_at
from tests.integration.test_job_process import app, job, running
from tests.support import SITE, check_record, in_state, kill, opened, processes_with, until, zip_of

__all__ = ["job"]  # a fixture
STREAMER = """
from engine.job.executor import Executor
from engine.shareable import Shareable, make_reply
from engine.streaming import ConsumerFactory, ObjectConsumer, ObjectProducer, StreamContext


class Parts(ObjectProducer):
    def __init__(self, count):
        self.left = list(range(count))

    def produce(self, stream_ctx, fl_ctx):
        return (Shareable({"number": self.left.pop(0)}), 10.0) if self.left else (None, 0.0)

    def process_replies(self, replies, stream_ctx, fl_ctx):
        return None


class Sums(ObjectConsumer):
    def __init__(self):
        self.sum = 0

    def consume(self, shareable, stream_ctx, fl_ctx):
        self.sum += shareable["number"]
        return True, Shareable({"sum": self.sum})


class Adds(ConsumerFactory):
    def get_consumer(self, stream_ctx, fl_ctx):
        return Sums()


class Work(Executor):
    def handle_event(self, event_type, fl_ctx):
        if event_type == "_start_run":
            fl_ctx.get_engine().register_stream_processing("c", "to-job", Adds())

    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        self.logger.error("the model is not ours: %s", shareable.get("how"))
        engine = fl_ctx.get_engine()
        code, result = engine.stream_objects("c", shareable["topic"], {}, ["server"], Parts(5), fl_ctx)
        return Shareable({"code": str(code)})
"""
COUNT = "import time\nfor n in range({}): print('line', n, flush=True); time.sleep({})"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, runtime_folder: Path) -> Iterator[ClientEngine]:
    with site_at(tmp_path_factory.mktemp("streams-jobs") / "ws") as engine:
        yield engine
        check_record(engine.site.jobs.store)


@pytest.fixture(scope="module")
def server(shared: ClientEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationServer]:
    folder = tmp_path_factory.mktemp("streams-server")
    with FederationServer(folder, fabric_url=shared.site.servers.fabric_url) as made:
        made.receive_logs(folder / "logs")
        yield made


def counting(folder: Path, lines: int = 20, pause: float = 0.05) -> bytes:
    """An app that writes so many lines."""
    return zip_of(folder, "python", "-c", COUNT.format(lines, pause))


def logs(server: FederationServer, job: str) -> dict[str, str]:
    """What the server has of a job's logs."""
    return {path.name: path.read_text() for path in (server.folder / "logs" / SITE / job).glob("*")}


def transfers(engine: ClientEngine, job: str, *types: str) -> list[Event]:
    return [e for e in read_job(engine.site.jobs.store, job) if e.type in (types or ("TransferOpened",))]


def own_log(engine: ClientEngine, job: str, attempt: int = 1) -> str:
    return (engine.site.workspace.attempt(job, attempt) / "log.txt").read_text()


# -- a job's process ---------------------------------------------------------------------------------------------


def test_a_jobs_process_streams_to_the_server_on_the_jobs_record(
    shared: ClientEngine, server: FederationServer, job: str, tmp_path: Path
) -> None:
    topic, factory = f"from-{job}", Taking()
    server.register_stream_processing("c", topic, factory)
    with running(shared, job, app(tmp_path, files={"work.py": STREAMER})):
        data = Shareable({"topic": topic, "how": "x"})
        headers = {TASK_ID: f"t-{job}", TASK_NAME: "work"}
        answer = server.cell.send_request(
            CellChannel.SERVER_MAIN, TaskTopic.ASSIGN, f"{SITE}.{job}", Message(headers, data), 10.0
        )
        assert answer.payload.get_return_code() == ReturnCode.OK
        until(lambda: factory.made and factory.made[0].over.is_set(), 20)
        assert factory.made[0].numbers == [0, 1, 2, 3, 4]
        (opened_event,) = transfers(shared, job)
        assert (opened_event.body["sender"], opened_event.body["targets"]) == (f"{SITE}.{job}", ["server"])
        until(lambda: [e.body["code"] for e in transfers(shared, job, "TransferClosed")] == ["OK"])


def test_a_site_streams_to_its_job_and_that_is_no_egress(
    shared: ClientEngine, server: FederationServer, job: str, tmp_path: Path
) -> None:
    with running(shared, job, app(tmp_path, files={"work.py": STREAMER})):
        producer = Numbers(10)
        code, _ = shared.stream_objects("c", "to-job", {}, [f"{SITE}.{job}"], producer, shared.new_context())
        assert code == ReturnCode.OK
        assert [one[f"{SITE}.{job}"]["sum"] for one in producer.replies] == [0, 1, 3, 6, 10, 15, 21, 28, 36, 45]
        rows = [row for row in egress(read(shared.site.jobs.store), SITE) if row["topic"] == "to-job"]
        assert not rows


# -- logs --------------------------------------------------------------------------------------------------------


def test_nobody_is_sent_a_log_unless_the_site_says_so(
    shared: ClientEngine, server: FederationServer, job: str, tmp_path: Path
) -> None:
    assert shared.deploy_app("app", job, {}, SITE, counting(tmp_path)) == ""
    assert shared.start_app(job, {}) == STARTED
    in_state(shared.site.jobs, job, "finished")
    time.sleep(0.5)
    assert not logs(server, job)
    assert not transfers(shared, job)


def test_a_log_that_is_shared_is_at_the_server_as_it_grows_and_whole_in_the_end(
    shared: ClientEngine, server: FederationServer, job: str, tmp_path: Path
) -> None:
    assert shared.deploy_app("app", job, {}, SITE, counting(tmp_path, 400, 0.05)) == ""
    with shared.acting_as("anna", reason="the server's team debugs it"):
        shared.share_log(job, "live")
    assert shared.start_app(job, {}) == STARTED
    until(lambda: "line 5" in logs(server, job).get("1-log.txt", ""), 20)
    assert shared.site.jobs.load(job).state.live
    in_state(shared.site.jobs, job, "finished", seconds=60)
    until(lambda: logs(server, job).get("1-log.txt") == own_log(shared, job), 20)
    (said,) = [e for e in read_job(shared.site.jobs.store, job) if e.type == "LogSharingSet"]
    assert (said.body["what"], said.body["reason"]) == ("live", "the server's team debugs it")
    until(lambda: [e.body["code"] for e in transfers(shared, job, "TransferClosed")] == ["OK"])
    (row,) = [
        row for row in egress(read(shared.site.jobs.store), SITE) if row["job"] == job and row["topic"] == "log"
    ]
    assert (row["outcome"], row["size"] > 500) == ("streamed", True)


def test_the_log_of_a_job_that_ends_at_once_is_sent_too(
    shared: ClientEngine, server: FederationServer, job: str, tmp_path: Path
) -> None:
    assert shared.deploy_app("app", job, {}, SITE, zip_of(tmp_path, "echo", "that was it")) == ""
    shared.share_log(job, "live")
    assert shared.start_app(job, {}) == STARTED
    in_state(shared.site.jobs, job, "finished")
    until(lambda: logs(server, job) == {"1-log.txt": "that was it\n"}, 20)


def test_sharing_that_begins_and_ends_in_the_middle(
    shared: ClientEngine, server: FederationServer, job: str, tmp_path: Path
) -> None:
    assert shared.deploy_app("app", job, {}, SITE, counting(tmp_path, 1000, 0.02)) == ""
    assert shared.start_app(job, {}) == STARTED
    shared.share_log(job, "live")
    until(lambda: logs(server, job).get("1-log.txt"), 20)
    shared.share_log(job, "off")
    until(lambda: transfers(shared, job, "TransferClosed"), 20)
    known = logs(server, job)
    time.sleep(0.5)
    assert logs(server, job) == known
    shared.abort_app(job)
    in_state(shared.site.jobs, job, "aborted")
    assert len(known["1-log.txt"]) < len(own_log(shared, job))


def test_the_error_log_of_a_job_is_sent_when_it_ends(
    shared: ClientEngine, server: FederationServer, job: str, tmp_path: Path
) -> None:
    with running(shared, job, app(tmp_path, files={"work.py": STREAMER})):
        shared.share_log(job, "errors")
        headers = {TASK_ID: f"t-{job}", TASK_NAME: "work"}
        request = Message(headers, Shareable({"topic": "nobody", "how": "weights of another"}))
        server.cell.send_request(CellChannel.SERVER_MAIN, TaskTopic.ASSIGN, f"{SITE}.{job}", request, 10.0)
        errors = shared.site.workspace.run(job) / "error_log.txt"
        until(lambda: errors.exists() and "weights of another" in errors.read_text(), 20)
    until(lambda: "weights of another" in logs(server, job).get("1-error_log.txt", ""), 20)
    assert "1-log.txt" not in logs(server, job)


@pytest.mark.parametrize("what", ["", "all", None, 7, "LIVE"])
def test_a_sharing_that_there_is_not_is_refused(shared: ClientEngine, job: str, tmp_path: Path, what: Any) -> None:
    assert shared.deploy_app("app", job, {}, SITE, counting(tmp_path)) == ""
    with pytest.raises(ArgumentInvalid) as raised:
        shared.share_log(job, what)
    assert raised.value.context["field"] == "what"
    assert not [e for e in read_job(shared.site.jobs.store, job) if e.type == "LogSharingSet"]


def test_the_log_of_a_job_that_nobody_knows_is_not_shared(shared: ClientEngine) -> None:
    with pytest.raises(JobUnknown):
        shared.share_log("never-heard-of", "live")


def test_a_log_goes_on_with_the_next_engine(tmp_path: Path, job: str) -> None:
    folder, stop = tmp_path / "ws", tmp_path / "stop"
    try:
        with FederationServer(tmp_path / "hub") as server:
            server.receive_logs(tmp_path / "hub" / "logs")
            options: dict[str, Any] = {"fabric_url": server.fabric_url, "stream_logs": "live"}
            with opened(folder, **options) as engine:
                assert engine.deploy_app("app", job, {}, SITE, zip_of(tmp_path / "app", *_forever(stop))) == ""
                assert engine.start_app(job, {}) == STARTED
                until(lambda: "tick 3" in logs(server, job).get("1-log.txt", ""), 20)
            before = logs(server, job)["1-log.txt"]
            time.sleep(0.5)  # nobody sends, and the app writes on
            with opened(folder, **options) as engine:
                until(lambda: len(logs(server, job)["1-log.txt"]) > len(before) + 20, 20)
                stop.touch()
                in_state(engine.site.jobs, job, "finished")
                until(lambda: logs(server, job)["1-log.txt"] == own_log(engine, job), 20)
    finally:
        for pid in processes_with(str(folder)):
            kill(pid)


def _forever(stop: Path) -> tuple[str, ...]:
    loop = f"n=0; while [ ! -e {stop} ]; do n=$((n+1)); echo tick $n; sleep 0.05; done"
    return ("sh", "-c", loop)

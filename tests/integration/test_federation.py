"""A server and two sites on one fabric: sites register, do what their server asks, and keep their own records."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.cell.cell import FabricCell
from engine.cell.message import CellChannel, CellReturnCode, Message
from engine.client_engine import ClientEngine
from engine.constants import ReturnCode
from engine.errors import ArgumentInvalid, CallTimeout
from engine.federation.job import ServerJob
from engine.federation.server import FederationServer
from engine.federation.topics import AdminTopic
from engine.server import EmbeddedServer
from engine.shareable import Shareable
from engine.workspace import Workspace
from events.envelope import Event
from events.read import read
from tests.integration.test_apps import ended
from tests.integration.test_aux import Since
from tests.integration.test_job_process import app, events, job
from tests.support import QUICK, check_record, in_state, kill, processes_with, state_of, until

__all__ = ["job"]  # a fixture
SITES = ("site-1", "site-2")


@contextmanager
def fabric_in(folder: Path) -> Iterator[str]:
    server = EmbeddedServer(Workspace.prepare(folder, "fabric"), "fabric")
    server.ensure()
    try:
        yield server.url
    finally:
        server.stop()


@contextmanager
def site(folder: Path, name: str, url: str, **options: Any) -> Iterator[ClientEngine]:
    """A site of the federation, of which nothing runs on."""
    given = {**QUICK, "workers": 2, "fabric_url": url, "federation": "server", **options}
    try:
        with ClientEngine.open(site=name, workspace=folder / name, **given) as engine:
            yield engine
    finally:
        for pid in processes_with(str(folder / name)):
            kill(pid)


class Federation:
    """Server, sites, and the fabric between them."""

    def __init__(self, url: str, server: FederationServer, sites: dict[str, ClientEngine]) -> None:
        self.url, self.server, self.sites = url, server, sites

    @property
    def engines(self) -> list[ClientEngine]:
        return list(self.sites.values())

    @contextmanager
    def running(self, job: str, data: bytes) -> Iterator[ServerJob]:
        assert self.server.deploy(job, "app", {}, data) == dict.fromkeys(SITES, "")
        found = self.server.run(job, {})
        for engine in self.engines:
            in_state(engine.site.jobs, job, "running")
        try:
            yield found
        finally:
            self.server.abort(job)


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory, runtime_folder: Path) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("fed")
    with ExitStack() as stack:
        url = stack.enter_context(fabric_in(folder / "fabric"))
        server = stack.enter_context(FederationServer(folder / "server", fabric_url=url))
        sites = {name: stack.enter_context(site(folder, name, url)) for name in SITES}
        server.wait_for_sites(2)
        yield Federation(url, server, sites)
        for engine in sites.values():
            check_record(engine.site.jobs.store)


def each(**how: dict[str, Any]) -> dict[str, Shareable]:
    """What each site is to do."""
    return {name.replace("_", "-"): Shareable(data) for name, data in how.items()}


def actor(event: Event) -> tuple[str, str, str]:
    found = event.rest()["actor"]
    return found["id"], found["kind"], found["auth"]


# -- registration and commands ------------------------------------------------------------------------------


def test_sites_register_with_their_release_and_public_keys(fed: Federation) -> None:
    assert sorted(fed.server.sites) == list(SITES)
    for name, engine in fed.sites.items():
        said = fed.server.sites[name]
        assert said["site"] == name
        assert said["keys"] == engine.cell.ring.public()  # type: ignore[union-attr]
        assert "private" not in str(said)


def test_a_site_cannot_register_under_another_name(fed: Federation) -> None:
    cell = FabricCell(fed.url, "mallory").start()
    message = Message(payload=Shareable({"site": "site-3", "keys": {}}))
    answer = cell.send_request(CellChannel.SERVER_MAIN, "register", "server", message, 10.0)
    cell.stop()
    assert answer.return_code == CellReturnCode.INVALID_REQUEST
    assert "site-3" not in fed.server.sites


def test_what_the_server_has_done_on_a_site_is_on_that_sites_record_as_the_servers(
    fed: Federation, job: str, tmp_path: Path
) -> None:
    assert fed.server.deploy(job, "app", {"study": "x"}, app(tmp_path)) == dict.fromkeys(SITES, "")
    found = fed.server.run(job, {"study": "x"})
    assert found.sites == list(SITES)
    for status in fed.server.status().values():
        assert (job, "app") in [(j["job_id"], j["app_name"]) for j in status["running_jobs"]]
    answers = fed.server.abort(job, reason="the study is over")
    assert answers == dict.fromkeys(SITES, "Abort signal has been sent to the client App.")
    for engine in fed.engines:
        ended(engine, job)
    gone = fed.server.delete(job)
    for name, engine in fed.sites.items():
        folder = engine.site.workspace.run(job)
        assert gone[name] == f"Delete run folder: {folder}."
        assert not folder.exists()
        asked = events(engine, job, "DeployRequested", "StartRequested", "AbortRequested", "DeleteRequested")
        assert len(asked) == 4
        assert {actor(e) for e in asked} == {("server", "server", "none")}
        (abort,) = [e for e in asked if e.type == "AbortRequested"]
        assert abort.body["reason"] == "the study is over"


def test_a_site_that_does_not_start_a_job_is_named(fed: Federation, job: str) -> None:
    with pytest.raises(ArgumentInvalid, match=r"site-1.*Client app does not exist.*site-2"):
        fed.server.run(job, {})
    assert fed.server.abort(job)["site-1"].startswith("NVFLARE_ERROR: JOB_UNKNOWN")


def test_a_server_that_nobody_joins_does_not_wait_for_ever(fed: Federation) -> None:
    with pytest.raises(CallTimeout, match="2 of 3 sites"):
        fed.server.wait_for_sites(3, 0.1)


@pytest.mark.parametrize("topic", [AdminTopic.DEPLOY, AdminTopic.START, AdminTopic.ABORT, AdminTopic.STATUS])
def test_L9_a_command_from_another_address_is_refused_and_recorded_as_its_senders(
    fed: Federation, topic: str
) -> None:
    engine = fed.sites["site-1"]
    since = Since(engine)
    cell = FabricCell(fed.url, "mallory").start()
    message = Message(payload={"job_id": "job", "app": b""})
    answer = cell.send_request(CellChannel.CLIENT_MAIN, topic, "site-1", message, 10.0)
    cell.stop()
    assert answer.return_code == CellReturnCode.UNAUTHENTICATED
    (refused,) = since.of("CallRefused")
    assert (refused.body["code"], refused.body["method"]) == ("NOT_AUTHORISED", topic)
    assert refused.rest()["actor"]["id"] == "mallory"
    assert not since.of("DeployRequested", "StartRequested")


@pytest.mark.parametrize(
    ("topic", "said"),
    [
        (AdminTopic.ABORT, None),
        (AdminTopic.ABORT, "job"),
        (AdminTopic.ABORT, {}),
        (AdminTopic.ABORT, {"job_id": "../x"}),
        (AdminTopic.DEPLOY, {"job_id": "job"}),
        (AdminTopic.DEPLOY, {"job_id": "job", "app": "no bytes"}),
        (AdminTopic.DEPLOY, {"job_id": "job", "app": b"no zip"}),
        (AdminTopic.DEPLOY, {"job_id": "job", "app": b"", "meta": "x"}),
        (AdminTopic.START, {"job_id": 5}),
        (AdminTopic.START, {"job_id": "job", "resources": "all of them"}),
    ],
    ids=str,
)
def test_L9_a_command_of_another_shape_is_refused_with_a_code_and_an_event(
    fed: Federation, topic: str, said: Any
) -> None:
    since = Since(fed.sites["site-1"])
    fed.sites["site-1"].core._refusals.clear()  # more than ten a second of one actor are counted together
    answer = fed.server.cell.send_request(CellChannel.CLIENT_MAIN, topic, "site-1", Message(payload=said), 10.0)
    assert answer.return_code == CellReturnCode.OK
    assert "error" in answer.payload or answer.payload["answer"].startswith("NVFLARE_ERROR")
    assert len(since.of("CallRefused")) == 1
    assert not since.of("DeployRequested", "StartRequested", "AbortRequested")


# -- tasks -----------------------------------------------------------------------------------------------------


def test_every_site_does_a_task_with_data_of_its_own_and_no_site_hears_of_another(
    fed: Federation, job: str, tmp_path: Path
) -> None:
    with fed.running(job, app(tmp_path)) as found:
        data = each(site_1={"how": "echo", "data": 1}, site_2={"how": "echo", "data": 2})
        results = found.broadcast_task("work", data, 20)
        assert {name: result["data"] for name, result in results.items()} == {"site-1": 1, "site-2": 2}
        results = found.broadcast_task("more", Shareable({"how": "echo"}), 20)
        assert {result["task"] for result in results.values()} == {"more"}
        found.end()
        for name, engine in fed.sites.items():
            assert ended(engine, job).type == "AppFinished"
            story = "".join(str(e.rest()) for e in read(engine.site.jobs.store))
            other = next(n for n in SITES if n != name)
            assert f"{name}.{job}" in story
            assert other not in story
            assert len(events(engine, job, "TaskDone")) == 2


def test_a_site_that_fails_is_told_of_and_the_others_results_are_there(
    fed: Federation, job: str, tmp_path: Path
) -> None:
    with fed.running(job, app(tmp_path)) as found:
        results = found.broadcast_task("work", each(site_1={"how": "echo"}, site_2={"how": "fail"}), 20)
        assert results["site-1"].get_return_code() == ReturnCode.OK
        assert results["site-2"].get_return_code() == ReturnCode.EXECUTION_EXCEPTION
        results = found.broadcast_task("no-such-task", Shareable({"how": "echo"}), 20)
        assert {r.get_return_code() for r in results.values()} == {ReturnCode.TASK_UNKNOWN}


def test_a_site_that_is_too_slow_is_told_to_give_up_and_its_late_result_is_dropped(
    fed: Federation, job: str, tmp_path: Path
) -> None:
    with fed.running(job, app(tmp_path)) as found:
        slow = {"how": "wait", "mark": str(tmp_path / "mark"), "go": str(tmp_path / "never")}
        began = time.monotonic()
        results = found.broadcast_task("work", each(site_1={"how": "echo"}, site_2=slow), 8)
        assert 7.9 < time.monotonic() - began < 12
        assert results["site-1"].get_return_code() == ReturnCode.OK
        assert results["site-2"].get_return_code() == ReturnCode.TIMEOUT
        engine = fed.sites["site-2"]
        (done,) = until(lambda: events(engine, job, "TaskDone"))
        assert done.body["code"] == ReturnCode.TASK_ABORTED
        until(lambda: events(engine, job, "AuxReplied"))  # the server has taken the late result, to drop it
        results = found.broadcast_task("work", Shareable({"how": "echo", "data": 2}), 20)
        assert [r["data"] for r in results.values()] == [2, 2]
        assert found._results == {}


def test_L4_what_is_given_up_late_is_not_another_task_than_the_one_that_was_late(
    fed: Federation, job: str, tmp_path: Path
) -> None:
    with fed.running(job, app(tmp_path)) as found:
        held = {"how": "wait", "mark": str(tmp_path / "held"), "go": str(tmp_path / "go")}
        kept: dict[str, Shareable] = {}
        long = threading.Thread(
            target=lambda: kept.update(found.broadcast_task("work", each(site_1=held, site_2={"how": "echo"}), 30))
        )
        long.start()
        until((tmp_path / "held").exists)
        late = {"how": "mark", "mark": str(tmp_path / "late")}
        results = found.broadcast_task("more", each(site_1=late, site_2={"how": "echo"}), 1)
        assert results["site-1"].get_return_code() == ReturnCode.TIMEOUT
        (tmp_path / "go").touch()
        long.join(20)
        assert kept["site-1"].get_return_code() == ReturnCode.OK, "the other call's task was not late"
        assert found.broadcast_task("work", Shareable({"how": "echo"}), 20)["site-1"].get_return_code() == "OK"
        assert not (tmp_path / "late").exists(), "a task that was given up is not done later"


def test_with_enough_replies_the_server_goes_on_and_the_rest_is_told_to_give_up(
    fed: Federation, job: str, tmp_path: Path
) -> None:
    with fed.running(job, app(tmp_path)) as found:
        slow = {"how": "wait", "mark": str(tmp_path / "mark"), "go": str(tmp_path / "never")}
        began = time.monotonic()
        results = found.broadcast_task("work", each(site_1={"how": "echo"}, site_2=slow), 30, min_replies=1)
        assert time.monotonic() - began < 10
        assert [r.get_return_code() for r in results.values()] == [ReturnCode.OK, ReturnCode.TIMEOUT]
        failing = each(site_1={"how": "fail"}, site_2={"how": "echo"})
        results = found.broadcast_task("work", failing, 30, min_replies=1)
        assert results["site-2"].get_return_code() == ReturnCode.OK, "a failure is no reply that counts"


def test_a_site_whose_process_is_gone_does_not_hold_up_the_ones_that_are_enough(
    fed: Federation, job: str, tmp_path: Path
) -> None:
    with fed.running(job, app(tmp_path)) as found:
        kill(int(state_of(fed.sites["site-2"].site.jobs, job)["pid"]))
        ended(fed.sites["site-2"], job)
        until(lambda: fed.server.cell.fabric.holder(f"site-2.{job}") is None)
        began = time.monotonic()
        results = found.broadcast_task("work", Shareable({"how": "echo"}), 8, min_replies=1)
        assert results["site-1"].get_return_code() == ReturnCode.OK
        assert results["site-2"].get_return_code() != ReturnCode.OK
        assert time.monotonic() - began < 5


def test_a_process_that_is_killed_in_a_task_is_a_timeout_and_the_others_result_is_there(
    fed: Federation, job: str, tmp_path: Path
) -> None:
    with fed.running(job, app(tmp_path)) as found:
        mark = tmp_path / "mark"
        slow = {"how": "wait", "mark": str(mark), "go": str(tmp_path / "never")}
        pid = int(state_of(fed.sites["site-2"].site.jobs, job)["pid"])
        waiting = fed.server.cell._waiting  # of an offer that was not answered: who is killed then gets it anew
        killer = threading.Thread(target=lambda: (until(lambda: mark.exists() and not waiting), kill(pid)))
        killer.start()
        results = found.broadcast_task("work", each(site_1={"how": "echo"}, site_2=slow), 10)
        killer.join(10)
        assert [r.get_return_code() for r in results.values()] == [ReturnCode.OK, ReturnCode.TIMEOUT]
        end = ended(fed.sites["site-2"], job)
        assert (end.type, end.body["signal"]) == ("AppFailed", 9)
        assert state_of(fed.sites["site-1"].site.jobs, job).state == "running"

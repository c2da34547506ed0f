"""A site and its server's keys, and a server that comes back."""

from __future__ import annotations

from pathlib import Path

from engine.cell.message import CellChannel, CellReturnCode, Message
from engine.client_engine import ClientEngine
from engine.federation.job import ServerJob
from engine.federation.server import FederationServer
from engine.shareable import Shareable
from engine.tasking import TASK_ID, TASK_NAME, TaskTopic
from events.read import read
from tests.integration.test_apps import ended
from tests.integration.test_aux import Since
from tests.integration.test_federation import actor, fabric_in, site
from tests.integration.test_job_process import app, events, job
from tests.support import ready, until

__all__ = ["job"]  # a fixture


def test_once_a_site_trusts_the_servers_key_only_what_is_sealed_with_it_counts(
    tmp_path: Path, runtime_folder: Path, job: str
) -> None:
    with (
        fabric_in(tmp_path / "fabric") as url,
        FederationServer(tmp_path / "server", fabric_url=url) as server,
        site(tmp_path, "site-1", url) as engine,
    ):
        server.wait_for_sites(1)
        assert server.deploy(job, "app", {}, app(tmp_path)) == {"site-1": ""}
        server.ring.trust(server.sites["site-1"]["keys"])
        engine.cell.ring.trust(server.ring.public())  # type: ignore[union-attr]
        since = Since(engine)
        assert server.delete(job)["site-1"].startswith("unauthenticated: NOT_AUTHORISED")
        assert [e.body["code"] for e in since.of("CallRefused")] == ["NOT_AUTHORISED"]
        assert engine.site.workspace.app(job).exists()
        server.secure = True
        found = server.run(job, {})
        (started,) = events(engine, job, "StartRequested")
        assert actor(started) == ("server", "server", "signed")
        assert found.broadcast_task("work", Shareable({"how": "echo", "data": 1}), 20)["site-1"]["data"] == 1

        headers = {TASK_ID: "forged", TASK_NAME: "work"}
        forged = Message(headers, Shareable({"how": "mark", "mark": str(tmp_path / "mark")}))
        address = f"site-1.{job}"
        answer = server.cell.send_request(CellChannel.SERVER_MAIN, TaskTopic.ASSIGN, address, forged, 10.0)
        assert answer.return_code == CellReturnCode.UNAUTHENTICATED, "a task is a command as well"
        assert not (tmp_path / "mark").exists()
        server.abort(job)
        ended(engine, job)


def test_a_key_of_the_servers_that_cannot_be_read_does_not_make_unsealed_commands_count_again(
    tmp_path: Path, runtime_folder: Path
) -> None:
    with (
        fabric_in(tmp_path / "fabric") as url,
        FederationServer(tmp_path / "server", fabric_url=url) as server,
        site(tmp_path, "site-1", url) as engine,
    ):
        server.wait_for_sites(1)
        engine.cell.ring.trust(server.ring.public())  # type: ignore[union-attr]
        (key,) = (engine.site.workspace.root / "startup").rglob("peers/server.json")
        key.write_text("{ a disk that was full")
        since = Since(engine)
        assert server.abort("job")["site-1"].startswith("unauthenticated")
        assert [e.body["code"] for e in since.of("CallRefused")] == ["NOT_AUTHORISED"]


def test_a_site_registers_anew_with_a_server_that_was_restarted_and_goes_on_with_its_job(
    tmp_path: Path, runtime_folder: Path, job: str
) -> None:
    with fabric_in(tmp_path / "fabric") as url, site(tmp_path, "site-1", url) as engine:
        ready(engine)
        with FederationServer(tmp_path / "server", fabric_url=url) as first:
            first.wait_for_sites(1)
            first.deploy(job, "app", {}, app(tmp_path))
            first.run(job, {})
        second = FederationServer(tmp_path / "server", fabric_url=url)
        assert second.sites == {}
        with second:
            assert second.wait_for_sites(1, 10) == ["site-1"]
            until(lambda: _registered(engine) == (2, 2), 10)
            found = second._jobs[job] = ServerJob(second, job, ["site-1"])
            assert found.broadcast_task("work", Shareable({"how": "echo", "data": 1}), 20)["site-1"]["data"] == 1
            second.abort(job)
            ended(engine, job)


def _registered(engine: ClientEngine) -> tuple[int, int]:
    """How often it has registered, and how often it was answered."""
    events = list(read(engine.site.jobs.store))
    answered = {e.body["id"] for e in events if e.type == "AuxReplied"}
    asked = {e.body["id"] for e in events if e.type == "AuxRequested" and e.body["topic"] == "register"}
    return len(asked), len(answered & asked)


def test_a_fabric_that_went_with_its_server_is_found_again_when_both_are_back(
    tmp_path: Path, runtime_folder: Path
) -> None:
    first = second = FederationServer(tmp_path / "server").start()
    try:
        with site(tmp_path, "site-1", first.fabric_url):
            first.wait_for_sites(1)
            first.stop()
            second = FederationServer(tmp_path / "server").start()
            assert second.fabric_url == first.fabric_url
            assert second.wait_for_sites(1, 15) == ["site-1"]
            assert second.status()["site-1"]["client_name"] == "site-1"
    finally:
        second.stop()

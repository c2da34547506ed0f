"""The rest of the engine's surface: getters without Redis, shutdown and restart, components, site files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.client import LocalArguments, LocalClient
from engine.client_engine import ClientEngine
from engine.component import FLComponent
from engine.constants import ClientStatus, EventType
from engine.errors import ArgumentInvalid, ResourcesLacking
from engine.files import FileLock
from engine.resources.gpu import GPUResourceManager
from engine.server import EmbeddedServer
from engine.workspace import Workspace
from events.envelope import Actor
from events.read import read
from tests.support import QUICK, SITE, check_record, in_state, kill, opened, until, zip_of


class Listener(FLComponent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def handle_event(self, event_type: str, fl_ctx: Any) -> None:
        self.heard.append(event_type)


class Client(LocalClient):
    """A client whose close may fail."""

    closed = 0
    fails = False

    def close(self) -> None:
        self.closed += 1
        if self.fails:
            raise OSError("the server does not answer")


def of_client(workspace: Path, client: Client) -> ClientEngine:
    return ClientEngine(client, LocalArguments(str(workspace)), 3, 1, **QUICK)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", ["shutdown", "restart"])
def test_the_client_is_closed_and_stopped_also_when_its_close_fails(workspace: Path, kind: str, fails: bool) -> None:
    listener = Listener()
    client = Client(client_name=SITE, components={"listener": listener})
    client.fails = fails
    engine = of_client(workspace, client)
    try:
        assert getattr(engine, kind)() == f"{kind.capitalize()} the client..."
        until(lambda: client.status == ClientStatus.STOPPED, 10)
        assert (workspace / f"{kind}.fl").exists()
        assert client.closed == 1
        assert listener.heard.count(EventType.SYSTEM_END) == 1
        found = [event.type for event in check_record(engine.site.jobs.store)]
        assert f"{kind.capitalize()}Requested" in found
    finally:
        engine.close()


def test_the_rank_and_the_role_are_on_the_record(workspace: Path) -> None:
    engine = of_client(workspace, Client(client_name=SITE))
    try:
        (one,) = [e.body for e in read(engine.site.jobs.store) if e.type == "EngineOpened"]
        assert (one["rank"], one["role"]) == ("3", "owner")
    finally:
        engine.close()


def test_L5_getters_answer_with_redis_down(engine: ClientEngine, tmp_path: Path) -> None:
    assert engine.deploy_app("app", "job", {}, SITE, zip_of(tmp_path / "a", "sleep", "1000")) == ""
    assert engine.start_app("job", {}) == "Start the client app..."
    server = EmbeddedServer(Workspace.find(engine.site.workspace.root), "record")
    hold = FileLock(server.runtime / "record.lock")
    assert hold.acquire(timeout=5)  # nobody starts it again meanwhile
    kill(until(server.pid, 5))
    until(lambda: not server.answers(), 5)
    status = engine.get_engine_status()
    assert json.loads(json.dumps(status)) == {
        "client_name": SITE,
        "running_jobs": [{"app_name": "app", "job_id": "job", "status": "started"}],
    }
    assert engine.get_all_job_ids() == ["job"]
    assert engine.get_client_name() == SITE
    assert engine.get_component("nothing") is None
    hold.release()
    until(server.answers, 20)
    engine.abort_app("job")
    in_state(engine.site.jobs, "job", "aborted")
    methods = ("get_engine_status", "get_all_job_ids", "get_client_name", "get_component")
    until(lambda: _reads(engine) >= set(methods), 10, "reads while Redis was down are not on the record")


def _reads(engine: ClientEngine) -> set[str]:
    return {e.body["method"] for e in read(engine.site.jobs.store) if e.type == "ReadsObserved"}


def test_a_clients_components_are_not_the_sites(engine: ClientEngine, tmp_path: Path) -> None:
    listener = Listener()
    with opened(engine.site.workspace.root, components={"listener": listener}) as other:
        assert other.role == "client"
        assert other.deploy_app("app", "job", {}, SITE, zip_of(tmp_path / "a", "true")) == ""
        other.start_app("job", {})
        in_state(other.site.jobs, "job", "finished")
        until(lambda: other.site.jobs.load("job").state.get("settled") == "1", 10)
    assert listener.heard == []


def test_a_heartbeats_abort_does_not_wait_for_the_end(engine: ClientEngine, tmp_path: Path) -> None:
    deaf = tmp_path / "deaf"
    stubborn = zip_of(tmp_path / "a", "sh", "-c", f"trap '' TERM; touch {deaf}; while :; do sleep 0.1; done")
    assert engine.deploy_app("app", "job", {}, SITE, stubborn) == ""
    engine.start_app("job", {})
    until(deaf.exists)
    assert engine.abort_app("job", heartbeat_cleanup=True) == "Abort signal has been sent to the client App."
    assert engine.site.jobs.load("job").state.state == "aborting"
    in_state(engine.site.jobs, "job", "aborted")


def test_a_call_id_makes_a_call_idempotent_and_names_one_call_for_ever(engine: ClientEngine, tmp_path: Path) -> None:
    data = zip_of(tmp_path / "a", "true")
    for _ in range(2):
        with engine.acting_as(Actor(id="server", kind="server", auth="mtls"), call_id="call-1", reason="why not"):
            assert engine.deploy_app("app", "job", {}, SITE, data) == ""
    events = check_record(engine.site.jobs.store)
    (asked,) = [event.as_dict() for event in events if event.type == "DeployRequested"]
    assert (asked["call_id"], asked["actor"]["id"], asked["body"]["reason"]) == ("call-1", "server", "why not")
    with (
        engine.acting_as("somebody else", call_id="call-1"),
        pytest.raises(Exception, match="CALL_ID_REUSED"),
    ):
        engine.deploy_app("other", "job", {}, SITE, data)


class Raises(GPUResourceManager):
    """A manager that cannot free."""

    def free_resources(self, resources: Any, token: str, fl_ctx: Any) -> None:
        raise RuntimeError("the card is on fire")


def test_a_manager_that_raises_when_it_frees_is_recorded_and_does_not_stop_the_settling(
    workspace: Path, tmp_path: Path
) -> None:
    manager = Raises(1, 8, ignore_host=True)
    with opened(workspace, components={"resource_manager": manager}) as engine:
        assert engine.deploy_app("app", "job", {}, SITE, zip_of(tmp_path / "a", "true")) == ""
        engine.start_with_resources("job", None, {"num_of_gpus": 1, "mem_per_gpu_in_GiB": 4})
        until(lambda: engine.site.jobs.load("job").state.get("settled") == "1", 20)
        (freed,) = [e.body for e in check_record(engine.site.jobs.store) if e.type == "ResourcesFreed"]
        assert "the card is on fire" in freed["why"]


RESOURCES = {
    "format_version": 2,
    "components": [
        {
            "id": "resource_manager",
            "path": "engine.resources.gpu.GPUResourceManager",
            "args": {"num_of_gpus": 1, "mem_per_gpu_in_GiB": 8, "ignore_host": True},
        },
        {
            "id": "resource_consumer",
            "path": "engine.resources.gpu.GPUResourceConsumer",
            "args": {"ignore_host": True},
        },
    ],
}


def test_L4_a_site_allocates_what_its_own_file_names_whichever_engine_starts(workspace: Path, tmp_path: Path) -> None:
    site = Workspace.prepare(workspace, SITE)
    (site.root / "local" / "resources.json").write_text(json.dumps(RESOURCES))
    need = {"num_of_gpus": 1, "mem_per_gpu_in_GiB": 8}
    app = zip_of(tmp_path / "a", "sh", "-c", 'echo "cards: $CUDA_VISIBLE_DEVICES"; sleep 1000')
    with opened(workspace) as engine, opened(workspace) as client:
        assert client.role == "client"
        for job in ("one", "two"):
            assert engine.deploy_app("app", job, {}, SITE, app) == ""
        client.start_with_resources("one", None, need)
        with pytest.raises(ResourcesLacking):
            engine.start_with_resources("two", None, need)
        engine.abort_app("one")
        until(lambda: engine.site.jobs.load("one").state.get("settled") == "1", 20)
        engine.start_with_resources("two", None, need)
        log = engine.site.workspace.attempt("two", 1) / "log.txt"
        until(lambda: "cards: 0" in log.read_text(), 10)
        engine.abort_app("two")
        until(lambda: engine.site.jobs.load("two").state.get("settled") == "1", 20)
        freed = [e for e in check_record(engine.site.jobs.store) if e.type == "ResourcesFreed"]
        assert len(freed) == 2


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{ torn", "cannot be read"),
        ('{"components": 3}', "components"),
        ('{"components": [{"path": "x.Y"}]}', "id"),
        ('{"components": [{"id": "a", "path": "no.such.Thing"}]}', "no.such.Thing"),
    ],
)
def test_L9_a_site_file_that_makes_no_sense_is_refused_by_name(workspace: Path, text: str, names: str) -> None:
    site = Workspace.prepare(workspace, SITE)
    (site.root / "local" / "resources.json").write_text(text)
    with pytest.raises(ArgumentInvalid, match=names):
        ClientEngine.open(workspace=workspace)

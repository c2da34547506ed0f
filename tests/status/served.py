"""A site with its API as a process of its own, for tests that ask it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from engine.archive import pack
from engine.calls.deploy import deploy
from engine.client_engine import ClientEngine
from engine.status.sockets import SOCKET, short
from engine.status.tokens import Tokens
from tests.support import SITE, in_state, kill, make_app, opened, ready, until

SLEEPER = ("sh", "-c", "echo here; sleep 60")


@dataclass
class Served:
    """A site that is up, its API, and two who may ask it."""

    engine: ClientEngine
    workspace: Path
    api: subprocess.Popen[bytes]
    url: str
    operator: str
    viewer: str

    def client(self, token: str | None = None, **options: Any) -> httpx.Client:
        """A client over TCP."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, **options)

    def get(self, path: str, **params: Any) -> Any:
        """The JSON of an answer that must be good."""
        answer = httpx.get(self.url + path, params=params, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def fed(self, seconds: float = 30) -> None:
        """Wait until the read models are where the record is."""
        caught_up = lambda: self.get("/v1/egress", limit=1)["as_of"]["lag"] == 0  # noqa: E731
        until(caught_up, seconds, "the read models do not catch up")

    def run(self, job: str, folder: Path, *command: str, wait: str | None = "finished", **config: Any) -> None:
        """Deploy an app and start it; wait for a state."""
        app = pack(make_app(folder / f"app-{job}", *command, **config))
        deploy(self.engine.core, "app", job, {}, SITE, app, timeout=30)
        self.engine.start_app(job, None)
        if wait:
            in_state(self.engine.site.jobs, job, wait)


@contextmanager
def served(workspace: Path, env: dict[str, str] | None = None, **options: Any) -> Iterator[Served]:
    """A site, and its API on a free port."""
    # A reconciler that is looked for has to be there, on a loaded machine too: its lease is three of its turns.
    with opened(workspace, **{"reconcile_every": 5, "claim_deadline": 300, **options}) as engine:
        ready(engine)
        tokens = Tokens(engine.site.workspace)
        operator, viewer = tokens.add("olga", "operator"), tokens.add("vera", "viewer")
        api = start_api(workspace, env)
        up = Served(engine, workspace, api, address(workspace, api), operator, viewer)
        try:
            yield up
        finally:
            up.api.terminate()  # a test may have put another one in its place
            try:
                up.api.wait(15)
            except subprocess.TimeoutExpired:
                kill(up.api.pid)
                up.api.wait()
                raise


def start_api(workspace: Path, env: dict[str, str] | None = None, port: int = 0) -> subprocess.Popen[bytes]:
    """The API's process."""
    given = {**os.environ, "FLIGHTLOG_API_PORT": str(port), **(env or {})}
    with (workspace / ".flightlog" / "api.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "engine.status", "--exactly", "--workspace", str(workspace)],
            env=given,
            stdout=log,
            stderr=log,
        )


def address(workspace: Path, api: subprocess.Popen[bytes]) -> str:
    """Where it answers."""
    log = workspace / ".flightlog" / "api.log"

    def answers() -> str | None:
        assert api.poll() is None, log.read_text()
        try:
            known = json.loads((workspace / ".flightlog" / "api.json").read_text())
            if known["pid"] != api.pid:
                return None
            httpx.get(known["url"] + "livez", timeout=5)
        except (OSError, ValueError, httpx.HTTPError):
            return None
        return str(known["url"]).rstrip("/")

    return until(answers, 30, f"the API does not come up: {log}") or ""


@contextmanager
def over_unix(workspace: Path) -> Iterator[httpx.Client]:
    """A client over the site's own socket."""
    with (
        short(workspace / ".flightlog" / SOCKET) as path,
        httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://flightlog", timeout=30) as client,
    ):
        yield client


def problem(answer: httpx.Response, status: int, code: str, field: str | None = None) -> dict[str, Any]:
    """The problem of an answer, which must be this one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["code"] == code, found
    assert found["status"] == status
    assert found["type"] == f"/errors/{code}"
    assert found["detail"]
    if field is not None:
        assert found["field"] == field, found
    return found

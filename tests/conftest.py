"""Fixtures: a workspace that leaves nothing running, an engine, and a real record server."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from engine.client_engine import ClientEngine
from engine.server import EmbeddedServer
from engine.workspace import Workspace
from events.store import Store, connect
from tests.support import SITE, kill, opened, processes_with, ready


@pytest.fixture(scope="session", autouse=True)
def runtime_folder() -> Iterator[Path]:
    """Sockets of this test run, apart from everybody else's."""
    folder = Path(tempfile.mkdtemp(prefix="fl-"))
    os.environ["FLIGHTLOG_RUNTIME_DIR"] = str(folder)
    os.environ["FLIGHTLOG_API"] = "off"  # tests of the API start their own
    os.environ["FLIGHTLOG_SEAL"] = "off"  # so do tests of the sealer
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """A folder for a site; whatever still runs for it when the test is over is ended."""
    folder = tmp_path / "ws"
    yield folder
    for _ in range(50):  # a pool may start a server again while it is itself about to end
        left = processes_with(str(folder))
        if not left:
            break
        for pid in left:
            kill(pid)


@pytest.fixture
def engine(workspace: Path) -> Iterator[ClientEngine]:
    """An engine with its own pool and servers, and short leases."""
    with opened(workspace) as opened_engine:
        yield ready(opened_engine)


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory, runtime_folder: Path) -> Iterator[EmbeddedServer]:
    """A real record server for the whole session; each test uses a site name of its own."""
    server = EmbeddedServer(Workspace.prepare(tmp_path_factory.mktemp("server"), "shared"), "record")
    server.ensure()
    yield server
    server.stop()


@pytest.fixture
def real_store(real_server: EmbeddedServer, request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store on the real server, under a site name that no other test has; emptied before."""
    site = f"{SITE}-{os.getpid()}-{abs(hash(request.node.nodeid)) % 10**10}"
    client: redis.Redis = connect(real_server.url)
    store = Store(client, site)
    for name in client.scan_iter(match=f"*{site}*"):
        client.delete(name)
    yield store
    client.close()


def pytest_configure(config: pytest.Config) -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would all that tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where everything has to be shown (``FLIGHTLOG_NO_SKIPS``), a test that was skipped fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", [])) if reporter is not None else 0
    if skipped and os.environ.get("FLIGHTLOG_NO_SKIPS"):
        reporter.write_line(f"{skipped} tests were skipped, and none may be here", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED

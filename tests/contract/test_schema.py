"""Schemathesis against the running API: whatever is asked, the answer is one that the description has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.status.served import Served, served
from tests.support import kill, processes_with

pytestmark = pytest.mark.real
ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("schemathesis.toml")
#: A cursor or a position of the right form is refused where this server did not give it, and an app that is no zip;
#: who may ask without a token is what the tests of commands show.
STREAM = "/v1/events/stream"
EXCLUDED = "positive_data_acceptance,ignored_auth"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("contract")
    with served(folder / "ws", workers=2) as up:
        up.run("job-17", folder, "sh", "-c", "echo one; echo two; exit 3", wait="failed")
        up.fed()
        yield up
        log = (up.workspace / ".flightlog" / "api.log").read_text()
        assert "Traceback" not in log, log[-5000:]
    for pid in processes_with(str(folder)):
        kill(pid)


def schemathesis(site: Served, folder: Path, *options: str) -> str:
    """Run it; its report, which must be clean."""
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "--config-file", CONFIG),
            *("run", f"{site.url}/openapi.json", "--header", f"Authorization: Bearer {site.operator}"),
            *("--checks", "all", "--exclude-checks", EXCLUDED, "--seed", "17", "--request-timeout", "20"),
            *options,
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=390,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    return done.stdout


@pytest.mark.timeout(400)
def test_every_answer_is_as_described(site: Served, tmp_path: Path) -> None:
    told = schemathesis(site, tmp_path, "--exclude-path", STREAM, "--max-examples", "10")
    assert re.search(r"Tested: +2[0-9]", told), told[-2000:]


def test_the_stream_of_events_is_as_described(site: Served, tmp_path: Path) -> None:
    """It has no end of its own, so it is not asked for at random."""
    schemathesis(site, tmp_path, "--include-path", STREAM, "--phases", "examples")

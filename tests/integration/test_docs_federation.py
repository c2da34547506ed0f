"""What docs/federation.md and docs/messages.md show, run as it stands: one real federation with one site."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.archive import pack
from engine.cli import app
from engine.client_engine import ClientEngine
from engine.constants import ReturnCode
from engine.federation.server import FederationServer
from engine.server import EmbeddedServer
from engine.shareable import Shareable
from engine.workspace import Workspace
from tests.support import QUICK, in_state, kill, processes_with

pytestmark = pytest.mark.timeout(120)

DOCS = Path(__file__).resolve().parents[2] / "docs"
BIN = Path(sys.executable).parent
MEANS = "[3.0, 3.0]"


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def blocks(name: str, language: str) -> list[str]:
    """A page's blocks of a language, however deep they are indented."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page(name), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(text) for _, text in found]


def files(name: str) -> dict[str, str]:
    """The files that a page shows: path, from the comment in the first line -> content."""
    found = {}
    for block in blocks(name, "python"):
        path = block.partition("\n")[0].removeprefix("# ")
        assert re.fullmatch(r"[a-z_/]+\.py", path), f"{name} has a block without a file's name"
        found[path] = block
    return found


def commands(name: str) -> list[str]:
    """The commands that a page shows in its sessions."""
    lines = "".join(blocks(name, "console")).splitlines()
    return [re.split(r"\s{2,}#", line[2:])[0] for line in lines if line.startswith("$ ")]


def command(name: str, *words: str) -> list[str]:
    """The first of these commands that begins so."""
    found = (split for line in commands(name) if (split := shlex.split(line))[: len(words)] == list(words))
    return next(found)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder with the files of the page, in which nothing runs on."""
    for path, text in files("federation.md").items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (config,) = (block for block in blocks("federation.md", "json") if '"executors"' in block)
    (tmp_path / "app" / "config").mkdir()
    (tmp_path / "app" / "config" / "config_fed_client.json").write_text(config)
    yield tmp_path
    for _ in range(50):
        left = [pid for pid in processes_with(str(tmp_path)) if pid != os.getpid()]
        if not left:
            break
        for pid in left:
            kill(pid)


def environment() -> dict[str, str]:
    given = {name: text for name, text in os.environ.items() if not name.startswith("FLIGHTLOG_")}
    given["FLIGHTLOG_RUNTIME_DIR"] = os.environ["FLIGHTLOG_RUNTIME_DIR"]
    return {**given, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONWARNINGS": "error"}


def run(place: Path, *words: str) -> str:
    """What a command prints."""
    done = subprocess.run(
        words, cwd=place, env=environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


def events(place: Path) -> list[dict[str, Any]]:
    text = run(place, "flightlog", "events", "--job", "mean-1", "--format", "jsonl", "-w", "./site-1")
    return [json.loads(line) for line in text.splitlines()]


def test_the_federation_in_python_runs_as_it_stands(place: Path) -> None:
    printed = run(place, sys.executable, "federation.py")
    assert printed.splitlines() == ["['site-1']", MEANS]
    rows = [json.loads(line) for line in (place / "site-1" / "mean-1" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["round"], row["mean"]) for row in rows] == [(1, 3.0), (2, 3.0)]
    story = events(place)
    assert [e["body"]["code"] for e in story if e["type"] == "TaskDone"] == [ReturnCode.OK] * 2
    assert [e["body"]["exit_code"] for e in story if e["type"] == "AppFinished"] == [0]
    (started,) = [e for e in story if e["type"] == "StartRequested"]
    assert (started["actor"]["id"], started["actor"]["auth"]) == ("server", "none")


@pytest.fixture
def fabric(place: Path) -> Iterator[str]:
    """A fabric that server and site share, as on two machines: it outlives the servers."""
    server = EmbeddedServer(Workspace.prepare(place / "fabric", "fabric"), "fabric")
    server.ensure()
    yield server.url
    server.stop()


def test_the_sessions_run_as_they_stand_and_keys_make_the_site_take_sealed_commands_only(
    place: Path, fabric: str
) -> None:
    served = command("federation.md", "flightlog", "server")
    known = {**environment(), "FLIGHTLOG_FABRIC_URL": fabric}

    def serve(*more: str) -> tuple[int, str]:
        done = subprocess.run(
            [*served, *more], cwd=place, env=known, capture_output=True, text=True, check=False, timeout=60
        )
        return done.returncode, done.stdout + done.stderr

    joined = command("federation.md", "flightlog", "up")
    run(place, *(fabric if word == "$FABRIC_URL" else word for word in joined))
    code, said = serve()
    assert (code, MEANS in said, f"FLIGHTLOG_FABRIC_URL={fabric}" in said) == (0, True, True), said
    assert "server gave it task mean" in run(place, *command("federation.md", "flightlog", "why"))
    egress = run(place, *command("federation.md", "flightlog", "egress"))
    for topic in ("register", "train.deploy", "train.start_job", "task_result"):
        assert topic in egress

    for line in re.findall(r"`(flightlog keys [^`]+)`", page("federation.md")):
        said = run(place, *shlex.split(line.partition(" > ")[0]))
        if target := line.partition(" > ")[2]:
            (place / target).write_text(said)
    assert "server is trusted" in said

    code, said = serve()
    assert (code != 0, "NOT_AUTHORISED" in said) == (True, True), said
    code, said = serve("--secure")
    assert (code, MEANS in said) == (0, True), said
    assert [e["actor"]["auth"] for e in events(place) if e["type"] == "StartRequested"] == ["none", "signed"]
    sent = [e["body"] for e in events(place) if e["type"] == "AuxRequested" and e["body"]["topic"] == "task_result"]
    half = len(sent) // 2
    assert [body["secure"] for body in sent] == [False] * half + [True] * half
    run(place, *command("federation.md", "flightlog", "down"))


def test_the_handlers_of_the_messages_page_answer_as_they_stand(place: Path) -> None:
    shown = files("messages.md")
    (place / "site_handler.py").write_text(shown["site_handler.py"])
    (place / "handlers").mkdir()
    printed = run(place / "handlers", sys.executable, "../site_handler.py")
    assert printed.splitlines() == ["OK 569 server", "hello, site-1"]

    (place / "app" / "custom" / "answers.py").write_text(shown["custom/answers.py"])
    path = place / "app" / "config" / "config_fed_client.json"
    config = json.loads(path.read_text())
    config["components"].append({"id": "answers", "path": "answers.Answers", "args": {}})
    path.write_text(json.dumps(config))
    options = {**QUICK, "workers": 2, "federation": "server"}
    with (
        FederationServer(place / "server") as server,
        ClientEngine.open(
            site="site-1", workspace=place / "site-1", fabric_url=server.fabric_url, **options
        ) as engine,
    ):
        server.wait_for_sites(1)
        assert server.deploy("job-1", "mean", {}, pack(place / "app")) == {"site-1": ""}
        job = server.run("job-1", {})
        in_state(engine.site.jobs, "job-1", "running")  # its handlers have heard START_RUN
        (reply,) = server.send_aux_request(["site-1.job-1"], "how_many", Shareable(), 10).values()
        assert (reply.get_return_code(), reply["rows"]) == (ReturnCode.OK, 569)
        job.end()
        ends = time.monotonic() + 20
        while engine.get_all_job_ids() and time.monotonic() < ends:
            time.sleep(0.05)
        assert engine.get_all_job_ids() == []


def test_the_commands_that_the_pages_show_are_there() -> None:
    helps: dict[tuple[str, ...], str] = {}
    for line in (line for name in ("federation.md", "messages.md") for line in commands(name)):
        words = shlex.split(line)
        if words[0] != "flightlog":
            continue
        name = tuple(words[1:3] if words[1] == "keys" else words[1:2])
        if name not in helps:
            done = CliRunner().invoke(app, [*name, "--help"], terminal_width=200)
            assert done.exit_code == 0, line
            helps[name] = done.output
        for option in (word for word in words if word.startswith("-")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", helps[name]), f"{line}: there is no {option}"

"""The command line, as a person or a script uses it: the real command, in a folder of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.owner import owner_of
from engine.site import Site
from engine.workspace import Workspace
from events.read import read
from tests.support import check_record, kill, make_app, processes_with, until

FLIGHTLOG = Path(sys.executable).parent / "flightlog"
SLEEP = ("sleep", "600")
KEYS = {
    *("job_id", "state", "client_status", "version", "revision", "attempt", "app", "since", "asked_by", "reason"),
    *("waiting_for", "deadline", "pid", "exit_code", "outcome"),
}
ENVELOPE = {
    "position",
    "epoch",
    "subject",
    "version",
    "type",
    "schema",
    "time",
    "actor",
    "call_id",
    "step",
    "arguments",
    "cause",
    "correlation",
    "body",
}


@dataclass
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


class Place:
    """A folder to type commands in, with a site in it or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "ws"
        env = {k: v for k, v in os.environ.items() if not k.startswith("FLIGHTLOG_") and k != "COLUMNS"}
        env |= {"FLIGHTLOG_LEASE": "1.5", "FLIGHTLOG_RECONCILE_EVERY": "0.5", "FLIGHTLOG_GRACE": "2"}
        env |= {"FLIGHTLOG_RUNTIME_DIR": os.environ["FLIGHTLOG_RUNTIME_DIR"], "FLIGHTLOG_WORKSPACE": str(self.root)}
        self.env = env
        self.started: list[subprocess.Popen[str]] = []

    def begin(self, *words: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(FLIGHTLOG), *words],
            cwd=self.folder,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def __call__(self, *words: str, seconds: float = 60, **env: str) -> Said:
        process = self.begin(*words, **env)
        out, err = process.communicate(timeout=seconds)
        return Said(process.returncode, out, err)

    def ok(self, *words: str, **env: str) -> Said:
        said = self(*words, **env)
        assert said.code == 0, (words, said)
        return said

    def app(self, name: str, *command: str, **config: Any) -> str:
        make_app(self.folder / name, *command, **config)
        return name

    def show(self, job: str) -> dict[str, Any]:
        return self.ok("show", job, "--json").json()

    def up(self) -> subprocess.Popen[str]:
        process = self.begin("up", "--site", "site-1", "--workers", "2")
        until(lambda: process.poll() is not None or self.is_up(), 60)
        assert process.poll() is None, process.communicate()
        until(lambda: len(self.ok("status", "--json").json()["workers"]) == 2, 60)
        return process

    def is_up(self) -> bool:
        """It has said who it is: a command that comes now is its client."""
        return (self.owner() or {}).get("purpose") == "up"

    def owner(self) -> dict[str, Any] | None:
        return owner_of(Workspace.find(self.root)) if (self.root / ".flightlog" / "site.json").exists() else None

    def check(self) -> list[Any]:
        """What always holds of the record."""
        site = Site.open(workspace=self.root)
        try:
            return check_record(site.jobs.store)
        finally:
            site.close()

    def events(self, *types: str) -> list[Any]:
        site = Site.open(workspace=self.root)
        try:
            return [event for event in read(site.jobs.store) if event.type in types]
        finally:
            site.close()

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.terminate()
                try:
                    process.communicate(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
        for pid in processes_with(str(self.folder)):
            kill(pid)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A fresh folder."""
    made = Place(tmp_path)
    yield made
    made.end()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, runtime_folder: Path) -> Iterator[Place]:
    """A site that is up, for commands that are its clients."""
    made = Place(tmp_path_factory.mktemp("cli"))
    made.up()
    yield made
    made.end()


# --- help and usage -----------------------------------------------------------------------------


def test_help_has_the_commands_in_groups(place):
    text = place.ok("--help", COLUMNS="100", TERM="dumb").out
    groups = ["Jobs", "Record", "Site", "Federation"]
    assert re.findall(r"─ (Jobs|Record|Site|Federation) ─", text) == groups
    jobs, record, site, federation = re.split("|".join(f"─ {group} ─" for group in groups), text)[1:]
    for part, commands in (
        (jobs, "run deploy start abort delete list show wait logs"),
        (record, "events why"),
        (site, "up down status doctor worker keys"),
        (federation, "demo server egress"),
    ):
        for command in commands.split():
            assert re.search(rf"^│ {command} ", part, re.MULTILINE), (command, part)


@pytest.mark.parametrize("command", ["run", "deploy", "start", "abort", "delete"])
def test_commands_that_change_something_take_a_reason(place, command):
    text = place.ok(command, "--help", COLUMNS="120", TERM="dumb").out
    for option in ("--reason", "--workspace", "--format", "--json"):
        assert option in text
    if command != "run":
        assert "--no-wait" in text
        assert "--timeout" in text


@pytest.mark.parametrize(
    "words",
    [("nonsense",), ("show",), ("list", "--format", "xml"), ("logs", "job", "--attempt", "0"), ("--nonsense",)],
)
def test_a_command_line_that_makes_no_sense_ends_with_2(place, words):
    said = place(*words)
    assert said.code == 2
    assert said.out == ""
    assert "Usage" in said.err
    assert not place.root.exists()


def test_version_is_printed(place):
    assert re.fullmatch(r"flightlog \d+\.\d+\S*\n", place.ok("--version").out)


# --- run -------------------------------------------------------------------------------------------


def test_run_with_follow_on_a_fresh_folder_shows_the_output_and_ends_with_the_apps_code(place):
    app = place.app("hello", "sh", "-c", "for i in 1 2 3; do echo line $i; sleep 0.1; done; echo bad >&2")
    said = place("run", app, "--follow", "--job", "first", "--reason", "to see it")
    assert said.code == 0, said
    assert "line 1\nline 2\nline 3\nbad\n" in said.out
    assert "first finished: exit code 0" in said.out
    shown = place.show("first")
    assert (shown["state"], shown["exit_code"], shown["outcome"]) == ("finished", 0, 0)
    assert shown["reason"] == "to see it"
    assert shown["app"] == "hello"
    place.check()


def test_run_with_follow_ends_with_the_apps_own_code_its_last_lines_and_a_hint(place):
    app = place.app("fails", "sh", "-c", "for i in $(seq 30); do echo line $i; done; exit 7")
    said = place("run", app, "--follow", "--job", "job")
    assert said.code == 7
    assert "job failed: exit code 7" in said.out
    assert "Its last lines:" in said.err
    assert "line 16\n" in said.err
    assert "line 15\n" not in said.err
    assert "line 30\n" in said.err
    assert "Hint:" in said.err
    assert "flightlog why job" in said.err


@pytest.mark.parametrize(
    ("script", "code", "hint"),
    [
        ("kill -9 $$", 137, "out of memory"),
        ("no-such-command-at-all", 127, "a command was not found"),
        ("exec python -c 'import no_such_module_at_all'", 1, "No module named 'no_such_module_at_all'"),
    ],
)
def test_run_hints_at_what_may_have_gone_wrong(site, script, code, hint):
    app = site.app(f"app-{code}", "sh", "-c", script)
    said = site("run", app, "-f")
    assert said.code == code
    assert hint in said.err
    assert "Hint:" in said.err


def test_run_without_a_site_that_is_up_watches_the_app_to_its_end(place):
    app = place.app("app", "sh", "-c", "echo out; exit 3")
    said = place("run", app, "--job", "job")
    assert said.code == 3
    assert "watches it to its end" in said.err
    assert place.show("job")["state"] == "failed"
    place.check()


def test_run_as_a_client_of_a_site_that_is_up_returns_when_the_app_runs(site):
    said = site.ok("run", site.app("sleeps", *SLEEP), "--job", "returns", "--json")
    assert said.lines()[0]["state"] == "running"
    assert site.show("returns")["pid"]
    site.ok("abort", "returns")


def test_run_prints_one_json_value_with_json(site):
    said = site.ok("run", site.app("quick", "echo", "hi"), "--follow", "--job", "as-json", "--json")
    shown = said.json()
    assert (shown["job_id"], shown["state"], shown["exit_code"]) == ("as-json", "finished", 0)


@pytest.mark.parametrize("what", ["nothing", "a file", "no config"])
def test_run_of_what_is_no_app_ends_with_2_and_makes_no_job(place, what):
    target = place.folder / "thing"
    if what == "a file":
        target.write_text("no zip")
    elif what == "no config":
        target.mkdir()
        (target / "x").write_text("x")
    said = place("run", "thing", "--follow")
    assert said.code == 2
    assert re.search(r"BAD_(ARCHIVE|CONFIG): ", said.err)
    assert "Try: " in said.err
    assert "Traceback" not in said.err
    if what != "nothing":
        assert place.ok("list", "--json").json() == []


def test_an_app_may_be_a_zip(site):
    from engine.archive import pack

    folder = make_app(site.folder / "zipped-folder", "echo", "from a zip")
    (site.folder / "zipped.zip").write_bytes(pack(folder))
    said = site.ok("run", "zipped.zip", "--follow", "--job", "zipped-job")
    assert "from a zip" in said.out
    assert site.show("zipped-job")["app"] == "zipped"


# --- one job's life, step by step ---------------------------------------------------------------------


def test_a_jobs_life_step_by_step_with_reasons_on_the_record(site):
    app = site.app("life", "sh", "-c", "echo started; exec sleep 600")
    (site.folder / "meta.json").write_text(json.dumps({"scope": "public", "name": "a study"}))
    said = site.ok("deploy", "life-1", app, "--meta", "meta.json", "--reason", "because of D")
    assert "life-1 is deployed" in said.out
    assert site.show("life-1")["reason"] == "because of D"
    said = site.ok("start", "life-1", "--meta", "meta.json", "--reason", "because of S")
    assert "life-1 is running as process" in said.out
    shown = site.show("life-1")
    assert set(shown) >= KEYS
    assert (shown["job_id"], shown["state"], shown["client_status"]) == ("life-1", "running", "started")
    assert (shown["attempt"], shown["reason"]) == (1, "because of S")
    assert isinstance(shown["version"], int)
    assert isinstance(shown["revision"], int)
    assert shown["asked_by"]
    assert (shown["exit_code"], shown["outcome"]) == (None, None)
    os.kill(shown["pid"], 0)
    until(lambda: site.ok("logs", "life-1").out == "started\n")
    said = site("wait", "life-1", "--timeout", "0.3")
    assert said.code == 3
    assert "CALL_TIMEOUT" in said.err
    said = site.ok("abort", "life-1", "--reason", "because of A", "--grace", "1")
    assert "life-1 is aborted" in said.out
    shown = site.show("life-1")
    assert (shown["state"], shown["outcome"], shown["pid"]) == ("aborted", 9, None)
    until(lambda: "settle_life-1_1" not in site.ok("status", "--json").out)
    said = site.ok("delete", "life-1", "--dry-run")
    assert "Would remove" in said.out
    assert (site.root / "life-1").exists()
    said = site.ok("delete", "life-1", "--reason", "because of X")
    assert "life-1 is deleted" in said.out
    assert not (site.root / "life-1").exists()
    asked = [e for e in site.ok("events", "--job", "life-1", "--format", "jsonl").lines() if e["body"].get("reason")]
    assert [(e["type"], e["body"]["reason"]) for e in asked] == [
        ("DeployRequested", "because of D"),
        ("StartRequested", "because of S"),
        ("AbortRequested", "because of A"),
        ("DeleteRequested", "because of X"),
    ]
    assert {(e["actor"]["via"], e["actor"]["auth"]) for e in asked} == {("cli", "os-uid")}
    story = site.ok("why", "life-1").out
    for text in ("because of D", "because of S", "because of A", "because of X", "The run folder is gone"):
        assert text in story
    for how in ("json", "jsonl"):
        said = site.ok("why", "life-1", "--format", how)
        told = said.json() if how == "json" else said.lines()
        assert all(set(line) == {"time", "sentence", "position"} for line in told)
        assert len(told) >= 8


def test_events_are_an_envelope_a_line_and_can_be_chosen(site):
    site.ok("run", site.app("evented", "true"), "--follow", "--job", "evented")
    until(lambda: "settle_evented_1" not in site.ok("status", "--json").out)
    every = site.ok("events", "--format", "jsonl").lines()
    assert all(set(event) == ENVELOPE for event in every)
    assert "ReadsObserved" not in {event["type"] for event in every}
    mine = site.ok("events", "--job", "evented", "--format", "jsonl").lines()
    assert {event["subject"] for event in mine} == {"job/evented"}
    assert [event["version"] for event in mine] == list(range(1, len(mine) + 1))
    one = site.ok("events", "--job", "evented", "--type", "AppFinished", "--json").json()
    assert [event["type"] for event in one] == ["AppFinished"]
    after = site.ok("events", "--job", "evented", "--after", mine[2]["position"], "--format", "jsonl").lines()
    assert after == mine[3:]
    assert site.ok("events", "--limit", "2", "--format", "jsonl").lines() == every[:2]
    table = site.ok("events", "--job", "evented").out
    assert len(table.splitlines()) == len(mine)
    assert "AppSpawned" in table
    reads = site.ok("events", "--reads", "--format", "jsonl").lines()
    assert len(reads) >= len(every)
    for words, field in ((("--type", "Nothing"), "--type"), (("--after", "yesterday"), "--after")):
        said = site("events", *words)
        assert said.code == 2
        assert f"ARGUMENT_INVALID: {field}" in said.err


def test_events_with_follow_prints_them_as_they_come_until_interrupted(site):
    process = site.begin("events", "--follow", "--format", "jsonl", "--type", "AppFinished")
    site.ok("run", site.app("followed", "true"), "--follow", "--job", "followed")
    assert process.stdout is not None
    while True:
        event = json.loads(process.stdout.readline())
        if event["subject"] == "job/followed":
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert "Traceback" not in err
    assert process.returncode in (0, 130)


def test_logs_of_an_attempt_its_last_lines_and_as_it_grows(site):
    app = site.app("logged", "sh", "-c", "echo attempt $FLIGHTLOG_ATTEMPT; echo two; sleep 0.3; echo three")
    site.ok("run", app, "--follow", "--job", "logged")
    site.ok("start", "logged")
    followed = site.ok("logs", "logged", "--follow").out
    assert followed == "attempt 2\ntwo\nthree\n"
    assert site.ok("logs", "logged", "--attempt", "1").out == "attempt 1\ntwo\nthree\n"
    assert site.ok("logs", "logged", "-n", "1").out == "three\n"
    assert site("logs", "logged", "--attempt", "9").code == 5


def test_list_has_the_last_changed_first_and_can_be_narrowed(site):
    for job in ("listed-1", "listed-2"):
        site.ok("deploy", job, site.app(job, "true"))
    items = site.ok("list", "--json").json()
    ids = [item["job_id"] for item in items]
    assert ids[:2] == ["listed-2", "listed-1"]
    assert all(set(item) >= KEYS for item in items)
    assert site.ok("list", "--format", "jsonl", "--limit", "1").lines()[0]["job_id"] == "listed-2"
    assert site.ok("list", "--json", "--limit", "1", "--offset", "1").json()[0]["job_id"] == "listed-1"
    deployed = site.ok("list", "--state", "deployed", "--json").json()
    assert {item["state"] for item in deployed} == {"deployed"}
    table = site.ok("list").out
    assert table.splitlines()[0].split()[:2] == ["JOB", "ID"]
    assert "listed-1" in table
    said = site("list", "--state", "nonsense")
    assert said.code == 2
    assert "deployed" in said.err


def test_what_a_name_contains_is_never_taken_as_markup_nor_reaches_the_terminal(site):
    app = site.app("[red]markup[bold]", "echo", "x")
    said = site.ok("deploy", "markup", app, "--reason", "[bold]\x1b[2Jgone")
    assert "\x1b" not in site.ok("why", "markup").out
    assert "[bold]" in site.ok("why", "markup").out
    assert "[red]markup[bold]" in site.ok("show", "markup").out
    assert "Traceback" not in said.err


def test_commands_while_the_site_is_up_are_its_clients(site):
    before = len(site.events("EngineOpened"))
    site.ok("deploy", "client-job", site.app("client-app", "true"))
    opened = site.events("EngineOpened")[before:]
    assert [event.body["role"] for event in opened] == ["client"]
    assert len([e for e in site.events("EngineOpened") if e.body["role"] == "owner"]) == 1
    assert len(site.events("PoolStarted")) == 1


def test_waiting_can_be_left_to_another_command(site):
    site.ok("deploy", "no-wait", site.app("no-wait-app", "sh", "-c", "exit 5"), "--no-wait")
    assert site.ok("wait", "no-wait", "--timeout", "20", "--json").json()["state"] == "deployed"
    site.ok("start", "no-wait", "--no-wait")
    said = site("wait", "no-wait", "--timeout", "20", "--json")
    assert said.code == 1
    assert (said.json()["state"], said.json()["exit_code"]) == ("failed", 5)


def test_a_deploy_that_nobody_takes_is_withdrawn_and_says_so(place):
    place.ok("run", place.app("app", "true"), "-f", "--job", "other")
    said = place("deploy", "job", "app", "--timeout", "1.5", FLIGHTLOG_POOL="elsewhere")
    assert said.code == 6
    assert "NO_WORKER" in said.err
    assert "flightlog up" in said.err
    assert place.show("job")["state"] == "deploy_failed"
    place.check()


def test_an_outcome_that_is_not_known_in_time_ends_with_3_and_comes_later(site):
    """A worker has taken it, and waits for the job's lock, which is held here."""
    app = site.app("slow-app", "true")
    with Workspace.find(site.root).lock("slow"):
        said = site("deploy", "slow", app, "--timeout", "5")
        assert said.code == 3, said
        assert "CALL_TIMEOUT: the deploy of slow is pending until" in said.err
        assert "Try: flightlog wait slow" in said.err
        assert "flightlog" not in said.out
    assert site.ok("wait", "slow", "--timeout", "20", "--json").json()["state"] == "deployed"


# --- exit codes and errors ---------------------------------------------------------------------------------


TROUBLES = {
    "usage": (
        (("show", "codes"), 0, "", ""),
        (("wait", "codes-fail"), 1, "", ""),
        (("deploy", "a/b", "codes"), 2, "JOB_ID_INVALID", "use letters, digits"),
        (("deploy", "codes-2", "missing-folder"), 2, "BAD_ARCHIVE", "name a folder or a zip"),
        (("start", "codes", "--resources", "{"), 2, "ARGUMENT_INVALID", "give a JSON object"),
        (("deploy", "codes-2", "codes", "--meta", "missing.json"), 2, "ARGUMENT_INVALID", "name a JSON file"),
    ),
    "state": (
        (("wait", "codes", "--timeout", "0.2"), 3, "CALL_TIMEOUT", "flightlog why codes"),
        (("start", "codes"), 4, "ALREADY_STARTED", "flightlog logs codes --follow"),
        (("deploy", "codes", "codes"), 4, "JOB_LIVE", "flightlog abort codes --wait"),
        (("delete", "codes"), 4, "JOB_LIVE", "flightlog abort codes --wait"),
        (("abort", "codes-fail"), 4, "ALREADY_STOPPED", "flightlog show codes-fail"),
        (("start", "codes-fail", "--resources", '{"gpu": 1}'), 4, "RESOURCES_LACKING", "resource"),
    ),
    "absence": (
        (("show", "nobody"), 5, "JOB_UNKNOWN", "flightlog list"),
        (("start", "nobody"), 5, "JOB_UNKNOWN", "flightlog list"),
        (("why", "nobody-else"), 5, "JOB_UNKNOWN", "flightlog list"),
        (("events", "--job", "nobody-else"), 5, "JOB_UNKNOWN", "flightlog list"),
        (("delete", "nobody", "--dry-run"), 5, "JOB_UNKNOWN", "flightlog list"),
        (("up",), 6, "ENGINE_DOWN", "flightlog status"),
    ),
}


@pytest.mark.parametrize("kind", TROUBLES)
def test_each_kind_of_trouble_has_its_exit_code_and_errors_name_code_and_fix(site, kind):
    site.ok("run", site.app("codes", *SLEEP), "--job", "codes")
    failing = site.app("codes-fail", "sh", "-c", "exit 1")
    site("run", failing, "--follow", "--job", "codes-fail")
    for words, code, error, fix in TROUBLES[kind]:
        said = site(*words)
        assert said.code == code, (words, said)
        assert "Traceback" not in said.err, (words, said)
        if error:
            assert f"{error}: " in said.err, (words, said)
            assert f"Try: {fix}" in said.err or fix in said.err.partition("Try: ")[2], (words, said)
            assert error not in said.out
    site.ok("abort", "codes")


def test_an_error_is_json_on_standard_error_where_json_is_asked_for(site):
    said = site("show", "nobody", "--json")
    assert said.code == 5
    assert said.out == ""
    told = json.loads(said.err)
    assert (told["error"], told["try"]) == ("JOB_UNKNOWN", "flightlog list shows the jobs of this site")
    site.ok("deploy", "json-error", site.app("json-error", "true"))
    said = site("abort", "json-error", "--json")
    told = json.loads(said.err)
    assert (said.code, told["error"]) == (4, "NOT_STARTED")
    recorded = [e for e in site.events("CallRefused") if e.position == told["recorded"]]
    assert [e.body["code"] for e in recorded] == ["NOT_STARTED"]


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("show", "job"),
        ("start", "job"),
        ("abort", "job"),
        ("delete", "job"),
        ("wait", "job"),
        ("logs", "job"),
        ("events",),
        ("why", "job"),
        ("status",),
        ("down",),
        ("worker", "--burst"),
    ],
)
def test_an_unknown_site_ends_with_5_names_the_folder_and_makes_nothing(place, words):
    said = place(*words)
    assert said.code == 5
    assert f"SITE_UNKNOWN: no site lives in {place.root}" in said.err
    assert "flightlog up --site NAME" in said.err
    assert not place.root.exists()


def test_up_of_a_new_workspace_needs_a_name(place):
    said = place("up")
    assert said.code == 2
    assert "--site is missing" in said.err
    assert not place.root.exists()


@pytest.mark.parametrize("words", [("--workers", "0"), ("--workers", "-1"), ("--pool", "mine"), ("--site", "a/b")])
def test_L9_up_with_a_setting_that_makes_no_sense_ends_with_2_and_makes_nothing(place, words):
    site = () if "--site" in words else ("--site", "site-1")
    said = place("up", *site, *words)
    assert said.code == 2, said
    assert "ARGUMENT_INVALID" in said.err
    assert "Try: " in said.err
    assert not place.root.exists()


def test_a_record_that_cannot_be_reached_ends_with_6_within_ten_seconds(place):
    began = time.monotonic()
    place.ok("--version")
    start = time.monotonic() - began  # of Python and of what the command imports
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and does not listen
        where = ("--site", "site-1", "--record-url", f"redis://127.0.0.1:{deaf.getsockname()[1]}/0")
        for command in ("up", "list"):
            said = place(command, *where, seconds=10 + start)
            assert said.code == 6, said
            assert "LOG_UNAVAILABLE" in said.err
            assert "record_url" in said.err
            assert "Traceback" not in said.err


# --- the site ----------------------------------------------------------------------------------------------


def test_up_detached_status_doctor_worker_and_down(place):
    said = place.ok("up", "--site", "site-1", "--workers", "2", "--detach")
    assert "is up as process" in said.out
    owner = place.owner()
    assert owner is not None
    status = place.ok("status", "--json").json()
    assert (status["site"], status["up"], status["engine_pid"]) == ("site-1", True, owner["pid"])
    until(lambda: len(place.ok("status", "--json").json()["workers"]) == 2, 20)
    assert all(server["answers"] for server in status["servers"])
    assert "site-1" in place.ok("status").out
    assert place.ok("status", "--format", "jsonl").lines()[0]["up"] is True
    doctor = place.ok("doctor", "--json").json()
    assert {"ok"} <= {finding["verdict"] for finding in doctor} <= {"ok", "warn"}
    assert {"record server", "fabric server", "clock", "disk"} <= {finding["what"] for finding in doctor}
    assert "record server: answers, and is safe" in place.ok("doctor").out
    assert place.ok("worker", "--burst").code == 0
    said = place("up", "--site", "site-1", "--detach")
    assert said.code == 6
    assert "is up already" in said.err
    said = place.ok("down")
    assert "The site is down" in said.out
    assert place.owner() is None
    until(lambda: not processes_with(str(place.root)), 20, "something still runs after down")
    assert place.ok("down").out == "The site is not up.\n"
    assert place.ok("status", "--json").json()["up"] is False
    place.check()


def test_up_detached_of_another_site_in_the_same_workspace_says_so(place):
    place.ok("run", place.app("app", "true"), "-f")
    said = place("up", "--site", "site-2", "--detach")
    assert said.code == 2
    assert "belongs to 'site-1'" in said.err


def test_up_detaches_once_however_its_options_are_written(place):
    assert "is up as process" in place.ok("up", "--site", "site-1", "-dw", str(place.root)).out
    owner = place.owner()
    assert owner["purpose"] == "up"
    place.ok("down")


def test_ctrl_c_names_the_apps_that_keep_running_and_the_next_up_takes_them_back(place):
    up = place.up()
    app = place.app("app", "sh", "-c", 'while ! [ -e "$FLIGHTLOG_RUN_DIR/go" ]; do sleep 0.05; done; exit 6')
    place.ok("run", app, "--job", "goes-on")
    pid = place.show("goes-on")["pid"]
    up.send_signal(signal.SIGINT)
    _, err = up.communicate(timeout=30)
    assert up.returncode == 0
    assert "These apps keep running: goes-on." in err
    assert "The next `flightlog up` takes them back" in err
    assert "Traceback" not in err
    os.kill(pid, 0)
    up = place.up()
    assert place.show("goes-on")["pid"] == pid
    (place.root / "goes-on" / "go").touch()
    assert place("wait", "goes-on", "--timeout", "20").code == 1
    shown = place.show("goes-on")
    assert (shown["state"], shown["exit_code"]) == ("failed", 6)
    up.send_signal(signal.SIGINT)
    _, err = up.communicate(timeout=30)
    assert "Taken back: goes-on." in err
    assert "keep running" not in err
    place.check()


def test_an_end_while_nobody_was_up_is_recorded_by_the_next_up_with_its_code(place):
    up = place.up()
    app = place.app("app", "sh", "-c", 'while ! [ -e "$FLIGHTLOG_RUN_DIR/go" ]; do sleep 0.05; done; exit 6')
    place.ok("run", app, "--job", "job")
    pid = place.show("job")["pid"]
    up.send_signal(signal.SIGTERM)
    up.communicate(timeout=30)
    (place.root / "job" / "go").touch()
    until(lambda: not Path(f"/proc/{pid}").exists())
    shown = place.show("job")
    assert shown["state"] == "running"
    assert "flightlog up" in shown["waiting_for"]
    place.up()
    assert place("wait", "job", "--timeout", "20").code == 1
    assert place.show("job")["exit_code"] == 6
    place.check()


def test_an_abort_while_nobody_is_up_ends_the_app(place):
    up = place.up()
    place.ok("run", place.app("app", *SLEEP), "--job", "job")
    pid = place.show("job")["pid"]
    up.send_signal(signal.SIGTERM)
    up.communicate(timeout=30)
    os.kill(pid, 0)
    said = place.ok("abort", "job", "--reason", "enough")
    assert "job is aborted" in said.out
    until(lambda: not Path(f"/proc/{pid}").exists(), 5)  # its keeper says how it ended before it is reaped
    place.check()


def test_a_start_while_nobody_is_up_leaves_the_app_running_for_the_next_up(place):
    place.ok("deploy", "job", place.app("app", *SLEEP))
    said = place.ok("start", "job")
    assert "the next `flightlog up` records its end" in said.err
    pid = place.show("job")["pid"]
    os.kill(pid, 0)
    place.up()
    place.ok("abort", "job")
    assert place.show("job")["state"] == "aborted"
    place.check()


def test_commands_by_url_look_from_elsewhere_without_the_workspace(site, place):
    site.ok("run", site.app("afar", "true"), "--follow", "--job", "afar")
    url = next(s["url"] for s in site.ok("status", "--json").json()["servers"] if s["server"] == "record")
    words = ("--site", "site-1", "--record-url", url)
    assert place.ok("show", "afar", "--json", *words).json()["state"] == "finished"
    assert "ended well" in place.ok("why", "afar", *words).out
    assert place.ok("list", "--json", *words).json()
    said = place("logs", "afar", *words)
    assert said.code != 0
    assert "Traceback" not in said.err
    assert not place.root.exists()

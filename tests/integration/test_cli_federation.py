"""The commands of a federation: server, egress, abort --task, keys, as they are typed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_cli import Place
from tests.support import processes_with, until

EXECUTOR = """
from engine.job.executor import Executor
from engine.job.metrics import metrics
from engine.shareable import Shareable


class Counter(Executor):
    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        if task_name == "wait":
            abort_signal.wait(60)
            return Shareable({"aborted": abort_signal.triggered})
        metrics(round=shareable["round"], count=3)
        fl_ctx.get_engine().fire_and_forget_aux_request("progress", Shareable({"round": 1}), fl_ctx)
        return Shareable({"count": 3})
"""
CONTROLLER = """
from engine.shareable import Shareable


class Census:
    def __init__(self, rounds=1, task="count"):
        self.rounds, self.task = rounds, task

    def run(self, job):
        said = []
        for number in range(self.rounds):
            replies = job.broadcast_task(self.task, Shareable({"round": number}), timeout=40)
            said.append({site: reply.get("count", reply.get_return_code()) for site, reply in replies.items()})
        return said
"""


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Place]:
    """A folder with an app and a controller of somebody's own."""
    made = Place(tmp_path)
    app = tmp_path / "counter"
    (app / "config").mkdir(parents=True)
    (app / "custom").mkdir()
    config = {"executors": [{"tasks": ["count", "wait"], "executor": {"path": "counter.Counter"}}]}
    (app / "config" / "config_fed_client.json").write_text(json.dumps({"format_version": 2, **config}))
    (app / "custom" / "counter.py").write_text(EXECUTOR)
    (tmp_path / "census.py").write_text(CONTROLLER)
    yield made
    made.end()


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory, runtime_folder: Path) -> Iterator[Place]:
    """A site that is up, with a job that is deployed; for commands that change nothing."""
    made = Place(tmp_path_factory.mktemp("standing"))
    for name, text in (("census.py", CONTROLLER), ("model.bin", "x" * 1000)):
        (made.folder / name).write_text(text)
    made.app("counter", "true")
    made.begin("up", "--site", "site-1")
    until(made.is_up, 60)
    made.ok("deploy", "known", made.app("app", "true"))
    yield made
    made.end()


def serve(place: Place, *words: str) -> tuple[subprocess.Popen[str], str]:
    """A server, and the address of its fabric as it tells people."""
    process = place.begin("server", "-w", "hub", "--app", "counter", "--controller", "census.py:Census", *words)
    assert process.stderr is not None
    told = ""
    while (found := re.search(r"FLIGHTLOG_FABRIC_URL=(\S+)", told)) is None:
        line = process.stderr.readline()
        assert line, f"the server ended: {told}"
        told += line
    return process, found[1]


def test_a_federation_of_ones_own_from_the_shell(federation: Place) -> None:
    server, url = serve(federation, "--args", '{"rounds": 3}', "--sites", "1", "--json")
    federation.begin("up", "--site", "site-1", "--federation", "server", "--fabric-url", url)
    out, err = server.communicate(timeout=60)
    assert server.returncode == 0, err
    assert json.loads(out) == {"job": "job-1", "sites": ["site-1"], "result": str([{"site-1": 3}] * 3)}
    until(lambda: federation.show("job-1")["state"] == "finished", 20)

    shown = federation.show("job-1")
    assert (shown["tasks_done"], shown["task"], shown["messages_out"]) == (3, None, 6)
    assert len((federation.root / "job-1" / "metrics.jsonl").read_text().splitlines()) == 3
    assert "Task count is done" in federation.ok("why", "job-1").out

    rows = federation.ok("egress", "--job", "job-1", "--json").json()
    assert {row["target"] for row in rows} == {"server"}
    assert {row["network"] for row in rows} == {"open"}
    sums = {(s["topic"], s["messages"]) for s in federation.ok("egress", "--totals", "--json").json()}
    assert {("task_result", 3), ("progress", 3), ("assign", 3), ("register", 1)} <= sums
    assert federation.ok("egress", "--since", "1h", "--json").json() == federation.ok("egress", "--json").json()
    assert federation.ok("egress", "--since", "2100-01-01", "--json").json() == []
    assert "sockets of its own" in " ".join(federation.ok("egress", "--help", COLUMNS="200", TERM="dumb").out.split())


def test_a_task_is_given_up_from_the_shell_and_the_job_goes_on(federation: Place) -> None:
    server, url = serve(federation, "--args", '{"rounds": 2, "task": "wait"}', "--sites", "1", "--json")
    federation.begin("up", "--site", "site-1", "--federation", "server", "--fabric-url", url)

    def waits(number: int) -> bool:
        said = federation("show", "job-1", "--json")
        return said.code == 0 and said.json()["task"] == "wait" and said.json()["tasks_done"] == number

    for number in range(2):
        until(lambda wanted=number: waits(wanted), 60)
        said = federation.ok("abort", "job-1", "--task", "--reason", "it takes too long")
        assert "current task" in said.out
    out, err = server.communicate(timeout=60)
    assert json.loads(out)["result"] == str([{"site-1": "TASK_ABORTED"}] * 2), err
    (asked, _) = federation.events("TaskAbortRequested")
    assert asked.body["reason"] == "it takes too long"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("egress", "--since", "yesterday"), "--since"),
        (("egress", "--job", "no job"), "job_id"),
        (("server", "--app", "counter"), "--controller"),
        (("server", "--app", "counter", "--controller", "nothing.py:X"), "--controller"),
        (("server", "--app", "counter", "--controller", "census.py:Nobody"), "Nobody"),
        (("server", "--app", "counter", "--controller", "census.py:Census", "--args", "[1]"), "--args"),
        (("server", "--app", "counter", "--controller", "census.py:Census", "--args", '{"x": 1}'), "--args"),
        (("demo", "--sites", "11"), "--sites"),
    ],
)
def test_what_cannot_be_is_refused_with_the_option_named(standing: Place, words: tuple[str, ...], told: str) -> None:
    said = standing(*words, "-w", str(standing.root) if words[0] == "egress" else "hub")
    assert said.code == 2, said
    assert told in said.err + said.out
    assert "Traceback" not in said.err


def test_aborting_the_task_of_a_job_that_has_none_is_refused_with_4(federation: Place) -> None:
    federation.ok("deploy", "job", federation.app("app", "true"), "--site", "site-1")
    assert federation("abort", "job", "--task").code == 4
    assert federation("abort", "nobody", "--task").code == 5
    assert federation("abort", "job", "--task", "--lost").code == 2


def test_ctrl_c_ends_a_server_and_its_job_on_the_sites(federation: Place) -> None:
    server, url = serve(federation, "--args", '{"task": "wait"}', "--sites", "1")
    federation.begin("up", "--site", "site-1", "--federation", "server", "--fabric-url", url)
    until(lambda: (said := federation("show", "job-1", "--json")).code == 0 and said.json()["task"] == "wait", 60)
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=30)
    assert server.returncode == 130
    until(lambda: federation.show("job-1")["state"] in ("finished", "aborted"), 20)
    assert "said that the run is over" in federation.ok("why", "job-1").out


def test_ctrl_c_ends_a_server_that_waits_for_sites(federation: Place) -> None:
    server, _ = serve(federation, "--sites", "9")
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=20)
    assert server.returncode == 130


def test_an_interrupted_demo_leaves_no_app_running(federation: Place) -> None:
    demo = federation.begin("demo", "--sites", "2", "--rounds", "200", "-w", "shown")
    place = federation.folder / "shown" / "site-1"
    until(lambda: (place / "breast-cancer" / "metrics.jsonl").exists(), 60)
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=60)
    assert demo.returncode == 130
    until(lambda: not processes_with(str(federation.folder / "shown")), 30, "something still runs")


def test_two_sites_of_one_name_are_one_too_many_and_status_says_who_listens(federation: Place) -> None:
    server, url = serve(federation, "--sites", "9")
    federation.begin("up", "--site", "site-1", "--federation", "server", "--fabric-url", url)
    until(federation.owner, 20)
    until(lambda: federation.ok("status", "--json").json()["listens_as"] == "site-1", 20)
    again = federation("up", "--site", "site-1", "-w", "twin", "--fabric-url", url, seconds=40)
    assert again.code == 4, again
    assert "ADDRESS_TAKEN" in again.err
    assert "Traceback" not in again.err
    assert federation.ok("status", "--json").json()["listens_as"] == "site-1"
    assert server.poll() is None


def test_a_server_in_a_sites_folder_is_refused(federation: Place) -> None:
    federation.ok("deploy", "job", federation.app("app", "true"), "--site", "site-1")
    said = federation("server", "-w", str(federation.root))
    assert said.code == 2
    assert "site-1" in said.err


def test_a_file_is_sent_from_the_shell_and_the_transfers_show_it(federation: Place) -> None:
    hub = federation.begin("server", "-w", "hub")
    assert hub.stderr is not None
    url = next(found[1] for line in hub.stderr if (found := re.search(r"FLIGHTLOG_FABRIC_URL=(\S+)", line)))
    federation.begin("up", "--site", "site-1", "--fabric-url", url)
    until(federation.is_up, 60)
    data = bytes(range(256)) * 20_000
    (federation.folder / "model.bin").write_bytes(data)

    said = federation.ok("send", "model.bin", "--to", "server", "--json").json()
    assert said == {"file": "model.bin", "sent_to": {"server": "model.bin"}}
    assert (federation.folder / "hub" / "received" / "site-1" / "model.bin").read_bytes() == data
    (row,) = federation.ok("transfers", "--json").json()
    assert (row["what"], row["state"], row["direction"], row["peers"]) == ("model.bin", "done", "out", ["server"])
    assert row["bytes"] > len(data)
    assert "model.bin" in federation.ok("transfers").out
    (left,) = [r for r in federation.ok("egress", "--json").json() if r["topic"] == "file"]
    assert (left["outcome"], left["size"]) == ("streamed", row["bytes"])

    again = federation.ok("send", "model.bin", "--to", "server", "--json").json()
    assert again == said  # it is there, so nothing of it goes twice
    assert federation.ok("transfers", "--json").json()[-1]["bytes"] < 2000


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("send", "nothing.bin", "--to", "server"), 2, "nothing.bin does not exist"),
        (("send", ".", "--to", "server"), 2, "is no file"),
        (("send", "model.bin"), 2, "--to"),
        (("send", "model.bin", "--to", "a b"), 2, "a b"),
        (("send", "model.bin", "--to", "server", "--chunk", "0"), 2, "chunk"),
        (("send", "model.bin", "--to", "nobody-there"), 1, "TRANSFER_FAILED"),
        (("send", "model.bin", "--to", "server", "--secure"), 4, "KEY_UNKNOWN"),
        (("transfers", "--job", "no job"), 2, "job_id"),
        (("transfers", "--job", "never"), 5, "JOB_UNKNOWN"),
        (("share-logs", "known", "all"), 2, "off, errors or live"),
        (("share-logs", "never", "live"), 5, "JOB_UNKNOWN"),
    ],
)
def test_what_cannot_be_streamed_is_refused_in_words(
    standing: Place, words: tuple[str, ...], code: int, told: str
) -> None:
    said = standing(*words)
    assert told in said.err + said.out, said
    assert said.code == code, said
    assert "Traceback" not in said.err


def test_ctrl_c_at_a_send_gives_the_file_up(standing: Place) -> None:
    sending = standing.begin("send", "model.bin", "--to", "away", "--job", "known")
    notes = standing.root / ".flightlog" / "sending"
    until(lambda: notes.is_dir() and list(notes.glob("*.json")), 20)
    # The note is written first: only what is on the record has an end there.
    until(lambda: standing.ok("transfers", "--json", "--job", "known").json(), 20)
    sending.send_signal(signal.SIGINT)
    sending.communicate(timeout=30)
    assert sending.returncode != 0
    until(lambda: not list(notes.iterdir()), 10)
    (row,) = [r for r in standing.ok("transfers", "--json", "--job", "known").json() if r["what"] == "model.bin"]
    # By the signal, or by what it tore down first: the command may have got anywhere when it came.
    assert row["state"] == "failed"
    assert row["code"] in ("TASK_ABORTED", "ERROR", "PRODUCER_LOST")


def test_what_the_server_is_sent_of_a_log_is_decided_from_the_shell(standing: Place) -> None:
    standing.ok("share-logs", "known", "live", "--reason", "they help us debug it")
    assert "set what the server is sent of its log to: live" in standing.ok("why", "known").out

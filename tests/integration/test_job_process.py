"""A job's own process: who it is, that only it can say where it stands, and that nobody else learns its key."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from engine.archive import pack
from engine.cell.cell import FabricCell
from engine.cell.message import CellChannel, CellReturnCode, Message, MessageHeaderKey
from engine.client_engine import ClientEngine
from engine.constants import ReturnCode
from engine.job.grant import Grant
from engine.shareable import Shareable, make_reply
from engine.site import Site
from engine.tasking import TASK_ID, TASK_NAME, TaskTopic
from events.envelope import Event
from events.read import read_job
from tests.integration.test_apps import STARTED, ended
from tests.integration.test_aux import site_at
from tests.support import (
    SITE,
    check_record,
    in_state,
    opened,
    processes_with,
    state_of,
    types_of,
    until,
)

SLEEP = ("python", "-c", "import time; time.sleep(600)")
#: What the apps of these tests bring along: a task says by ``how`` what becomes of it.
WORK = """
import gc, os, sys
from pathlib import Path
from engine.component import FLComponent
from engine.constants import EventType, ReservedKey
from engine.job.executor import Executor
from engine.job.metrics import metrics
from engine.shareable import Shareable, make_reply

class Work(Executor):
    def __init__(self, greeting=""):
        super().__init__()
        self.greeting = greeting
    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        self.task, self.ctx, self.abort = task_name, fl_ctx, abort_signal
        return getattr(self, shareable["how"])(shareable)
    def echo(self, s):
        return Shareable({"task": self.task, "data": s.get("data"), "greeting": self.greeting})
    def wait(self, s):
        self.mark(s)
        while not self.abort.triggered and not os.path.exists(s["go"]):
            self.abort.wait(0.02)
        return Shareable({"value": self.abort.value})
    def stubborn(self, s):
        self.mark(s)
        while not os.path.exists(s["go"]):
            self.abort.wait(0.02) if not self.abort.triggered else __import__("time").sleep(0.02)
        return Shareable({"value": self.abort.value})
    def mark(self, s):
        with open(s["mark"], "a") as file:
            file.write("x")
        return Shareable()
    def fail(self, s):
        raise ValueError("no such column: age")
    def leave(self, s):
        sys.exit(0)
    def nothing(self, s):
        return None
    def text(self, s):
        return "done"
    def unsendable(self, s):
        return Shareable({"model": object()})
    def endless(self, s):
        found = Shareable()
        found["self"] = found
        return found
    def headless(self, s):
        found = Shareable()
        found[ReservedKey.HEADERS] = None
        return found
    def odd_code(self, s):
        found = Shareable()
        found.set_header(ReservedKey.RC, 5)
        return found
    def own_code(self, s):
        return make_reply("MY_OWN_CODE")
    def row(self, s):
        metrics(round=s["round"], loss=0.5)
        return Shareable()
    def log(self, s):
        self.logger.log(s["level"], s["text"])
        return Shareable({"level": self.logger.getEffectiveLevel()})
    def component(self, s):
        return Shareable({"name": type(self.ctx.get_engine().get_component(s["which"])).__name__})
    def ask(self, s):
        return self.ctx.get_engine().send_aux_request(s["topic"], Shareable({"x": 1}), 5.0, self.ctx)
    def where(self, s):
        import engine, events, json, workers
        return Shareable({each.__name__: each.__file__ for each in (engine, events, json, workers)})
    def key(self, s):
        return Shareable({"key": next(o.run_key for o in gc.get_objects() if type(o).__name__ == "Grant")})
    def process(self, s):
        return Shareable({"pid": os.getpid(), "cwd": os.getcwd(), "keys": sorted(os.environ)})

class Gate(FLComponent):
    def __init__(self, **gates):
        self.gates = gates
    def handle_event(self, event_type, fl_ctx):
        while event_type in self.gates and not os.path.exists(self.gates[event_type]):
            __import__("time").sleep(0.02)
"""
_numbers = iter(range(10**6))


def app(folder: Path, *, files: dict[str, str] | None = None, path: str = "work.Work", **config: Any) -> bytes:
    """An app that runs the task ``work`` in a process of ours."""
    folder = folder / f"app-{next(_numbers)}"
    (folder / "config").mkdir(parents=True)
    executors = [{"tasks": ["work", "more"], "executor": {"path": path, "args": config.pop("args", {})}}]
    (folder / "config" / "config_fed_client.json").write_text(json.dumps({"executors": executors, **config}))
    for name, text in {"work.py": WORK, **(files or {})}.items():
        (folder / "custom" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "custom" / name).write_text(text)
    return pack(folder)


class Peer:
    """The server, as a bare cell: it gives tasks and keeps what comes back."""

    def __init__(self, url: str) -> None:
        self.results: list[tuple[str, str, Any]] = []
        self.asked: list[Message] = []
        self.cell = FabricCell(url, "server")
        self.cell.register_request_cb(CellChannel.SERVER_MAIN, TaskTopic.RESULT, self._result)
        self.cell.register_request_cb(CellChannel.AUX_COMMUNICATION, "*", self._aux)
        self.cell.start()

    def _result(self, message: Message) -> Message:
        origin = str(message.get_header(MessageHeaderKey.ORIGIN))
        self.results.append((origin, str(message.get_header(TASK_ID)), message.payload))
        return Message(payload=make_reply(ReturnCode.OK))

    def _aux(self, message: Message) -> Message:
        self.asked.append(message)
        return Message(payload=Shareable({"answer": 42}))

    def tell(self, job: str, topic: str, payload: Any = None, site: str = SITE, **headers: Any) -> Message:
        message = Message(headers, Shareable() if payload is None else payload)
        return self.cell.send_request(CellChannel.SERVER_MAIN, topic, f"{site}.{job}", message, 10.0)

    def offer(self, job: str, how: str, *, id: str = "", task: str = "work", **data: Any) -> tuple[str, str]:
        """Offer a task; its id, and the return code of the job's answer."""
        task_id = id or f"task-{next(_numbers)}"
        data = {"how": how, **{name: str(v) if isinstance(v, Path) else v for name, v in data.items()}}
        answer = self.tell(job, TaskTopic.ASSIGN, Shareable(data), **{TASK_ID: task_id, TASK_NAME: task})
        assert answer.return_code == CellReturnCode.OK, answer.headers
        return task_id, answer.payload.get_return_code()

    def given(self, job: str, how: str, **data: Any) -> str:
        task_id, code = self.offer(job, how, **data)
        assert code == ReturnCode.OK
        return task_id

    def all_of(self, task_id: str) -> list[Any]:
        return [result for _, each, result in list(self.results) if each == task_id]

    def result(self, task_id: str, seconds: float = 20.0) -> Shareable:
        return until(lambda: self.all_of(task_id), seconds, f"a result of {task_id}")[0]

    def does(self, job: str, how: str, **data: Any) -> Shareable:
        """Give a task and wait for its result."""
        return self.result(self.given(job, how, **data))

    def begins(self, job: str, how: str, folder: Path, **data: Any) -> tuple[str, Path]:
        """Give a task that waits, and wait until it runs; its id, and the file that lets it go on."""
        mark, go = folder / f"mark-{next(_numbers)}", folder / f"go-{next(_numbers)}"
        task_id = self.given(job, how, mark=mark, go=go, **data)
        until(mark.exists)
        return task_id, go


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, runtime_folder: Path) -> Iterator[ClientEngine]:
    with site_at(tmp_path_factory.mktemp("job") / "ws") as engine:
        yield engine
        check_record(engine.site.jobs.store)


@pytest.fixture(scope="module")
def peer(shared: ClientEngine) -> Iterator[Peer]:
    found = Peer(shared.site.servers.fabric_url)
    yield found
    found.cell.stop()


@pytest.fixture
def job() -> str:
    return f"job-{next(_numbers)}"


def begin(engine: ClientEngine, job: str, data: bytes, state: str = "running") -> None:
    """Deploy and start an app, and wait until it is there."""
    assert engine.deploy_app("app", job, {}, SITE, data) == ""
    assert engine.start_app(job, {}) == STARTED
    in_state(engine.site.jobs, job, state)


@contextmanager
def running(engine: ClientEngine, job: str, data: bytes, state: str = "running") -> Iterator[None]:
    """A job, ended afterwards."""
    begin(engine, job, data, state)
    try:
        yield
    finally:
        engine.abort_app(job)


def events(engine: ClientEngine, job: str, *types: str) -> list[Event]:
    return [e for e in read_job(engine.site.jobs.store, job) if e.type in types]


# -- it says itself where it stands --------------------------------------------------------------------


def test_started_and_stopped_are_recorded_as_the_jobs_own_signed_word(
    shared: ClientEngine, peer: Peer, job: str, tmp_path: Path
) -> None:
    begin(shared, job, app(tmp_path))
    assert peer.tell(job, TaskTopic.END_RUN).payload.get_return_code() == ReturnCode.OK
    end = ended(shared, job)
    assert (end.type, end.body["exit_code"], end.body["outcome"]) == ("AppFinished", 0, 0)
    said = events(shared, job, "AppStarted", "AppStopping")
    assert [e.type for e in said] == ["AppStarted", "AppStopping"]
    for event in said:
        actor = event.rest()["actor"]
        assert (actor["id"], actor["kind"], actor["auth"], actor["via"]) == (f"{SITE}.{job}", "job", "signed", "cell")
    (spawned,) = events(shared, job, "AppSpawned")
    assert (spawned.body["started_by"], len(spawned.body["run_key"])) == ("notify", 64)


def test_a_second_attempt_has_another_key_and_can_say_so(
    shared: ClientEngine, peer: Peer, job: str, tmp_path: Path
) -> None:
    with running(shared, job, app(tmp_path)):
        first = state_of(shared.site.jobs, job)["run_key"]
        peer.tell(job, TaskTopic.END_RUN)
        ended(shared, job)
        assert shared.start_app(job, {}) == STARTED
        assert in_state(shared.site.jobs, job, "running")["run_key"] not in ("", first)
        assert peer.does(job, "echo", data=2)["data"] == 2


def test_L6_the_run_key_is_in_no_environment_command_line_file_or_server(
    shared: ClientEngine, peer: Peer, job: str, tmp_path: Path
) -> None:
    with running(shared, job, app(tmp_path)):
        grant = of_job(shared, peer, job)
        peer.results.clear()
        assert grant.sign(2)["signature"]
        raw = grant.run_key.encode(), bytes.fromhex(grant.run_key)
        assert not holds(raw, *(p.read_bytes() for p in files(shared.site.workspace.root)))
        workspace = str(shared.site.workspace.root).encode()
        seen = 0
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                found = Path(f"/proc/{name}/environ").read_bytes(), Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            seen += workspace in found[0] + found[1]
            assert not holds(raw, *found), name
        assert seen >= 3
        for url in (shared.site.servers.record_url, shared.site.servers.fabric_url):
            with redis.Redis.from_url(url) as client:
                contents = dict(everything(client))
                assert contents
                # The answer with which this very test has learned the key may wait to be forgotten.
                assert not [k for k, text in contents.items() if holds(raw, text) and not k.startswith(b"ff:")]
        public = state_of(shared.site.jobs, job)["run_key"].encode()
        assert holds((public,), *(text for _, text in everything(redis_of(shared))))  # the search does find things


def of_job(engine: ClientEngine, peer: Peer, job: str) -> Grant:
    """What the job's process was granted, as only its own code can tell."""
    key = peer.does(job, "key")["key"]
    attempt = state_of(engine.site.jobs, job).attempt
    return Grant(job=job, attempt=attempt, server="server", run_key=key, settings={})


def holds(secrets: tuple[bytes, ...], *texts: bytes) -> bool:
    return any(secret in text for secret in secrets for text in texts)


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def redis_of(engine: ClientEngine) -> redis.Redis:
    return redis.Redis.from_url(engine.site.servers.record_url)


def everything(client: redis.Redis) -> Iterator[tuple[bytes, bytes]]:
    """All keys with what they hold, of whatever type."""
    for key in client.scan_iter(count=1000):
        kind = client.type(key)
        if kind == b"none":  # it ran out since it was listed: calls that are remembered do
            continue
        value: Any = {
            b"string": lambda k: client.get(k),
            b"hash": lambda k: client.hgetall(k),
            b"list": lambda k: client.lrange(k, 0, -1),
            b"set": lambda k: client.smembers(k),
            b"zset": lambda k: client.zrange(k, 0, -1),
            b"stream": lambda k: client.xrange(k),
        }[kind](key)
        yield key, key + (value if isinstance(value, bytes) else repr(value).encode())


def test_L6_nobody_but_the_job_keeps_the_descriptor_with_the_key(
    shared: ClientEngine, job: str, tmp_path: Path
) -> None:
    program = tmp_path / "bin" / "python"  # it never reads what it was given
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    data = app(tmp_path, env={"PATH": f"{program.parent}:{os.environ['PATH']}"})
    assert shared.deploy_app("app", job, {}, SITE, data) == ""
    assert shared.start_app(job, {}) == STARTED
    try:
        state = until(lambda: s if (s := state_of(shared.site.jobs, job)).spawned else None)
        pid = int(state["pid"])
        until(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes())
        pipe = os.readlink(f"/proc/{pid}/fd/3")
        assert pipe.startswith("pipe:")
        outer = json.loads((shared.site.workspace.attempt(job, 1) / "identity.json").read_text())["outer"][0]
        ours = {os.getpid(), outer, int(state["keeper_pid"]), *processes_with(str(shared.site.workspace.root))}
        assert len(ours) > 4
        for other in ours - {pid}:
            assert pipe not in descriptors(other), other
        assert descriptors(pid).count(pipe) == 1
    finally:
        shared.abort_app(job)


def descriptors(pid: int) -> list[str]:
    """What a process has open; nothing of one that has ended meanwhile."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


# -- it goes on without its engine -----------------------------------------------------------------------


def scripts(url: str) -> int:
    """How many scripts the fabric has run; a message that is sent is one."""
    with redis.Redis.from_url(url) as client:
        return int(client.info("commandstats")["cmdstat_evalsha"]["calls"])


def test_L5_a_job_waits_quietly_for_an_engine_that_is_away_and_ends_when_it_is_back(
    workspace: Path, tmp_path: Path
) -> None:
    with opened(workspace) as engine:
        begin(engine, "job", app(tmp_path))
        beside = Site.open(workspace=workspace)
    peer = Peer(beside.servers.fabric_url)
    try:
        peer.tell("job", TaskTopic.END_RUN)
        began, before = time.monotonic(), scripts(beside.servers.fabric_url)
        until(lambda: time.monotonic() - began > 2)
        assert scripts(beside.servers.fabric_url) - before < 50, "it only asks now and then"
        with opened(workspace) as engine:
            assert ended(engine, "job").type == "AppFinished"
            assert "AppStopping" in types_of(engine.site.jobs.store, "job")
    finally:
        peer.cell.stop()
        beside.close()


def test_L5_a_job_whose_servers_went_with_the_engine_does_tasks_again_when_they_are_back(
    workspace: Path, tmp_path: Path
) -> None:
    with opened(workspace) as engine:
        begin(engine, "job", app(tmp_path))
    with opened(workspace) as engine:
        peer = Peer(engine.site.servers.fabric_url)
        until(lambda: peer.tell("job", TaskTopic.ABORT).return_code == CellReturnCode.OK)
        assert peer.does("job", "echo", data=1)["data"] == 1
        engine.abort_app("job")
        assert ended(engine, "job").type == "AppAborted"
        peer.cell.stop()

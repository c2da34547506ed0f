"""Whoever can write to the fabric can plant jobs there. None of it is ever run; all of it is recorded."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rq import Queue
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.webhook import Webhook

from engine.calls.deploy import deploy
from engine.client_engine import ClientEngine
from engine.ring import queue_name
from events.envelope import Event
from events.read import last_position, read
from tests.support import SITE, check_record, in_state, kill, opened, processes_with, ready, types_of, until, zip_of

MODULE = "forged_canary"
CODE = """
import os
open(os.environ["CANARY"] + "/imported", "w").write("imported")
def sing(*args, **kwargs):
    open(os.environ["CANARY"] + "/called", "w").write("called")
class Bird:
    def __init__(self, *args):
        sing()
    def sing(self, *args):
        sing()
"""


@pytest.fixture(scope="module")
def cage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose module every worker could import; whoever does leaves a canary in it."""
    folder = tmp_path_factory.mktemp("cage")
    (folder / f"{MODULE}.py").write_text(CODE)
    were = {name: os.environ.get(name) for name in ("CANARY", "PYTHONPATH")}
    os.environ["CANARY"] = str(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), were["PYTHONPATH"]]))
    yield folder
    for name, was in were.items():
        os.environ.pop(name) if was is None else os.environ.update({name: was})


@pytest.fixture(scope="module")
def site(cage: Path, tmp_path_factory: pytest.TempPathFactory, runtime_folder: Path) -> Iterator[ClientEngine]:
    """One site whose fabric a stranger writes to."""
    folder = tmp_path_factory.mktemp("forged") / "ws"
    try:
        with opened(folder) as engine:
            until(lambda: len(workers(ready(engine))) == 2)
            deploys(engine, folder.parent)
            yield engine
            until(lambda: not engine.site.jobs.open_work())
            check_record(engine.site.jobs.store)
    finally:
        for pid in processes_with(str(folder)):
            kill(pid)


def workers(engine: ClientEngine) -> set[int]:
    """Pids of the pool's workers, without what they fork for a task."""
    root = str(engine.site.workspace.root).encode()
    found = {}
    for pid in processes_with("workers"):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if b"worker" in words and root in words:
                found[pid] = parent
    return {pid for pid, parent in found.items() if parent not in found}


def deploys(engine: ClientEngine, tmp: Path) -> None:
    """A deploy and a launch go well."""
    job = f"after-{secrets.token_hex(4)}"
    assert engine.deploy_app("app", job, {}, SITE, zip_of(tmp / job, "true")) == ""
    assert engine.start_app(job, {}) == "Start the client app..."
    in_state(engine.site.jobs, job, "finished")
    until(lambda: {"OutputClosed", "JobSettled"} <= set(types_of(engine.site.jobs.store, job)))


def refused(engine: ClientEngine, after: str, job: str, seconds: float = 15) -> Event:
    """Wait for the refusal of a planted job."""

    def look() -> Event | None:
        found = (e for e in read(engine.site.jobs.store, after=after) if e.type == "TaskRefused")
        return next((e for e in found if e.body["job"] == job), None)

    return until(look, seconds, f"no TaskRefused for {job}: {pool_log(engine)}")


def over(engine: ClientEngine, job: str) -> bool:
    """RQ is through with a job: it ended, or is gone."""
    try:
        return Job.fetch(job, engine.site.bells.client, JSONSerializer).get_status() in ("finished", "failed")
    except (NoSuchJobError, InvalidJobOperation):  # gone before, or between the two looks
        return True


def pool_log(engine: ClientEngine) -> str:
    return (engine.site.workspace.flight / "pool.log").read_text(errors="replace")[-3000:]


def raw(engine: ClientEngine, data: bytes, **fields: Any) -> str:
    """A job written field by field, without RQ's help; pushed to the queue."""
    job = f"forged-{secrets.token_hex(4)}"
    client = engine.site.bells.client
    whole = {
        "data": data,
        "created_at": "2026-01-01T00:00:00.000000Z",
        "origin": queue_name(SITE),
        "status": "queued",
        **fields,
    }
    client.hset(f"rq:job:{job}", mapping=whole)
    client.rpush(f"rq:queue:{queue_name(SITE)}", job)
    return job


def planted(engine: ClientEngine, func: str, *args: Any, **options: Any) -> str:
    """A job that RQ itself enqueued."""
    queue = Queue(queue_name(SITE), connection=engine.site.bells.client, serializer=JSONSerializer)
    return queue.enqueue_call(func=func, args=args, job_id=f"forged-{secrets.token_hex(4)}", **options).id


def payload(*parts: Any) -> bytes:
    return json.dumps(list(parts)).encode()


class Sings:
    """Unpickled, it calls the canary."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("echo called > $CANARY/called",)


def _silent(cage: Path) -> None:
    assert sorted(path.name for path in cage.iterdir() if path.name not in (f"{MODULE}.py", "__pycache__")) == []


TASK = "workers.tasks.deploy"
FORGED: dict[str, Callable[[ClientEngine], str]] = {
    "a pickle": lambda e: raw(e, pickle.dumps(Sings())),
    "a pickle, compressed": lambda e: raw(e, zlib.compress(pickle.dumps((f"{MODULE}.sing", None, (), {})))),
    "a pickle in its metadata": lambda e: raw(
        e, payload("os.system", None, ["true"], {}), meta=pickle.dumps(Sings())
    ),
    "a pickle as its result": lambda e: raw(
        e, payload("os.system", None, ["true"], {}), result=pickle.dumps(Sings())
    ),
    "os.system": lambda e: planted(e, "os.system", "echo called > $CANARY/called"),
    "builtins.eval": lambda e: planted(e, "builtins.eval", f"__import__('{MODULE}').sing()"),
    "builtins.exec": lambda e: planted(e, "builtins.exec", f"import {MODULE}; {MODULE}.sing()"),
    "subprocess": lambda e: planted(e, "subprocess.check_call", ["sh", "-c", "echo called > $CANARY/called"]),
    "a module of theirs": lambda e: planted(e, f"{MODULE}.sing"),
    "a class of theirs": lambda e: planted(e, f"{MODULE}.Bird"),
    "a name beside the tasks": lambda e: planted(e, "workers.tasks._carry_out", "x", "y"),
    "the registry itself": lambda e: planted(e, "workers.tasks.REGISTRY.__getitem__", TASK),
    "a task by another path": lambda e: planted(e, "workers.deploy.deploy", "x"),
    "a name that is a list": lambda e: raw(e, payload(["os.system"], None, ["true"], {})),
    "a name that is null": lambda e: raw(e, payload(None, None, ["true"], {})),
    "a task without arguments": lambda e: planted(e, TASK),
    "a task with two arguments": lambda e: planted(e, TASK, "deploy_x_1", "deploy_y_1"),
    "a task with a number": lambda e: planted(e, TASK, 7),
    "a task with a path": lambda e: planted(e, TASK, "../../etc/passwd"),
    "a task with a huge id": lambda e: planted(e, TASK, "a" * 201),
    "a task with a newline": lambda e: planted(e, TASK, "deploy_x_1\n"),
    "a task with keyword arguments": lambda e: planted(e, TASK, "deploy_x_1", kwargs={"work_id": "x"}),
    "a task with an instance": lambda e: raw(e, payload(TASK, "workers.tasks", ["deploy_x_1"], {})),
    "a task with an object as arguments": lambda e: raw(e, payload(TASK, None, {"0": "deploy_x_1"}, {})),
    "a task with a null as arguments": lambda e: raw(e, payload(TASK, None, None, {})),
    "JSON of another form": lambda e: raw(e, payload("os.system")),
    "no JSON": lambda e: raw(e, b"\xff\xfe\x00"),
    "no data": lambda e: raw(e, b""),
}


@pytest.mark.parametrize("what", FORGED)
def test_L9_a_forged_job_is_not_run_but_refused_on_the_record_and_the_workers_live_on(site, cage, what):
    alive, after = workers(site), last_position(site.site.jobs.store)
    assert len(alive) == 2
    job = FORGED[what](site)
    event = refused(site, after, job)
    assert event.subject == "site"
    assert event.body["queue"] == queue_name(SITE)
    assert event.body["why"]
    actor = event.rest()["actor"]
    assert (actor["id"], actor["kind"]) == ("flightlog:worker", "system")
    until(lambda: site.site.bells.waiting() == 0)
    _silent(cage)
    assert workers(site) == alive, pool_log(site)
    others = [e.type for e in read(site.site.jobs.store, after=after)]
    assert set(others) <= {"TaskRefused", "ReadsObserved"}, others


def test_a_forged_job_that_is_to_be_tried_again_is_refused_each_time_and_comes_to_an_end(site, cage):
    after = last_position(site.site.jobs.store)
    job = raw(site, payload("os.system", None, ["true"], {}), number_of_retries=2, retries_left=2)
    refused(site, after, job)
    until(lambda: site.site.bells.waiting() == 0)
    _silent(cage)
    deploys(site, cage.parent / secrets.token_hex(4))


@pytest.mark.parametrize("func", ["os.system", TASK])
def test_callbacks_of_a_forged_job_are_never_imported_nor_called(site, cage, func):
    """With a registered task and a good id the job ends well, and its callback would be called."""
    alive, after = workers(site), last_position(site.site.jobs.store)
    name = f"{MODULE}.sing"
    queue = Queue(queue_name(SITE), connection=site.site.bells.client, serializer=JSONSerializer)
    job = Job.create(func, args=["deploy_nobody_1"], connection=queue.connection, serializer=JSONSerializer)
    job._success_callback_name = job._failure_callback_name = job._stopped_callback_name = name
    job.origin = queue.name
    queue.enqueue_job(job)
    if func != TASK:
        refused(site, after, job.id)
    until(lambda: over(site, job.id))
    _silent(cage)
    assert workers(site) == alive, pool_log(site)
    deploys(site, cage.parent / secrets.token_hex(4))
    _silent(cage)


def test_webhooks_of_a_forged_job_are_never_sent(site, cage):
    heard: list[str] = []

    class Listens(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Listens) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            after = last_position(site.site.jobs.store)
            hooks = [Webhook(f"{url}/finished", "finished"), Webhook(f"{url}/failed", "failed")]
            queue = Queue(queue_name(SITE), connection=site.site.bells.client, serializer=JSONSerializer)
            good = queue.enqueue_call(TASK, args=["deploy_nobody_1"], webhooks=hooks)
            bad = queue.enqueue_call("os.system", args=["true"], webhooks=hooks)
            refused(site, after, bad.id)
            until(lambda: over(site, bad.id) and over(site, good.id))
            deploys(site, cage.parent / secrets.token_hex(4))
        finally:
            server.shutdown()
            thread.join()
    assert heard == []


def abandoned(engine: ClientEngine, job: str, **fields: Any) -> None:
    """A job that a worker seems to have died over, long ago."""
    client = engine.site.bells.client
    data = payload("os.system", None, ["true"], {})
    whole = {"data": data, "created_at": "2026-01-01T00:00:00.000000Z", "origin": queue_name(SITE), **fields}
    client.hset(f"rq:job:{job}", mapping={"status": "started", **whole})
    client.zadd(StartedJobRegistry(queue=engine.site.bells.queue).key, {f"{job}:{secrets.token_hex(4)}": 1})


def test_the_callback_of_a_job_that_seems_abandoned_is_not_called_when_registries_are_cleaned(site, cage):
    """RQ's clean-up of its registries calls failure callbacks, in the process that cleans."""
    job = f"forged-{secrets.token_hex(4)}"
    abandoned(site, job, failure_callback_name=f"{MODULE}.sing")
    registry = StartedJobRegistry(queue=site.site.bells.queue)
    until(lambda: registry.connection.zcard(registry.key) == 0, 15, "the registry is not cleaned")
    _silent(cage)


def rings_again(engine: ClientEngine, tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost bell is rung again, so the reconciler lives."""
    job = f"lost-{secrets.token_hex(4)}"
    with monkeypatch.context() as patched:
        patched.setattr(engine.core, "ring", lambda kind, work_id: None)
        deploy(engine.core, "app", job, {}, SITE, zip_of(tmp / job, "true"), timeout=0)
    in_state(engine.site.jobs, job, "deployed", seconds=15)


@pytest.mark.parametrize(
    "fields",
    [
        {"created_at": "yesterday"},
        {"status": "no such status"},
        {"timeout": "for ever"},
        {"result_ttl": "x"},
        {"dependency_ids": "{"},
    ],
)
def test_the_reconciler_lives_on_when_a_registry_names_a_job_that_cannot_be_read(site, cage, monkeypatch, fields):
    job = f"forged-{secrets.token_hex(4)}"
    abandoned(site, job, **fields)
    try:
        end = time.monotonic() + 2.0
        until(lambda: time.monotonic() > end)  # several rounds of it
        rings_again(site, cage.parent, monkeypatch)
    finally:
        site.site.bells.client.delete(f"rq:job:{job}")
    rings_again(site, cage.parent, monkeypatch)
    _silent(cage)


def test_the_reconciler_lives_on_when_a_registry_is_no_registry(site, cage, monkeypatch):
    client, registry = site.site.bells.client, StartedJobRegistry(queue=site.site.bells.queue)
    client.delete(registry.key)
    client.set(registry.key, "planted")
    try:
        end = time.monotonic() + 2.0
        until(lambda: time.monotonic() > end)
    finally:
        client.delete(registry.key)
    rings_again(site, cage.parent, monkeypatch)


UNREADABLE: dict[str, dict[str, Any]] = {
    "a time that is none": {"created_at": "yesterday"},
    "a status that is none": {"status": "no such status"},
    "a timeout that is none": {"timeout": "for ever"},
    "a number that is none": {"result_ttl": "x"},
    "dependencies that are no list": {"dependency_ids": "{"},
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_L9_a_job_that_rq_cannot_read_is_recorded_and_the_same_workers_work_on(site, cage, what):
    alive, after = workers(site), last_position(site.site.jobs.store)
    job = raw(site, payload("os.system", None, ["true"], {}), **UNREADABLE[what])
    try:
        refused(site, after, job)
    finally:
        deploys(site, cage.parent / secrets.token_hex(4))
    assert workers(site) == alive, pool_log(site)
    _silent(cage)


def test_L9_a_job_of_the_wrong_redis_type_is_recorded_and_the_same_workers_work_on(site, cage):
    alive, after = workers(site), last_position(site.site.jobs.store)
    client, job = site.site.bells.client, f"forged-{secrets.token_hex(4)}"
    client.set(f"rq:job:{job}", "planted")
    client.rpush(f"rq:queue:{queue_name(SITE)}", job)
    try:
        refused(site, after, job)
    finally:
        client.delete(f"rq:job:{job}")
        deploys(site, cage.parent / secrets.token_hex(4))
    assert workers(site) == alive, pool_log(site)


@pytest.mark.parametrize("name", [b"nobody", b"a" * 10_000, b"", b"a:b", b"\xff\xfe"])
def test_an_id_in_the_queue_without_a_job_is_passed_over_and_no_worker_dies_of_it(site, cage, name):
    alive, after = workers(site), last_position(site.site.jobs.store)
    site.site.bells.client.rpush(f"rq:queue:{queue_name(SITE)}", name)
    until(lambda: site.site.bells.waiting() == 0)
    for _ in range(3):
        deploys(site, cage.parent / secrets.token_hex(4))
    assert [e.body for e in read(site.site.jobs.store, after=after) if e.type == "WorkerDied"] == []
    assert workers(site) == alive, pool_log(site)


def test_a_bell_for_work_that_is_over_or_never_was_does_nothing(site, cage):
    alive, after = workers(site), last_position(site.site.jobs.store)
    done = next(e for e in read(site.site.jobs.store) if e.type == "WorkClaimed").body["work"]
    for task in (TASK, "workers.tasks.launch"):
        for work in (done, "deploy_nobody_1", "launch_nobody_1", "settle_nobody_1"):
            planted(site, task, work)
    until(lambda: site.site.bells.waiting() == 0)
    deploys(site, cage.parent / secrets.token_hex(4))
    assert workers(site) == alive, pool_log(site)
    claimed = [e.body["work"] for e in read(site.site.jobs.store, after=after) if e.type == "WorkClaimed"]
    assert all("_after-" in work for work in claimed), claimed


def test_a_bell_of_the_other_kind_does_not_carry_out_work_as_what_it_is_not(site, cage, monkeypatch):
    """A launch bell that names a deploy, rung before the deploy's own."""
    job = f"crossed-{secrets.token_hex(4)}"
    with monkeypatch.context() as patched:
        patched.setattr(site.core, "ring", lambda kind, work_id: planted(site, "workers.tasks.launch", work_id))
        deploy(site.core, "app", job, {}, SITE, zip_of(cage.parent / job, "true"), timeout=0)
    state = in_state(site.site.jobs, job, "deployed", "deploy_failed", seconds=20)
    assert state.state == "deployed"
    assert not (site.site.workspace.job(job) / "1").exists()


@pytest.mark.parametrize(
    "fields",
    [{"repeats_left": 1_000_000, "repeat_intervals": "[0]"}, {"retries_left": 1_000_000, "number_of_retries": 1}],
    ids=["repeats", "retries"],
)
def test_a_registered_task_that_is_to_be_repeated_is_refused_and_does_not_come_again(site, cage, fields):
    after = last_position(site.site.jobs.store)
    job = raw(site, payload(TASK, None, ["deploy_x_1"], {}), **fields)
    assert "repeated" in refused(site, after, job).body["why"]
    until(lambda: not site.site.bells.client.exists(f"rq:job:{job}"))  # a refusal is recorded first, and removed then
    deploys(site, cage.parent / secrets.token_hex(4))


def test_a_task_of_the_other_queue_is_refused(site, cage):
    after = last_position(site.site.jobs.store)
    job = raw(site, payload("workers.tasks.aux", None, ["aux:server"], {}))
    assert "other queue" in refused(site, after, job).body["why"]


def test_nobody_ends_the_workers_by_publishing_an_order(site, cage):
    alive = workers(site)
    client = site.site.bells.client
    for key in client.smembers("rq:workers"):
        name = key.decode().rpartition(":")[2]
        assert client.publish(f"rq:pubsub:{name}", '{"command": "shutdown"}') == 0, "a worker listens for orders"
    deploys(site, cage.parent / secrets.token_hex(4))
    assert workers(site) == alive

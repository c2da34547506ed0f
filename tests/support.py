"""What several tests need: apps, sites with short leases, waiting for a thing itself, reading the record."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import fakeredis

from engine.archive import pack
from engine.client_engine import ClientEngine
from engine.fold import JobState, apply, fact_of
from engine.jobs import Jobs
from events.envelope import Actor, Call, Event
from events.read import last_position, read, read_job
from events.store import Store

T = TypeVar("T")

SITE = "site-1"
TESTER = Actor(id="tester", kind="person", auth="os-uid")
#: Leases short, so that what must come of a death comes soon.
QUICK: dict[str, Any] = {
    "lease": 1.5,
    "reconcile_every": 0.5,
    "grace": 2.0,
    "worker_ttl": 16,
    "deploy_timeout": 20.0,
    "start_timeout": 20.0,
    "abort_timeout": 10.0,
}
_numbers = iter(range(10**9))


def fake_store(site: str = SITE) -> Store:
    """A store over fakeredis, for the store's logic."""
    return Store(fakeredis.FakeRedis(decode_responses=True), site, check=lambda client: None)


def new_call(step: str = "intent", call_id: str | None = None) -> Call:
    """A call of its own."""
    return Call(call_id=call_id or f"call-{os.getpid()}-{next(_numbers)}", actor=TESTER, step=step)


def make_app(folder: Path, *command: str, **config: Any) -> Path:
    """An app that runs a command; further keys go into its config."""
    (folder / "config").mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format_version": 2, "command": list(command), **config})
    (folder / "config" / "config_fed_client.json").write_text(text)
    return folder


def zip_of(folder: Path, *command: str, **config: Any) -> bytes:
    """The bytes of such an app."""
    return pack(make_app(folder, *command, **config))


@contextmanager
def opened(workspace: Path, **options: Any) -> Iterator[ClientEngine]:
    """An engine with short leases."""
    with ClientEngine.open(site=SITE, workspace=workspace, **{**QUICK, "workers": 2, **options}) as engine:
        yield engine


def ready(engine: ClientEngine) -> ClientEngine:
    """Wait until a site's pool is there: who comes first would wait for its start, and run out of time."""
    bells, store = engine.site.bells, engine.site.jobs.store
    until(lambda: all(bells.client.scard(f"rq:workers:{engine.site.name}-{kind}") for kind in ("work", "io")), 60)
    until(lambda: store.client.exists(store.keys.lease("collector")), 60)
    return engine


def until(what: Callable[[], T], seconds: float = 30.0, why: str = "") -> T:
    """Wait until a thing is true, and give it back; fails with ``why`` otherwise."""
    end = time.monotonic() + seconds
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {why or what}")
        time.sleep(0.02)


def state_of(jobs: Jobs, job: str) -> JobState:
    """A job's live state."""
    return jobs.load(job).state


def in_state(jobs: Jobs, job: str, *states: str, seconds: float = 30.0) -> JobState:
    """Wait until a job is in one of these states."""

    def look() -> JobState | None:
        state = state_of(jobs, job)
        return state if state.state.value in states else None

    try:
        return until(look, seconds)
    except AssertionError:
        story = "\n".join(f"{e.position} {e.type} {str(e.body)[:160]}" for e in read_job(jobs.store, job))
        raise AssertionError(f"{job} is {state_of(jobs, job).state}, not in {states}:\n{story}") from None


def types_of(store: Store, job: str) -> list[str]:
    """Types of a job's events, in order."""
    return [event.type for event in read_job(store, job)]


def replayed(store: Store, job: str) -> JobState:
    """A job's state by replay of its events."""
    state = JobState()
    for event in read_job(store, job):
        state = apply(state, fact_of(event))
    return state


def check_record(store: Store) -> list[Event]:
    """What always holds of a record: gapless, nothing doubled, live status equal to the replayed one (L3, L7).

    A look that a new event came into is taken again: reading and comparing are several round trips.
    """
    for _ in range(50):
        end = last_position(store)
        try:
            return _check_record(store)
        except AssertionError:
            if last_position(store) == end:
                raise
    raise AssertionError("the record does not come to rest")


def _check_record(store: Store) -> list[Event]:
    events = list(read(store))
    assert [event.seq for event in events] == list(range(1, len(events) + 1)), "the site's sequence has a gap"
    versions: dict[str, int] = {}
    seen = set()
    ms = 0
    for event in events:
        versions[event.subject] = versions.get(event.subject, 0) + 1
        assert event.version == versions[event.subject], f"{event.subject} has a gap at {event.position}"
        assert int(event.ms) >= ms, "time went backwards"
        ms = int(event.ms)
        event.typed()
        rest = event.rest()
        key = (rest["call"], rest["step"], event.type, event.subject, json.dumps(rest["body"], sort_keys=True))
        assert key not in seen, f"event {event.position} {event.type} is doubled"
        seen.add(key)
        for name in ("epoch", "actor", "call", "correlation"):
            assert rest[name], f"{event.position} has no {name}"
    jobs = Jobs(store)
    for subject in versions:
        if subject.startswith("job/"):
            job = subject.removeprefix("job/")
            assert replayed(store, job) == jobs.load(job).state, f"live and replayed status of {job} differ"
    ended = [e for e in events if e.type in ENDS]
    attempts = [(e.subject, e.body["attempt"]) for e in ended]
    assert len(attempts) == len(set(attempts)), "an attempt ended twice"
    return events


ENDS = ("AppFinished", "AppFailed", "AppAborted", "AppLost", "LaunchFailed", "LaunchExpired")


def processes_with(marker: str) -> list[int]:
    """Pids of processes that have a text in their command line, their environment or their folder's path."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError):
                data = Path(f"/proc/{name}/cmdline").read_bytes() + Path(f"/proc/{name}/environ").read_bytes()
                data += os.readlink(f"/proc/{name}/cwd").encode()  # a server's title hides its command line
                state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
                if marker.encode() in data and state not in "ZX":
                    found.append(int(name))
    return found


def command_of(pid: int) -> str:
    """A process's command line; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal one process that a test started."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)

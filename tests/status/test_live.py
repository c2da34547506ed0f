"""Events as they come: each once, in order, across lost connections, deaths and an absent record."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.readmodels.names import Names
from events.bodies.site import ServerAdopted
from events.envelope import Event
from events.read import last_position, read
from tests.status.served import Served, served, start_api
from tests.support import kill, processes_with, until

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("live")
    with served(folder / "ws", workers=2) as up:
        yield up
    for pid in processes_with(str(folder)):
        kill(pid)


def notes(site: Served, count: int, step: str) -> list[str]:
    """Record so many notes; their positions."""
    jobs = site.engine.site.jobs
    made = []
    for number in range(count):
        call = site.engine.site.system_call(f"{step}:{number}")
        made += jobs.note(call, [ServerAdopted(server="record", pid=number, started=False)]).positions
    return made


def watch(
    site: Served, done: Callable[[list[dict[str, Any]]], bool], after: str | None = None, **params: Any
) -> list[dict[str, Any]]:
    """Watch until ``done``; every event that came."""
    found: list[dict[str, Any]] = []
    headers = {"Last-Event-ID": after} if after else {}
    with (
        suppress(httpx.HTTPError),
        httpx.stream("GET", site.url + "/v1/events/stream", params=params, headers=headers, timeout=20) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith('data: {"position'):
                found.append(json.loads(line[6:]))
                if done(found):
                    return found
    return found


def test_a_watcher_that_comes_again_with_the_last_id_misses_nothing_and_sees_nothing_twice(site: Served) -> None:
    start = last_position(site.engine.site.jobs.store)
    seen: list[str] = []
    writer = threading.Thread(target=notes, args=(site, 300, "again"))
    writer.start()
    after = start
    try:
        while len(seen) < 300:
            wanted = min(37, 300 - len(seen))
            part = watch(site, lambda found, n=wanted: len(found) >= n, after=after, type="ServerAdopted")  # type: ignore[misc]
            seen += [event["position"] for event in part]
            after = seen[-1]
    finally:
        writer.join()
    store = site.engine.site.jobs.store
    written = [e.position for e in read(store, after=start, upto=seen[-1]) if e.type == "ServerAdopted"]
    assert seen == written


def test_a_watcher_from_long_ago_reads_the_log_and_then_goes_on_live(site: Served) -> None:
    notes(site, 50, "before")
    later: list[str] = []
    timer = threading.Timer(0.5, lambda: later.extend(notes(site, 1, "after")))
    timer.start()
    found = watch(site, lambda seen: seen[-1]["step"] == "after:0", after="0-0", reads=True)
    timer.join()
    store = site.engine.site.jobs.store
    assert [event["position"] for event in found] == [e.position for e in read(store, upto=later[0])]


def test_only_what_is_asked_for_comes_and_only_so_many(site: Served) -> None:
    notes(site, 5, "some")
    found = watch(site, lambda seen: False, after="0-0", type="ServerAdopted", limit=3)
    assert [event["type"] for event in found] == ["ServerAdopted"] * 3
    with httpx.stream("GET", site.url + "/v1/events/stream", params={"after": "0-0", "limit": 1}) as answer:
        text = "".join(answer.iter_text())
    assert text.startswith("retry: ")
    assert text.count("id: ") == 1


def test_a_position_that_is_not_on_this_log_is_told_and_gone_on_from_now(site: Served) -> None:
    store = site.engine.site.jobs.store
    until(lambda: 'flightlog_follower_lag_events{follower="live"} 0' in httpx.get(site.url + "/metrics").text)
    ahead = f"{int(last_position(store).split('-')[0])}-99999999"
    url = site.url + "/v1/events/stream"
    with httpx.stream("GET", url, params={"after": ahead, "limit": 1}, timeout=20) as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith("event: ")) == "event: reset"
        made = notes(site, 1, "ahead")
        assert next(line for line in lines if line.startswith("id: ")) == f"id: {made[0]}"


@pytest.mark.timeout(240)
def test_read_models_are_whole_after_their_feeder_was_killed_and_after_they_were_deleted(tmp_path: Path) -> None:
    """L2: delete them while events pour in, kill who feeds them: they are what the log says, nothing twice."""
    with served(tmp_path / "ws", workers=2) as up:
        store = up.engine.site.jobs.store
        names = Names(store)
        stop = threading.Event()

        def pour() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                notes(up, 20, f"pour:{number}")

        pouring = threading.Thread(target=pour)
        pouring.start()
        try:
            for _ in range(3):
                kill(up.api.pid)
                up.api.wait()
                up.api = start_api(up.workspace, port=int(up.url.rpartition(":")[2]))
                until(lambda: _answers(up), 20)
                for key in list(store.client.scan_iter(match=names.prefix.replace("{", "\\{") + "*")):
                    store.client.delete(key)
        finally:
            stop.set()
            pouring.join()
        # What was deleted behind the feeder's back is noticed at its next look, after half a minute.
        as_the_log = lambda at: at and _counted(up) == _types(read(store, upto=str(at)))  # noqa: E731
        until(lambda: as_the_log(_cursor(up)), 90, "the counts are not the log's")


def _answers(up: Served) -> bool:
    try:
        return httpx.get(up.url + "/livez", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def _cursor(up: Served) -> str:
    store = up.engine.site.jobs.store
    return str(store.command("HGET", Names(store).cursor, "position") or "")


def _counted(up: Served) -> dict[str, int]:
    store = up.engine.site.jobs.store
    return {name: int(count) for name, count in store.client.hgetall(Names(store).types).items()}  # type: ignore[union-attr]


def _types(events: Iterator[Event]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for event in events:
        counts[event.type] = counts.get(event.type, 0) + 1
    return counts


def test_watchers_are_told_that_the_record_is_away_and_that_it_is_back(tmp_path: Path) -> None:
    with served(tmp_path / "ws", workers=2) as up:
        record = next(server for server in up.engine.site.servers.embedded if server.role == "record")
        told: list[bool] = []
        done = threading.Event()

        def listen() -> None:
            with httpx.stream("GET", up.url + "/v1/events/stream", params={"reads": True}, timeout=60) as answer:
                kind = ""
                for line in answer.iter_lines():
                    if line.startswith("event: "):
                        kind = line[7:]
                    elif line.startswith("data: ") and kind == "record":
                        told.append(json.loads(line[6:])["away"])
                        kind = ""
                        if told[-1:] == [False]:
                            done.set()
                            return

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        until(lambda: "flightlog_watchers 1.0" in httpx.get(up.url + "/metrics").text)
        pid = record.pid()
        assert pid is not None
        pool = up.engine._pool.process.pid
        kill(pool, signal.SIGSTOP)  # who starts it again does not, for a moment
        try:
            kill(pid)
            until(lambda: told, 30, "nobody is told")
        finally:
            kill(pool, signal.SIGCONT)
        assert done.wait(60), told
        assert told[0] is True
        up.fed()

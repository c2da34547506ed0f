"""The record on a real server: planted keys, lost replies, broken connections, no memory left, unsafe settings."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from engine.jobs import Jobs
from engine.server import EmbeddedServer
from engine.workspace import Workspace
from events.append import Log, NewEvent, WorkRefused
from events.envelope import Call, Event
from events.errors import FlightlogError, LogUnavailable, RecordDamaged, RecordFull, ServerUnsafe
from events.follow import follow
from events.read import count, last_position, read
from events.store import Store, connect
from tests.histories import body, folded_works
from tests.support import TESTER, check_record, kill, new_call, until
from tests.unit.test_append import (
    BROKEN,
    HELD,
    NOTE,
    TOUCHED,
    TYPES,
    Claims,
    planted_key_is_refused,
    put,
    run,
)

pytestmark = pytest.mark.real


def of_site(store: Store) -> dict[str, tuple[object, bool]]:
    """Every key of the store's site with its whole content."""
    client = store.client
    names = sorted(client.scan_iter(match=f"*{store.site}*"))
    return {name: (dump_of(client, name), client.ttl(name) >= 0) for name in names}


def dump_of(client: redis.Redis, name: str) -> object:
    """A key's content as the server serialises it: bytes, which a text connection cannot take."""
    raw = redis.Redis(unix_socket_path=client.get_connection_kwargs()["path"], protocol=2)
    try:
        return raw.dump(name)
    finally:
        raw.close()


@pytest.fixture
def sight(monkeypatch):
    """Comparisons of the unit tests look at this site's keys alone: the server is shared."""
    monkeypatch.setattr("tests.unit.test_append.everything", of_site)


# -- the script on a real server -----------------------------------------------------------

WRONG = [(name, type_) for name in TOUCHED for type_ in TYPES if type_ != TOUCHED[name][0]]


@pytest.mark.usefixtures("sight")
@pytest.mark.parametrize("name", TOUCHED)
def test_l9_planted_keys_of_every_wrong_type_are_named_and_nothing_is_written(real_store, name):
    for type_ in [type_ for key, type_ in WRONG if key == name]:
        for key in list(real_store.client.scan_iter(match=f"*{real_store.site}*")):
            real_store.client.delete(key)
        planted_key_is_refused(real_store, name, type_)


@pytest.mark.parametrize("value", ["99999999999999999999", "9223372036854775807"])
def test_l9_a_counter_that_would_overflow_is_refused_and_nothing_is_written(real_store, value):
    jobs = Jobs(real_store)
    run(jobs, "j", "DeployRequested")
    real_store.client.hset(real_store.keys.job("j"), "refusals", value)
    seen = of_site(real_store)
    with pytest.raises(RecordDamaged):
        jobs.note(new_call(), [body("CallRefused")], "j")
    assert of_site(real_store) == seen


def test_l9_an_append_of_very_many_events_is_written_whole_or_refused_whole(real_store):
    try:
        Jobs(real_store).note(new_call(), [body("CallRepeated")] * 9000, "j")
        written = 9000
    except (FlightlogError, ValueError):
        written = 0
    assert count(real_store) == written
    assert real_store.client.llen(real_store.keys.index("j")) == written


@pytest.mark.parametrize("type_", [t for t in TYPES if t != "hash"])
def test_l9_a_projection_of_the_wrong_type_is_an_error_of_the_catalogue_for_whoever_loads_it(real_store, type_):
    jobs = Jobs(real_store)
    run(jobs, "j", "DeployRequested")
    put(real_store, real_store.keys.job("j"), type_)
    seen = of_site(real_store)
    with pytest.raises(RecordDamaged):
        jobs.load("j")
    assert of_site(real_store) == seen


@pytest.mark.parametrize("field", [name for name in BROKEN if name != "@epoch"])
def test_l2_a_head_that_cannot_be_read_is_written_anew_from_the_log(real_store, field):
    jobs = Jobs(real_store)
    run(jobs, "j", "DeployRequested", "DeploySucceeded")
    real_store.client.hset(real_store.keys.heads, field, BROKEN[field])
    run(jobs, "j", "StartRequested")
    assert jobs.consistent() is None
    check_record(real_store)


@pytest.mark.parametrize("how", ["NOREPLICAS", "READONLY"])
def test_a_server_that_takes_no_writes_is_an_error_of_the_catalogue_and_nothing_is_written(real_store, how):
    jobs = Jobs(real_store)
    run(jobs, "j", "DeployRequested")
    seen = of_site(real_store)
    client = real_store.client
    try:
        if how == "NOREPLICAS":
            client.config_set("min-replicas-to-write", 1)
        else:
            client.replicaof("127.0.0.1", "1")
        with pytest.raises(LogUnavailable, match="takes no writes"):
            jobs.note(new_call(), [body("CallRefused")], "j")
        with pytest.raises(LogUnavailable, match="takes no writes"):
            real_store.command("SET", real_store.keys.lease("x"), "y")
    finally:
        client.config_set("min-replicas-to-write", 0)
        client.replicaof("NO", "ONE")
    assert of_site(real_store) == seen


def test_l2_l3_a_whole_life_is_the_same_live_replayed_and_rebuilt(real_store):
    jobs = Jobs(real_store)
    life = "DeployRequested DeploySucceeded StartRequested AppSpawned AppStarted AbortRequested AppAborted"
    run(jobs, "j", *life.split())
    live, works = jobs.load("j").state, live_works_of(real_store)
    assert works == folded_works(list(read(real_store)))
    names = [n for n in real_store.client.scan_iter(match=f"*{real_store.site}*") if n != real_store.keys.log]
    real_store.client.delete(*names)
    assert jobs.load("j").state == live
    assert live_works_of(real_store) == works
    check_record(real_store)


def live_works_of(store: Store) -> dict[str, dict[str, str]]:
    """Open work of this site alone."""
    return {name: dict(work) for name, work in Jobs(store).open_work()}


@pytest.mark.parametrize("holder", HELD)
def test_work_can_be_closed_with_the_token_of_its_holder_alone(real_store, holder):
    claims = Claims(real_store)
    HELD[holder](claims)
    if holder.startswith("me"):
        claims.close("token", "me")
        assert claims.fields() == {}
        return
    seen = of_site(real_store)
    with pytest.raises(WorkRefused):
        claims.close("token", "me")
    assert of_site(real_store) == seen


def test_l7_many_writers_at_once_leave_no_gap_and_lose_no_event(real_server, real_store):
    def write(number: int) -> None:
        client = connect(real_server.url)
        jobs = Jobs(Store(client, real_store.site))
        for i in range(40):
            jobs.note(new_call(), [body("CallRefused", message=f"{number}-{i}")], f"job-{i % 3}")
        client.close()

    run(Jobs(real_store), "job-0", "DeployRequested")
    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = list(read(real_store))
    told = [event.body["message"] for event in events if event.type == "CallRefused"]
    assert sorted(told) == sorted(f"{number}-{i}" for number in range(4) for i in range(40))
    for number in range(4):
        mine = [text for text in told if text.startswith(f"{number}-")]
        assert mine == [f"{number}-{i}" for i in range(40)], "a writer's own events are out of order"
    assert [event.seq for event in events] == list(range(1, 162))


def test_l3_writers_that_decide_at_once_are_serialised_by_the_revision(real_server, real_store):
    run(Jobs(real_store), "j", "DeployRequested", "DeploySucceeded")
    won = []

    def start() -> None:
        client = connect(real_server.url)
        jobs = Jobs(Store(client, real_store.site))
        decide = lambda state: [body("StartRequested")] if state.state == "deployed" else []  # noqa: E731
        recorded = jobs.transact(new_call(), "j", decide)
        won.append(recorded is not None)
        client.close()

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 5 + [True]
    check_record(real_store)


# -- a reply that is lost ------------------------------------------------------------------


class Proxy:
    """Stands between a client and the server; can lose one reply, or one command, and cut the line."""

    def __init__(self, server: Path, folder: Path) -> None:
        self.server = server
        self.path = folder / "proxy.sock"
        self.lose: bytes | None = None  # the reply to a command that has this in it
        self.swallow: bytes | None = None  # such a command itself, before the server sees it
        self.lost = 0
        self.seen: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._open: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"unix://{self.path}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,))
                self._open.append(client)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.connect(str(self.server))
            while command := client.recv(1 << 20):
                self.seen.append(command)
                if self.swallow is not None and self.swallow in command:
                    self.swallow = None
                    self.lost += 1
                    return
                server.sendall(command)
                reply = server.recv(1 << 20)  # redis-py asks one thing at a time
                if self.lose is not None and self.lose in command:
                    self.lose = None
                    self.lost += 1
                    return
                client.sendall(reply)

    def stop(self) -> None:
        """Cut every line."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def proxy(real_server: EmbeddedServer) -> Iterator[Proxy]:
    with tempfile.TemporaryDirectory(prefix="fl-proxy-") as folder:
        proxy = Proxy(real_server.socket, Path(folder))
        yield proxy
        proxy.stop()


@pytest.fixture
def through(proxy: Proxy, real_store: Store) -> Iterator[Store]:
    """The same site, through the proxy, its script known to the server."""
    client = connect(proxy.url)
    store = Store(client, real_store.site)
    store.ensure_safe()
    client.script_load(store.append_script.script)
    yield store
    client.close()


@pytest.mark.parametrize("loss", ["lose", "swallow"])
def test_l4_an_append_whose_reply_or_command_is_lost_is_sent_again_and_stored_once(proxy, through, real_store, loss):
    Log(real_store).append(new_call(), [NOTE])
    setattr(proxy, loss, b"a-call-whose-reply-is-lost")
    call = Call(call_id="a-call-whose-reply-is-lost", actor=TESTER, arguments="ab")
    appended = Log(through).append(call, [NewEvent("job/j", body("CallRefused")), NOTE])
    assert proxy.lost == 1, "the line was not cut: the test tested nothing"
    assert sum(b"a-call-whose-reply-is-lost" in command for command in proxy.seen) == 2
    assert appended.repeated == (loss == "lose"), "the server had recorded it if only the reply was lost"
    events = list(read(real_store))
    assert [event.seq for event in events] == [1, 2, 3]
    assert [event.position for event in events[1:]] == list(appended.positions)
    assert appended.heads == {"job/j": (1, 0), "site": (2, 0)}


def test_l4_a_transition_whose_reply_is_lost_is_recorded_once_and_its_caller_is_told_so(proxy, through, real_store):
    jobs = Jobs(through)
    run(Jobs(real_store), "j", "DeployRequested", "DeploySucceeded")
    proxy.lose = b"StartRequested"
    recorded = jobs.transact(new_call(), "j", lambda state: [body("StartRequested")])
    assert proxy.lost == 1
    assert recorded is not None
    assert recorded.state.state == "starting"
    assert recorded.revision == 3
    assert [event.type for event in check_record(real_store)] == [
        "DeployRequested",
        "DeploySucceeded",
        "StartRequested",
    ]
    assert jobs.load("j").version == 3


def test_l4_a_claim_whose_reply_is_lost_is_held_by_whoever_made_it_with_one_attempt(proxy, through):
    claims = Claims(through)
    proxy.lose = b"of red"
    claims.claim("red")
    assert proxy.lost == 1
    assert (claims.fields()["token"], claims.fields()["attempts"]) == ("red", "1")


def test_a_server_that_stays_away_is_an_error_of_the_catalogue_within_seconds(proxy, through):
    log = Log(through)
    log.append(new_call(), [NOTE])
    proxy.stop()
    with pytest.raises(LogUnavailable, match="does not answer"):
        log.append(new_call(), [NOTE])


# -- following -----------------------------------------------------------------------------


class Follower:
    """A thread that follows a site and keeps what it sees."""

    def __init__(self, url: str, site: str, after: str, page: int = 1000) -> None:
        self.client = connect(url, blocking=True)
        self.client_id = 0
        self.events: list[Event] = []
        self.batches = 0
        self.losses: list[LogUnavailable] = []
        self._stop = threading.Event()
        self._store = Store(self.client, site)
        self._after, self._page = after, page
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        batches = follow(self._store, self._after, self._stop, on_loss=self.losses.append, page=self._page)
        for batch in batches:
            self.batches += 1
            self.events += batch

    def stop(self) -> None:
        """End following; the thread must end by itself."""
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive(), "following does not end"
        self.client.close()

    @property
    def seqs(self) -> list[int]:
        """What was seen."""
        return [event.seq for event in list(self.events)]


@pytest.fixture
def followers() -> Iterator[list[Follower]]:
    made: list[Follower] = []
    yield made
    for follower in made:
        follower.stop()


def test_l7_a_follower_sees_each_event_once_in_order_from_the_start_or_from_a_position(
    real_server, real_store, followers
):
    log = Log(real_store)
    for _ in range(5):
        log.append(new_call(), [NOTE, NOTE])
    position = list(read(real_store))[6].position
    followers += [
        Follower(real_server.url, real_store.site, "0-0"),
        Follower(real_server.url, real_store.site, position, page=2),
        Follower(real_server.url, real_store.site, last_position(real_store)),
    ]
    for _ in range(5):
        log.append(new_call(), [NOTE, NOTE, NOTE])
    until(lambda: all(f.events and f.events[-1].seq == 25 for f in followers), 20, "followers see the end")
    assert [f.seqs for f in followers] == [list(range(1, 26)), list(range(8, 26)), list(range(11, 26))]
    assert followers[0].events == list(read(real_store))


def test_l7_a_follower_whose_connection_is_cut_again_and_again_sees_each_event_once(
    real_server, real_store, followers
):
    log = Log(real_store)
    follower = Follower(real_server.url, real_store.site, "0-0", page=3)
    followers.append(follower)
    killed = 0
    for number in range(40):
        log.append(new_call(), [NOTE])
        if number % 8 == 7:
            until(
                lambda: [c for c in real_store.client.client_list() if c["cmd"].startswith("xread")], 10, "it waits"
            )
            for client in real_store.client.client_list():
                if client["cmd"].startswith("xread"):
                    killed += real_store.client.client_kill_filter(_id=client["id"])
    assert killed >= 5
    until(lambda: follower.seqs[-1:] == [40], 20, "the follower sees the end")
    assert follower.seqs == list(range(1, 41))


def test_l7_a_follower_outlives_its_server_and_misses_nothing(own_server, followers):
    store = Store(connect(own_server.url), "site-1")
    log = Log(store)
    log.append(new_call(), [NOTE])
    follower = Follower(own_server.url, "site-1", "0-0")
    followers.append(follower)
    until(lambda: follower.seqs == [1], 10, "the first event")
    own_server.stop()
    until(lambda: follower.losses, 20, "the follower is told that the server is away")
    own_server.ensure()
    log.append(new_call(), [NOTE, NOTE])
    until(lambda: follower.seqs[-1:] == [3], 20, "the follower sees what came after")
    assert follower.seqs == [1, 2, 3]
    store.client.close()


def test_a_follower_of_a_quiet_site_looks_up_often_enough_to_be_stopped(real_server, real_store, followers):
    Log(real_store).append(new_call(), [NOTE])
    follower = Follower(real_server.url, real_store.site, last_position(real_store))
    followers.append(follower)
    until(lambda: follower.batches >= 3, 10, "empty batches")
    assert follower.events == []


# -- servers that are full or unsafe -------------------------------------------------------


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of this test alone, whose settings may be spoilt."""
    server = EmbeddedServer(Workspace.prepare(tmp_path / f"own-{os.getpid()}", "own"), "record")
    server.ensure()
    yield server
    server.stop()


@pytest.fixture
def own_store(own_server: EmbeddedServer) -> Iterator[Store]:
    client = connect(own_server.url)
    yield Store(client, "site-1")
    client.close()


def test_l1_a_full_server_refuses_an_append_whole_and_takes_it_once_there_is_room(own_store):
    jobs = Jobs(own_store)
    run(jobs, "j", "DeployRequested", "DeploySucceeded")
    seen = of_site(own_store)
    own_store.client.config_set("maxmemory", 1)
    call = new_call()
    with pytest.raises(RecordFull, match="maxmemory"):
        jobs.transact(call, "j", lambda state: [body("StartRequested")])
    with pytest.raises(RecordFull):
        jobs.note(new_call(), [body("CallRefused")], "j")
    assert of_site(own_store) == seen
    assert jobs.load("j").state.state == "deployed", "a full server can still be read"
    own_store.client.config_set("maxmemory", 0)
    recorded = jobs.transact(call, "j", lambda state: [body("StartRequested")])
    assert recorded is not None
    assert not recorded.appended.repeated
    check_record(own_store)


def test_l2_a_rebuild_on_a_full_server_says_so_and_succeeds_once_there_is_room(own_store):
    jobs = Jobs(own_store)
    run(jobs, "j", "DeployRequested", "DeploySucceeded")
    before = jobs.load("j").state
    own_store.client.config_set("maxmemory", 1)
    own_store.client.delete(own_store.keys.heads)
    with pytest.raises(RecordFull):
        jobs.load("j")
    own_store.client.config_set("maxmemory", 0)
    assert jobs.load("j").state == before
    check_record(own_store)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("appendonly", "no"), ("maxmemory-policy", "allkeys-lru"), ("maxmemory-policy", "volatile-ttl")],
)
def test_l1_an_unsafe_server_is_refused_with_the_setting_and_nothing_is_written(own_store, setting, value):
    own_store.client.config_set(setting, value)
    with pytest.raises(ServerUnsafe, match=setting) as caught:
        own_store.ensure_safe()
    assert caught.value.context["setting"] == setting
    with pytest.raises(ServerUnsafe):
        Log(own_store).append(new_call(), [NOTE])
    assert own_store.client.keys("*") == []
    own_store.client.config_set(setting, {"appendonly": "yes"}.get(setting, "noeviction"))
    # A server that writes its first append-only file neither counts as safe nor stops in order.
    until(lambda: not busy_with_its_file(own_store), 20, "the append-only file is there")
    Log(own_store).append(new_call(), [NOTE])


def busy_with_its_file(store: Store) -> bool:
    """The server is writing its append-only file anew, or is about to."""
    info = store.client.info("persistence")
    return bool(info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"])


def test_l2_what_was_acknowledged_is_there_after_the_server_was_killed(own_server, own_store):
    jobs = Jobs(own_store)
    run(jobs, "j", "DeployRequested", "DeploySucceeded", "StartRequested")
    seen = of_site(own_store)
    pid = own_server.pid()
    assert pid is not None
    kill(pid)
    until(lambda: not own_server.answers(), 10, "it is dead")
    own_server.ensure()
    assert own_server.pid() != pid
    assert of_site(own_store) == seen
    run(jobs, "j", "AppSpawned")
    check_record(own_store)

"""Lanes: never stuck, never another's, whoever gives up or stalls in the middle."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from engine.cell.fabric import Fabric
from engine.cell.lanes import Lanes, Step
from engine.client_engine import ClientEngine
from engine.jobs import Jobs
from engine.leases import Lease
from engine.orders import start_ticks
from engine.shareable import Shareable
from engine.workspace import host_name
from events.append import WorkRefused
from events.errors import LogUnavailable
from events.store import Store, connect
from tests.faults.peer import each_has_one_outcome, peer
from tests.histories import body
from tests.support import new_call, opened, until
from workers.aux import Drain
from workers.collector import Collector

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]

LANE = "aux:server"
TRIES = int(os.environ.get("FLIGHTLOG_LANE_TRIES") or 3000)


def test_an_intent_that_is_appended_as_the_drain_gives_up_is_seen_by_it_or_rings(real_store: Store) -> None:
    """Push and give-up at the same moment, many times: the lane is left, or the message is seen, never neither."""
    jobs = Jobs(real_store)
    other = Store(connect(f"unix://{real_store.client.connection_pool.connection_kwargs['path']}"), real_store.site)
    lanes = Lanes(other)
    both = threading.Barrier(2)
    words: list[str] = []

    def give_up() -> None:
        for number in range(TRIES):
            lanes.step(LANE, f"t{number}", "h:1:2", 5)
            both.wait()
            words.append(lanes.step(LANE, f"t{number}", "h:1:2", 5, "LEAVE").word)
            both.wait()
            both.wait()

    drain = threading.Thread(target=give_up)
    drain.start()
    rang = 0
    try:
        for number in range(TRIES):
            message = f"{number:032x}"
            both.wait()
            pushed = jobs.note(new_call(), [body("AuxRequested", id=message)])
            both.wait()
            left = words[-1] == "LEFT"
            assert pushed.ring == left, f"try {number}: {words[-1]}, ring {pushed.ring}"
            rang += pushed.ring
            # Cleared for the next try.
            jobs.note(new_call(), [body("AuxFailed", id=message)])
            real_store.client.delete(real_store.keys.outbox(LANE), real_store.keys.lane(LANE))
            both.wait()
    except BaseException:
        both.abort()
        raise
    finally:
        drain.join(10)
        other.client.close()
    assert 0 < rang < TRIES, f"only one order of the two was seen in {TRIES} tries: {rang}"


@pytest.fixture
def bare(workspace: Path) -> Iterator[ClientEngine]:
    """A site without a pool: the test itself drains and collects."""
    with opened(workspace, pool="elsewhere", lane_lease=0.3) as engine:
        yield engine


@pytest.fixture
def collecting(bare: ClientEngine) -> Iterator[None]:
    """A collector in this process."""
    stop = threading.Event()
    thread = threading.Thread(target=Collector(bare.site).run, args=(stop,))
    thread.start()
    yield
    stop.set()
    thread.join(5)


def test_L4_a_drain_whose_lane_another_took_sends_nothing(bare: ClientEngine, collecting: None) -> None:
    with peer(bare.site.servers.fabric_url) as server:
        bare.aux_runner.send("topic", _request(), 0, bare.new_context())
        stalled = Drain(bare.site, LANE)
        step = stalled._step()
        assert len(step.ids) == 1
        until(lambda: Drain(bare.site, LANE)._step().word == "OK", 5)  # its lease has lapsed
        with pytest.raises(WorkRefused):
            stalled._send(step)
        assert not server.handled
        until(lambda: Drain(bare.site, LANE).run() or server.handled, 5)
        assert set(server.handled.values()) == {1}
        each_has_one_outcome(bare.site.jobs.store)


def test_L4_a_drain_that_stalled_after_its_record_delivers_late_and_the_handler_runs_once(
    bare: ClientEngine, collecting: None
) -> None:
    with peer(bare.site.servers.fabric_url) as server:
        bare.aux_runner.send("topic", _request(), 0, bare.new_context())
        stalled = Drain(bare.site, LANE)
        step = stalled._step()
        ids = [waiting.id for waiting in step.ids]
        stalled._begin(ids, len(ids), [])
        until(lambda: Drain(bare.site, LANE).run() or server.handled, 5)
        stalled.fabric.deliver("server", ids, 100)
        each_has_one_outcome(bare.site.jobs.store)
        until(lambda: server.fabric.client.xlen("ff:{server}:in") == 0, 5)
        assert dict(server.handled) == dict.fromkeys(ids, 1)


def test_a_lane_whose_bell_was_lost_is_rung_for_by_the_collector(bare: ClientEngine, collecting: None) -> None:
    with peer(bare.site.servers.fabric_url):
        bare.aux_runner.send("topic", _request(), 0, bare.new_context())
        bare.site.bells.client.flushdb()
        until(lambda: bare.site.bells.client.llen(bare.site.bells.io.key), 5, "nobody rang again")


def test_two_drains_of_one_lane_are_one(bare: ClientEngine, collecting: None) -> None:
    with peer(bare.site.servers.fabric_url) as server:
        for _ in range(200):
            bare.aux_runner.send("topic", _request(), 0, bare.new_context())

        def drain() -> None:
            with suppress(WorkRefused):  # it stalled, and another took the lane
                Drain(bare.site, LANE).run()

        threads = [threading.Thread(target=drain) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: Drain(bare.site, LANE).run() or len(server.handled) == 200, 10)
        assert set(server.handled.values()) == {1}
        each_has_one_outcome(bare.site.jobs.store)


def test_L2_outboxes_that_are_deleted_are_rebuilt_and_everything_is_sent_once(
    bare: ClientEngine, collecting: None
) -> None:
    store = bare.site.jobs.store
    with peer(bare.site.servers.fabric_url) as server:
        for _ in range(20):
            bare.aux_runner.send("topic", _request(), 0, bare.new_context())
        for pattern in ("out:*", "fly:*", "lane:*", "lanes", "work:*", "open", "heads"):
            for name in store.client.scan_iter(match=f"{store.keys.prefix.replace('{', '?')}{pattern}"):
                store.client.delete(name)
        bare.aux_runner.send("topic", _request(), 0, bare.new_context())
        until(lambda: Drain(bare.site, LANE).run() or len(server.handled) == 21, 10)
        each_has_one_outcome(store)
        assert set(server.handled.values()) == {1}


def test_a_drain_that_finds_the_fabric_away_leaves_its_lane_to_the_next(bare: ClientEngine) -> None:
    with peer(bare.site.servers.fabric_url) as server:
        bare.aux_runner.send("topic", _request(), 0, bare.new_context())
        failing = Drain(bare.site, LANE)
        failing.fabric = Fabric("unix:///nowhere")
        with pytest.raises(LogUnavailable):
            failing.run()
        # It was free at once: nobody has to wait for a lease, or to be ended over it.
        assert Lanes(bare.site.jobs.store).lonely(LANE, bare.site.jobs.store.now_ms()) == ""
        until(lambda: Drain(bare.site, LANE).run() or server.handled, 5)
        assert set(server.handled.values()) == {1}


@pytest.mark.parametrize("begun", [False, True])
def test_a_drain_that_meets_a_new_fabric_says_that_the_payload_is_lost(bare: ClientEngine, begun: bool) -> None:
    """And says nothing of a receiver that this fabric has not met yet."""
    fabric = Fabric(bare.site.servers.fabric_url)
    fabric.announce("server", "its-token", {"once": True})
    bare.aux_runner.send("topic", _request(), 0, bare.new_context())
    if begun:
        failing = Drain(bare.site, LANE)
        failing.fabric = Fabric("unix:///nowhere")
        with pytest.raises(LogUnavailable):
            failing.run()
    fabric.client.flushall()  # what a server that was killed comes back with
    fabric.close()
    Drain(bare.site, LANE).run()
    (outcome,) = each_has_one_outcome(bare.site.jobs.store).values()
    assert outcome.type == ("AuxOutcomeUnknown" if begun else "AuxFailed")
    assert outcome.body.get("code", "PAYLOAD_LOST") == "PAYLOAD_LOST"
    assert "its payload is gone" in outcome.body["why"]


def test_L4_a_drain_that_repeats_many_sends_keeps_its_lane_while_it_does(
    bare: ClientEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.aux.RENEW_AFTER", 5)
    with peer(bare.site.servers.fabric_url) as server:
        for _ in range(40):
            bare.aux_runner.send("topic", _request(), 0, bare.new_context())
        died = Drain(bare.site, LANE)
        died._begin([waiting.id for waiting in died._step().ids], 40, [])
        until(lambda: Lanes(bare.site.jobs.store).lonely(LANE, bare.site.jobs.store.now_ms()) is not None, 5)
        steps: list[str] = []

        class Counted(Fabric):
            def deliver(self, target: str, ids: Sequence[str], inbox_max: int) -> list[str]:
                steps.append("send")
                return super().deliver(target, ids, inbox_max)

        again = Drain(bare.site, LANE)
        again.fabric = Counted(bare.site.servers.fabric_url)
        step = again._step

        def renewing(how: str = "GO", through: Sequence[str] = ()) -> Step:
            steps.append("renew")
            return step(how, through)

        monkeypatch.setattr(again, "_step", renewing)
        again.run()
        # What counts is sends between two renewals: how long they take is the machine's affair.
        longest = max(len(run) for run in " ".join(steps).replace(" send", "s").replace("renew", "").split())
        assert 0 < longest <= 5, steps
        until(lambda: len(server.handled) == 40, 5)
        assert set(server.handled.values()) == {1}


def test_a_lease_of_a_process_that_is_dead_is_taken_at_once_and_of_one_that_lives_is_not(bare: ClientEngine) -> None:
    site = bare.site
    key = site.jobs.store.keys.lease("role")
    site.jobs.store.client.set(key, f"{host_name()}:{2**22 - 1}:1", px=60_000)
    assert Lease(site, "role", 3.0).hold()
    site.jobs.store.client.set(key, f"{host_name()}:1:{start_ticks(1)}", px=60_000)
    assert not Lease(site, "role", 3.0).hold()


def _request() -> Shareable:
    return Shareable({"number": 1})

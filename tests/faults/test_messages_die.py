"""``kill -9`` with requests in flight: the engine, the worker that sends, the collector, servers, the receiver."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.client_engine import ClientEngine
from engine.constants import ReturnCode
from engine.shareable import Shareable
from tests.faults.peer import Sending, callers_agree, each_has_one_outcome, messages, peer, send
from tests.faults.rig import Rig
from tests.support import QUICK, SITE, kill, opened, ready, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]

LANE = {"lane_lease": 1.0}


def client(rig: Rig) -> ClientEngine:
    """An engine of this process beside the one that is up."""
    engine = ClientEngine.open(site=SITE, workspace=rig.root, **{**QUICK, **LANE})
    assert engine.role == "client"
    return engine


def test_an_engine_that_dies_leaves_every_request_with_one_outcome_and_nothing_is_handled_twice(
    rig: Rig, tmp_path: Path
) -> None:
    rig.start(pool="own")
    sending = Sending(rig.root, tmp_path / "sending.log", count=400, timeout=4.0, threads=8)
    with peer(rig.server("fabric").url, delay=0.1) as server, rig.looking() as jobs:
        until(lambda: len(server.handled) > 20, 20)
        sending.die()
        outcomes = each_has_one_outcome(jobs.store)
        assert len(outcomes) >= 20
        assert {event.type for event in outcomes.values()} <= {"AuxReplied", "AuxFailed"}
        assert sum(event.type == "AuxReplied" for event in outcomes.values()) >= 20
        assert set(server.handled.values()) == {1}
    rig.check()


def test_the_owner_of_the_site_that_dies_leaves_its_requests_to_the_next(workspace: Path, tmp_path: Path) -> None:
    sending = Sending(workspace, tmp_path / "sending.log", count=400, timeout=4.0, threads=8)
    until(lambda: (workspace / ".flightlog" / "owner.json").exists(), 20)
    rig = Rig(workspace, tmp_path)
    with peer(rig.server("fabric").url, delay=0.1) as server:
        until(lambda: len(server.handled) > 20, 20)
        sending.die()
        rig.start()
        with rig.looking() as jobs:
            each_has_one_outcome(jobs.store)
        assert set(server.handled.values()) == {1}
    rig.check()
    rig.stop()


def test_a_message_that_expects_no_answer_goes_out_though_the_engine_dies_right_then(rig: Rig) -> None:
    rig.start()
    program = (
        "import os, signal, sys\n"
        "from engine.client_engine import ClientEngine\n"
        "from engine.shareable import Shareable\n"
        "engine = ClientEngine.open(workspace=sys.argv[1])\n"
        "reply = engine.fire_and_forget_aux_request('topic', Shareable({'number': 1}), engine.new_context())\n"
        "assert reply.get_return_code() == 'OK', reply\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with peer(rig.server("fabric").url) as server, rig.looking() as jobs:
        for number in range(5):
            died = subprocess.run([sys.executable, "-c", program, str(rig.root)], check=False)
            assert died.returncode == -9
            until(lambda wanted=number + 1: len(server.handled) == wanted, 20)
        outcomes = each_has_one_outcome(jobs.store)
        assert [event.type for event in outcomes.values()] == ["AuxSent"] * 5
        assert set(server.handled.values()) == {1}


@pytest.mark.parametrize("action", ["kill", "stop"])
@pytest.mark.parametrize("place", ["send-started", "send-delivered"])
def test_L4_a_send_whose_worker_dies_or_stalls_reaches_its_handler_once(rig: Rig, place: str, action: str) -> None:
    rig.start(**LANE)
    with peer(rig.server("fabric").url) as server, client(rig) as engine:
        assert send(engine, number=0).get_return_code() == ReturnCode.OK
        rig.fault(place, action)
        reply = send(engine, 20.0, number=1)
        assert (reply.get_return_code(), reply.get("echo")) == (ReturnCode.OK, 1)
        rig.struck(place)
        assert send(engine, number=2)["echo"] == 2
        if action == "stop":
            rig.resume(place)
            assert send(engine, number=3)["echo"] == 3
        until(lambda: not [v for v in server.handled.values() if v > 1], 5)
        time.sleep(0.5)  # a stalled worker that goes on has had its chance to deliver a second time
        assert set(server.handled.values()) == {1}
        each_has_one_outcome(engine.site.jobs.store)
    rig.check()


@pytest.mark.parametrize("place", ["send-started", "send-delivered"])
def test_a_send_with_an_unknown_outcome_is_recorded_as_that_where_the_receiver_cannot_tell_a_second_one(
    rig: Rig, place: str
) -> None:
    rig.start(**LANE)
    with peer(rig.server("fabric").url, once=False, delay=40.0) as server, client(rig) as engine:
        rig.fault(place, "kill")
        reply = send(engine, 29.0, number=1)
        rig.struck(place)
        assert reply.get_return_code() == ReturnCode.COMMUNICATION_ERROR
        (outcome,) = each_has_one_outcome(engine.site.jobs.store).values()
        assert outcome.type == "AuxOutcomeUnknown"
        assert sum(server.handled.values()) == (place == "send-delivered")


@pytest.mark.parametrize("place", ["answers-read", "answers-recorded"])
def test_answers_are_recorded_once_though_their_collector_dies(rig: Rig, place: str) -> None:
    rig.start(**LANE)
    with peer(rig.server("fabric").url) as server, client(rig) as engine:
        assert send(engine, number=0).get_return_code() == ReturnCode.OK
        rig.fault(place, "kill")
        reply = send(engine, 20.0, number=1)
        rig.struck(place)
        assert (reply.get_return_code(), reply.get("echo")) == (ReturnCode.OK, 1)
        assert send(engine, 20.0, number=2)["echo"] == 2
        assert set(server.handled.values()) == {1}
        assert {e.type for e in each_has_one_outcome(engine.site.jobs.store).values()} == {"AuxReplied"}
    rig.check()


def test_a_receiver_that_dies_with_requests_in_flight_keeps_no_caller_past_its_timeout(
    rig: Rig, tmp_path: Path
) -> None:
    rig.start()
    url = rig.server("fabric").url
    program = (
        "import sys, time\nfrom tests.faults.peer import Peer\n"
        "cell = Peer(sys.argv[1], delay=0.2).start(); print('up', flush=True); time.sleep(60)\n"
    )
    receiver = subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE)
    assert receiver.stdout is not None
    receiver.stdout.readline()
    with rig.looking() as jobs:
        sending = Sending(rig.root, tmp_path / "sending.log", count=300, timeout=2.0, threads=20)
        until(lambda: any(e[-1].type == "AuxReplied" for e in messages(jobs.store).values()), 60)
        kill(receiver.pid)
        receiver.communicate()
        results = sending.results()
        assert len(results) == 300
        assert max(result["seconds"] for result in results) < 4.0
        codes = {result["code"] for result in results}
        assert ReturnCode.OK in codes
        assert ReturnCode.TIMEOUT in codes
        each_has_one_outcome(jobs.store)
        callers_agree(jobs.store, results)
    with peer(url), client(rig) as engine:  # the next of that address takes over at once
        assert send(engine, number=1)["echo"] == 1


def test_a_fabric_that_dies_loses_payloads_and_says_so(rig: Rig) -> None:
    rig.start(lane_lease=15.0)  # who is stopped for a moment is not to be taken for dead: that is another test
    with peer(rig.server("fabric").url) as server, client(rig) as engine:
        assert send(engine, number=0).get_return_code() == ReturnCode.OK
        rig.fault("send-started", "stop")
        sending = [
            subprocess.Popen([sys.executable, "-c", ONE, str(rig.root), "20"], stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        rig.struck("send-started")
        rig.kill_server("fabric")
        time.sleep(0.5)
        rig.resume("send-started")
        codes = {process.communicate(timeout=60)[0].decode().strip() for process in sending}
        # One that came late may have met the next fabric already.
        assert codes & {ReturnCode.COMMUNICATION_ERROR, ReturnCode.TIMEOUT}
        outcomes = each_has_one_outcome(engine.site.jobs.store)
        assert any("payload" in event.body.get("why", "") for event in outcomes.values()), [
            (e.type, e.body) for e in outcomes.values()
        ]
        until(lambda: send(engine, 5.0, number=9).get_return_code() == ReturnCode.OK, 30)
        assert set(server.handled.values()) == {1}
    rig.check()


ONE = """
import sys
from engine.client_engine import ClientEngine
from engine.shareable import Shareable
engine = ClientEngine.open(workspace=sys.argv[1])
reply = engine.send_aux_request("topic", Shareable({"number": 1}), float(sys.argv[2]), engine.new_context())
print(reply.get_return_code())
engine.close()
"""


def test_a_record_that_dies_with_requests_in_flight_has_one_outcome_for_each_in_the_end(
    rig: Rig, tmp_path: Path
) -> None:
    rig.start()
    with peer(rig.server("fabric").url, delay=0.05) as server:
        sending = Sending(rig.root, tmp_path / "sending.log", count=150, timeout=6.0, threads=8)
        until(lambda: len(server.handled) > 10, 20)
        rig.kill_server("record")
        results = sending.results()
        assert len(results) == 150
        assert max(result["seconds"] for result in results) < 12.0
        with rig.looking() as jobs:
            each_has_one_outcome(jobs.store)
        assert set(server.handled.values()) == {1}
    rig.check()


@pytest.mark.timeout(240)
def test_a_poison_message_is_set_aside_after_its_attempts_and_the_others_go_on(rig: Rig) -> None:
    rig.start(**LANE)
    with peer(rig.server("fabric").url) as server, client(rig) as engine:
        assert send(engine, number=0).get_return_code() == ReturnCode.OK
        process = subprocess.Popen([sys.executable, "-c", ONE, str(rig.root), "90"], stdout=subprocess.PIPE)
        for _ in range(3):
            rig.fault("send-started", "kill")
            rig.struck("send-started")
        code = process.communicate(timeout=120)[0].decode().strip()
        assert code == ReturnCode.COMMUNICATION_ERROR
        assert send(engine, 10.0, number=2)["echo"] == 2
        ends = [event.type for event in each_has_one_outcome(engine.site.jobs.store).values()]
        assert ends == ["AuxReplied", "AuxOutcomeUnknown", "AuxReplied"]
        assert set(server.handled.values()) == {1}


def test_targets_that_never_answer_do_not_hold_the_others_up(workspace: Path) -> None:
    with opened(workspace) as engine:
        ready(engine)
        url = engine.site.servers.fabric_url
        names = [f"site-{number}" for number in range(2, 22)]
        cells = [peer(url, fqcn=name) for name in names]
        found = [cell.__enter__() for cell in cells]
        try:
            for deaf in found[:4]:
                deaf.delay = 60.0
            ctx = engine.new_context()
            sends = engine.aux_runner.send
            began = time.monotonic()
            for number in range(500):
                reply = sends("topic", Shareable({"number": number}), 0, ctx, target=names[number % 20])
                assert reply.get_return_code() == ReturnCode.OK
            until(lambda: all(len(cell.handled) == 25 for cell in found[4:]), 20)
            took = time.monotonic() - began
            reply = sends("topic", Shareable({"number": 1}), 5.0, ctx, target=names[7])
            assert reply.get_return_code() == ReturnCode.OK
            assert took < 15.0
        finally:
            for cell in found:
                cell.delay = 0.0
            for manager in cells:
                manager.__exit__(None, None, None)

"""Requests without end under random kills. The seed in a test's name replays it: ``pytest -k 'seed17'``."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.owner import owner_of
from tests.faults.peer import Sending, callers_agree, each_has_one_outcome, peer
from tests.faults.rig import Rig
from tests.faults.test_servers_die import wipe
from tests.support import command_of, kill, processes_with, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

SEEDS = int(os.environ.get("FLIGHTLOG_SOAK_SEEDS", "3"))
STEPS = 8
TIMEOUT = 5.0
#: What a caller may take beyond its timeout: a record that is away has the appends wait for it.
GRACE = 12.0


@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"seed{seed}") for seed in range(SEEDS)])
def test_every_request_has_one_outcome_through_random_kills_and_no_handler_runs_twice(
    rig: Rig, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    rig.start(lane_lease=1.0)
    with peer(rig.server("fabric").url, delay=0.01) as server:
        sending = Sending(
            rig.root, tmp_path / "sending.log", count=10_000, timeout=TIMEOUT, threads=8, run_for=STEPS * 1.5
        )
        until(lambda: server.handled, 60)  # its engine is a client of the one that is up
        for _ in range(STEPS):
            time.sleep(chance.uniform(0.2, 1.5))
            chance.choice(KILLS)(rig, chance)
            if owner_of(rig.workspace) is None:
                rig.start(lane_lease=1.0)
        results = sending.results()
        assert len(results) > 20, (tmp_path / "sending.log").read_text()[-2000:]
        slow = [result for result in results if result["seconds"] > TIMEOUT + GRACE]
        assert not slow, f"callers were kept past their timeout: {slow}"
        with rig.looking() as jobs:
            each_has_one_outcome(jobs.store, 60)
            callers_agree(jobs.store, results)
        assert set(server.handled.values()) == {1}
    rig.check()


def _engine(rig: Rig, chance: random.Random) -> None:
    rig.kill_up()


def _some(rig: Rig, chance: random.Random, *words: str) -> None:
    found = [pid for pid in processes_with("\0".join(words)) if str(rig.root) in command_of(pid)]
    if found:
        kill(chance.choice(found))


def _pool(rig: Rig, chance: random.Random) -> None:
    _some(rig, chance, "workers", "pool")


def _io_worker(rig: Rig, chance: random.Random) -> None:
    _some(rig, chance, "workers", "worker", "--queue", "io")


def _record(rig: Rig, chance: random.Random) -> None:
    rig.kill_server("record")


def _fabric(rig: Rig, chance: random.Random) -> None:
    rig.kill_server("fabric")


def _at_a_place(rig: Rig, chance: random.Random) -> None:
    place = chance.choice(["send-started", "send-delivered", "answers-read", "answers-recorded"])
    # A stopped collector would be a stopped pool: that is another fault, and another test's.
    rig.fault(place, chance.choice(["kill", "stop"]) if place.startswith("send") else "kill")


def _wipe(rig: Rig, chance: random.Random) -> None:
    wipe(rig)


KILLS: tuple[Callable[[Rig, random.Random], None], ...] = (
    _engine,
    _pool,
    _io_worker,
    _record,
    _fabric,
    _at_a_place,
    _at_a_place,
    _wipe,
)

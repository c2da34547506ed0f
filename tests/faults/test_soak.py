"""Random lives under random kills. The seed in a test's name replays it: ``pytest -k 'seed17'``."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.owner import owner_of
from events.errors import FlightlogError
from tests.faults.rig import SETTLE, Rig, counting_app, runs_of
from tests.faults.test_servers_die import wipe
from tests.support import ENDS, command_of, kill, processes_with, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

SEEDS = int(os.environ.get("FLIGHTLOG_SOAK_SEEDS", "4"))
STEPS = 12
JOBS = ("one", "two")


@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"seed{seed}") for seed in range(SEEDS)])
def test_L1_to_L8_hold_through_random_lives_and_kills(rig: Rig, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    runs = {job: tmp_path / f"runs-{job}" for job in JOBS}
    rig.start()
    for _ in range(STEPS):
        job = chance.choice(JOBS)
        _step(rig, chance, job, runs[job])
        if chance.random() < 0.5:
            chance.choice(KILLS)(rig, chance)
        if owner_of(rig.workspace) is None:
            _reap(rig)
            rig.start()
    if owner_of(rig.workspace) is None:
        _reap(rig)
        rig.start()
    for job in JOBS:
        _ask(rig, "abort", job)
    with rig.looking() as jobs:
        until(lambda: all(jobs.load(job).state.at_rest for job in JOBS), SETTLE, "a job does not come to rest")
    events = rig.check()
    for job in JOBS:
        ended = [e.body["attempt"] for e in events if e.subject == f"job/{job}" and e.type in ENDS]
        ran = [int(word) for word in runs_of(runs[job])]
        assert len(ran) == len(set(ran)), f"an attempt of {job} ran twice: {ran}"
        assert set(ran) <= set(ended), f"an attempt of {job} ran and never ended: {ran}, {ended}"
        assert processes_with(f"FLIGHTLOG_RUN_DIR={rig.workspace.run(job)}") == []


def _step(rig: Rig, chance: random.Random, job: str, runs: Path) -> None:
    what = chance.choice(["deploy", "start", "start", "start", "abort", "delete", "notify"])
    if what == "deploy":
        then = chance.choice(["exit 0", "exit 3", "sleep 0.3", "sleep 1000", "(setsid sleep 1000 &); sleep 0.2"])
        _ask(rig, "deploy", job, *counting_app(runs, then))
    else:
        _ask(rig, what, job)


def _ask(rig: Rig, what: str, job: str, *command: str) -> None:
    """Ask for something; that it is refused, or that a server is away just now, is part of life."""
    try:
        if what == "deploy":
            rig.ask_deploy(job, *command)
        elif what == "start":
            rig.ask_start(job)
        else:
            with rig.client(grace=0.3, abort_timeout=0.2, delete_timeout=0.2) as engine:
                if what == "abort":
                    engine.abort_app(job)
                elif what == "delete":
                    engine.delete_run(job)
                else:
                    engine.notify_job_status(job, 3)
    except (FlightlogError, FileNotFoundError):
        return


def _kill_engine(rig: Rig, chance: random.Random) -> None:
    rig.kill_up()


def _kill_pool(rig: Rig, chance: random.Random) -> None:
    for pid in processes_with("workers\0pool\0"):
        if str(rig.root) in command_of(pid):
            kill(pid)


def _kill_worker(rig: Rig, chance: random.Random) -> None:
    found = [p for p in processes_with("workers\0worker\0") if str(rig.root) in command_of(p)]
    if found:
        kill(chance.choice(found))


def _kill_record(rig: Rig, chance: random.Random) -> None:
    rig.kill_server("record")


def _kill_fabric(rig: Rig, chance: random.Random) -> None:
    rig.kill_server("fabric")


def _kill_keeper(rig: Rig, chance: random.Random) -> None:
    found = [p for p in processes_with("keeper") if str(rig.root) in command_of(p)]
    if found:
        kill(chance.choice(found))


def _kill_at_a_place(rig: Rig, chance: random.Random) -> None:
    places = [f"deploy-{x}" for x in ("claimed", "staged", "locked", "before-record")]
    places += [f"launch-{x}" for x in ("claimed", "locked", "before-record")]
    rig.fault(chance.choice(places), chance.choice(["kill", "stop"]))


def _wipe(rig: Rig, chance: random.Random) -> None:
    wipe(rig)


KILLS: tuple[Callable[[Rig, random.Random], None], ...] = (
    _kill_engine,
    _kill_pool,
    _kill_worker,
    _kill_record,
    _kill_fabric,
    _kill_keeper,
    _kill_at_a_place,
    _wipe,
)


def _reap(rig: Rig) -> None:
    if rig.up is not None:
        rig.kill_up()

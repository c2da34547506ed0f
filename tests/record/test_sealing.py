"""A real site with its sealer as a process of its own: killed, witnessed, rewritten, mended, rebuilt."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from engine.record.mending import mend
from engine.record.proving import Prover
from engine.record.replaying import Replay, check
from engine.record.sealed import log_name, sealed
from engine.record.sealing import seal_now
from engine.record.sources import site_source
from engine.record.verify import Verification
from engine.record.witness import Witness, WitnessServer
from engine.record.witnessing import last_seen
from engine.site import Site
from events.bodies.record import HistoryLost
from events.epochs import open_epoch
from events.errors import RecordDamaged
from events.keep import to_disk
from events.read import count, read, read_back
from events.seal import Sealer, kept, kept_notes, latest
from tests.record.rig import begin, born, feed, feed_site, run, sealing, verified
from tests.support import SITE, kill, new_call, opened, processes_with, types_of, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]


def test_L7_a_sealer_that_is_killed_again_and_again_signs_one_history(site: Site) -> None:
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    born(site, *(f"job-{n}" for n in range(7)))
    stop = threading.Event()

    def append() -> None:
        while not stop.is_set():
            feed(site, 20)

    thread = threading.Thread(target=append)
    thread.start()
    signed: dict[int, bytes] = {}
    try:
        for _ in range(6):
            before = latest(site.workspace.seal)
            sealer = begin(site, segment=200, keep=300)
            until(lambda was=before: latest(site.workspace.seal) != was, 60, "it signs nothing")  # it is at work
            time.sleep(dice.random())
            kill(sealer.pid)
            sealer.wait()
            note = latest(site.workspace.seal)
            if note is not None:
                known = signed.setdefault(note.checkpoint.size, note.checkpoint.root)
                assert known == note.checkpoint.root, f"seed {seed}"
    finally:
        stop.set()
        thread.join()
    assert len(signed) >= 3
    seal_now(site)
    report = verified(site)
    assert report.verdict == "SITE-SIGNED", f"seed {seed}"
    assert report.last == count(site.jobs.store)
    for note in kept_notes(site.workspace.seal):
        assert signed.setdefault(note.checkpoint.size, note.checkpoint.root) == note.checkpoint.root, f"seed {seed}"
    # What went to disk, in between, went whole, and every projection is what the whole log says.
    assert check(site.jobs) == (7, [])
    assert [event.seq for event in read(site.jobs.store)] == list(range(1, report.last + 1))


def test_a_second_sealer_waits_for_its_place(site: Site) -> None:
    born(site, "job-1")
    with sealing(site) as first:
        until(lambda: sealed(site.workspace)["sealed"])
        with sealing(site):
            # The other is there, and has to wait: nobody else is at its lock.
            until(lambda: len(processes_with("workers\0sealer\0--workspace\0" + str(site.workspace.root))) == 2, 30)
            time.sleep(1.0)
            kill(first.pid)
            first.wait()
            before = sealed(site.workspace)["sealed"]
            feed(site, 3)
            until(lambda: sealed(site.workspace)["sealed"] > before, 15, "the second one does not take over")


def test_a_checkpoint_is_witnessed_at_a_jobs_end_and_its_cosignature_comes_back(
    workspace: Path, tmp_path: Path
) -> None:
    with WitnessServer(Witness(tmp_path / "witness", "w.example")) as server, opened(workspace) as engine:
        site = engine.site
        with sealing(site, witness=server.url, witness_every=3600):
            run(engine, "job-1", tmp_path)
            until(lambda: sealed(site.workspace)["witnessed"], 15, "nobody witnessed it")
            until(lambda: any(event.type == "CheckpointWitnessed" for event in read(site.jobs.store)), 10)
            seal_now(site)
        report = verified(site)
        assert report.verdict == "WITNESSED"
        assert [name.partition("+")[0] for name in report.witnessed_by] == ["w.example"]
        (seen,) = last_seen(server.url, log_name(site.workspace))
        ended = next(event for event in read(site.jobs.store) if event.type == "AppFinished")
        assert seen.checkpoint.size >= ended.seq


def test_a_site_whose_history_was_rewritten_is_refused_by_the_witness_and_says_so(
    workspace: Path, tmp_path: Path
) -> None:
    with WitnessServer(Witness(tmp_path / "witness", "w.example")) as server:
        site = Site.open(create=True, site=SITE, workspace=workspace)
        try:
            born(site, "job-1")
            with sealing(site, witness=server.url, witness_every=0.1):
                until(lambda: sealed(site.workspace)["witnessed"])
            # The holder of the key, and of everything else, begins the history anew.
            site.jobs.store.client.flushall()
            for path in (site.workspace.seal / "notes", site.workspace.seal / "checkpoint"):
                path.unlink()
            born(site, *(f"other-{n}" for n in range(9)))
            with sealing(site, witness=server.url, witness_every=0.1):
                until(lambda: sealed(site.workspace)["witness_refused"], 15, "it was not refused")
                until(lambda: any(e.type == "WitnessRefused" for e in read(site.jobs.store)))
        finally:
            site.close()


def test_a_log_whose_end_goes_while_it_is_sealed_is_told_and_disclosed_it_goes_on(site: Site) -> None:
    born(site, "job-1")
    feed_site(site, 20)
    with sealing(site):
        until(lambda: sealed(site.workspace)["sealed"] >= 21)
        size = count(site.jobs.store)
        last = list(read(site.jobs.store))[-5:]
        for event in last:
            site.jobs.store.client.xdel(site.jobs.store.keys.log, event.position)
        site.jobs.rebuild("somebody cut it")  # which appends an event of its own, at a sequence that was sealed
        until(lambda: "were sealed" in (sealed(site.workspace)["broken"] or ""), 20, "it was not noticed")
        end = count(site.jobs.store)
        first = kept(site.jobs.store, site.workspace.seal) + 1
        assert first == end, "what was appended meanwhile is not what was sealed there"
        lost = HistoryLost(first=first, last=size, note=str(latest(site.workspace.seal)), reason="a failover")
        opened_at = open_epoch(site.jobs.store, new_call(), [lost])
        feed_site(site, 20)
        until(lambda: sealed(site.workspace)["sealed"] > size and not sealed(site.workspace)["broken"], 30)
    assert opened_at == 2
    assert len(verified(site).losses) == 1
    # Parts before the loss and after it are not held against what was signed of what is gone.
    for first, last in ((1, 10), (2, end), (end + 3, None), (5, end + 4)):
        report = Verification(site_source(site, first=first, last=last), first=first, last=last).run()
        assert (report.verdict, report.problems) == ("SITE-SIGNED", []), (first, last)


def test_replay_steps_through_a_job_and_finds_a_projection_that_was_changed(workspace: Path, tmp_path: Path) -> None:
    with opened(workspace) as engine:
        run(engine, "job-1", tmp_path)
        jobs = engine.site.jobs
        until(lambda: "JobSettled" in types_of(jobs.store, "job-1"))
        life = Replay(jobs, "job-1")
        states = [moment.state.state.value for moment in life]
        assert states[0] == "deploying"
        assert states[-1] == "finished"
        for moment in life:
            assert life[moment.version].state == moment.state
            assert life.at(moment.event.position).version == moment.version
        assert life[-1].version == len(life)
        deployed = next(moment for moment in life if moment.event.type == "DeploySucceeded")
        changes = life.changes(life[1].state, deployed.state)
        assert changes["state"] == ("deploying", "deployed")
        assert check(jobs) == (1, [])
        store = jobs.store
        store.client.hset(store.keys.job("job-1"), "exit_code", "3")
        (difference,) = check(jobs)[1]
        assert tuple(difference) == ("job-1", "exit_code", "3", "0")
        store.client.zadd(store.keys.state("running"), {"job-1": 1})
        assert mend(jobs, new_call()) == (count(store) - 1, 1)
        assert check(jobs) == (1, [])
        assert jobs.ids(state="running") == []


def test_l2_a_rebuild_while_the_site_works_disturbs_nobody(site: Site) -> None:
    born(site, *(f"job-{n}" for n in range(7)))
    feed(site, 500)
    stop, slowest, errors = threading.Event(), [0.0], []

    def work() -> None:
        other = Site.open(workspace=site.workspace.root)
        try:
            while not stop.is_set():
                began = time.monotonic()
                feed(other, 5)
                slowest[0] = max(slowest[0], time.monotonic() - began)
        except Exception as error:
            errors.append(error)
        finally:
            other.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            site.jobs.store.client.hset(site.jobs.store.keys.job("job-2"), "reason", "wrong")
            _, changed = mend(site.jobs, new_call())
            assert changed >= 1
    finally:
        stop.set()
        thread.join()
    assert errors == []
    assert slowest[0] < 5.0, "somebody waited for a rebuild"
    assert check(site.jobs) == (7, [])


def test_an_event_that_was_changed_in_redis_is_found_though_its_copy_on_disk_is_right(site: Site) -> None:
    born(site, "job-1")
    feed_site(site, 40)
    seal_now(site)
    sealer = Sealer(site.jobs.store, site.workspace.seal, log_name(site.workspace))
    sealer.begin()
    to_disk(site.jobs.store, sealer.tree, sealer.size, size=10)
    sealer.close()
    client, key = site.jobs.store.client, site.jobs.store.keys.log
    events = list(read(site.jobs.store))
    client.delete(key)
    for event in events:
        raw = event.raw.replace("tester", "nobody") if event.seq == 7 else event.raw
        client.xadd(key, {"t": event.type, "s": event.subject, "v": str(event.version), "d": raw}, id=event.position)
    report = Verification(site_source(site)).run()
    assert report.verdict == "DAMAGED"
    assert report.problems[0].seq == 7
    prover = Prover(site)
    with pytest.raises(RecordDamaged, match="not the event that was sealed"):
        prover.proof(list(read_back(site.jobs.store))[-7])
    prover.close()

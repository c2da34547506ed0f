"""History moves to disk: memory stays bounded, new work is refused before ends are, backups bring a site back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from engine.archive import pack
from engine.calls.deploy import deploy
from engine.record.backup import backup, restored, unpack
from engine.record.replaying import check
from engine.record.sealed import log_name, sealed
from engine.record.sealing import seal_now
from engine.record.sources import site_source
from engine.record.verify import Verification
from engine.record.witness import Witness, WitnessServer
from engine.record.witnessing import last_seen
from engine.site import Site
from events.errors import RecordFull
from events.keep import to_disk
from events.read import read, read_job
from events.seal import Sealer
from tests.histories import body
from tests.record.rig import born, feed, feed_site, sealing, verified
from tests.support import SITE, in_state, make_app, new_call, opened, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]


def test_a_site_that_is_fed_ten_times_its_memory_keeps_working(workspace: Path) -> None:
    memory = 32 * 2**20
    site = Site.open(create=True, site=SITE, workspace=workspace, record_memory=memory)
    try:
        born(site, *(f"job-{n}" for n in range(7)))
        fed, refused = 0, 0
        with sealing(site, segment=200, keep=300):
            until_ = time.monotonic() + 120
            while fed < 10 * memory and time.monotonic() < until_:
                try:
                    feed(site, 50, 8_192)
                    fed += 50 * 8_192
                except RecordFull:
                    refused += 1  # faster than the disk takes it: the next moment there is room again
                    time.sleep(0.1)
            assert fed >= 10 * memory, f"{fed} bytes were fed, and {refused} times there was no room"
            until(lambda: site.jobs.store.client.get(site.jobs.store.keys.full) is None, 60)
            born(site, "job-late")
            used = site.jobs.store.client.info("memory")["used_memory"]
            assert used < memory
            until(lambda: site.jobs.store.client.xlen(site.jobs.store.keys.log) < 700, 30, "it is not trimmed")
            seal_now(site)
        report = verified(site)
        assert report.events * 8_192 > 9 * memory
        assert [event.version for event in read_job(site.jobs.store, "job-3")] == list(
            range(1, site.jobs.load("job-3").version + 1)
        )
        assert check(site.jobs) == (8, [])
    finally:
        site.close()


def test_where_there_is_no_room_new_work_is_refused_and_ends_are_not(workspace: Path, tmp_path: Path) -> None:
    with opened(workspace) as engine:
        app = pack(make_app(tmp_path / "app", "sleep", "600"))
        deploy(engine.core, "app", "job-1", {}, SITE, app, timeout=30)
        engine.start_app("job-1", None)
        site = engine.site
        with sealing(site, room_warn="0.00001", room_full="0.00002"):
            until(lambda: site.jobs.store.client.get(site.jobs.store.keys.full))
            with pytest.raises(RecordFull, match="full, and the rest is for what is under way") as refused:
                deploy(engine.core, "app", "job-2", {}, SITE, app, timeout=30)
            assert refused.value.recorded
            engine.abort_app("job-1")
            in_state(site.jobs, "job-1", "aborted")
            engine.delete_run("job-1")
            in_state(site.jobs, "job-1", "deleted")
        low = [event.body for event in read(site.jobs.store) if event.type == "RoomLow"]
        assert {one["what"] for one in low} == {"memory", "disk"}
        site.jobs.store.client.delete(site.jobs.store.keys.full)  # as it is gone by itself after a while
        deploy(engine.core, "app", "job-2", {}, SITE, app, timeout=30)


def test_a_backup_brings_the_site_back_and_it_says_what_is_missing(workspace: Path, tmp_path: Path) -> None:
    with WitnessServer(Witness(tmp_path / "witness", "w.example")) as server:
        site = Site.open(create=True, site=SITE, workspace=workspace)
        try:
            born(site, "job-1")
            feed(site, 100)
            with sealing(site, witness=server.url, witness_every=0.1, segment=20, keep=100):
                until(lambda: sealed(site.workspace)["witnessed"])
                feed(site, 100)
                until(lambda: len(list(site.workspace.segments.glob("*.zst"))) >= 4, 15)
                made = backup(site, tmp_path / "b.tar.zst")
                born(site, "job-late")
                feed(site, 30)
                until(lambda: sealed(site.workspace)["witnessed"] > made.last)
            log = log_name(site.workspace)
        finally:
            site.close()
        head = unpack(tmp_path / "b.tar.zst", tmp_path / "back")
        back = Site.open(finishing=True, workspace=tmp_path / "back")
        try:
            assert log_name(back.workspace) == log
            told = restored(back, new_call(), head, "the disk died", last_seen(server.url, log)[0])
            assert [one.name() for one in told] == ["HistoryLost", "BackupRestored"]
            with sealing(back, witness=server.url, witness_every=0.1):
                # Another history of a log that it knows: only its operator can say that this is as it should be.
                until(lambda: "has to accept it" in (sealed(back.workspace)["witness_refused"] or ""), 15)
                assert sealed(back.workspace)["witnessed"] <= made.last
                Witness(tmp_path / "witness", "w.example").ledger.accept(f"{log}/2")
                feed(back, 3)
                until(lambda: sealed(back.workspace)["witnessed"] > made.last, 15, "the witness takes the new epoch")
            assert len(last_seen(server.url, log)) == 2
            report = verified(back)
            assert len(report.losses) == 1
            assert not back.jobs.load("job-late").known
            assert check(back.jobs)[1] == []
        finally:
            back.close()


def test_a_backup_of_a_log_that_is_wholly_on_disk_goes_on_where_it_was(site: Site, tmp_path: Path) -> None:
    site.jobs.transact(new_call(), "job-1", lambda state: [body("DeployRequested")])
    feed_site(site, 19)
    seal_now(site)
    sealer = Sealer(site.jobs.store, site.workspace.seal, log_name(site.workspace))
    sealer.begin()
    assert to_disk(site.jobs.store, sealer.tree, sealer.size, size=10) == 2
    sealer.close()
    backup(site, tmp_path / "b.tar.zst")
    head = unpack(tmp_path / "b.tar.zst", tmp_path / "back")
    back = Site.open(finishing=True, workspace=tmp_path / "back")
    try:
        restored(back, new_call(), head, "a drill", None)
        assert [event.seq for event in read(back.jobs.store)] == list(range(1, 22))
        assert back.jobs.load("job-1").known
        assert check(back.jobs) == (1, [])
    finally:
        back.close()


def test_a_segment_that_goes_missing_is_named_by_verify(site: Site) -> None:
    born(site, "job-1")
    with sealing(site, segment=50, keep=100):
        feed_site(site, 400)
        until(lambda: len(list(site.workspace.segments.glob("*.zst"))) > 4, 15)
        seal_now(site)
    (site.workspace.segments / "000000000101-000000000150.tsv.zst").unlink()
    again = Site.open(workspace=site.workspace.root)
    try:
        report = Verification(site_source(again)).run()
        assert report.verdict == "DAMAGED"
        assert any("events 101 to 150" in problem.what for problem in report.problems)
    finally:
        again.close()


def test_a_backup_can_be_restored_though_the_sealer_signs_on_while_it_is_made(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    born(site, "job-1")
    feed_site(site, 10)
    seal_now(site)

    def slow(store: Any, **given: Any) -> Any:
        tail = list(read(store, **given))
        feed_site(site, 10)
        seal_now(site)
        return tail

    monkeypatch.setattr("engine.record.backup.read", slow)
    backup(site, tmp_path / "b.tar.zst")
    head = unpack(tmp_path / "b.tar.zst", tmp_path / "back")
    back = Site.open(finishing=True, workspace=tmp_path / "back")
    try:
        restored(back, new_call(), head, "a drill", None)
        seal_now(back)
        assert verified(back).verdict == "SITE-SIGNED"
    finally:
        back.close()

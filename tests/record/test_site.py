"""A real site with its sealer as a process of its own: killed, starved of memory, witnessed, erased, carried away."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.actors import acting_as
from engine.archive import pack
from engine.calls.deploy import deploy
from engine.client_engine import ClientEngine
from engine.errors import ExportInvalid, LegalHold, NotDeleted, Retained, SiteNotEmpty
from engine.record.backup import backup, restored, unpack
from engine.record.bundling import bundle
from engine.record.erasing import erase, finish, foresee, hold
from engine.record.exporting import ExportFile, export
from engine.record.importing import take_in
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
from events.bodies.record import Erased, HistoryLost
from events.envelope import Actor
from events.epochs import open_epoch
from events.errors import RecordDamaged, RecordFull
from events.keep import to_disk
from events.read import count, last_position, read, read_back, read_job
from events.seal import Sealer, kept_notes, latest
from tests.histories import body
from tests.support import SITE, in_state, kill, make_app, new_call, opened, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

ALICE = Actor(id="alice.liddell@ward-7.example", kind="person", auth="token", claimed="Doctor Liddell")
SECRETS = ("alice.liddell", "Doctor Liddell", "tumour of Mr Hatter", "ward-7-notes")
VERIFIER = Path(__file__).parents[2] / "engine" / "record" / "flightlog_verify.py"


@contextmanager
def sealing(site: Site, **settings: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A sealer process for a site."""
    process = begin(site, **settings)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(15)


def begin(site: Site, **settings: Any) -> subprocess.Popen[bytes]:
    env = {**os.environ, **site.settings.environment(), "FLIGHTLOG_SEAL_EVERY": "0.05"}
    env |= {f"FLIGHTLOG_{name.upper()}": str(value) for name, value in settings.items()}
    with (site.workspace.flight / "sealer.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "workers", "sealer", "--workspace", str(site.workspace.root)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def run(engine: ClientEngine, job: str, folder: Path, command: str = "echo secret-output", **meta: Any) -> None:
    app = pack(make_app(folder / f"app-{job}", "sh", "-c", command))
    deploy(engine.core, "app", job, meta, SITE, app, timeout=30)
    engine.start_app(job, None)
    in_state(engine.site.jobs, job, "finished")


def verified(site: Site) -> Any:
    report = Verification(site_source(site)).run()
    assert report.problems == []
    return report


@pytest.fixture
def site(workspace: Path) -> Iterator[Site]:
    """A site with servers, and without an engine."""
    made = Site.open(create=True, site=SITE, workspace=workspace)
    yield made
    made.close()


def feed(site: Site, number: int, size: int = 0) -> None:
    for index in range(number):
        told = body("CallRefused", message="x" * size) if size else body("CallRepeated")
        site.jobs.note(new_call(), [told], f"job-{index % 7}")


def born(site: Site, *jobs: str) -> None:
    for job in jobs:
        site.jobs.transact(new_call(), job, lambda state: [body("DeployRequested")])


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
            sealer = begin(site, segment=200, keep=300)
            time.sleep(0.7 + dice.random())
            kill(sealer.pid)
            sealer.wait()
            note = latest(site.workspace.seal)
            if note is not None:
                known = signed.setdefault(note.checkpoint.size, note.checkpoint.root)
                assert known == note.checkpoint.root, f"seed {seed}"
    finally:
        stop.set()
        thread.join()
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
            time.sleep(1.0)
            kill(first.pid)
            first.wait()
            before = sealed(site.workspace)["sealed"]
            feed(site, 3)
            until(lambda: sealed(site.workspace)["sealed"] > before, 15, "the second one does not take over")


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


def test_personal_fields_are_nowhere_in_the_open_and_nowhere_at_all_after_an_erasure(
    workspace: Path, tmp_path: Path
) -> None:
    with opened(workspace, keep=100, segment=10) as engine:
        site = engine.site
        with acting_as(ALICE, reason="tumour of Mr Hatter"):
            run(engine, "job-1", tmp_path, notes="ward-7-notes")
            run(engine, "job-2", tmp_path)
        seal_now(site)
        with sealing(site, keep=100, segment=10):
            feed_site(site, 150)
            until(lambda: any(site.workspace.segments.glob("*.zst")), 15)
        for secret in SECRETS:
            assert secret not in everything(site), secret
        assert next(read_job(site.jobs.store, "job-1")).rest()["actor"]["id"] == ALICE.id
        with pytest.raises(NotDeleted):
            foresee(site, "job-1")
        engine.delete_run("job-1")
        in_state(site.jobs, "job-1", "deleted")
        before = foresee(site, "job-1")
        assert before.fields > 5
        assert before.keys == 1
        done = erase(site, new_call(), "job-1", "the patient asked for it")
        assert done.position is not None
        made = tmp_path / "after.jsonl"
        export(site, made)
        bundle(site, "job-1", tmp_path / "job-1.zip")
        told = made.read_text() + "".join(
            zipfile.ZipFile(tmp_path / "job-1.zip").read(name).decode()
            for name in zipfile.ZipFile(tmp_path / "job-1.zip").namelist()
        )
        assert "ward-7-notes" not in told
        mine = [line for line in made.read_text().splitlines() if json.loads(line).get("subject") == "job/job-1"]
        for secret in SECRETS:
            assert secret not in "\n".join(mine)
            assert secret not in everything(site)
        # Another job of the same person is not touched.
        assert next(read_job(site.jobs.store, "job-2")).rest()["actor"]["id"] == ALICE.id
        seal_now(site)
        report = verified(site)
        assert len(report.erased) == 1
        assert check(site.jobs)[1] == []
        assert not site.workspace.job("job-1").exists()


def feed_site(site: Site, number: int) -> None:
    for _ in range(number):
        site.jobs.note(new_call(), [body("WorkRerung")])


def everything(site: Site) -> str:
    """All that lies in the record server, and in our folder: the log on disk, segments, seal, keys."""
    client, kept = site.jobs.store.client, []
    for key in client.scan_iter(count=1000):
        kept.append(str(key))
        kept.append(str(client.execute_command("DUMP", key, NEVER_DECODE=True)))
        kind = client.type(key)
        if kind == "stream":
            kept.append(str(client.xrange(key)))
        elif kind == "hash":
            kept.append(str(client.hgetall(key)))
    for path in site.workspace.flight.rglob("*"):
        if path.is_file() and not path.is_symlink() and "jobs" not in path.relative_to(site.workspace.flight).parts:
            kept.append(path.read_bytes().decode("utf-8", "replace"))
    return "\n".join(kept)


def test_an_erasure_that_was_recorded_and_not_done_is_finished_by_the_sealer(site: Site) -> None:
    with acting_as(ALICE):
        site.jobs.transact(
            site.system_call("x"), "job-1", lambda state: [body("DeployRequested", reason="tumour of Mr Hatter")]
        )
    vault = site.jobs.store.vault
    assert vault is not None
    lives = vault.next_life("job-1")
    site.jobs.note(new_call(), [Erased(reason="asked", lives=lives)], "job-1")  # and dies
    assert next(read_job(site.jobs.store, "job-1")).body["reason"] == "tumour of Mr Hatter"
    with sealing(site):
        until(lambda: "[erased]" in str(next(read_job(site.jobs.store, "job-1")).body), 15, "nobody finished it")
    finish(site, "job-1", lives)  # twice is once
    assert list(read_job(site.jobs.store, "job-1"))[-1].body["reason"] == "asked"


def test_a_hold_and_a_retention_win_over_an_erasure(workspace: Path) -> None:
    site = Site.open(create=True, site=SITE, workspace=workspace, retention=30)
    try:
        life = ("DeployRequested", "DeploySucceeded", "DeleteRequested", "DeleteSucceeded")
        for kind in life:
            site.jobs.transact(new_call(), "job-1", lambda state, kind=kind: [body(kind)])  # type: ignore[misc]
        with pytest.raises(Retained, match="kept for 30 days"):
            foresee(site, "job-1")
        hold(site, new_call(), "job-1", "case 17", lift=False)
        with pytest.raises(LegalHold):
            foresee(site, "job-1")
        hold(site, new_call(), "job-1", "it is over", lift=True)
        with pytest.raises(Retained):
            erase(site, new_call(), "job-1", "x")
    finally:
        site.close()


def test_an_export_carries_everything_to_another_folder(workspace: Path, tmp_path: Path) -> None:
    with opened(workspace) as engine:
        with acting_as(ALICE, reason="tumour of Mr Hatter"):
            run(engine, "job-1", tmp_path)
        site = engine.site
        made = export(site, tmp_path / "all.zst")
        assert made.first == 1
        states = {job: dict(site.jobs.load(job).state) for job in site.jobs.each()}
        report = Verification(ExportFile(tmp_path / "all.zst").source()).run()
        assert (report.verdict, report.problems) == ("SITE-SIGNED", [])
        with pytest.raises(SiteNotEmpty):
            take_in(site, tmp_path / "all.zst")
    other = Site.open(create=True, site="elsewhere", workspace=tmp_path / "other")
    try:
        taken = take_in(other, tmp_path / "all.zst")
        assert taken.root == report.root
        assert {job: dict(other.jobs.load(job).state) for job in other.jobs.each()} == states
        # Readable, and its own log from here on, in an epoch of its own.
        assert next(read_job(other.jobs.store, "job-1")).rest()["actor"]["id"] == ALICE.id
        born(other, "job-new")
        seal_now(other)
        again = verified(other)
        assert again.last == made.events + 2
        assert again.signed == again.last
    finally:
        other.close()


@pytest.mark.parametrize("how", ["cut", "edit", "shown", "swap", "rubbish"])
def test_an_export_that_was_tampered_with_is_not_taken_in(site: Site, tmp_path: Path, how: str) -> None:
    born(site, "job-1", "job-2")
    export(site, tmp_path / "all.jsonl")
    lines = (tmp_path / "all.jsonl").read_text().splitlines(keepends=True)
    if how == "cut":
        lines = lines[:-2]
    elif how == "edit":
        lines[2] = lines[2].replace("tester", "nobody").replace('\\"step\\":\\"intent', '\\"step\\":\\"other')
    elif how == "shown":  # only what people read
        event = json.loads(lines[2])
        event["data"]["body"]["app"] = "another"
        lines[2] = json.dumps(event) + "\n"
    elif how == "swap":
        at = [i for i, line in enumerate(lines) if '"flightlogdata"' in line]
        lines[at[0]], lines[at[1]] = lines[at[1]], lines[at[0]]
    else:
        lines.insert(2, "not json\n")
    (tmp_path / "bad.jsonl").write_text("".join(lines))
    other = Site.open(create=True, site="elsewhere", workspace=tmp_path / "other")
    try:
        with pytest.raises(
            (RecordDamaged, Exception), match=r"does not verify|cut off|no CloudEvent|not what is stored"
        ):
            take_in(other, tmp_path / "bad.jsonl")
        assert count(other.jobs.store) == 0
    finally:
        other.close()


def _standalone(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(VERIFIER), *words], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_proof_and_a_bundle_are_verified_with_nothing_of_ours(workspace: Path, tmp_path: Path) -> None:
    with opened(workspace) as engine:
        run(engine, "job-1", tmp_path, command="echo secret-output")
        site = engine.site
        seal_now(site)
        event = list(read_job(site.jobs.store, "job-1"))[3]
        prover = Prover(site)
        proof = prover.proof(event)
        prover.close()
        path = tmp_path / "proof.json"
        path.write_text(json.dumps(proof))
        assert _standalone(str(path)).returncode == 0
        assert _standalone(str(path), "--key", proof["keys"][0].split()[0]).returncode == 0
        for name, value in (("type", "AppFailed"), ("subject", "job/other"), ("version", 99), ("d", "{}")):
            path.write_text(json.dumps({**proof, "event": {**proof["event"], name: value}}))
            said = _standalone(str(path))
            assert (said.returncode, "was changed" in said.stdout) == (7, True)
        path.write_text("{}")
        assert _standalone(str(path)).returncode == 8
        bundle(site, "job-1", tmp_path / "job-1.zip")
        said = _standalone(str(tmp_path / "job-1.zip"))
        assert said.returncode == 0, said
        assert f"SITE-SIGNED: {site.jobs.load('job-1').version} events verify" in said.stdout
        with zipfile.ZipFile(tmp_path / "job-1.zip") as archive:
            archive.extractall(tmp_path / "unpacked")
            page = archive.read("index.html").decode()
        assert "job-1" in page
        assert "secret-output" not in "".join(p.read_text() for p in (tmp_path / "unpacked").iterdir())
        inside = tmp_path / "unpacked"
        told = subprocess.run(
            [sys.executable, "-I", "flightlog_verify.py", "."],
            cwd=inside,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert told.returncode == 0, told
        shown = (inside / "events.jsonl").read_text()
        (inside / "events.jsonl").write_text(shown.replace('"exit_code": 0', '"exit_code": 1'))
        said = _standalone(str(inside))
        assert (said.returncode, "is shown otherwise than it is stored" in said.stdout) == (7, True)
        (inside / "events.jsonl").write_text(shown)
        assert _standalone(str(inside)).returncode == 0
        lines = (inside / "proofs.jsonl").read_text().replace('"type": "AppFinished"', '"type": "AppAborted"')
        (inside / "proofs.jsonl").write_text(lines)
        assert _standalone(str(inside)).returncode == 7
        bundle(site, "job-1", tmp_path / "with.zip", with_log=True)
        assert b"secret-output" in zipfile.ZipFile(tmp_path / "with.zip").read("log-1.txt")


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
        back = Site.open(workspace=tmp_path / "back")
        try:
            assert log_name(back.workspace) == log
            told = restored(back, new_call(), head, "the disk died", last_seen(server.url, log)[0])
            assert [one.name() for one in told] == ["HistoryLost", "BackupRestored"]
            with sealing(back, witness=server.url, witness_every=0.1):
                # Another history of a log that it knows: only its operator can say that this is as it should be.
                until(lambda: "has to accept it" in (sealed(back.workspace)["witness_refused"] or ""), 15)
                assert sealed(back.workspace)["witnessed"] <= made.last
                Witness(tmp_path / "witness", "w.example").accept(f"{log}/2")
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
    back = Site.open(workspace=tmp_path / "back")
    try:
        restored(back, new_call(), head, "a drill", None)
        assert [event.seq for event in read(back.jobs.store)] == list(range(1, 22))
        assert back.jobs.load("job-1").known
        assert check(back.jobs) == (1, [])
    finally:
        back.close()


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
        lost = HistoryLost(first=end + 1, last=size, note=str(latest(site.workspace.seal)), reason="a failover")
        open_epoch(site.jobs.store, new_call(), [lost])
        feed_site(site, 20)
        until(lambda: sealed(site.workspace)["sealed"] > size and not sealed(site.workspace)["broken"], 30)


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


def test_replay_steps_through_a_job_and_finds_a_projection_that_was_changed(workspace: Path, tmp_path: Path) -> None:
    with opened(workspace) as engine:
        run(engine, "job-1", tmp_path)
        jobs = engine.site.jobs
        life = Replay(jobs, "job-1")
        states = [moment.state.state.value for moment in life]
        assert states[0] == "deploying"
        assert states[-1] == "finished"
        for moment in life:
            assert life[moment.version].state == moment.state
            assert life.at(moment.event.position).version == moment.version
        assert life[-1].version == len(life)
        changes = life.changes(life[1].state, life[3].state)
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


def test_an_erased_life_stays_erased_where_it_is_taken_in_and_the_next_can_be_erased_there(
    site: Site, tmp_path: Path
) -> None:
    vault = site.jobs.store.vault
    assert vault is not None
    for word in ("first life", "second life"):
        site.jobs.transact(new_call(), "job-1", lambda state, word=word: [body("DeployRequested", reason=word)])  # type: ignore[misc]
        site.jobs.transact(new_call(), "job-1", lambda state: [body("DeployFailed")])
        if word == "first life":
            vault.destroy("job-1")
    export(site, tmp_path / "all.jsonl")
    other = Site.open(create=True, site="elsewhere", workspace=tmp_path / "other")
    try:
        take_in(other, tmp_path / "all.jsonl")
        told = [e.body["reason"] for e in read_job(other.jobs.store, "job-1") if e.type == "DeployRequested"]
        assert told == ["[erased]", "second life"]
        erase(other, new_call(), "job-1", "asked")
        told = [e.body["reason"] for e in read_job(other.jobs.store, "job-1") if e.type == "DeployRequested"]
        assert told == ["[erased]", "[erased]"]
    finally:
        other.close()


@pytest.mark.parametrize("how", ["noproof", "badproof", "shown", "drop", "double", "cut", "whole"])
def test_a_part_that_was_changed_is_found(site: Site, tmp_path: Path, how: str) -> None:
    from engine.cli.evidence import _verify_export

    born(site, "job-1")
    feed(site, 60)
    seal_now(site)
    made = tmp_path / "part.jsonl"
    export(site, made, job="job-1") if how != "whole" else export(site, made)
    assert _verify_export(ExportFile(made), None, [], []).problems == []
    lines = made.read_text().splitlines(keepends=True)
    at = [i for i, line in enumerate(lines) if "flightlogdata" in line]
    event = json.loads(lines[at[2]])
    if how == "noproof":
        event.pop("flightlogproof")
        event["type"] = "flightlog.AppFailed"
        lines[at[2]] = json.dumps(event) + "\n"
    elif how == "badproof":
        event["flightlogproof"] = "rubbish " + event["flightlogproof"]
        lines[at[2]] = json.dumps(event) + "\n"
    elif how == "shown":
        event["data"]["call_id"] = "another"
        lines[at[2]] = json.dumps(event) + "\n"
    elif how == "drop":
        del lines[at[2]]
        lines[-1] = lines[-1].replace(f'"events":{len(at)}', f'"events":{len(at) - 1}')
    elif how == "double":
        lines.insert(at[2], lines[at[2]])
        lines[-1] = lines[-1].replace(f'"events":{len(at)}', f'"events":{len(at) + 1}')
    elif how == "cut":
        lines = lines[:-2]
    else:  # a whole one that is called a part
        lines[0] = lines[0].replace('"whole":true', '"whole":false')
    made.write_text("".join(lines))
    try:
        report = _verify_export(ExportFile(made), None, [], [])
    except ExportInvalid:
        assert how == "cut"
        return
    assert report.verdict == "DAMAGED"


def test_keys_that_were_taken_out_of_an_export_hide_nothing_else(site: Site, tmp_path: Path) -> None:
    site.jobs.transact(new_call(), "job-1", lambda state: [body("DeployRequested", reason="for Bob")])
    export(site, tmp_path / "all.jsonl")
    lines = [line for line in (tmp_path / "all.jsonl").read_text().splitlines() if "flightlog.export.key" not in line]
    (tmp_path / "keyless.jsonl").write_text("\n".join(lines) + "\n")
    assert Verification(ExportFile(tmp_path / "keyless.jsonl").source()).run().problems == []
    at = next(i for i, line in enumerate(lines) if "DeployRequested" in line)
    event = json.loads(lines[at])
    event["data"]["body"]["app"] = "forged"
    lines[at] = json.dumps(event)
    (tmp_path / "keyless.jsonl").write_text("\n".join(lines) + "\n")
    assert Verification(ExportFile(tmp_path / "keyless.jsonl").source()).run().verdict == "DAMAGED"


@pytest.mark.parametrize("how", ["drop", "double", "time", "call", "readable", "flip", "witness"])
def test_the_one_file_verifier_finds_what_was_changed(site: Site, tmp_path: Path, how: str) -> None:
    born(site, "job-1")
    feed(site, 40)
    seal_now(site)
    bundle(site, "job-1", tmp_path / "b.zip")
    folder = tmp_path / "b"
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        archive.extractall(folder)
    assert _standalone(str(folder)).returncode == 0
    shown, proofs = ((folder / name).read_text().splitlines() for name in ("events.jsonl", "proofs.jsonl"))
    where, expected = folder, 7
    if how in ("drop", "double"):
        for lines in (shown, proofs):
            lines.insert(2, lines[2]) if how == "double" else lines.pop(2)
    elif how in ("time", "call"):
        event = json.loads(shown[1])
        if how == "time":
            event["time"] = "2020-01-01T00:00:00.000Z"
        else:
            event["data"]["call_id"] = "another"
        shown[1] = json.dumps(event)
    elif how == "readable":
        where = tmp_path / "proof.json"
        proof = json.loads(proofs[1])
        proof["readable"]["type"] = "AppFinished"
        where.write_text(json.dumps(proof))
    elif how == "flip":
        where = tmp_path / "flipped.zip"
        data = bytearray((tmp_path / "b.zip").read_bytes())
        data[len(data) // 3] ^= 1
        where.write_bytes(data)
    else:
        proofs = [json.dumps({**json.loads(one), "witnesses": [json.loads(one)["keys"][0]]}) for one in proofs]
        expected = 0
    (folder / "events.jsonl").write_text("\n".join(shown) + "\n")
    (folder / "proofs.jsonl").write_text("\n".join(proofs) + "\n")
    said = _standalone(str(where))
    assert said.returncode == expected, said
    assert "WITNESSED" not in said.stdout
    assert _standalone(str(folder), "--key").returncode == 2


def test_an_export_is_in_order_though_the_sealer_signs_on_while_it_is_written(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    born(site, "job-1")
    feed_site(site, 10)
    seal_now(site)
    moment = last_position(site.jobs.store)
    monkeypatch.setattr("engine.record.exporting.last_position", lambda store: moment)
    feed_site(site, 10)  # and is sealed by the time that its head is written
    export(site, tmp_path / "all.zst")
    report = Verification(ExportFile(tmp_path / "all.zst").source()).run()
    assert (report.problems, report.verdict) == ([], "SITE-SIGNED")


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
    back = Site.open(workspace=tmp_path / "back")
    try:
        restored(back, new_call(), head, "a drill", None)
        seal_now(back)
        assert verified(back).verdict == "SITE-SIGNED"
    finally:
        back.close()

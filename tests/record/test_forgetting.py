"""What names persons is nowhere in the open, and nowhere at all once it was erased."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from engine.actors import acting_as
from engine.errors import LegalHold, NotDeleted, Retained
from engine.readmodels.feeder import Feeder
from engine.record.bundling import bundle
from engine.record.erasing import erase, finish, foresee, hold
from engine.record.exporting import export
from engine.record.importing import take_in
from engine.record.replaying import check
from engine.record.sealing import seal_now
from engine.site import Site
from events.bodies.record import Erased
from events.envelope import Call
from events.read import first_event, last_position, read_job
from tests.histories import body
from tests.record.rig import ALICE, SECRETS, everything, feed_site, run, sealing, verified
from tests.support import SITE, in_state, new_call, opened, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]


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


def test_what_is_fed_from_the_disk_holds_no_person_either(site: Site) -> None:
    with acting_as(ALICE, reason="tumour of Mr Hatter"):
        site.jobs.transact(
            site.system_call("x"), "job-1", lambda state: [body("DeployRequested", reason="tumour of Mr Hatter")]
        )
        engine_call = Call(call_id="c-1", actor=ALICE)
        site.jobs.note(engine_call, [body("AuxRequested"), body("CallRefused", message="ward-7-notes")], "job-1")
    with sealing(site, keep=100, segment=10):
        feed_site(site, 200)
        until(lambda: first_event(site.jobs.store).seq > 10, 15)  # type: ignore[union-attr]
    assert Feeder(site).catch_up() >= 200
    for secret in SECRETS:
        assert secret not in everything(site), secret


@pytest.mark.parametrize("live", [False, True])
def test_an_erasure_that_is_finished_late_leaves_what_the_job_does_since(live: bool, site: Site) -> None:
    job = site.workspace.job("job-1")
    site.jobs.transact(new_call(), "job-1", lambda state: [body("DeployRequested", reason="for Bob")])
    site.jobs.transact(new_call(), "job-1", lambda state: [body("DeployFailed")])
    vault = site.jobs.store.vault
    assert vault is not None
    lives = vault.next_life("job-1")
    site.jobs.note(new_call(), [Erased(reason="asked", lives=lives)], "job-1")  # and dies
    if live:
        for kind in ("DeployRequested", "DeploySucceeded", "StartRequested"):
            site.jobs.transact(new_call(), "job-1", lambda state, kind=kind: [body(kind)])  # type: ignore[misc]
    attempt = site.jobs.load("job-1").state.get("attempt", "1")
    for name in ("0", attempt):
        (job / name).mkdir(parents=True)
        (job / name / "log.txt").write_text("of Mr Hatter" if name == "0" else "new")
    for _ in range(2):
        seal_now(site)
        finish(site, "job-1", lives)
        assert "for Bob" not in str([event.body for event in read_job(site.jobs.store, "job-1")])
        assert not (job / "0").exists()
        assert (job / attempt / "log.txt").exists() == live
    if not live:
        job.mkdir()
        (job / "of-a-later-life").touch()
        finish(site, "job-1", lives)
        assert (job / "of-a-later-life").exists(), "twice is once"


def test_a_table_shows_nothing_that_was_recorded_as_erased(site: Site, tmp_path: Path) -> None:
    site.jobs.transact(new_call(), "job-1", lambda state: [body("DeployRequested", reason="for Bob")])
    seal_now(site)
    vault = site.jobs.store.vault
    assert vault is not None
    site.jobs.note(new_call(), [Erased(reason="asked", lives=vault.next_life("job-1"))], "job-1")  # and dies
    (site.workspace.seal / "erased").write_text(f"{last_position(site.jobs.store)}\n")
    export(site, tmp_path / "all.csv", style="csv")
    assert "for Bob" not in (tmp_path / "all.csv").read_text()
    assert "[erased]" in (tmp_path / "all.csv").read_text()

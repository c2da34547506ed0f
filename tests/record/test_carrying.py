"""Exports, bundles and proofs: whole elsewhere, and red where they were changed."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from engine.actors import acting_as
from engine.errors import ExportInvalid, SiteNotEmpty, Unverifiable
from engine.record.bundling import bundle
from engine.record.carried import verify_export
from engine.record.exporting import ExportFile, export
from engine.record.importing import take_in
from engine.record.proving import Prover
from engine.record.sealing import seal_now
from engine.record.sources import site_source
from engine.record.verify import Verification
from engine.site import Site
from events.errors import RecordDamaged
from events.read import count, last_position, read_back, read_job
from events.seal import latest
from events.signing import Keys
from tests.histories import body
from tests.record.rig import ALICE, VERIFIER, born, feed, feed_site, run, standalone, verified
from tests.support import new_call, opened

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]


def test_an_export_carries_everything_to_another_folder(workspace: Path, tmp_path: Path) -> None:
    with opened(workspace) as engine, acting_as(ALICE, reason="tumour of Mr Hatter"):
        run(engine, "job-1", tmp_path)
    site = Site.open(workspace=workspace)  # at rest: nothing comes while it is compared
    try:
        made = export(site, tmp_path / "all.zst")
        assert made.first == 1
        assert (tmp_path / "all.zst").stat().st_mode & 0o777 == 0o600, "it carries the keys of personal fields"
        states = {job: dict(site.jobs.load(job).state) for job in site.jobs.each()}
        report = Verification(ExportFile(tmp_path / "all.zst").source()).run()
        assert (report.verdict, report.problems) == ("SITE-SIGNED", [])
        with pytest.raises(SiteNotEmpty):
            take_in(site, tmp_path / "all.zst")
    finally:
        site.close()
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
        part = Verification(site_source(other), last=5).run()
        assert (part.verdict, part.problems) == ("SITE-SIGNED", [])
        for key in (Keys(site.workspace.seal).newest, Keys(other.workspace.seal).newest):
            known = Verification(site_source(other, anchor=key)).run()
            assert (known.verdict, known.problems) == ("SITE-SIGNED", [])
    finally:
        other.close()


def test_of_an_export_that_cannot_be_read_on_the_place_is_named_and_not_what_comes_of_it(
    site: Site, tmp_path: Path
) -> None:
    born(site, "job-1", "job-2")
    made = export(site, tmp_path / "all.jsonl")
    lines = (tmp_path / "all.jsonl").read_text().splitlines(keepends=True)
    event = json.loads(lines[2])
    event["data"]["body"]["app"] = "another"
    lines[2] = json.dumps(event) + "\n"
    (tmp_path / "bad.jsonl").write_text("".join(lines))
    report = verify_export(ExportFile(tmp_path / "bad.jsonl"))
    assert report.verdict == "DAMAGED"
    assert report.last < made.events
    (problem,) = report.problems
    assert problem.seq == report.last + 1
    assert "is not what is stored of it" in problem.what


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
        assert standalone(str(path)).returncode == 0
        assert standalone(str(path), "--key", proof["keys"][0].split()[0]).returncode == 0
        for name, value in (("type", "AppFailed"), ("subject", "job/other"), ("version", 99), ("d", "{}")):
            path.write_text(json.dumps({**proof, "event": {**proof["event"], name: value}}))
            said = standalone(str(path))
            assert (said.returncode, "was changed" in said.stdout) == (7, True)
        path.write_text("{}")
        assert standalone(str(path)).returncode == 8
        bundle(site, "job-1", tmp_path / "job-1.zip")
        said = standalone(str(tmp_path / "job-1.zip"))
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
        said = standalone(str(inside))
        assert (said.returncode, "is shown otherwise than it is stored" in said.stdout) == (7, True)
        (inside / "events.jsonl").write_text(shown)
        assert standalone(str(inside)).returncode == 0
        lines = (inside / "proofs.jsonl").read_text().replace('"type": "AppFinished"', '"type": "AppAborted"')
        (inside / "proofs.jsonl").write_text(lines)
        assert standalone(str(inside)).returncode == 7
        bundle(site, "job-1", tmp_path / "with.zip", with_log=True)
        assert b"secret-output" in zipfile.ZipFile(tmp_path / "with.zip").read("log-1.txt")


@pytest.mark.parametrize("how", ["noproof", "badproof", "shown", "drop", "double", "cut", "whole"])
def test_a_part_that_was_changed_is_found(site: Site, tmp_path: Path, how: str) -> None:
    from engine.record.carried import verify_export

    born(site, "job-1")
    feed(site, 60)
    seal_now(site)
    made = tmp_path / "part.jsonl"
    export(site, made, job="job-1") if how != "whole" else export(site, made)
    assert verify_export(ExportFile(made)).problems == []
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
        report = verify_export(ExportFile(made))
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
    assert standalone(str(folder)).returncode == 0
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
    said = standalone(str(where))
    assert said.returncode == expected, said
    assert "WITNESSED" not in said.stdout
    assert standalone(str(folder), "--key").returncode == 2


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


def test_a_bundle_holds_any_text_and_is_verified_whatever_the_place_takes_for_text(
    site: Site, tmp_path: Path
) -> None:
    told = "line\u2028line\u2029\x85 M\u00fcller \U0001f9ea"
    site.jobs.transact(new_call(), "job-1", lambda state: [body("DeployRequested", reason=told, app="m\u00fcller")])
    bundle(site, "job-1", tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        archive.extractall(tmp_path / "b")
    for path in (tmp_path / "b.zip", tmp_path / "b"):
        said = subprocess.run(
            [sys.executable, "-I", "-X", "utf8=0", str(VERIFIER), str(path)],
            env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert said.returncode == 0, said.stdout


def test_a_part_that_cannot_be_held_against_a_checkpoint_is_not_said_to_fit_it(site: Site, tmp_path: Path) -> None:
    born(site, "job-1")
    seal_now(site)
    early = latest(site.workspace.seal)
    assert early is not None
    feed_site(site, 5)
    export(site, tmp_path / "job.jsonl", job="job-1")
    late = latest(site.workspace.seal)
    assert late is not None
    file = ExportFile(tmp_path / "job.jsonl")
    assert verify_export(file, extra=[late]).problems == []
    with pytest.raises(Unverifiable, match="over 1 events, the file's over 6: a part cannot be compared"):
        verify_export(file, extra=[early])


def test_a_bundle_of_a_job_that_goes_on_holds_what_was_sealed(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    born(site, "job-1")

    def busy(at: Site) -> int:
        size = seal_now(at)
        site.jobs.note(new_call(), [body("CallRepeated")], "job-1")
        return size

    monkeypatch.setattr("engine.record.bundling.seal_now", busy)
    assert bundle(site, "job-1", tmp_path / "b.zip").events == 1
    assert standalone(tmp_path / "b.zip").returncode == 0


def test_who_took_a_history_in_is_on_the_record(site: Site, tmp_path: Path) -> None:
    born(site, "job-1")
    export(site, tmp_path / "all.zst")
    other = Site.open(create=True, site="elsewhere", workspace=tmp_path / "other")
    try:
        with acting_as(ALICE):
            take_in(other, tmp_path / "all.zst")
        told = next(event for event in read_back(other.jobs.store) if event.type == "Imported")
        assert told.rest()["actor"]["id"] == ALICE.id
    finally:
        other.close()

"""What strangers left half done, or put in the place of our files, and what has to come of it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from engine.errors import Retained
from engine.record import erasing
from engine.record.backup import backup, restored, unpack
from engine.record.bundling import bundle
from engine.record.erasing import erase, foresee, hold, keep_retention
from engine.record.exporting import export
from engine.record.importing import take_in
from engine.record.sealing import seal_now
from engine.record.sources import site_source
from engine.record.verify import Verification
from engine.site import Site
from engine.workspace import Workspace, known_site
from events.bodies.record import Erased
from events.errors import RecordDamaged
from events.keep import to_disk, trim
from events.read import read_job
from events.seal import Sealer
from events.segments import Archive
from tests.histories import body
from tests.record.rig import born, feed, feed_site, parts, verified
from tests.support import SITE, new_call

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]


# -- half done ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies_at", ["put_events", "rebuild_site", "open_epoch"])
@pytest.mark.parametrize("what", ["restore", "import"])
def test_what_was_taken_in_by_half_is_no_site(
    what: str, dies_at: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    born(site, "job-1")
    feed(site, 30)
    seal_now(site)
    backup(site, tmp_path / "b.tar.zst")
    export(site, tmp_path / "e.jsonl")

    def dies(*args: object, **given: object) -> None:
        raise KeyboardInterrupt

    where = tmp_path / "there"
    monkeypatch.setattr(f"engine.record.{'backup' if what == 'restore' else 'importing'}.{dies_at}", dies)
    if what == "restore":
        head = unpack(tmp_path / "b.tar.zst", where)
        made = Site.open(finishing=True, workspace=where)
        do: Callable[[], object] = lambda: restored(made, new_call(), head, "a drill", None)  # noqa: E731
    else:
        made = Site.open(create=True, site="elsewhere", workspace=where)
        do = lambda: take_in(made, tmp_path / "e.jsonl")  # noqa: E731
    try:
        with pytest.raises(KeyboardInterrupt):
            do()
    finally:
        made.close()
    with pytest.raises(RecordDamaged, match="was not taken in to its end") as refused:
        Site.open(workspace=where)
    assert str(where) in str(refused.value.fix)
    words = [sys.executable, "-P", "-m", "engine.cli", "restore", str(tmp_path / "b.tar.zst"), "--reason", "again"]
    told = subprocess.run([*words, "-w", str(where)], capture_output=True, text=True, timeout=60, check=False)
    assert (told.returncode, "was not taken in to its end" in told.stderr) == (7, True), told.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../../x"},
        {"id": 3},
        {"last": "x"},
        {"archived": None},
        {"archived": 99},
        {"taken": []},
        {"site": 7},
        [],
        "tail",
        "tail-binary",
        "tail-other",
        "tail-none",
        "outside",
    ],
    ids=str,
)
def test_a_backup_that_is_rubbish_leaves_nothing_and_is_told(change: Any, site: Site, tmp_path: Path) -> None:
    born(site, "job-1")
    feed(site, 10)
    seal_now(site)
    backup(site, tmp_path / "good.tar.zst")
    packed = zstandard.ZstdDecompressor().stream_reader((tmp_path / "good.tar.zst").open("rb"), closefd=True)
    with packed, tarfile.open(fileobj=packed, mode="r|") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    if isinstance(change, (dict, list)):
        head = json.loads(found["backup.json"])
        found["backup.json"] = json.dumps({**head, **change} if isinstance(change, dict) else change).encode()
    elif change == "outside":
        found[".flightlog/seal/../../evil"] = b"evil"
    else:
        tails = {
            "tail": b"rubbish\n",
            "tail-binary": b"\xff\xfe\n",
            "tail-other": found["tail.tsv"].replace(b'"step":"intent"', b'"step":"another"'),
        }
        if change in tails:
            found["tail.tsv"] = tails[change]
        else:
            del found["tail.tsv"]
    with (
        (tmp_path / "bad.tar.zst").open("wb") as file,
        zstandard.ZstdCompressor().stream_writer(file) as raw,
        tarfile.open(fileobj=raw, mode="w|") as tar,
    ):
        for name, data in found.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    words = ("restore", str(tmp_path / "bad.tar.zst"), "--reason", "a drill", "-w", str(tmp_path / "back"))
    told = subprocess.run(
        [sys.executable, "-P", "-m", "engine.cli", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in told.stderr, told.stderr
    assert told.returncode in (2, 7, 8), told
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.rglob("evil"))


# -- what lies beside --------------------------------------------------------------------------------


def on_disk(site: Site, number: int = 60) -> None:
    """A site whose history is on disk, but for its end."""
    born(site, "job-1", "job-2")
    feed_site(site, number)
    seal_now(site)
    sealer = Sealer(site.jobs.store, site.workspace.seal, "x")
    try:
        to_disk(site.jobs.store, sealer.tree, sealer.size, size=20, written=lambda segment: None)
        trim(site.jobs.store, 10)
    finally:
        sealer.close()


def test_a_job_that_was_taken_out_of_an_index_is_missed(site: Site) -> None:
    on_disk(site)
    assert verified(site).events
    (path, *_) = sorted(site.workspace.segments.glob("*.json"))
    told = json.loads(path.read_text())
    assert told["subjects"].pop("job/job-1")
    path.write_text(json.dumps(told))
    store = site.jobs.store
    store.archive = Archive(site.workspace.segments, store.vault)
    with pytest.raises(RecordDamaged, match="history is missing: job-1 has"):
        list(read_job(store, "job-1"))
    report = Verification(site_source(site)).run()
    assert any(path.name.removesuffix(".json") in one.what for one in report.problems), report.problems


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": [["a", "b", "c"]]},
        {"blocks": [[0, 1]]},
        {"blocks": []},
        {"last": "20"},
        {"last_position": None},
        {"subjects": None},
        {"subjects": {"site": [1]}},
        {"first": 2},
    ],
)
def test_an_index_that_is_rubbish_is_made_anew(change: dict[str, Any], site: Site) -> None:
    on_disk(site)
    (path, *_) = sorted(site.workspace.segments.glob("*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    site.jobs.store.archive = Archive(site.workspace.segments, site.jobs.store.vault)
    assert len(list(read_job(site.jobs.store, "job-1"))) == 1
    assert verified(site).events


@pytest.mark.parametrize("level", ["8", "16", "0"])
def test_hashes_of_the_seal_that_are_gone_are_made_anew(level: str, site: Site) -> None:
    feed_site(site, 600)
    seal_now(site)
    (site.workspace.seal / "tree" / level).unlink()
    feed_site(site, 5)
    assert seal_now(site) >= 605
    assert verified(site).verdict == "SITE-SIGNED"


def test_a_site_json_that_is_rubbish_is_not_written_anew(site: Site) -> None:
    path = site.workspace.flight / "site.json"
    for rubbish in ("", "{", '{"x": 1}', '{"site": "site-1"}', "[]"):
        path.write_text(rubbish)
        with pytest.raises(RecordDamaged, match="which site this is"):
            known_site(site.workspace.root)
        with pytest.raises(RecordDamaged):
            Workspace.prepare(site.workspace.root, SITE)
        assert path.read_text() == rubbish


FILES = ("checkpoint", "notes", "signers", "key", "witnesses.json", "state.json", "retention")


@pytest.mark.parametrize("rubbish", [b"", b"\xff\xfe rubbish", b'{"x": 1}', b"half of i"])
@pytest.mark.parametrize("name", FILES)
def test_rubbish_in_a_file_of_the_seal_is_told_and_no_traceback(name: str, rubbish: bytes, site: Site) -> None:
    born(site, "job-1")
    seal_now(site)
    (site.workspace.seal / name).write_bytes(rubbish)
    for words in (("seal",), ("verify",), ("bundle", "job-1", "-o", "b.zip")):
        told = subprocess.run(
            [sys.executable, "-P", "-m", "engine.cli", *words, "-w", str(site.workspace.root)],
            cwd=site.workspace.root,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in told.stderr, told.stderr
        assert told.returncode in (0, 2, 6, 7, 8), (words, told)
        if name == "signers":
            assert told.returncode in (7, 8), (words, told.stdout)
        (site.workspace.root / "b.zip").unlink(missing_ok=True)


# -- forgetting --------------------------------------------------------------------------------------


def deleted(site: Site, *jobs: str, reason: str = "the name of a person") -> None:
    for job in jobs:
        for kind in ("DeployRequested", "DeploySucceeded", "DeleteRequested", "DeleteSucceeded"):
            given = {"reason": reason} if kind == "DeployRequested" else {}
            site.jobs.transact(new_call(), job, lambda state, k=kind, g=given: [body(k, **g)])  # type: ignore[misc]


def test_a_retention_holds_for_those_too_who_do_not_name_it(site: Site) -> None:
    deleted(site, "job-1")
    keep_retention(replace(site, settings=site.settings.model_copy(update={"retention": 3650.0})))
    for days in (0.0, 1.0):
        with pytest.raises(Retained, match="3650 days"):
            foresee(replace(site, settings=site.settings.model_copy(update={"retention": days})), "job-1")


def test_a_hold_that_comes_while_a_job_is_erased_comes_after_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    deleted(site, "job-1")
    looked, held = erasing.foresee, threading.Event()
    thread = threading.Thread(target=lambda: (hold(site, new_call(), "job-1", "a court", lift=False), held.set()))

    def slow(*args: Any) -> Any:
        seen = looked(*args)
        thread.start()
        assert not held.wait(1.0), "a hold was confirmed, and the job erased under it"
        return seen

    monkeypatch.setattr(erasing, "foresee", slow)
    erase(site, new_call(), "job-1", "asked")
    thread.join(10)
    types = [event.type for event in read_job(site.jobs.store, "job-1")]
    assert types[-2:] == ["Erased", "HoldSet"]


def test_an_erasure_that_was_not_finished_is_finished_before_anything_goes_out(site: Site, tmp_path: Path) -> None:
    deleted(site, "job-1", "job-2", reason="Mr Hatter")
    for job in ("job-1", "job-2"):
        vault = site.jobs.store.vault
        assert vault is not None
        site.jobs.note(new_call(), [Erased(reason="asked", lives=vault.next_life(job))], job)  # and dies
    bundle(site, "job-2", tmp_path / "b.zip")
    export(site, tmp_path / "e.jsonl")
    told = (tmp_path / "e.jsonl").read_text() + str(parts(tmp_path / "b.zip"))
    assert "Mr Hatter" not in told
    assert "[erased]" in told

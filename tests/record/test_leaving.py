"""A copy of the record is on the record before it can be taken away, whoever dies over it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.errors import DiskFull
from engine.record.backup import backup
from engine.record.bundling import bundle
from engine.record.exporting import ExportFile, export
from engine.site import Site
from events.errors import LogUnavailable
from events.read import read
from tests.histories import body
from tests.record.rig import born, feed
from tests.support import new_call

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]

COPIES = {
    "export": ("export", "copy.zst"),
    "part": ("export", "copy.zst", "--job", "job-1"),
    "table": ("export", "copy.csv", "--format", "csv"),
    "bundle": ("bundle", "job-1", "-o", "copy.zip"),
    "backup": ("backup", "copy.tar.zst"),
    "proof": ("prove", "{position}", "-o", "copy.json"),
}


def told(site: Site) -> list[str]:
    return [event.body["sha256"] for event in read(site.jobs.store) if event.type == "Exported"]


def command(site: Site, folder: Path, how: str, **env: str) -> subprocess.CompletedProcess[str]:
    words = [word.format(position=next(iter(read(site.jobs.store))).position) for word in COPIES[how]]
    return subprocess.run(
        [sys.executable, "-P", "-m", "engine.cli", words[0], "-w", str(site.workspace.root), *words[1:]],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("how", COPIES)
def test_whoever_dies_over_a_copy_leaves_none_that_is_not_on_the_record(how: str, site: Site, tmp_path: Path) -> None:
    born(site, "job-1")
    folder, faults = tmp_path / "out", tmp_path / "faults"
    folder.mkdir(), faults.mkdir()
    (faults / "copy-made").write_text("kill")
    assert command(site, folder, how, FLIGHTLOG_FAULTS=str(faults)).returncode == -9
    assert (list(folder.iterdir()), told(site)) == ([], []), "no copy, and none is recorded"
    (faults / "copy-recorded").write_text("kill")
    assert command(site, folder, how, FLIGHTLOG_FAULTS=str(faults)).returncode == -9
    assert (list(folder.iterdir()), len(told(site))) == ([], 1), "recorded, and not there"
    made = command(site, folder, how)
    assert made.returncode == 0, made.stderr
    (copy,) = folder.iterdir()
    digest = subprocess.run(["sha256sum", str(copy)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert told(site)[1:] == [digest]
    again = command(site, folder, how)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    assert len(told(site)) == 2, "nothing was made, and nothing recorded"


def test_a_copy_that_cannot_be_recorded_is_not_there(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    born(site, "job-1")

    def away(*_: object, **given: object) -> None:
        raise LogUnavailable("the record does not answer", "wait")

    monkeypatch.setattr(site.jobs, "note", away)
    for make in (lambda p: export(site, p), lambda p: bundle(site, "job-1", p), lambda p: backup(site, p)):
        with pytest.raises(LogUnavailable):
            make(tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_file_system_without_files_that_have_no_name_does_as_well(
    links: bool, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    born(site, "job-1")
    feed(site, 20)
    really = os.open

    def refusing(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not here", str(path))
        return really(path, flags, *rest, **more)

    linked = os.link

    def unlinked(source: Any, *rest: Any, **given: Any) -> None:
        if str(source).startswith("/proc/"):
            raise OSError(errno.EPERM, "no links here")
        linked(source, *rest, **given)

    monkeypatch.setattr(os, "open", refusing)
    if not links:
        monkeypatch.setattr(os, "link", unlinked)
    folder = tmp_path / "out"
    folder.mkdir()
    export(site, folder / "copy.zst")
    assert [one.name for one in folder.iterdir()] == ["copy.zst"]
    assert sum(1 for _ in ExportFile(folder / "copy.zst").events()) >= 21
    with pytest.raises(FileExistsError):
        export(site, folder / "copy.zst")


def test_a_full_disk_is_told_with_the_files_name_and_nothing_is_left(site: Site, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.fail("this test mounts a tmpfs: run the suite as root (in a container, say)")
    born(site, "job-1")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "flightlog-test", str(disk)], check=True)
    try:
        for _ in range(100):  # what does not pack well
            site.jobs.note(new_call(), [body("CallRefused", message=os.urandom(1000).hex())], "job-1")
        for make in (
            lambda p: export(site, p.with_suffix(".jsonl")),
            lambda p: bundle(site, "job-1", p),
            lambda p: backup(site, p),
        ):
            with pytest.raises(DiskFull, match=rf"no room to write {disk}/copy"):
                make(disk / "copy")
            assert list(disk.iterdir()) == []
        assert told(site) == []
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)

"""A disk that is really full: a small tmpfs, which only root can mount."""

import os
import subprocess

import pytest

from engine.archive import pack, unpack
from engine.blobs import Blobs
from engine.errors import DiskFull

SIZE = 256 * 1024


@pytest.fixture
def small_disk(tmp_path):
    if os.geteuid() != 0:
        pytest.fail("this test mounts a tmpfs: run the suite as root (in a container, say)")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "flightlog-test", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def free(disk):
    info = os.statvfs(disk)
    return info.f_bavail * info.f_frsize


def test_a_blob_that_does_not_fit_is_refused_and_leaves_nothing(small_disk):
    blobs = Blobs(small_disk)
    kept = blobs.put(b"earlier")
    before = free(small_disk)
    with pytest.raises(DiskFull, match="no room for an app of 524288 bytes") as caught:
        blobs.put(os.urandom(2 * SIZE))
    assert str(small_disk) in caught.value.fix
    assert [path.name for path in blobs.folder.iterdir()] == [kept]
    assert free(small_disk) == before
    assert blobs.get(kept) == b"earlier"
    blobs.put(os.urandom(SIZE // 2))  # there is room for less


def test_an_app_that_does_not_fit_is_refused_and_leaves_nothing(small_disk, tmp_path):
    app = tmp_path / "app"
    (app / "data").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (app / "data" / name).write_bytes(os.urandom(SIZE // 2))
    (small_disk / "job").mkdir()
    (small_disk / "job" / "mine").write_text("keep")
    before = free(small_disk)
    with pytest.raises(DiskFull, match="was full when data/") as caught:
        unpack(pack(app), small_disk / "job" / "staging")
    assert "free some space" in caught.value.fix
    assert [path.name for path in (small_disk / "job").iterdir()] == ["mine"]
    assert free(small_disk) == before


def test_an_app_of_more_files_than_the_disk_has_inodes_for_is_a_full_disk_too(tmp_path, small_disk):
    subprocess.run(["mount", "-o", "remount,nr_inodes=20", str(small_disk)], check=True)
    app = tmp_path / "many"
    app.mkdir()
    for number in range(40):
        (app / f"f{number}").touch()
    with pytest.raises(DiskFull):
        unpack(pack(app), small_disk / "staging")
    assert list(small_disk.iterdir()) == []

import errno
import hashlib
import os

import pytest

from engine.blobs import Blobs
from engine.errors import ArgumentInvalid, BadArchive, DiskFull


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path)


def test_what_was_put_is_got_by_its_sha256(blobs, tmp_path):
    digest = blobs.put(b"app")
    assert digest == hashlib.sha256(b"app").hexdigest()
    assert blobs.get(digest) == b"app"
    assert blobs.path(digest) == tmp_path / ".flightlog" / "blobs" / digest
    assert [path.name for path in blobs.folder.iterdir()] == [digest]


def test_the_same_bytes_are_stored_once(blobs):
    digest = blobs.put(b"app")
    before = blobs.path(digest).stat().st_ino
    assert blobs.put(b"app") == digest
    assert blobs.path(digest).stat().st_ino == before


def test_a_blob_of_the_wrong_size_is_written_again(blobs):
    digest = blobs.put(b"app")
    blobs.path(digest).write_bytes(b"ap")
    blobs.put(b"app")
    assert blobs.get(digest) == b"app"


def test_a_blob_that_was_altered_is_not_given_out(blobs):
    digest = blobs.put(b"app")
    blobs.path(digest).write_bytes(b"apq")
    with pytest.raises(BadArchive, match="was altered") as caught:
        blobs.get(digest)
    assert caught.value.fix == "deploy the app again"


def test_a_blob_that_is_gone_is_named(blobs):
    digest = blobs.put(b"app")
    blobs.remove(digest)
    blobs.remove(digest)
    with pytest.raises(BadArchive, match=f"{digest} is missing"):
        blobs.get(digest)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_a_digest_that_is_none_is_refused(blobs, digest):
    with pytest.raises(ArgumentInvalid, match="digest"):
        blobs.path(digest)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_behind(blobs, monkeypatch, code, step):
    kept = blobs.put(b"earlier")

    def full(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(f"engine.blobs.os.{step}", full)
    with pytest.raises(DiskFull, match="no room for an app of 3 bytes") as caught:
        blobs.put(b"app")
    assert "free some space" in caught.value.fix
    assert [path.name for path in blobs.folder.iterdir()] == [kept]


def test_a_sweep_removes_old_blobs_that_nobody_needs_and_what_a_crash_left(blobs):
    old, needed, young = blobs.put(b"old"), blobs.put(b"needed"), blobs.put(b"young")
    part = blobs.folder / ".part-x"
    part.touch()
    for path in (blobs.path(old), blobs.path(needed), part):
        os.utime(path, (1000, 1000))
    os.utime(blobs.path(young), (1950, 1950))
    assert blobs.sweep({needed}, older_than=100, now=2000) == [old]
    assert sorted(path.name for path in blobs.folder.iterdir()) == sorted([needed, young])


def test_putting_a_blob_again_makes_it_young(blobs):
    digest = blobs.put(b"app")
    os.utime(blobs.path(digest), (0, 0))
    blobs.put(b"app")
    assert blobs.sweep(set(), older_than=100, now=blobs.path(digest).stat().st_mtime + 1) == []


def test_a_sweep_before_the_first_put_finds_nothing(blobs):
    assert blobs.sweep(set(), older_than=0, now=0) == []

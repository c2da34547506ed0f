"""L1, L8: what is ordered while the record is away is on disk, whole, and comes out in order."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from events.spool import Spool


def names(spool: Spool) -> list[str]:
    """What waits, by name."""
    return [path.stem for path, _ in spool.waiting()]


def test_orders_come_out_in_the_order_of_their_names_whatever_the_order_they_came_in(tmp_path):
    spool = Spool(tmp_path / "spool")
    for name in ("0003", "0001", "0010", "0002"):
        spool.put(name, {"n": name})
    assert [value["n"] for _, value in spool.waiting()] == ["0001", "0002", "0003", "0010"]


def test_nothing_waits_in_a_folder_that_was_never_made(tmp_path):
    assert list(Spool(tmp_path / "none").waiting()) == []
    assert not (tmp_path / "none").exists()


def test_l1_an_order_is_a_whole_file_when_put_returns_and_nothing_else_is_left(tmp_path):
    spool = Spool(tmp_path / "deep" / "spool")
    order = {"job": "j", "reason": "ü\n\0", "grace": 2.5, "list": [1, {"a": None}]}
    path = spool.put("0001", order)
    assert json.loads(path.read_text("utf-8")) == order
    assert list(spool.folder.iterdir()) == [path]
    assert list(Spool(spool.folder).waiting()) == [(path, order)], "another process sees the same"


def test_l1_the_file_and_then_its_folder_are_forced_to_disk(tmp_path, monkeypatch):
    synced: list[tuple[str, bool]] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{fd}"))
        synced.append((target.name, (tmp_path / "0001.json").exists()))
        real(fd)

    monkeypatch.setattr("events.spool.os.fsync", fsync)
    Spool(tmp_path).put("0001", {"a": 1})
    assert synced == [("0001.part", False), (tmp_path.name, True)]


def test_l1_a_file_that_was_not_finished_is_never_taken_for_an_order(tmp_path, monkeypatch):
    spool = Spool(tmp_path)
    spool.put("0001", {"a": 1})

    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("events.spool.os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        spool.put("0002", {"a": 2})
    assert names(spool) == ["0001"]
    monkeypatch.undo()
    spool.put("0002", {"a": 3})
    assert [value["a"] for _, value in spool.waiting()] == [1, 3]


def test_an_order_that_another_process_recorded_meanwhile_is_passed_over(tmp_path):
    spool = Spool(tmp_path)
    for number in range(4):
        spool.put(str(number), {"n": number})
    seen = []
    for path, value in spool.waiting():
        seen.append(value["n"])
        if value["n"] == 0:
            (tmp_path / "1.json").unlink()
        path.unlink()
    assert seen == [0, 2, 3]
    assert list(spool.waiting()) == []


def test_an_order_that_comes_while_the_others_are_read_waits_for_the_next_look(tmp_path):
    spool = Spool(tmp_path)
    spool.put("1", {})
    spool.put("2", {})
    for path, _ in spool.waiting():
        spool.put("3", {})
        path.unlink()
    assert names(spool) == ["3"]


def test_l9_a_file_that_cannot_be_read_does_not_stand_in_the_way_of_the_others(tmp_path):
    spool = Spool(tmp_path)
    for number in range(3):
        spool.put(str(number), {"n": number})
    (tmp_path / "1.json").write_text("{ torn")
    assert [value["n"] for _, value in spool.waiting()] == [0, 2]
    assert (tmp_path / "1.json").exists(), "what cannot be read is kept for people to look at"

"""Sealing and keeping: what is signed is what the log holds, whatever dies; and reading has no seam."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.jobs import Jobs
from engine.readmodels.moments import Moments
from engine.rebuild import rebuild_site
from engine.replay import statuses
from events.bodies.record import HistoryLost
from events.errors import HistoryBroken, RecordDamaged
from events.follow import follow
from events.keep import to_disk, trim
from events.note import Checkpoint
from events.read import at, count, job_slice, read, read_back, read_job, read_twice, version_at
from events.seal import Sealer, keep_note, kept_notes, latest, leaf_of
from events.segments import Archive, order
from events.store import Store
from tests.histories import body
from tests.support import fake_store, new_call

SMALL = 50


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("events.seal.wait_fsynced", lambda store: None)
    made = fake_store()
    made.archive = Archive(tmp_path / "seal" / "segments")
    return made


@pytest.fixture
def sealer(store: Store, tmp_path: Path) -> Iterator[Sealer]:
    made = Sealer(store, tmp_path / "seal", "flightlog/site-1/ab")
    made.begin()
    yield made
    made.close()


def fill(store: Store, number: int, *, jobs: int = 5, seed: int = 1) -> None:
    """Notes about some jobs and the site."""
    dice, made = random.Random(seed), Jobs(store)
    for job in range(jobs):
        if not made.load(f"job-{job}").known:
            made.transact(new_call(), f"job-{job}", lambda state: [body("DeployRequested")])
    for _ in range(number):
        job = dice.randrange(jobs + 1)
        if job == jobs:
            made.note(new_call(), [body("WorkRerung")])
        else:
            made.note(new_call(), [body("CallRepeated")], f"job-{job}")


def test_a_checkpoint_is_over_what_the_log_holds(store: Store, sealer: Sealer) -> None:
    fill(store, 20)
    note = sealer.step()
    assert note is not None
    events = list(read(store))
    assert note.checkpoint == Checkpoint("flightlog/site-1/ab/1", 25, sealer.tree.root(), events[-1].position)
    assert sealer.tree.leaves(0, 25) == [leaf_of(event) for event in events]
    assert note.signed_by(sealer.keys.verifiers()) == {"flightlog/site-1/ab": 0}
    assert sealer.step() is None, "there is nothing new"


def test_its_own_events_are_no_reason_to_sign_again(store: Store, sealer: Sealer) -> None:
    fill(store, 1)
    assert sealer.step()
    Jobs(store).note(new_call(), [body("CheckpointSigned")])
    assert sealer.step() is None
    fill(store, 1)
    note = sealer.step()
    assert note is not None
    assert note.checkpoint.size == count(store)


def test_a_sealer_that_died_anywhere_goes_on_and_never_signs_two_roots_for_a_size(
    store: Store, sealer: Sealer, tmp_path: Path
) -> None:
    fill(store, 10)
    sealer.step()
    signed = {sealer.size: sealer.tree.root()}
    for number in range(5):
        fill(store, 7, seed=number)
        # As if it had died after the tree grew, and before it signed.
        dead = Sealer(store, tmp_path / "seal", "flightlog/site-1/ab")
        dead.begin()
        dead.tree.append([b"\0" * 32] * (number + 1))
        dead.close()
        next_ = Sealer(store, tmp_path / "seal", "flightlog/site-1/ab")
        next_.begin()
        note = next_.step()
        next_.close()
        assert note is not None
        assert note.checkpoint.size not in signed
        signed[note.checkpoint.size] = note.checkpoint.root
    again = Sealer(store, tmp_path / "fresh", "flightlog/site-1/ab")
    again.begin()
    again.step()
    assert {size: again.tree.root(size) for size in signed} == signed
    again.close()


def test_a_tree_whose_files_are_gone_is_grown_again_from_the_log(
    store: Store, sealer: Sealer, tmp_path: Path
) -> None:
    fill(store, 300)
    sealer.step()
    root = sealer.tree.root()
    (tmp_path / "seal" / "tree" / "0").write_bytes(b"rubbish")
    (tmp_path / "seal" / "tree" / "8").unlink()
    again = Sealer(store, tmp_path / "seal", "flightlog/site-1/ab")
    again.begin()
    assert again.tree.root() == root
    again.close()


def test_a_log_that_is_shorter_than_what_was_sealed_is_not_sealed_on(
    store: Store, sealer: Sealer, tmp_path: Path
) -> None:
    fill(store, 10)
    sealer.step()
    last = list(read(store))[-1]
    store.client.xdel(store.keys.log, last.position)
    rebuild_site(store)
    again = Sealer(store, tmp_path / "seal", "flightlog/site-1/ab")
    with pytest.raises(HistoryBroken, match="ends with event 14, and 15 were sealed"):
        again.begin()
    # Disclosed, it goes on in an epoch of its own, from what is left.
    store.client.hset(store.keys.heads, "@epoch", "2")
    store.epoch = 2
    lost = HistoryLost(first=15, last=15, note=str(latest(tmp_path / "seal")), reason="power")
    Jobs(store).note(new_call(), [lost])
    again.begin()
    note = again.step()
    assert note is not None
    assert (note.checkpoint.origin, note.checkpoint.size) == ("flightlog/site-1/ab/2", 15)
    again.close()


def test_a_gap_is_not_sealed_over(store: Store, sealer: Sealer) -> None:
    fill(store, 10)
    store.client.xdel(store.keys.log, list(read(store))[7].position)
    with pytest.raises(RecordDamaged, match="event 8 is missing"):
        sealer.step()
    assert sealer.size == 0


def test_another_key_signs_on_and_old_checkpoints_stay_valid(store: Store, sealer: Sealer) -> None:
    fill(store, 2)
    first = sealer.step()
    old, new, proof = sealer.keys.rotate("flightlog/site-1/ab")
    fill(store, 2)
    second = sealer.step()
    assert first is not None
    assert second is not None
    assert sealer.keys.verifiers() == [old, new]
    assert (len(first.signed_by([old])), len(second.signed_by([old])), len(second.signed_by([new]))) == (1, 0, 1)
    assert proof
    assert sealer.keys.path.stat().st_mode & 0o777 == 0o600


def _archived(store: Store, sealer: Sealer, number: int, keep: int) -> list[tuple[str, str, str, int, str]]:
    fill(store, number)
    sealer.step()
    whole = [(e.position, e.type, e.subject, e.version, e.raw) for e in read(store)]
    assert to_disk(store, sealer.tree, sealer.size, size=SMALL) == len(whole) // SMALL
    assert trim(store, keep, most=3) == 3 * SMALL
    while trim(store, keep):
        pass
    return whole


def test_l7_a_log_that_goes_to_disk_while_it_is_verified_is_read_whole(store: Store, sealer: Sealer) -> None:
    fill(store, 900)
    sealer.step()
    to_disk(store, sealer.tree, sealer.size, size=SMALL)
    trim(store, 700)
    whole = [(e.position, e.raw) for e in read(store)]
    for stop in (1, 40, 250, 600, 899):
        fill(store, 300, seed=stop)
        sealer.step()
        whole = [(e.position, e.raw) for e in read(store)]
        told = []
        for number, event in enumerate(read_twice(store), 1):
            told.append((event.position, event.raw))
            if number == stop:  # the sealer comes by
                to_disk(store, sealer.tree, sealer.size, size=SMALL)
                while trim(store, 20):
                    pass
        assert told == whole


def test_half_a_checkpoint_that_a_full_disk_left_spoils_no_other(store: Store, sealer: Sealer) -> None:
    notes = []
    for _ in range(3):
        fill(store, 2)
        made = sealer.step()
        assert made is not None
        keep_note(sealer.folder, made)
        notes.append(made.text)
        with (sealer.folder / "notes").open("a") as file:
            file.write(json.dumps(str(made))[:70])
    assert [note.text for note in kept_notes(sealer.folder)] == notes


def test_reading_has_no_seam(store: Store, sealer: Sealer) -> None:
    whole = _archived(store, sealer, 1300, 120)
    assert store.client.xlen(store.keys.log) < 200

    def told(events: object) -> list[tuple[str, str, str, int, str]]:
        return [(e.position, e.type, e.subject, e.version, e.raw) for e in events]  # type: ignore[attr-defined]

    assert told(read(store)) == whole
    assert told(read(store, page=7)) == whole
    assert told(read_back(store, page=9)) == whole[::-1]
    for number in (0, 1, 49, 50, 51, 700, 1180, 1190, len(whole) - 1):
        position = whole[number][0]
        assert told(read(store, after=position)) == whole[number + 1 :]
        assert told(read(store, upto=position)) == whole[: number + 1]
        assert told(read_back(store, before=position)) == whole[:number][::-1]
        assert told(at(store, [position])) == [whole[number]]
    mine = [one for one in whole if one[2] == "job/job-3"]
    assert told(read_job(store, "job-3", page=11)) == mine
    assert told(read_job(store, "job-3", page=11, backward=True)) == mine[::-1]
    assert told(read_job(store, "job-3", after=40)) == mine[40:]
    assert told(job_slice(store, "job-3", 10, len(mine) - 3)) == mine[10:-3]
    for number in (0, 5, len(mine) - 1):
        assert version_at(store, "job-3", order(mine[number][0])) == number + 1
    assert version_at(store, "job-3", (1, 0)) == 0
    assert count(store) == len(whole)


def test_a_job_goes_on_after_a_part_of_it_has_gone_to_disk(store: Store, sealer: Sealer) -> None:
    _archived(store, sealer, 600, 60)
    jobs = Jobs(store)
    before = jobs.load("job-1")
    assert before.known
    fill(store, 200, seed=3)
    after = jobs.load("job-1")
    assert after.version > before.version
    assert [event.version for event in read_job(store, "job-1")] == list(range(1, after.version + 1))
    assert Moments(store).at_version("job-1", after.version).state == after.state
    assert Moments(store).at_version("job-1", 2).version == 2
    assert jobs.consistent() is None


def test_l2_what_derives_from_the_log_is_written_anew_from_disk_and_redis(store: Store, sealer: Sealer) -> None:
    _archived(store, sealer, 600, 60)
    keys = store.keys
    kept = {key: store.client.hgetall(key) for key in (keys.heads, keys.job("job-1"), keys.job("job-4"))}
    lists = {job: store.client.lrange(keys.index(job), 0, -1) for job in ("job-1", "job-4")}
    store.client.delete(keys.heads, keys.job("job-1"), keys.index("job-4"))
    rebuild_site(store)
    assert {key: store.client.hgetall(key) for key in kept} == kept
    assert {job: store.client.lrange(keys.index(job), 0, -1) for job in lists} == lists
    assert statuses(store) == {f"job-{n}": "deploying" for n in range(5)}


def test_a_follower_that_is_far_behind_gets_each_event_once(real_store: Store, tmp_path: Path) -> None:
    real_store.archive = Archive(tmp_path / "seal" / "segments")
    sealer = Sealer(real_store, tmp_path / "seal", "flightlog/real/ab")
    sealer.begin()
    whole = _archived(real_store, sealer, 600, 60)
    sealer.close()
    stop, seen = threading.Event(), []
    for batch in follow(real_store, whole[9][0], stop, page=64):
        seen += [event.position for event in batch]
        if seen and seen[-1] == whole[-1][0]:
            stop.set()
    assert seen == [one[0] for one in whole[10:]]


def test_a_crash_between_disk_and_redis_loses_nothing_and_doubles_nothing(store: Store, sealer: Sealer) -> None:
    fill(store, 400)
    sealer.step()
    whole = [event.position for event in read(store)]
    to_disk(store, sealer.tree, sealer.size, size=SMALL)  # and dies
    assert [event.position for event in read(store)] == whole
    assert to_disk(store, sealer.tree, sealer.size, size=SMALL) == 0
    trim(store, 10)
    assert [event.position for event in read(store)] == whole
    assert trim(store, 10) == 0


def test_a_half_written_segment_is_none(store: Store, sealer: Sealer, tmp_path: Path) -> None:
    fill(store, 200)
    sealer.step()
    folder = tmp_path / "seal" / "segments"
    folder.mkdir(parents=True)
    (folder / ".000000000001-000000000050.tsv.zst.17").write_bytes(b"half")
    (folder / "000000000001-000000000050.json").write_text("{")
    assert to_disk(store, sealer.tree, sealer.size, size=SMALL) == 4
    assert len(list(read(store))) == 205


def test_what_lies_beside_a_segment_is_made_anew_where_it_is_gone(store: Store, sealer: Sealer) -> None:
    whole = _archived(store, sealer, 600, 60)
    assert store.archive is not None
    described = [segment.described() for segment in store.archive.segments()]
    for path in store.archive.folder.glob("*.json"):
        path.unlink()
    again = Archive(store.archive.folder)
    assert [segment.described() for segment in again.segments()] == described
    assert [event.position for event in again.read()] == [one[0] for one in whole][: again.end]


def test_a_segment_that_is_missing_or_altered_is_named(store: Store, sealer: Sealer) -> None:
    _archived(store, sealer, 600, 60)
    assert store.archive is not None
    folder = store.archive.folder
    one = folder / "000000000101-000000000150.tsv.zst"
    data = one.read_bytes()
    one.unlink()
    with pytest.raises(RecordDamaged, match="events 101 to 150"):
        list(read(store))
    one.write_bytes(data[:-1] + bytes((data[-1] ^ 1,)))
    with pytest.raises(RecordDamaged, match="000000000101-000000000150"):
        list(Archive(folder).read())


def test_what_is_not_what_was_sealed_does_not_go_to_disk(store: Store, sealer: Sealer) -> None:
    fill(store, 100)
    sealer.step()
    victim = list(read(store))[30]
    store.client.xdel(store.keys.log, victim.position)
    # Nobody can put an entry back into a stream; so the whole of it is written anew, as an intruder would.
    others = list(read(store))
    store.client.delete(store.keys.log)
    for event in sorted([*others, victim], key=lambda e: e.seq):
        d = event.raw.replace("tester", "nobody") if event is victim else event.raw
        fields = {"t": event.type, "s": event.subject, "v": str(event.version), "d": d}
        store.client.xadd(store.keys.log, fields, id=event.position)
    with pytest.raises(RecordDamaged, match="is not what was sealed"):
        to_disk(store, sealer.tree, sealer.size, size=SMALL)


def test_kept_checkpoints_are_read_though_the_last_line_was_cut_off(store: Store, sealer: Sealer) -> None:
    from events.seal import keep_note

    fill(store, 3)
    note = sealer.step()
    assert note is not None
    keep_note(sealer.folder, note)
    with (sealer.folder / "notes").open("a") as file:
        file.write(json.dumps(str(note))[:40])
    assert kept_notes(sealer.folder) == [note]

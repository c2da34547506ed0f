"""Verification: an untouched log is in order, and every attack is found, or named as one that a witness finds."""

from __future__ import annotations

import base64
import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.jobs import Jobs
from engine.rebuild import rebuild_site
from engine.record.findings import Source
from engine.record.verify import Verification
from engine.record.witness import Declined, Witness
from events.bodies.record import HistoryLost
from events.envelope import Event
from events.merkle import Tree
from events.note import Note, Signer
from events.read import read
from events.seal import leaf_of
from events.signing import Keys
from tests.record.lab import LOG, Lab, changed, lab, sign, with_body
from tests.support import new_call

SEEDS = int(os.environ.get("FLIGHTLOG_ATTACKS") or 1000)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab(tmp_path_factory.mktemp("lab"))


def test_an_untouched_log_is_in_order_and_it_is_said_who_vouches_for_what(base: Lab) -> None:
    report = base.verify()
    assert report.problems == []
    assert report.verdict == "WITNESSED"
    assert (report.first, report.last) == (1, len(base.events))
    (word, low, high), (signed, after, upto), (rest, tail, end) = report.spans()
    assert (word, low, high) == ("WITNESSED", 1, base.witnessed)
    assert (signed, after, upto) == ("SITE-SIGNED", base.witnessed + 1, base.tree.size)
    assert (rest, tail, end) == ("UNSEALED", base.tree.size + 1, len(base.events))
    assert [name.partition("+")[0] for name in report.witnessed_by] == ["witness.example"]


def test_without_a_witness_and_without_a_seal_less_is_said(base: Lab) -> None:
    alone = Verification(replace(base.source(), witnesses=[])).run()
    assert alone.verdict == "SITE-SIGNED"
    # Without the site's keys there is nothing to hold its signatures against.
    unknown = Verification(Source(events=base.events[:20])).run()
    assert (unknown.verdict, unknown.problems) == ("UNSEALED", [])


def test_a_part_is_verified_with_the_hashes_of_the_rest(base: Lab) -> None:
    for first, last in ((5, 20), (1, 9), (17, None)):
        source = base.source(events=base.events[first - 1 :])
        report = Verification(source, first=first, last=last).run()
        assert report.problems == [], (first, last)
        assert (report.first, report.last) == (first, last or len(base.events))


# -- attacks on what was signed: all found, with or without the sealer's hashes ------------------


def _edit(events: list[Event], dice: random.Random, size: int) -> int:
    at = dice.randrange(size)
    rest = json.loads(events[at].raw)
    how = dice.choice(["actor", "cause", "raw", "type", "time", "subject"])
    if how == "actor":
        rest["actor"]["id"] = "someone-else"
        events[at] = changed(events[at], raw=json.dumps(rest, separators=(",", ":")))
    elif how == "cause":
        rest["correlation"] += "0"
        events[at] = changed(events[at], raw=json.dumps(rest, separators=(",", ":")))
    elif how == "raw":
        events[at] = changed(events[at], raw=events[at].raw.replace(":", ": ", 1))
    elif how == "type":
        events[at] = changed(events[at], type=dice.choice(["AppFailed", "EngineClosed", "NoSuchEvent"]))
    elif how == "time":
        ms, _, seq = events[at].position.partition("-")
        events[at] = changed(events[at], position=f"{int(ms) + dice.choice([-5, 5])}-{seq}")
    else:
        events[at] = changed(events[at], subject="job/job-99")
    return at + 1


def _delete(events: list[Event], dice: random.Random, size: int) -> int:
    at = dice.randrange(size)
    del events[at]
    return at + 1


def _renumbered(events: list[Event]) -> None:
    """What a careful intruder does after: no gap is left in sequence and versions."""
    versions: dict[str, int] = {}
    for number, event in enumerate(events, 1):
        versions[event.subject] = versions.get(event.subject, 0) + 1
        position = f"{event.ms}-{number}"
        events[number - 1] = changed(event, position=position, version=versions[event.subject])


def _delete_and_renumber(events: list[Event], dice: random.Random, size: int) -> int:
    at = _delete(events, dice, size)
    _renumbered(events)
    return at


def _insert(events: list[Event], dice: random.Random, size: int) -> int:
    at = dice.randrange(size - 1)  # a copy of the last one is where nothing is sealed yet
    events.insert(at, events[at])
    _renumbered(events)
    return at + 1


def _swap(events: list[Event], dice: random.Random, size: int) -> int:
    one = dice.randrange(size - 1)
    other = dice.randrange(one + 1, size)
    if dice.random() < 0.5:
        events[one], events[other] = events[other], events[one]
    else:  # only what they say
        a, b = events[one], events[other]
        events[one], events[other] = replace(a, raw=b.raw), replace(b, raw=a.raw)
        if a.raw == b.raw:
            return 0
    return one + 1


def _duplicate(events: list[Event], dice: random.Random, size: int) -> int:
    at = dice.randrange(size)
    events.insert(dice.randrange(at + 1, len(events) + 1), events[at])
    return at + 1


def _truncate(events: list[Event], dice: random.Random, size: int) -> int:
    keep = dice.randrange(1, size)
    del events[keep:]
    return keep


ATTACKS: list[Callable[[list[Event], random.Random, int], int]] = [
    _edit,
    _delete,
    _delete_and_renumber,
    _insert,
    _swap,
    _duplicate,
    _truncate,
]


def test_L7_every_one_of_a_thousand_attacks_on_what_was_signed_is_found(base: Lab) -> None:
    for seed in range(SEEDS):
        dice = random.Random(seed)
        attack = ATTACKS[seed % len(ATTACKS)]
        events = list(base.events)
        at = attack(events, dice, base.tree.size)
        if at == 0:
            continue
        report = base.verify(events, hashes=bool(seed & 8))
        assert report.verdict == "DAMAGED", f"seed {seed}: {attack.__name__} at {at} was not found"
        if seed & 8 and attack in (_edit, _delete, _delete_and_renumber):
            first = min(problem.seq for problem in report.problems)
            assert first <= at + 1, f"seed {seed}: {attack.__name__} at {at} was found only at {first}"


def test_the_first_bad_event_is_named_with_what_is_wrong(base: Lab) -> None:
    at = next(i for i, event in enumerate(base.events) if event.type == "DeploySucceeded")
    events = list(base.events)
    events[at] = with_body(events[at], "files", 99)
    first = base.verify(events).problems[0]
    assert (first.seq, first.position) == (at + 1, events[at].position)
    assert first.what == "it is not the event that was sealed"
    events[at] = with_body(base.events[at], "files", "many")
    assert "DeploySucceeded does not fit its schema: body.files" in base.verify(events).problems[0].what


def test_an_illegal_transition_in_what_nobody_has_signed_is_found(base: Lab) -> None:
    finished = next(event for event in base.events if event.type == "AppFinished")
    last = base.events[-1]
    version = max(event.version for event in base.events if event.subject == finished.subject) + 1
    ms, _, seq = last.position.partition("-")
    planted = replace(finished, position=f"{ms}-{int(seq) + 1}", version=version)
    (problem,) = base.verify([*base.events, planted]).problems
    assert "AppFinished cannot come in state finished" in problem.what


# -- backups, and keys -----------------------------------------------------------------------------


def test_an_older_backup_is_found_with_the_seal_and_by_the_witness_without_it(tmp_path: Path) -> None:
    old = lab(tmp_path, jobs=2)
    backup, notes, tree_size = list(old.events), list(old.notes), old.tree.size
    old.live("job-new")
    old.seal(witnessed=True)
    assert old.verify().problems == []
    # The log alone is put back: the seal knows more.
    (problem, *_) = old.verify(backup).problems
    assert "its end was cut" in problem.what
    # Log and seal are put back together: the site cannot tell, and the witness can.
    tree = Tree()
    tree.append(old.tree.leaves(0, tree_size))
    alone = Source(backup, notes, old.keys.chain(), [old.witness.signer.verifier], tree)
    assert Verification(alone).run().problems == []
    seen = Note.parse(old.witness.ledger.last(LOG)[0])
    report = Verification(replace(alone, notes=[*notes, seen])).run()
    assert "its end was cut" in report.problems[0].what


def test_a_loss_that_was_disclosed_is_listed_and_no_damage(tmp_path: Path) -> None:
    old = lab(tmp_path, jobs=2)
    backup = list(old.events)
    old.live("job-new")
    lost = old.seal()
    # What a restore does: the log of the backup, and an epoch of its own that says what is missing.
    store = old.store
    store.client.delete(store.keys.log)
    for event in backup:
        fields = {"t": event.type, "s": event.subject, "v": str(event.version), "d": event.raw}
        store.client.xadd(store.keys.log, fields, id=event.position)  # type: ignore[arg-type]
    store.client.delete(store.keys.heads)
    rebuild_site(store)
    store.client.hset(store.keys.heads, "@epoch", "2")
    store.epoch = 2
    end = len(backup)
    told = HistoryLost(first=end + 1, last=lost.checkpoint.size, note=str(lost), reason="the disk died")
    Jobs(store).note(new_call(), [told])
    old.events = list(read(store))
    report = old.verify(hashes=False)
    assert report.problems == []
    assert report.losses == [
        f"events {end + 1} to {lost.checkpoint.size} of the epoch before were lost; disclosed at event {end + 1}"
    ]
    # A new epoch that says nothing is damage.
    assert "nothing says why" in old.verify([*old.events[:end], _retyped(old.events[end])]).problems[0].what


def _retyped(event: Event) -> Event:
    """An event of another epoch that discloses nothing."""
    rest = json.loads(event.raw)
    return replace(event, type="WorkRerung", raw=json.dumps({**rest, "body": {"works": []}}))


def test_another_key_is_not_the_sites(base: Lab, tmp_path: Path) -> None:
    stranger = Signer.new(LOG)
    events = [
        with_body(event, "host", "elsewhere") if event.type == "EngineOpened" else event for event in base.events
    ]
    tree = Tree()
    tree.append([leaf_of(event) for event in events[: base.tree.size]])
    forged = [sign(stranger, tree, events)]
    report = Verification(Source(events, forged, base.keys.chain(), [], None)).run()
    assert any("not with a key of the site" in problem.what for problem in report.problems), report.problems
    # Its key is put among the site's: it has no signature of the one before.
    chain = [*base.keys.chain(), f"{stranger.verifier}"]
    report = Verification(Source(events, forged, chain, [], None)).run()
    assert any("was not signed by the one before" in problem.what for problem in report.problems)
    # All keys are replaced: whoever knows the true one, from anywhere, sees it.
    report = Verification(
        Source(events, forged, [str(stranger.verifier)], [], None, anchor=base.keys.verifiers()[0])
    ).run()
    assert any("that you trust is not this site's" in problem.what for problem in report.problems)


def test_a_rotated_key_is_the_sites(tmp_path: Path) -> None:
    made = lab(tmp_path, jobs=2)
    made.keys.rotate(LOG)
    made.live("job-later")
    made.seal(witnessed=True)
    report = made.verify()
    assert (report.problems, report.verdict) == ([], "WITNESSED")


# -- what only a witness finds ---------------------------------------------------------------------


def _rewritten(made: Lab) -> tuple[list[Event], list[Note], Tree]:
    """The holder of the key writes another history, and signs all of it again."""
    events = [
        with_body(event, "host", "elsewhere") if event.type == "EngineOpened" else event
        for event in made.events
        if event.type not in ("CheckpointSigned", "CheckpointWitnessed")
    ]
    _renumbered(events)
    tree = Tree()
    tree.append([leaf_of(event) for event in events])
    return events, [sign(made.keys.signer(LOG), tree, events)], tree


def test_the_holder_of_the_key_who_signs_everything_again_is_found_by_the_witness_only(tmp_path: Path) -> None:
    made = lab(tmp_path)
    events, notes, tree = _rewritten(made)
    mine = Source(events, notes, made.keys.chain(), [made.witness.signer.verifier], tree)
    report = Verification(mine).run()
    assert report.problems == [], "nothing within the site can show it; docs/trust.md says so"
    assert report.verdict == "SITE-SIGNED"
    seen = Note.parse(made.witness.ledger.last(LOG)[0])
    assert Verification(replace(mine, notes=[*notes, seen])).run().verdict == "DAMAGED"
    # And the witness does not cosign it.
    with pytest.raises(Declined, match="another history") as declined:
        made.witness.add(made.witnessed, [b"\0" * 32], notes[0], made.keys.chain())
    assert declined.value.status == 422


def test_two_views_of_one_log_are_cosigned_once(tmp_path: Path) -> None:
    made = lab(tmp_path)
    other = lab(tmp_path / "other", seed=5)
    other.keys = made.keys
    shown_to_another = sign(made.keys.signer(LOG), other.tree, other.events)
    with pytest.raises(Declined) as declined:
        made.witness.add(0, [], shown_to_another, made.keys.chain())
    assert declined.value.status == 409
    with pytest.raises(Declined, match="another history"):
        made.witness.add(
            made.witnessed, other.tree.consistency(3, other.tree.size), shown_to_another, made.keys.chain()
        )


def test_a_witness_takes_only_the_key_of_a_log_that_it_knows(tmp_path: Path) -> None:
    made = lab(tmp_path)
    strict = Witness(tmp_path / "strict", "strict.example", first_use=False)
    with pytest.raises(Declined, match="not signed by a key that is known"):
        strict.add(0, [], made.notes[0], made.keys.chain())
    (tmp_path / "strict" / "known").write_text(made.keys.chain()[0] + "\n")
    assert strict.add(0, [], made.notes[0], made.keys.chain()).startswith("\u2014 strict.example ")
    stranger = Signer.new(LOG)
    forged = Note(made.notes[1].text, (stranger.line(made.notes[1].text),))
    with pytest.raises(Declined):
        strict.add(made.notes[0].checkpoint.size, [], forged, [str(stranger.verifier)])


def test_a_witness_that_was_started_anew_has_its_key_and_its_memory(tmp_path: Path) -> None:
    made = lab(tmp_path)
    again = Witness(tmp_path / "witness", "witness.example")
    assert again.signer.verifier == made.witness.signer.verifier
    assert again.ledger.last(LOG) == made.witness.ledger.last(LOG)
    assert Keys(tmp_path / "seal").verifiers() == made.keys.verifiers()


# -- what a stranger tried -------------------------------------------------------------------------


def test_an_epoch_is_no_way_round_the_witness(tmp_path: Path) -> None:
    made = lab(tmp_path)
    events = [with_epoch(event, 7) for event in made.events[:20]]
    tree = Tree()
    tree.append([leaf_of(event) for event in events])
    forged = sign(made.keys.signer(LOG), tree, events, epoch=7)
    with pytest.raises(Declined, match="has to accept it"):
        made.witness.add(0, [], forged, made.keys.chain())
    # A log that begins in another epoch than the first says why, or is damaged.
    report = Verification(Source(events, [forged], made.keys.chain())).run()
    assert any("epoch 7 begins here" in problem.what for problem in report.problems)
    # Once accepted, both histories are told to whoever asks.
    made.witness.ledger.accept(f"{LOG}/7")
    made.witness.add(0, [], forged, made.keys.chain())
    notes = [Note.parse(text) for text in made.witness.ledger.last(LOG)]
    assert [note.checkpoint.origin for note in notes] == [f"{LOG}/7", f"{LOG}/1"]
    assert Verification(made.source()).run().problems == []
    assert Verification(replace(made.source(), notes=[*made.notes, *notes])).run().problems


@pytest.mark.parametrize("epoch", ["²", "-1", "1x", "", "٣"])
def test_an_epoch_that_is_no_number_is_declined_and_the_witness_answers_on(epoch: str, tmp_path: Path) -> None:
    made = lab(tmp_path, jobs=1)
    text = f"{LOG}/{epoch}\n3\n{base64.b64encode(bytes(32)).decode()}\n"
    forged = Note(text, (made.keys.signer(LOG).line(text),))
    made.witness.ledger.accept(f"{LOG}/{epoch}")
    with pytest.raises(Declined, match="is no epoch"):
        made.witness.add(0, [], forged, made.keys.chain())
    assert made.witness.ledger.last(LOG) is not None


def with_epoch(event: Event, epoch: int) -> Event:
    return replace(event, raw=json.dumps({**json.loads(event.raw), "epoch": epoch}))


def test_the_sites_own_key_is_no_witness(base: Lab) -> None:
    own = base.keys.verifiers()[0]
    alone = Verification(replace(base.source(), witnesses=[own, replace(own, algorithm=4)])).run()
    assert alone.verdict == "SITE-SIGNED"


def test_a_key_from_after_a_rotation_is_enough(tmp_path: Path) -> None:
    made = lab(tmp_path, jobs=2)
    made.keys.rotate(LOG)
    made.live("job-later")
    made.seal()
    newest = made.keys.verifiers()[-1]
    report = Verification(replace(made.source(), anchor=newest)).run()
    assert (report.problems, report.verdict) == ([], "SITE-SIGNED")
    assert report.signed == made.tree.size

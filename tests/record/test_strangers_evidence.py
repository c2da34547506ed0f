"""What strangers showed as evidence that is none, and what has to come of it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ExportInvalid
from engine.record.bundling import bundle
from engine.record.carried import verify_export
from engine.record.exporting import ExportFile, export
from engine.record.findings import Source
from engine.record.ledger import Declined
from engine.record.sealing import seal_now
from engine.record.sources import site_source
from engine.record.verify import Verification
from engine.site import Site
from events.envelope import Event
from events.errors import RecordDamaged
from events.merkle import Tree
from events.note import Checkpoint, Note, Signer
from events.read import read
from events.seal import leaf_of
from tests.record.lab import LOG, Lab, lab, with_body
from tests.record.rig import born, feed, feed_site, parts, standalone

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]
OTHER = "flightlog/site-1/0000000000000000"


# -- somebody else's log -----------------------------------------------------------------------------


def forged(made: Lab) -> tuple[list[Event], Signer, Note]:
    """The history with something else in it, signed by a stranger as a log of his own, and cosigned as that."""
    number = next(i for i, event in enumerate(made.events) if event.type == "DeploySucceeded")
    events = [*made.events[:number], with_body(made.events[number], "files", 77), *made.events[number + 1 :]]
    about = [i for i, event in enumerate(events) if event.type in ("CheckpointSigned", "CheckpointWitnessed")]
    events = events[: min(about, default=len(events))]
    tree, mine = Tree(), Signer.new(OTHER)
    tree.append([leaf_of(event) for event in events])
    text = Checkpoint(f"{OTHER}/1", tree.size, tree.root()).text()
    note = Note(text, (mine.line(text),))
    line = made.witness.add(0, [], note, [str(mine.verifier)])
    return events, mine, Note(text, (*note.lines, line))


@pytest.mark.parametrize("log", [LOG, OTHER])
@pytest.mark.parametrize("known", [True, False])
def test_a_log_of_a_strangers_own_is_not_this_one_though_a_witness_cosigned_it(
    log: str, known: bool, tmp_path: Path
) -> None:
    made = lab(tmp_path)
    events, mine, note = forged(made)
    key = made.keys.verifiers()[0]
    chain = [*made.keys.chain(), str(mine.verifier)]
    source = Source(events, [note], chain, [made.witness.signer.verifier], anchor=key if known else None, log=log)
    report = Verification(source).run()
    if known or log == LOG:
        assert report.verdict == "DAMAGED"
        assert any("another log" in one.what or "is of" in one.what for one in report.problems)
    else:
        # Nothing within it can say whose it is: the name of its log, and its key, are all that one has.
        assert (report.verdict, report.problems) == ("WITNESSED", [])


def test_a_key_of_another_name_does_not_take_a_logs_place_at_the_witness(tmp_path: Path) -> None:
    made = lab(tmp_path, jobs=1)
    stranger = Signer.new("somebody-else")
    text = Checkpoint("flightlog/victim/ab/1", 1, bytes(32)).text()
    with pytest.raises(Declined, match="not signed by a key"):
        made.witness.add(0, [], Note(text, (stranger.line(text),)), [str(stranger.verifier)])


def test_once_an_epoch_was_accepted_the_one_before_is_over(tmp_path: Path) -> None:
    made = lab(tmp_path)
    tree = Tree()
    tree.append([leaf_of(event) for event in made.events[:5]])
    text = Checkpoint(f"{LOG}/2", 5, tree.root()).text()
    made.witness.ledger.accept(f"{LOG}/2")
    made.witness.add(0, [], Note(text, (made.keys.signer(LOG).line(text),)), made.keys.chain())
    seen = Note.parse(made.witness.ledger.last(LOG)[1]).checkpoint
    further = Checkpoint(f"{LOG}/1", made.tree.size, made.tree.root()).text()
    note = Note(further, (made.keys.signer(LOG).line(further),))
    with pytest.raises(Declined, match="epoch 1 is over"):
        made.witness.add(seen.size, made.tree.consistency(seen.size, made.tree.size), note, made.keys.chain())


@pytest.mark.parametrize("rubbish", ["", "[]", "{", '{"epochs": {}}', '{"epochs": {"1": 3}, "keys": []}', "\x00"])
def test_what_a_witness_saw_and_cannot_read_is_not_forgotten(rubbish: str, tmp_path: Path) -> None:
    made = lab(tmp_path)
    (path,) = (tmp_path / "witness" / "logs").glob("*.json")
    path.write_text(rubbish)
    with pytest.raises(Declined, match="cannot be read") as refused:
        made.witness.add(0, [], made.notes[0], made.keys.chain())
    assert refused.value.status == 503
    assert str(path) in str(refused.value)


# -- parts -------------------------------------------------------------------------------------------


def test_a_part_without_one_of_its_jobs_is_found(site: Site, tmp_path: Path) -> None:
    born(site, *(f"job-{n}" for n in range(7)))
    feed(site, 60)
    seal_now(site)
    made = tmp_path / "since.jsonl"
    export(site, made, since=1)
    assert verify_export(ExportFile(made)).problems == []
    lines = [line for line in made.read_text().splitlines(keepends=True) if '"job/job-3"' not in line]
    events = sum("flightlogdata" in line for line in lines)
    end = json.loads(lines[-1])
    end["data"]["events"] = events
    made.write_text("".join([*lines[:-1], json.dumps(end) + "\n"]))
    assert verify_export(ExportFile(made)).verdict == "DAMAGED"


def test_a_part_that_is_called_another_jobs_is_found(site: Site, tmp_path: Path) -> None:
    born(site, "job-1", "job-2")
    seal_now(site)
    made = tmp_path / "job.jsonl"
    export(site, made, job="job-1")
    first, *rest = made.read_text().splitlines(keepends=True)
    made.write_text(first.replace('"job":"job-1"', '"job":"job-2"') + "".join(rest))
    assert "job-2" in first.replace("job-1", "job-2")
    report = verify_export(ExportFile(made))
    assert report.verdict == "DAMAGED"
    assert "the file says 'job-2'" in report.problems[0].what


def part_of(site: Site, first: int, last: int) -> Any:
    return Verification(site_source(site, first=first), first=first, last=last).run()


def test_a_part_is_not_vouched_for_by_hashes_that_nobody_made_of_it(site: Site) -> None:
    feed_site(site, 600)
    seal_now(site)
    assert part_of(site, 190, 210).verdict == "SITE-SIGNED"
    store = site.jobs.store
    event = next(event for event in read(store) if event.seq == 200)
    changed = json.loads(event.raw)
    changed["actor"]["id"] = "somebody"
    raw = json.dumps(changed, separators=(",", ":"))
    events = list(read(store))
    store.client.delete(store.keys.log)
    for one in events:
        d = raw if one.seq == event.seq else one.raw
        fields = {"t": one.type, "s": one.subject, "v": str(one.version), "d": d}
        store.client.xadd(store.keys.log, fields, id=one.position)
    tree = site.workspace.seal / "tree" / "0"
    with tree.open("r+b") as file:  # and its one hash; what was made of it before is left as it was
        file.seek(199 * 32)
        file.write(leaf_of(replace(event, raw=raw)))
    assert part_of(site, 190, 210).verdict == "DAMAGED"
    assert part_of(site, 199, 201).verdict == "DAMAGED"


def test_a_part_whose_end_was_cut_is_found_and_one_before_it_has_no_empty_spans(site: Site) -> None:
    feed_site(site, 60)
    seal_now(site)
    store = site.jobs.store
    for event in list(read(store))[40:]:
        store.client.xdel(store.keys.log, event.position)
    report = part_of(site, 10, 55)
    assert any("its end was cut" in one.what for one in report.problems)
    assert all(low <= high for _, low, high in part_of(site, 10, 20).spans())


# -- the one-file verifier ---------------------------------------------------------------------------


def folder_of(found: dict[str, list[dict[str, Any]]], folder: Path) -> Path:
    folder.mkdir()
    for name, lines in found.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("how", ["splice", "readable", "logs", "short"])
def test_a_bundle_that_was_put_together_otherwise_is_found(how: str, site: Site, tmp_path: Path) -> None:
    born(site, "job-0", "job-1")
    feed(site, 60)
    bundle(site, "job-0", tmp_path / "0.zip")
    bundle(site, "job-1", tmp_path / "1.zip")
    first, second = parts(tmp_path / "0.zip"), parts(tmp_path / "1.zip")
    assert standalone(folder_of(first, tmp_path / "good")).returncode == 0
    if how == "splice":
        found = {name: first[name][:3] + second[name][3:] for name in first}
    elif how == "readable":
        found = first
        found["proofs.jsonl"][1]["readable"]["body"] = {"shown": "otherwise"}
    elif how == "logs":
        found = first
        note = found["proofs.jsonl"][1]
        note["checkpoint"] = note["checkpoint"].replace(site.workspace.id, "0" * 16)
    else:
        found = {name: first[name][:4] for name in first}
    told = standalone(folder_of(found, tmp_path / how))
    if how == "short":  # of a job alone nobody can say how much there is: it says how far it goes
        assert (told.returncode, "up to its version 4; what came later is not in it" in told.stdout) == (0, True)
    else:
        assert told.returncode == 7, told.stdout


def test_a_bundle_of_which_one_event_is_witnessed_is_not_called_witnessed(tmp_path: Path) -> None:
    """Who holds the key can sign another tree over the rest: nobody else has seen that one."""
    made = lab(tmp_path)
    events = [event for event in made.events if event.subject == "job/job-0"]
    seen = next(note for note in made.notes if note.signed_by([made.witness.signer.verifier]))
    size = made.events.index(events[-1]) + 1
    other = Tree()
    changed = [with_body(e, "reason", "another") if "reason" in e.body else e for e in made.events[:size]]
    other.append([leaf_of(event) for event in changed])
    text = Checkpoint(f"{LOG}/1", size, other.root()).text()
    alone = Note(text, (made.keys.signer(LOG).line(text),))
    shown = [events[0], *(changed[made.events.index(event)] for event in events[1:])]
    proofs = []
    for number, event in enumerate(shown):
        note, tree = (seen, made.tree) if number == 0 else (alone, other)
        steps = tree.inclusion(event.seq - 1, note.checkpoint.size)
        stored = {"position": event.position, "type": event.type, "subject": event.subject, "version": event.version}
        proofs.append(
            {
                "event": stored | {"d": event.raw},
                "proof": [base64.b64encode(step).decode() for step in steps],
                "checkpoint": str(note),
                "keys": made.keys.chain(),
                "witnesses": [str(made.witness.signer.verifier)],
                "readable": event.as_dict(),
            }
        )
    from engine.record.exporting import cloudevent

    found = {"proofs.jsonl": proofs, "events.jsonl": [cloudevent(event, f"/{LOG}") for event in shown]}
    told = standalone(folder_of(found, tmp_path / "mixed"))
    assert told.stdout.startswith("SITE-SIGNED"), told.stdout
    assert "Of them 1 are cosigned" in told.stdout


# -- input without an end ----------------------------------------------------------------------------


def test_a_line_without_an_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.record.exporting.MOST", 10_000)
    with pytest.raises(ExportInvalid, match="10000 bytes"):
        ExportFile(Path("/dev/zero"))


@pytest.mark.parametrize(
    "words",
    [
        ("--from", "²"),
        ("--from", "9" * 5000),
        ("--from", "x-5"),
        ("--key", "BINARY"),
        ("--witness", "http://[::1"),
        ("--witness-key", "a+b+c"),
    ],
)
def test_verify_refuses_what_makes_no_sense_by_name(words: tuple[str, str], site: Site, tmp_path: Path) -> None:
    (tmp_path / "BINARY").write_bytes(os.urandom(64) + b"\xff\xfe")
    born(site, "job-1")
    told = subprocess.run(
        [sys.executable, "-P", "-m", "engine.cli", "verify", *words, "-w", str(site.workspace.root)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in told.stderr
    assert told.returncode in (2, 5, 6, 8), told
    assert words[0].lstrip("-").split("-")[0] in told.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"keys": ["a"]},
        {"keys": [[]]},
        {"keys": ["a+00000000+AAAA"]},
        {"witnesses": [[]]},
        {"checkpoints": [[]]},
        {"checkpoints": ["x"]},
    ],
)
def test_a_head_that_is_rubbish_is_told(change: dict[str, Any], site: Site, tmp_path: Path) -> None:
    born(site, "job-1")
    made = tmp_path / "e.jsonl"
    export(site, made)
    first, *rest = made.read_text().splitlines(keepends=True)
    head = json.loads(first)
    head["data"] |= change
    made.write_text(json.dumps(head) + "\n" + "".join(rest))
    told = subprocess.run(
        [sys.executable, "-P", "-m", "engine.cli", "verify", "--export", str(made)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in told.stderr
    assert told.returncode in (7, 8), told


@pytest.mark.parametrize(
    "change",
    [
        {"id": "99999999999999999-1"},
        {"id": "+"},
        {"flightlogversion": float("inf")},
        {"flightlogversion": True},
        {"flightlogdata": "0"},
        {"flightlogdata": "{"},
    ],
)
def test_an_event_of_an_export_that_is_rubbish_is_told(change: dict[str, Any], site: Site, tmp_path: Path) -> None:
    born(site, "job-1")
    made = tmp_path / "e.jsonl"
    export(site, made)
    lines = made.read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if "flightlogdata" in line)
    lines[at] = json.dumps(json.loads(lines[at]) | change) + "\n"
    made.write_text("".join(lines))
    with pytest.raises((ExportInvalid, RecordDamaged)):
        list(ExportFile(made).events())

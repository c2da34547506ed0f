"""The commands about the record, typed: what they print, what they refuse, and with which exit code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_cli import Place
from tests.support import kill, processes_with

pytestmark = [pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A site that has run one app, with history on disk."""
    made = Place(tmp_path_factory.mktemp("record"))
    made.env |= {"FLIGHTLOG_API": "off", "FLIGHTLOG_SEAL_EVERY": "0.1", "FLIGHTLOG_SEGMENT": "10"}
    made.app("app", "sh", "-c", "echo hello")
    made.ok("up", "--site", "s1", "--keep", "100", "--detach")
    made.ok("run", "app", "--job", "job-1", "--reason", "for the auditor")
    yield made
    made("down")
    for pid in processes_with(str(made.folder)):
        kill(pid)


def position(place: Place, number: int = 5) -> str:
    return str(place.ok("events", "--format", "jsonl").lines()[number]["position"])


def test_verify_says_who_vouches_for_what_and_is_an_event_itself(place: Place) -> None:
    place.ok("seal")
    told = place.ok("verify", "--json").json()
    assert told["verdict"] == "SITE-SIGNED"
    assert told["problems"] == []
    assert told["spans"][0]["first"] == 1
    assert place.ok("events", "--type", "Verified", "--format", "jsonl").lines()[-1]["body"]["problems"] == 0
    text = place.ok("verify", "--from", "3", "--to", position(place, 9)).out
    assert "SITE-SIGNED" in text
    assert re.search(r"events 3 to \d+:", text)
    key = place.ok("seal", "--json").json()["key"]
    assert place.ok("verify", "--key", key).code == 0
    place.ok("rotate-key")
    assert place.ok("verify", "--key", key, "--json").json()["verdict"] == "SITE-SIGNED"


def test_replay_shows_steps_a_moment_and_what_differs_between_two(place: Place) -> None:
    steps = place.ok("replay", "--job", "job-1", "--json").json()
    assert [steps[0]["state"], steps[-1]["state"]] == ["deploying", "finished"]
    then = place.ok("replay", "--job", "job-1", "--at", steps[2]["position"], "--json").json()
    assert then["state"] == steps[2]["state"]
    assert then["event"]["position"] == steps[2]["position"]
    between = place.ok("replay", "--job", "job-1", "--at", "1", "--at", str(len(steps)), "--json").json()
    assert between["changes"]["state"] == {"before": "deploying", "after": "finished"}
    assert "every projection is what the log says" in place.ok("replay", "--check").out
    assert "differed" not in place.ok("rebuild").out


def test_a_review_and_a_report_are_for_whoever_looks_back(place: Place) -> None:
    at = position(place)
    place.ok("review", "--until", at, "--note", "nothing unusual")
    told = place.ok("report", "--from", "2026-01-01", "--json").json()
    assert told["jobs"] == 1
    assert told["ends"] == {"finished": 1}
    assert [one["type"] for one in told["record"]].count("ReviewRecorded") == 1
    assert place.ok("report", "--from", "2026-01-01", "--actor", "nobody", "--json").json()["events"] == 0


def test_nothing_is_written_over_and_what_is_no_export_is_said_to_be_none(place: Place) -> None:
    place.ok("export", "one.zst")
    again = place("export", "one.zst")
    assert (again.code, "is there already" in again.err) == (2, True)
    (place.folder / "rubbish").write_bytes(b"\x28\xb5\x2f\xfdrubbish")
    (place.folder / "text").write_text("hello\n")
    for name in ("rubbish", "text"):
        said = place("verify", "--export", name)
        assert (said.code, "EXPORT_INVALID" in said.err) == (8, True), said
        assert "EXPORT_INVALID" in place("import", name, "-w", "new").err
    assert place("verify", "--export", "nowhere").code == 8
    cut = (place.folder / "one.zst").read_bytes()
    (place.folder / "cut.zst").write_bytes(cut[: len(cut) // 2])
    assert place("verify", "--export", "cut.zst").code == 8
    full = place("import", "one.zst")
    assert (full.code, "SITE_NOT_EMPTY" in full.err) == (4, True)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("verify", "--from", "x"), 2, "--from"),
        (("verify", "--to", "0"), 2, "--to"),
        (("verify", "--key", "x"), 2, "--key"),
        (("verify", "--from", "9", "--to", "5"), 2, "--to is before"),
        (("hold", "job-1", "--lift", "--reason", "x"), 2, "not held"),
        (("verify", "--checkpoint", "nowhere"), 8, "UNVERIFIABLE"),
        (("verify", "--from", "999999"), 8, "no event 999998"),
        (("verify", "--witness", "http://127.0.0.1:1"), 6, "does not answer"),
        (("verify", "--witness", "ftp://x"), 6, "no address"),
        (("prove", "x"), 2, "EVENT is"),
        (("prove", "1-1"), 2, "no event 1-1"),
        (("export", "x.zst", "--job", "nobody"), 5, "JOB_UNKNOWN"),
        (("export", "x.zst", "--since", "17"), 2, "--since"),
        (("export", "x.zst", "--format", "xml"), 2, "xml"),
        (("bundle", "nobody"), 5, "JOB_UNKNOWN"),
        (("replay",), 2, "--job is missing"),
        (("replay", "--job", "nobody"), 5, "JOB_UNKNOWN"),
        (("replay", "--job", "job-1", "--at", "999"), 2, "at is 999"),
        (("replay", "--job", "job-1", "--at", "2099-01-01"), 2, "still to come"),
        (("review", "--until", "1-1", "--note", "x"), 2, "no event 1-1"),
        (("review", "--until", "x", "--note", "x"), 2, "--until is"),
        (("review", "--until", "1-1", "--note", " "), 2, "--note"),
        (("report",), 2, "--from is missing"),
        (("report", "--from", "2026-01-02", "--to", "2026-01-01"), 2, "--to is before"),
        (("erase", "job-1"), 2, "--reason"),
        (("erase", "nobody", "--reason", "x"), 5, "JOB_UNKNOWN"),
        (("erase", "job-1", "--reason", "x"), 4, "NOT_DELETED"),
        (("hold", "job-1"), 2, "--reason"),
        (("hold", "nobody", "--reason", "x"), 5, "JOB_UNKNOWN"),
        (("new-epoch",), 2, "--reason"),
        (("new-epoch", "--reason", "x"), 2, "nothing is missing"),
        (("restore", "nowhere", "--reason", "x", "-w", "new"), 2, "is no file"),
        (("restore", "app/config/config_fed_client.json", "--reason", "x", "-w", "new"), 8, "cannot be unpacked"),
        (("restore", "x"), 2, "--reason"),
        (("witness", "--name", "a b"), 2, "--name"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_L9_bad_input_is_refused_by_name(place: Place, words: tuple[str, ...], code: int, says: str) -> None:
    said = place(*words)
    assert said.code == code, said
    assert says in said.err, said
    assert not (place.folder / "x.zst").exists()


def test_a_backup_and_its_site_come_back_by_what_the_command_prints(place: Place) -> None:
    place.ok("backup", "b.tar.zst")
    assert (place.folder / "b.tar.zst").stat().st_mode & 0o777 == 0o600
    told = place.ok("restore", "b.tar.zst", "--reason", "the disk died", "-w", "back")
    assert "--witness or --checkpoint tells" in told.out
    assert place.ok("verify", "-w", "back", "--json").json()["verdict"] == "SITE-SIGNED"
    assert place.ok("list", "-w", "back", "--json").json()[0]["state"] == "finished"
    over = place("restore", "b.tar.zst", "--reason", "again", "-w", "back")
    assert (over.code, "nothing is put over a record" in over.err) == (2, True)
    half = (place.folder / "b.tar.zst").read_bytes()
    (place.folder / "half.tar.zst").write_bytes(half[: len(half) // 2])
    said = place("restore", "half.tar.zst", "--reason", "x", "-w", "half")
    assert (said.code, "EXPORT_INVALID" in said.err) == (8, True), said


def test_damage_ends_with_its_own_exit_code(place: Place) -> None:
    place.ok("export", "good.jsonl")
    lines = (place.folder / "good.jsonl").read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if '"flightlog.AppFinished"' in line)
    event = json.loads(lines[at])
    event["flightlogdata"] = event["flightlogdata"].replace('"exit_code":0', '"exit_code":1')
    lines[at] = json.dumps(event) + "\n"
    Path(place.folder / "bad.jsonl").write_text("".join(lines))
    said = place("verify", "--export", "bad.jsonl", "--json")
    assert said.code == 7
    assert said.json()["verdict"] == "DAMAGED"
    assert place("import", "bad.jsonl", "-w", "never").code == 7

"""Golden histories: what was released replays to what it came to then, for ever."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from engine.fold import TABLE, JobState, apply, fact_of
from events.bodies import BODIES
from events.bodies.base import Body
from events.bodies.upcast import UPCASTERS, upcast
from events.subjects import job_of
from tests.histories.replay import history, main, replayed, result, scenarios

ROOT = Path(__file__).parents[2]
RELEASES = sorted(path for path in (ROOT / "tests" / "histories").iterdir() if re.match(r"\d", path.name))
FILES = [path for release in RELEASES for path in sorted(release.rglob("*.jsonl"))]


def test_every_release_has_its_histories() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    named = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = {*named, *([version] if re.fullmatch(r"\d+\.\d+\.\d+", version) else [])}
    assert released == {path.name for path in RELEASES}, "make them: python -P -m tests.histories.make DIR"


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_no_byte_of_a_golden_history_has_changed(release: Path) -> None:
    lines = (release / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = (path for path in release.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    found = {str(path.relative_to(release)): path for path in files}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()} == sums


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_golden_history_comes_to_what_it_came_to(path: Path) -> None:
    release = next(one for one in RELEASES if one in path.parents)
    expected = json.loads((release / "expected.json").read_text())
    found = replayed(path)
    assert found == expected[str(path.relative_to(release))]
    assert (found["verdict"] == "DAMAGED") == (path.parent.name == "broken")


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_what_the_suites_real_sites_recorded_comes_to_what_it_came_to(release: Path) -> None:
    different, names = [], []
    for name, events, was in scenarios(release):
        names.append(name)
        if (found := result(events)) != was:
            different.append((name, found, was))
    assert different == []
    assert len(names) == len(set(names)) >= 100


def test_they_hold_every_event_type_and_every_row_of_the_table() -> None:
    types, rows = set(), set()
    for path in RELEASES[-1].glob("*.jsonl"):
        states: dict[str, JobState] = {}
        for event in history(path):
            types.add(event.type)
            job = job_of(event.subject)
            if job is not None:
                before = states.get(job) or JobState()
                rows.add((event.type, before.get("state", "new")))
                states[job] = apply(before, fact_of(event))
    sealed = {"CheckpointSigned", "CheckpointWitnessed", "KeyRotated", "HistoryLost", "BackupRestored", "Imported"}
    assert set(BODIES) - types <= sealed - types
    guarded = {(event, state) for event in ("LaunchFailed", "LaunchExpired") for state in ("running", "finishing")}
    assert {(event, state) for event, row in TABLE.items() for state in row} - rows <= guarded


def test_the_command_that_replays_them_says_when_one_comes_to_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "every-type.jsonl"
    (tmp_path / name).write_bytes((RELEASES[-1] / name).read_bytes())
    expected: dict[str, Any] = {name: json.loads((RELEASES[-1] / "expected.json").read_text())[name]}
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    assert main(tmp_path) == 0
    expected[name]["jobs"]["job-1"]["exit_code"] = "3"
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    assert main(tmp_path) == 1
    assert f"{name}: came to" in capsys.readouterr().out


def test_facts_of_an_older_schema_are_told_as_todays(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(Body):
        schema_version = 3

    monkeypatch.setitem(BODIES, "Later", Later)
    monkeypatch.setitem(UPCASTERS, ("Later", 1), lambda facts: {"name_": facts["name"]})
    monkeypatch.setitem(UPCASTERS, ("Later", 2), lambda facts: {**facts, "new": 0})
    assert upcast("Later", 1, {"name": "x"}) == {"name_": "x", "new": 0}
    assert upcast("Later", 2, {"name_": "x"}) == {"name_": "x", "new": 0}
    assert upcast("Later", 3, {"name_": "x"}) == {"name_": "x"}


def test_every_schema_that_was_raised_has_its_upcasters() -> None:
    for name, body in BODIES.items():
        for schema in range(1, body.schema_version):
            assert (name, schema) in UPCASTERS, f"{name} {schema} cannot be read any more"

"""Parts of the status API that need no server: tokens, cursors, the ways that people give times."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from engine.errors import ArgumentInvalid
from engine.readmodels.room import Room
from engine.record.findings import Problem, Report, reach
from engine.status.pages.render import _environment, days_left, size, span
from engine.status.params import decoded, encoded, one_of, position
from engine.status.tokens import Tokens
from engine.times import moment_ms
from engine.workspace import Workspace


def test_only_hashes_of_tokens_are_kept_for_their_owner_alone(tmp_path: Path) -> None:
    tokens = Tokens(Workspace.prepare(tmp_path, "site-1"))
    token = tokens.add("mia", "operator")
    text = tokens.path.read_text()
    assert token not in text
    assert token.removeprefix("fl_") not in text
    assert stat.S_IMODE(tokens.path.stat().st_mode) == 0o600
    caller = tokens.caller(token)
    assert caller is not None
    assert (caller.actor.id, caller.actor.kind, caller.actor.auth, caller.actor.via) == (
        "mia",
        "person",
        "token",
        "api",
    )
    assert caller.may("operator")
    assert caller.may("viewer")
    for other in ("", "fl_", token[:-1], token + "x", token.upper(), "\udcff"):
        assert tokens.caller(other) is None


def test_a_service_is_no_person_and_a_viewer_may_only_look(tmp_path: Path) -> None:
    tokens = Tokens(Workspace.prepare(tmp_path, "site-1"))
    caller = tokens.caller(tokens.add("prometheus", "viewer", service=True))
    assert caller is not None
    assert caller.actor.kind == "service"
    assert not caller.may("operator")


def test_what_another_process_changes_is_seen_at_once(tmp_path: Path) -> None:
    workspace = Workspace.prepare(tmp_path, "site-1")
    here, there = Tokens(workspace), Tokens(workspace)
    token = there.add("mia", "viewer")
    assert here.caller(token) is not None
    there.remove("mia")
    assert here.caller(token) is None


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "a" * 65, "a/b", "a\nb", "Zoë"])
def test_names_that_are_none_get_no_token(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentInvalid, match="NAME is"):
        Tokens(Workspace.prepare(tmp_path, "site-1")).add(name, "viewer")


def test_a_name_has_one_token_and_what_is_not_there_cannot_be_taken_back(tmp_path: Path) -> None:
    tokens = Tokens(Workspace.prepare(tmp_path, "site-1"))
    tokens.add("mia", "viewer")
    with pytest.raises(ArgumentInvalid, match="mia has a token"):
        tokens.add("mia", "operator")
    with pytest.raises(ArgumentInvalid, match="'leo' has no token"):
        tokens.remove("leo")


def test_a_cursor_comes_back_as_it_was_and_nothing_else_is_one() -> None:
    assert decoded(encoded(["since", 5, "job"]), str, int, str) == ["since", 5, "job"]
    assert decoded(None, str) is None
    for given in ("", "x", "e30", "bnVsbA", encoded([1]), encoded(["a", "b", "c"]), "A" * 399, "é"):
        with pytest.raises(ArgumentInvalid, match="cursor is"):
            decoded(given, str, int, str)


@pytest.mark.parametrize("given", ["1", "1-", "-1", "a-b", "1-2-3", "²-1", "1" * 20 + "-1", ""])
def test_what_is_no_position_is_refused(given: str) -> None:
    with pytest.raises(ArgumentInvalid, match="cursor is"):
        position(given, "cursor")


def test_values_that_are_not_known_are_named_with_those_that_are() -> None:
    assert one_of(["a"], ("a", "b"), "state") == ["a"]
    with pytest.raises(ArgumentInvalid, match="state is 'c' Try: one of a, b"):
        one_of(["a", "c"], ("a", "b"), "state")


def test_times_are_moments_or_so_long_ago() -> None:
    assert moment_ms("1970-01-01T00:00:05Z", "since", 0) == 5000
    assert moment_ms("1970-01-01T00:00:05", "since", 0) == 5000
    assert moment_ms("2m", "since", 200_000) == 80_000
    for given in ("", "2", "m", "-2m", "2 m", "tomorrow", "2026-13-01", "99999999999d"):
        with pytest.raises(ArgumentInvalid, match="since is"):
            moment_ms(given, "since", 0)


def test_sizes_spans_and_room_are_said_as_people_say_them() -> None:
    assert [size(value) for value in (None, 0, 999, 1500, 2.5e9)] == [
        "\N{EN DASH}",
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 GB",
    ]
    assert [span(value) for value in (0.0123, 5, 90, 3600, 200_000)] == ["0.012 s", "5 s", "90 s", "60 min", "2 d"]
    assert days_left(Room("disk", 1, 2, None)) == "no growth seen yet"
    assert days_left(Room("disk", 1, 2, 12.4)) == "12 days left at this pace"


@pytest.mark.parametrize(
    ("report", "word", "upto"),
    [
        (Report(1, 132, 132, signed=132, witnessed=92), "WITNESSED", " up to event 92"),
        (Report(1, 132, 132, signed=132, witnessed=132), "WITNESSED", ""),
        (Report(1, 132, 132, signed=130), "SITE-SIGNED", " up to event 130"),
        (Report(100, 132, 33, signed=200, witnessed=99), "SITE-SIGNED", ""),
        (Report(1, 132, 132), "UNSEALED", ""),
        (Report(1, 132, 132, [Problem(7, "1-7", "changed")], signed=132), "DAMAGED", ""),
    ],
)
def test_a_verdict_is_not_said_of_more_than_it_covers(report: Report, word: str, upto: str) -> None:
    found = report.as_dict()
    assert found["verdict"] == word
    assert reach(found) == int(upto.rpartition(" ")[2] or 132)
    shown = _environment.from_string('{% from "macros.html" import vouched %}{{ vouched(found) }}').render(
        found=found
    )
    assert shown == f"<strong>{word}</strong>{upto}"

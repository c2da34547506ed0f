"""The pages about the record name tests, commands and words that are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from typer.main import get_command

from engine.cli import app
from events.bodies.record import Verdict

ROOT = Path(__file__).parents[2]
PAGES = ("trust.md", "record.md", "compliance.md")


@pytest.mark.parametrize("page", [*PAGES, "what-dies.md"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    named = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", (ROOT / "docs" / page).read_text())
    assert named or page != "compliance.md"
    for path, function in named:
        assert (ROOT / path).exists(), path
        assert not function or f"def {function}(" in (ROOT / path).read_text(), f"{path}::{function}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_names_is_there(page: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name in re.findall(r"flightlog ([a-z][a-z-]*)", (ROOT / "docs" / page).read_text()):
        assert name in commands, name


def test_every_verdict_is_explained() -> None:
    text = (ROOT / "docs" / "trust.md").read_text()
    for word in get_args(Verdict):
        assert f"`{word}`" in text


def test_every_rule_that_was_asked_for_is_mapped() -> None:
    text = (ROOT / "docs" / "compliance.md").read_text()
    rules = ["164.316(b)(2)(i)", *(f"164.312({x})" for x in "abcde"), *(f"| ({x}) |" for x in "abcdefghijk")]
    rules += [f"| {number}" for number in ("5(1)", "17", "30", "32")]
    for rule in rules:
        assert rule in text, rule


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150

"""What docs/messages.md says of codes, topics and limits is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.aux.codes import code_of
from engine.aux.runner import _code_for
from engine.cell.cell import HANDLERS, UP_MS
from engine.cell.message import CellReturnCode
from engine.cell.wire import HEADER_MAX
from engine.codec import MAX_DEPTH
from engine.errors import CATALOGUE, from_code
from engine.federation.topics import REGISTER, AdminTopic
from engine.jobtalk import CommandTopic
from engine.settings import Settings
from engine.tasking import TaskTopic

PAGE = (Path(__file__).parents[2] / "docs" / "messages.md").read_text("utf-8")


def table(heading: str) -> list[list[str]]:
    """Cells of the rows under a table's heading."""
    _, found, rest = PAGE.partition(f"| {heading} |")
    assert found, f"there is no table with {heading!r}"
    rows = [line for line in rest.partition("\n\n")[0].splitlines()[2:] if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def words(text: str) -> list[str]:
    """What is written as code."""
    return re.findall(r"`([^`]+)`", text)


def test_every_code_of_the_cell_reads_as_the_page_says() -> None:
    said = {words(row[0])[0]: words(row[1])[0] for row in table("the cell says | an aux request reads")}
    assert said == {str(code): code_of(code) for code in CellReturnCode}


@pytest.mark.parametrize("row", range(3))
def test_what_is_refused_before_it_is_sent_reads_as_the_page_says(row: int) -> None:
    errors, reads = table("error | an aux request reads")[row]
    for code in words(errors):
        assert code in CATALOGUE or code in ("LOG_UNAVAILABLE", "RECORD_FULL")
        assert _code_for(from_code(code, "what")) == words(reads)[0], code


def test_of_all_other_errors_none_reads_otherwise_than_the_page_says() -> None:
    *named, last = table("error | an aux request reads")
    known = {code for errors, _ in named for code in words(errors)}
    for code in CATALOGUE:
        error = from_code(code, "what")
        if code not in known and error.http != 422:
            assert _code_for(error) == words(last[1])[0], code


def test_the_page_has_every_topic_that_is_in_use_and_no_other() -> None:
    used = {REGISTER, "notify_job_status"}
    for names in (AdminTopic, TaskTopic, CommandTopic):
        used |= {value for name, value in vars(names).items() if name.isupper()}
    assert {topic for row in table("channel | topics | who to whom") for topic in words(row[1])} == used


def test_limits_are_those_of_the_settings_and_the_code() -> None:
    rows = {words(row[2])[0]: row[1] for row in table("what | how much | setting") if words(row[2])}
    defaults = {name: Settings.model_fields[name].default for name in rows}
    assert f"{defaults['payload_max'] // 2**20} MiB" in rows["payload_max"]
    assert f"{HEADER_MAX // 2**20} MiB" in rows["payload_max"]
    assert f"{defaults['inbox_max']:,}" in rows["inbox_max"]
    assert f"within {defaults['forget_deadline']:g} s" in rows["forget_deadline"]
    assert rows["attempts"].startswith(f"{defaults['attempts']};")
    assert f"{MAX_DEPTH} levels" in PAGE
    assert f"up to {HANDLERS} in a process" in PAGE
    assert UP_MS == 6000, "the page says: gone six seconds after the last"

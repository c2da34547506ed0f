"""What left the site, from events alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.egress import egress, totals
from events.envelope import Event
from tests.histories import body

SITE = "site-1"


class Log:
    """Events one after the other, as a log would give them."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, type_: str, subject: str = "site", ms: int = 1000, **fields: Any) -> None:
        facts = body(type_, **fields).model_dump(mode="json", exclude={"type"})
        rest = {"body": facts, "actor": {"id": "somebody"}}
        position = f"{ms}-{len(self.events) + 1}"
        self.events.append(Event(position, type_, subject, len(self.events) + 1, json.dumps(rest)))

    def rows(self, **only: Any) -> list[dict[str, Any]]:
        return list(egress(self.events, SITE, **only))


def named(number: int) -> str:
    return f"{number:032x}"


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((), "waiting"),
        ((("SendStarted", {"ids": [named(1)]}),), "under way"),
        ((("SendStarted", {"ids": [named(1)]}), ("AuxReplied", {"id": named(1)})), "answered"),
        ((("SendStarted", {"ids": [named(1)]}), ("AuxSent", {"id": named(1)})), "sent"),
        ((("SendStarted", {"ids": [named(1)]}), ("AuxFailed", {"id": named(1), "code": "timeout"})), "not answered"),
        ((("AuxFailed", {"id": named(1), "code": "timeout"}),), "not sent (timeout)"),
        (
            (("SendStarted", {"ids": [named(1)]}), ("AuxFailed", {"id": named(1), "code": "target_unreachable"})),
            "not sent (target_unreachable)",
        ),
        ((("SendStarted", {"ids": [named(1)]}), ("AuxOutcomeUnknown", {"id": named(1)})), "unknown"),
    ],
)
def test_what_came_of_a_message_is_said_as_the_record_knows_it(ends: tuple[Any, ...], said: str) -> None:
    log = Log()
    log.add("AuxRequested", id=named(1))
    for type_, fields in ends:
        log.add(type_, **fields)
    (row,) = log.rows()
    assert (row["id"], row["target"], row["outcome"]) == (named(1), "server", said)


def test_answers_that_were_given_left_the_site_too() -> None:
    log = Log()
    log.add("AuxHandled", id=named(1), target="server", size=40)
    log.add("AuxHandled", id=named(2), target="server", size=40, reply=False)  # nothing was told
    (row,) = log.rows()
    assert (row["id"], row["size"], row["outcome"]) == (named(1), 40, "answer")


def test_what_stays_within_the_site_did_not_leave_it() -> None:
    log = Log()
    log.add("AuxRequested", "job/j", id=named(1), target="site-1.j")
    log.add("AuxHandled", "job/j", id=named(2), target="site-1")
    log.add("AuxRequested", id=named(3), target="site-10")  # another site, though its name begins alike
    assert [row["target"] for row in log.rows()] == ["site-10"]


def test_it_can_be_asked_by_job_and_by_time() -> None:
    log = Log()
    log.add("AuxRequested", "job/one", ms=1000, id=named(1))
    log.add("AuxRequested", "job/two", ms=2000, id=named(2))
    log.add("AuxRequested", ms=3000, id=named(3))
    assert [row["id"] for row in log.rows(job="one")] == [named(1)]
    assert [row["id"] for row in log.rows(since=2000)] == [named(2), named(3)]


def test_each_row_says_whether_its_run_had_the_network() -> None:
    log = Log()
    log.add("AppSpawned", "job/one", network="none")
    log.add("AuxRequested", "job/one", id=named(1))
    log.add("AppSpawned", "job/one", attempt=2, network="open")
    log.add("AuxRequested", "job/one", id=named(2))
    log.add("AuxRequested", id=named(3))
    assert [row["network"] for row in log.rows()] == ["none", "open", None]


def test_sums_count_what_was_not_sent_apart() -> None:
    log = Log()
    for number, end in enumerate(["AuxReplied", "AuxReplied", "AuxFailed", None]):
        log.add("AuxRequested", "job/one", id=named(number), topic="t", size=10)
        if end == "AuxReplied":
            log.add("SendStarted", ids=[named(number)])
        if end:
            fields = {"code": "target_unreachable"} if end == "AuxFailed" else {}
            log.add(end, "job/one", id=named(number), **fields)
    log.add("AuxRequested", id=named(9), topic="other", size=7, target="site-2")
    log.add("SendStarted", ids=[named(9)])
    log.add("AuxOutcomeUnknown", id=named(9))
    assert totals(log.rows()) == [
        {"target": "server", "topic": "t", "job": "one", "messages": 2, "bytes": 20, "not_sent": 2},
        {"target": "site-2", "topic": "other", "job": None, "messages": 1, "bytes": 7, "not_sent": 0},
    ]

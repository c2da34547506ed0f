"""L9 for questions to a job's process: what cannot be asked raises or is told by its code, and is on the record."""

from __future__ import annotations

import time
from typing import Any

import pytest

from engine.cell.fabric import Fabric
from engine.cell.message import CellReturnCode, Message
from engine.client_engine import ClientEngine
from engine.errors import ArgumentInvalid, JobIdInvalid
from tests.integration.test_aux import Since
from tests.integration.test_messages_bad_input import nobody_at_the_servers, refused_only, since, site

__all__ = ["nobody_at_the_servers", "since", "site"]  # fixtures
TO_JOB: list[tuple[str, dict[str, Any], type[Exception]]] = [
    ("a path for a job", {"job_id": "../x"}, JobIdInvalid),
    ("no job", {"job_id": None}, JobIdInvalid),
    ("an empty job", {"job_id": ""}, JobIdInvalid),
    ("no message", {"msg": "text"}, ArgumentInvalid),
    ("no timeout", {"timeout": None}, ArgumentInvalid),
    ("a negative timeout", {"timeout": -1}, ArgumentInvalid),
    ("an endless timeout", {"timeout": float("inf")}, ArgumentInvalid),
]


@pytest.mark.parametrize(("case", "change", "kind"), TO_JOB, ids=[case for case, *_ in TO_JOB])
def test_L9_what_cannot_be_asked_of_a_job_raises(
    site: ClientEngine,
    since: Since,
    nobody_at_the_servers: Fabric,
    case: str,
    change: dict[str, Any],
    kind: type[Exception],
) -> None:
    given = {"job_id": "job", "channel": "c", "topic": "t", "msg": Message(), "timeout": 0.3, **change}

    def call() -> None:
        with pytest.raises(kind):
            site.send_to_job(**given)

    _, event = refused_only(site, since, nobody_at_the_servers, call, "send_to_job")
    assert event.body["code"] in ("JOB_ID_INVALID", "ARGUMENT_INVALID")


def test_L9_a_job_that_nobody_knows_is_unreachable_and_gets_no_record_of_its_own(
    site: ClientEngine, since: Since, nobody_at_the_servers: Fabric
) -> None:
    began = time.monotonic()
    answer, event = refused_only(
        site,
        since,
        nobody_at_the_servers,
        lambda: site.send_to_job("nobody", "c", "t", Message(), 5.0),
        "send_to_job",
    )
    assert time.monotonic() - began < 3
    assert answer.return_code == CellReturnCode.TARGET_UNREACHABLE
    assert (event.body["code"], event.subject) == ("JOB_UNKNOWN", "site")
    assert site.site.jobs.consistent() is None

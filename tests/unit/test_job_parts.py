"""Parts of a job's process: its grant, metrics, the errors it keeps, its signal, and what it has for an engine."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.component import FLComponent
from engine.constants import EventType, FLContextKey, ProcessType
from engine.context import FLContext
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid
from engine.job.engine import JobEngine
from engine.job.executor import Executor
from engine.job.grant import MOST, Grant, new_run_key, signed_by, statement
from engine.job.kept_errors import CUT, ROOM, KeptErrors
from engine.job.metrics import NAME, metrics
from engine.job.signal import Signal
from engine.shareable import Shareable
from workers.launch import pipe_with

SECRET, PUBLIC = new_run_key()


def grant(**keys: Any) -> Grant:
    given: dict[str, Any] = {"job": "j", "attempt": 2, "server": "server", "run_key": SECRET, "settings": {}}
    return Grant(**{**given, **keys})


# -- grant ---------------------------------------------------------------------------------------------


def test_a_grant_goes_through_a_pipe_and_closes_it() -> None:
    given = grant(settings={"workspace": "/tmp/ä", "workers": 3, "network": "none", "x": None})
    fd = pipe_with(given.encode())
    assert Grant.read(fd) == given
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_where_nothing_is_granted_there_is_no_pipe() -> None:
    assert pipe_with(b"") == -1


@pytest.mark.parametrize("raw", [b"", b"garbage", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"job": "j"}', b"7"])
def test_what_is_no_grant_is_refused_and_its_descriptor_closed(raw: bytes) -> None:
    reading, writing = os.pipe()
    os.write(writing, raw)
    os.close(writing)
    with pytest.raises((ValueError, TypeError)):
        Grant.read(reading)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)


def test_a_grant_that_does_not_fit_into_a_pipe_is_not_handed_on_in_part() -> None:
    given = grant(settings={"x": "y" * (2 * MOST)})
    try:
        fd = pipe_with(given.encode())
    except (OSError, ValueError):
        return
    os.close(fd)
    raise AssertionError("the launcher hands on what the job's process cannot read")


def test_L6_a_grant_that_is_printed_or_logged_does_not_show_its_key() -> None:
    assert SECRET not in repr(grant())
    assert SECRET not in str(grant())


def test_only_what_the_run_has_signed_is_its_own() -> None:
    said = grant().sign(2)
    assert (said["job"], said["attempt"], said["status"]) == ("j", 2, 2)
    assert SECRET not in json.dumps(said)
    signature = said["signature"]
    assert signed_by(PUBLIC, "j", 2, 2, signature)
    other_public = new_run_key()[1]
    for key, job, attempt, status, sign in [
        (other_public, "j", 2, 2, signature),
        (PUBLIC, "k", 2, 2, signature),
        (PUBLIC, "j", 1, 2, signature),
        (PUBLIC, "j", 3, 2, signature),
        (PUBLIC, "j", 2, 3, signature),
        (PUBLIC, "j", 2, 2, signature[:-2]),
        (PUBLIC, "j", 2, 2, "00" * 64),
        (PUBLIC, "j", 2, 2, ""),
        (PUBLIC, "j", 2, 2, "no hex"),
        ("", "j", 2, 2, signature),
        ("00", "j", 2, 2, signature),
        ("no hex", "j", 2, 2, signature),
    ]:
        assert not signed_by(key, job, attempt, status, sign), (key, job, attempt, status, sign)


def test_two_statements_never_read_the_same() -> None:
    said = {
        statement(job, attempt, status) for job in ("1", "1,", "a", 'a"') for attempt in (1, 11) for status in (2, 3)
    }
    assert len(said) == 16


def test_each_run_has_a_key_of_its_own() -> None:
    keys = {key for _ in range(20) for key in new_run_key()}
    assert len(keys) == 40
    assert {len(key) for key in keys} == {64}


# -- metrics -------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLIGHTLOG_RUN_DIR", str(tmp_path))
    return tmp_path / NAME


def strict(path: Path) -> list[dict[str, Any]]:
    """The rows, as a reader sees them that knows JSON and nothing else."""

    def no(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=no) for line in path.read_text().splitlines()]


def test_a_row_has_its_values_and_the_time(rows: Path) -> None:
    before = time.time()
    metrics(round=1, loss=0.5, name="a\nb", by=[1, 2], deep={"x": None})
    metrics()
    first, second = strict(rows)
    assert before - 0.01 <= first.pop("time") <= time.time() + 0.01
    assert first == {"round": 1, "loss": 0.5, "name": "a\nb", "by": [1, 2], "deep": {"x": None}}
    assert set(second) == {"time"}


def test_numbers_of_numpy_are_numbers(rows: Path) -> None:
    metrics(a=np.float32(0.5), b=np.int64(3), c=np.array([1, 2]), d=np.bool_(True))
    (row,) = strict(rows)
    assert (row["a"], row["b"], row["c"], row["d"]) == (0.5, 3, [1, 2], True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_does_not_leave_a_line_that_is_no_json(rows: Path, value: float) -> None:
    try:
        metrics(loss=value)
    except (TypeError, ValueError):
        assert not rows.exists()
    else:
        assert len(strict(rows)) == 1


@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), lambda: 1])
def test_L9_what_is_no_json_is_refused_and_leaves_no_row(rows: Path, value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be a metric"):
        metrics(x=value)
    assert not rows.exists()


def test_L9_a_process_that_nobody_launched_has_no_place_for_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLIGHTLOG_RUN_DIR", raising=False)
    with pytest.raises(KeyError, match="FLIGHTLOG_RUN_DIR"):
        metrics(x=1)


def _write_rows(who: int) -> None:
    for number in range(50):
        metrics(who=who, number=number, padding="p" * 3000)


def test_rows_of_several_processes_do_not_mix(rows: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_rows, args=(who,)) for who in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    found = strict(rows)
    assert sorted((row["who"], row["number"]) for row in found) == [(w, n) for w in range(3) for n in range(50)]


# -- kept errors ---------------------------------------------------------------------------------------


@pytest.fixture
def kept() -> Iterator[tuple[KeptErrors, logging.Logger]]:
    handler, logger = KeptErrors(), logging.getLogger("tests.kept")
    logger.addHandler(handler)
    logger.propagate = False
    yield handler, logger
    logger.removeHandler(handler)
    logger.propagate = True


def test_errors_are_kept_with_what_was_raised_and_less_is_not(kept: tuple[KeptErrors, logging.Logger]) -> None:
    handler, log = kept
    log.warning("no")
    log.error("rows: %d", 3)
    try:
        raise ValueError("no such column")
    except ValueError:
        log.exception("task failed")
    assert [(e["logger"], e["message"]) for e in handler.all()] == [
        ("tests.kept", "rows: 3"),
        ("tests.kept", "task failed (ValueError: no such column)"),
    ]
    assert abs(handler.all()[0]["time"] - time.time()) < 60
    handler.reset()
    assert handler.all() == []


def test_only_the_last_errors_are_kept_and_none_is_longer_than_it_may_be(
    kept: tuple[KeptErrors, logging.Logger],
) -> None:
    handler, log = kept
    for number in range(ROOM + 7):
        log.error("%d %s", number, "x" * (2 * CUT))
    found = handler.all()
    assert len(found) == ROOM
    assert found[0]["message"].startswith("7 ")
    assert {len(each["message"]) for each in found} == {CUT}


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


def test_a_log_call_that_is_itself_wrong_does_not_raise_in_the_app() -> None:
    handler = KeptErrors()  # by itself: pytest's own handler raises on purpose

    def logged(message: str, *args: object, exc_info: Any = None) -> None:
        handler.handle(logging.LogRecord("tests.kept", logging.ERROR, __file__, 1, message, args, exc_info))

    logged("%d rows", "many")
    try:
        raise Unprintable
    except Unprintable:
        logged("task failed", exc_info=sys.exc_info())
    logged("and on")
    assert handler.all()[-1]["message"] == "and on"


# -- signal --------------------------------------------------------------------------------------------


def test_a_signal_is_set_once_and_for_all_and_wakes_who_waits() -> None:
    signal = Signal()
    assert not signal.triggered
    assert signal.wait(0) is False
    woken: list[bool] = []
    waiter = threading.Thread(target=lambda: woken.append(signal.wait(30)))
    waiter.start()
    signal.trigger("server")
    waiter.join(5)
    assert woken == [True]
    assert signal.triggered
    assert signal.value == "server"


# -- the job's engine ----------------------------------------------------------------------------------


class Hears(FLComponent):
    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        self.heard.append((event_type, fl_ctx.get_engine()))
        if event_type == "bad":
            raise ValueError("a handler that fails")


def engine(**components: Any) -> JobEngine:
    return JobEngine("site-1", "job-1", "/ws", components, "server")


def test_a_jobs_context_says_where_it_is_and_leads_to_its_engine() -> None:
    mine = engine(data=7)
    ctx = mine.new_context()
    assert ctx.get_engine() is mine
    assert ctx.get_job_id() == "job-1"
    assert ctx.get_identity_name() == "site-1"
    assert ctx.get_prop(FLContextKey.PROCESS_TYPE) == ProcessType.CLIENT_JOB
    assert ctx.get_prop(FLContextKey.WORKSPACE_ROOT) == "/ws"
    assert mine.get_client_name() == "site-1"
    assert mine.get_component("data") == 7
    assert mine.get_component("nothing") is None


def test_a_sites_folder_is_not_told_to_peers() -> None:
    assert "/ws" not in json.dumps(engine().new_context().get_all_public_props(), default=str)


def test_components_hear_events_in_order_and_one_that_fails_does_not_keep_them_from_the_next() -> None:
    first, second, third = Hears(), Hears(), Hears()
    mine = engine(first=first, number=7, second=second)
    mine.add_component("third", third)
    mine.hear(second)
    for event in (EventType.START_RUN, "bad"):
        mine.fire_event(event, mine.new_context())
    for each in (first, second, third):
        assert each.heard == [(EventType.START_RUN, mine), ("bad", mine)]


def test_a_component_that_compares_equal_to_another_hears_events_as_well() -> None:
    class Equal(Hears):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

        __hash__ = None  # type: ignore[assignment]

    mine, late = engine(first=Equal()), Equal()
    mine.add_component("late", late)
    mine.fire_event("e", mine.new_context())
    assert late.heard


def test_L9_a_component_id_that_is_taken_or_no_text_changes_nothing() -> None:
    mine, late = engine(data=7), Hears()
    with pytest.raises(ArgumentInvalid, match="duplicate component id data"):
        mine.add_component("data", late)
    with pytest.raises(ArgumentTypeInvalid, match="component id must be str"):
        mine.add_component(7, late)  # type: ignore[arg-type]
    mine.fire_event("e", mine.new_context())
    assert late.heard == []
    assert mine.get_component("data") == 7


def test_before_the_job_has_its_cell_a_message_is_refused_with_what_to_do() -> None:
    mine = engine()
    for call in (
        lambda: mine.send_aux_request("t", Shareable(), 1.0, mine.new_context()),
        lambda: mine.fire_and_forget_aux_request("t", Shareable(), mine.new_context()),
        lambda: mine.register_aux_message_handler("t", lambda **_: Shareable()),
    ):
        with pytest.raises(ArgumentInvalid) as caught:
            call()
        assert "START_RUN" in caught.value.fix


def test_an_executor_that_says_nothing_is_asked_in_vain() -> None:
    with pytest.raises(NotImplementedError):
        Executor().execute("t", Shareable(), FLContext(), Signal())

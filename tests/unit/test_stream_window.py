"""The window: what may be under way, who is how far, who takes too long. Told the time, it needs none."""

from __future__ import annotations

import pytest

from engine.constants import ReturnCode
from engine.shareable import Shareable, make_reply
from engine.streaming.window import Flying, Window

A, B = "server", "site-2"


def window(*targets: str, objects: int = 3, stall: float = 60.0) -> Window:
    return Window(targets or (A,), objects, stall, now=0.0)


def sent(one: Window, size: int = 10, timeout: float = 5.0, at: float = 0.0) -> Flying:
    flying = Flying(one.made, {str(one.made): bytes(size)}, size, timeout, at)
    one.add(flying)
    return flying


def ok() -> Shareable:
    return make_reply(ReturnCode.OK)


def test_so_many_objects_may_be_under_way_and_no_more() -> None:
    one = window(objects=3)
    for _ in range(3):
        assert one.room(1000, one=False)
        sent(one)
    assert not one.room(1000, one=False)
    one.take(A, 0, ok(), 1.0)
    list(one.complete())
    assert one.room(1000, one=False)


def test_so_many_bytes_may_be_under_way_but_one_object_always() -> None:
    one = window(objects=100)
    assert one.room(1, one=False)
    sent(one, size=50)
    assert one.room(51, one=False)
    assert not one.room(50, one=False)


def test_who_stops_and_waits_has_one_under_way() -> None:
    one = window()
    assert one.room(1000, one=True)
    sent(one)
    assert not one.room(1000, one=True)


def test_replies_are_given_in_order_and_once_however_they_come() -> None:
    one = window()
    for _ in range(3):
        sent(one)
    one.take(A, 2, ok(), 1.0)
    one.take(A, 1, ok(), 1.0)
    assert list(one.complete()) == []
    one.take(A, 0, ok(), 1.0)
    assert [f.seq for f in one.complete()] == [0, 1, 2]
    assert not one.take(A, 0, ok(), 1.0)
    assert list(one.complete()) == []


def test_the_slowest_target_sets_the_pace() -> None:
    one = window(A, B)
    sent(one)
    one.take(A, 0, ok(), 1.0)
    assert list(one.complete()) == []
    one.take(B, 0, ok(), 2.0)
    assert [set(f.replies) for f in one.complete()] == [{A, B}]


def test_a_target_that_failed_is_said_so_by_name_for_this_object_and_all_that_follow() -> None:
    one = window(A, B)
    sent(one)
    one.take(A, 0, ok(), 1.0)
    one.fail(B, ReturnCode.TIMEOUT, "no reply")
    sent(one)
    one.take(A, 1, ok(), 1.0)
    codes = [{name: reply.get_return_code() for name, reply in f.replies.items()} for f in one.complete()]
    assert codes == [{A: "OK", B: "TIMEOUT"}, {A: "OK", B: "TIMEOUT"}]
    assert one.alive == [A]
    assert not one.take(B, 1, ok(), 2.0)
    assert one.targets[B].left == 10  # of two objects it was handed one


@pytest.mark.parametrize(("now", "late"), [(4.9, False), (5.1, True)])
def test_an_object_that_is_not_answered_within_its_time_is_overdue(now: float, late: bool) -> None:
    one = window()
    sent(one, timeout=5.0)
    assert bool(list(one.overdue(now))) is late


def test_a_transfer_that_progresses_is_never_overdue() -> None:
    one = window(objects=100)
    for _ in range(50):
        sent(one, timeout=5.0, at=0.0)
    for seq in range(49):
        one.take(A, seq, ok(), seq * 4.0)
        assert not list(one.overdue(seq * 4.0 + 3.9))
    ((name, why),) = one.overdue(48 * 4.0 + 5.1)
    assert (name, "object 49" in why) == (A, True)


def test_a_stall_ends_what_a_long_timeout_would_not() -> None:
    one = window(stall=2.0)
    sent(one, timeout=3600.0)
    assert not list(one.overdue(1.9))
    ((_, why),) = one.overdue(2.1)
    assert why.startswith("stalled")


def test_each_target_has_its_own_time() -> None:
    one = window(A, B)
    sent(one, timeout=5.0)
    sent(one, timeout=5.0)
    one.take(A, 0, ok(), 4.0)
    assert [name for name, _ in one.overdue(6.0)] == [B]


def test_what_nobody_waits_for_is_not_taken() -> None:
    one = window()
    sent(one)
    assert not one.take("stranger", 0, ok(), 1.0)
    assert not one.take(A, 7, ok(), 1.0)


def test_an_object_that_was_altered_counts_for_each_target_that_read_it() -> None:
    one = window(A, B)
    flying = sent(one)
    for _ in range(3):
        flying.rewrites[A] += 1
    assert (flying.rewrites[A], flying.rewrites[B]) == (3, 0)

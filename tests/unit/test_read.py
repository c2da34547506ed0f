"""Reading the log: whole, in pages, forward and backward, while it grows."""

from __future__ import annotations

import pytest

from engine.jobs import Jobs
from events.read import at, count, last_position, read, read_back, read_job
from events.store import Store
from tests.histories import body
from tests.support import fake_store, new_call

SIZES = [0, 1, 2, 3, 4, 5, 6, 7]
PAGES = [1, 2, 3, 6, 7, 1000]


def a_log(size: int) -> tuple[Store, Jobs]:
    """A site with ``size`` events of job j, each followed by one of another subject."""
    store = fake_store()
    jobs = Jobs(store)
    for number in range(size):
        more(jobs, number)
    return store, jobs


def more(jobs: Jobs, number: int) -> None:
    """One more event of job j, and one of the site or of another job."""
    jobs.note(new_call(), [body("CallRefused", message=str(number))], "j")
    jobs.note(new_call(), [body("CallRefused", message=f"-{number}")], "k" if number % 2 else None)


def messages(events) -> list[str]:
    """What tells events apart."""
    return [event.body["message"] for event in events]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("size", SIZES)
def test_the_site_is_read_whole_forward_and_backward_with_any_page(size, page):
    store, _ = a_log(size)
    told = [text for number in range(size) for text in (str(number), f"-{number}")]
    assert messages(read(store, page=page)) == told
    assert messages(read_back(store, page=page)) == told[::-1]
    assert count(store) == len(told)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("size", SIZES)
def test_a_job_is_read_whole_forward_and_backward_with_any_page(size, page):
    store, _ = a_log(size)
    told = [str(number) for number in range(size)]
    assert messages(read_job(store, "j", page=page)) == told
    assert messages(read_job(store, "j", page=page, backward=True)) == told[::-1]
    assert list(read_job(store, "nobody", page=page)) == []


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("after", [0, 1, 2, 5, 6, 7, 9])
def test_a_job_is_read_from_a_version_on(after, page):
    store, _ = a_log(7)
    told = [str(number) for number in range(after, 7)]
    assert messages(read_job(store, "j", after=after, page=page)) == told
    assert messages(read_job(store, "j", after=after, page=page, backward=True)) == told[::-1]
    assert [event.version for event in read_job(store, "j", after=after, page=page)] == list(range(after + 1, 8))


@pytest.mark.parametrize("page", PAGES)
def test_the_site_is_read_between_positions(page):
    store, _ = a_log(4)
    events = list(read(store))
    for i, event in enumerate(events):
        assert list(read(store, after=event.position, page=page)) == events[i + 1 :]
        assert list(read(store, upto=event.position, page=page)) == events[: i + 1]
        assert list(read_back(store, before=event.position, page=page)) == events[:i][::-1]
    assert list(read(store, after=events[2].position, upto=events[5].position, page=page)) == events[3:6]


@pytest.mark.parametrize("page", [1, 2, 3, 100])
def test_l7_events_that_come_while_the_site_is_read_are_read_too_each_once(page):
    store, jobs = a_log(3)
    seen = []
    for event in read(store, page=page):
        seen.append(event)
        if len(seen) <= 4:
            more(jobs, 10 + len(seen))
    whole = list(read(store))
    assert seen == whole[: len(seen)], "an event was read twice, or one was left out"
    assert len(seen) >= 6, "not even what stood there was read"
    if page < 6:
        assert len(seen) == 14


@pytest.mark.parametrize("page", [1, 2, 3, 100])
def test_l7_a_job_that_is_read_while_it_grows_is_read_without_a_gap_or_a_double(page):
    store, jobs = a_log(5)
    for backward in (False, True):
        size = count_of(store)
        seen = []
        for event in read_job(store, "j", page=page, backward=backward):
            seen.append(event.version)
            more(jobs, 20)
        expected = list(range(1, size + 1))
        assert seen == (expected[::-1] if backward else expected)


def count_of(store: Store) -> int:
    """How many events job j has."""
    return sum(1 for event in read(store) if event.subject == "job/j")


@pytest.mark.parametrize("page", [1, 2, 100])
def test_what_comes_while_the_site_is_read_backward_is_not_of_that_reading(page):
    store, jobs = a_log(3)
    before = list(read_back(store))
    seen = []
    for event in read_back(store, page=page):
        seen.append(event)
        more(jobs, 30)
    assert seen == before


def test_events_are_fetched_by_position_in_the_order_asked_for_and_those_gone_are_left_out():
    store, _ = a_log(3)
    events = list(read(store))
    asked = [events[4].position, events[0].position, "1-1", events[2].position]
    assert at(store, asked) == [events[4], events[0], events[2]]
    assert at(store, []) == []


def test_the_end_of_the_log_is_its_last_position():
    store, jobs = a_log(0)
    assert last_position(store) == "0-0"
    assert list(read(store)) == []
    more(jobs, 1)
    assert last_position(store) == list(read(store))[-1].position

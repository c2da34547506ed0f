"""L2 and L3 for messages: whatever was asked, begun and closed, the log alone gives back all that waits."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cell.lanes import Lanes, Step
from engine.jobs import Jobs
from engine.rebuild import rebuild_site
from events.append import WorkRefused
from events.read import count, read
from events.store import Store
from tests.histories import body, live_works
from tests.support import check_record, fake_store, new_call, replayed, until
from tests.unit.test_messages import LANE, OUTCOMES, ask, begin, end, flying, fresh, lived, outbox

TARGETS = ("server", "site-2.job")
STEPS = st.lists(st.integers(0, 10**6), min_size=1, max_size=30)


def step_of(lanes: Lanes, lane: str, token: str, lease: float, how: Any = "GO", **more: Any) -> Step:
    """A step of a drain on this host."""
    return lanes.step(lane, token, "h:1:2", lease, how, **more)


class Traffic:
    """Plays a random history of messages: asked for, begun by one drain or another, closed by whoever is first."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.jobs = Jobs(store)
        self.lanes = Lanes(store)
        self.job_of: dict[str, str | None] = {}
        lived(self.jobs, "j")

    def step(self, number: int) -> None:
        draw = random.Random(number)
        draw.choice([self.ask, self.ask, self.begin, self.end, self.end_twice, self.forge])(draw)

    def ask(self, draw: random.Random) -> None:
        job = draw.choice([None, "j"])
        transport = draw.choice(["lane", "lane", "lane", "cell"])
        message = ask(
            self.jobs,
            job,
            target=draw.choice(TARGETS),
            reply=draw.random() < 0.7,
            transport=transport,
            deadline=draw.choice([0.001, 60.0]),
        )
        self.job_of[message] = job

    def begin(self, draw: random.Random) -> None:
        lane, token = f"aux:{draw.choice(TARGETS)}", draw.choice("ab")
        step = step_of(self.lanes, lane, token, 0.0, most=draw.randint(1, 4))
        if step.word == "OK" and step.ids:
            ids = [w.id for w in step.ids if w.deadline is not None]
            try:
                begin(self.jobs, lane, token, ids, len(step.ids))
            except WorkRefused:  # the append has rebuilt what derives from the log: the lane is nobody's now
                assert not self.store.client.exists(self.store.keys.lane(lane))

    def end(self, draw: random.Random) -> str | None:
        names = sorted(name.removeprefix("aux_") for name, w in self.jobs.open_work() if w["kind"] == "aux")
        if not names:
            return None
        message = draw.choice(names)
        end(self.jobs, message, draw.choice(sorted(OUTCOMES)), self.job_of[message])
        return message

    def end_twice(self, draw: random.Random) -> None:
        message = self.end(draw)
        if message is not None:
            before = count(self.store)
            with pytest.raises(WorkRefused):
                end(self.jobs, message, draw.choice(sorted(OUTCOMES)), self.job_of[message])
            assert count(self.store) == before

    def forge(self, draw: random.Random) -> None:
        """A drain that has lost its lane takes nothing any more."""
        lane = f"aux:{draw.choice(TARGETS)}"
        with pytest.raises(WorkRefused):
            begin(self.jobs, lane, "lapsed long ago", [fresh()], 1)


def picture(store: Store) -> dict[str, Any]:
    """All that waits, as it matters: what is closed may still lie in a lane, and is never sent."""
    works = live_works(store)
    lanes = {f"aux:{target}" for target in TARGETS}
    waiting = {lane: [m for m in outbox(store, lane) if f"aux_{m}" in works] for lane in lanes}
    begun = {lane: {m for m in flying(store, lane) if f"aux_{m}" in works} for lane in lanes}
    return {"works": works, "waiting": waiting, "begun": begun, "job": store.client.hgetall(store.keys.job("j"))}


def played(steps: list[int]) -> Traffic:
    traffic = Traffic(fake_store())
    for number in steps:
        traffic.step(number)
    return traffic


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_L2_outboxes_flying_and_open_work_come_back_from_the_log_alone(steps: list[int]) -> None:
    traffic = played(steps)
    store = traffic.store
    before = picture(store)
    for name in store.client.keys(f"{store.keys.prefix}*"):
        if not name.endswith(":log"):
            store.client.delete(name)
    rebuild_site(store)
    after = picture(store)
    assert after == before
    named = store.client.smembers(store.keys.lanes)
    assert named == {lane for lane in after["waiting"] if after["waiting"][lane] or after["begun"][lane]}
    assert traffic.jobs.consistent() is None
    for lane, waits in after["waiting"].items():
        assert outbox(store, lane) == waits, "something closed came back"
        assert flying(store, lane) == after["begun"][lane]


@settings(max_examples=40, deadline=None)
@given(STEPS, STEPS)
def test_L2_a_history_goes_on_after_a_rebuild_as_if_there_had_been_none(steps: list[int], more: list[int]) -> None:
    traffic = played(steps)
    traffic.store.client.delete(traffic.store.keys.heads)
    for number in more:
        traffic.step(number)
    check_record(traffic.store)
    before = picture(traffic.store)
    traffic.jobs.rebuild("a test")
    assert picture(traffic.store) == before


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_L1_in_every_history_a_message_is_open_or_has_one_outcome_and_waits_or_is_begun(steps: list[int]) -> None:
    traffic = played(steps)
    store = traffic.store
    events = check_record(store)
    asked = [e.body["id"] for e in events if e.type == "AuxRequested"]
    ended = [e.body["id"] for e in events if e.type in OUTCOMES]
    assert len(ended) == len(set(ended))
    works = live_works(store)
    assert {f"aux_{m}" for m in asked} - {f"aux_{m}" for m in ended} == set(works)
    now = picture(store)
    places = [m for lane in now["waiting"].values() for m in lane] + [m for s in now["begun"].values() for m in s]
    assert sorted(places) == sorted(m.removeprefix("aux_") for m, w in works.items() if w["transport"] == "lane")
    assert store.client.hgetall(store.keys.job("j")) == replayed(store, "j")


# -- lanes, on a real server ----------------------------------------------------------------------------------


def test_a_lane_has_one_owner_until_its_lease_is_over(real_store: Store) -> None:
    jobs, lanes = Jobs(real_store), Lanes(real_store)
    message = ask(jobs, deadline=60.0, attempts=3)
    step = step_of(lanes, LANE, "one", 2.0)
    assert (step.word, step.waiting, step.flying) == ("OK", 1, ())
    (waits,) = step.ids
    assert (waits.id, waits.attempts, waits.max, waits.reply) == (message, 0, 3, True)
    assert waits.deadline is not None
    assert 0 < waits.deadline - step.now <= 60_000
    assert step_of(lanes, LANE, "other", 2.0).word == "HELD"
    assert step_of(lanes, LANE, "one", 2.0).word == "OK"
    until(lambda: step_of(lanes, LANE, "other", 5.0).word == "OK", 10)
    assert step_of(lanes, LANE, "one", 5.0).word == "HELD"
    with pytest.raises(WorkRefused):
        begin(jobs, LANE, "one", [message], 1)


def test_a_new_owner_is_told_what_the_one_before_had_begun_and_an_owner_is_not_told_of_its_own(
    real_store: Store,
) -> None:
    jobs, lanes = Jobs(real_store), Lanes(real_store)
    first, second, third = (ask(jobs) for _ in range(3))
    step_of(lanes, LANE, "one", 0.01)
    begin(jobs, LANE, "one", [first, second, third], 3)
    assert step_of(lanes, LANE, "one", 0.01, through=[first]).flying == ()
    end(jobs, second, "AuxFailed")
    step = until(lambda: s if (s := step_of(lanes, LANE, "two", 5.0)).word == "OK" else None, 3)
    told = {w.id: w for w in step.flying}
    assert told.keys() == {second, third}
    assert told[second].deadline is None, "it is closed: nothing is to be sent"
    assert (told[third].attempts, told[third].reply) == (1, True)
    assert step_of(lanes, LANE, "two", 5.0, through=[second, third]).flying == ()
    assert step_of(lanes, LANE, "two", 5.0, "LEAVE").word == "LEFT"
    assert lanes.names() == []
    assert not real_store.client.exists(real_store.keys.lane(LANE))


def test_an_owner_leaves_only_an_empty_lane_and_hands_over_a_full_one(real_store: Store) -> None:
    jobs, lanes = Jobs(real_store), Lanes(real_store)
    assert step_of(lanes, LANE, "one", 5.0).word == "OK"
    message = ask(jobs)
    step = step_of(lanes, LANE, "one", 5.0, "LEAVE")
    assert (step.word, [w.id for w in step.ids]) == ("OK", [message])
    handed = step_of(lanes, LANE, "one", 5.0, "HAND")
    assert (handed.word, handed.waiting) == ("HANDED", 1)
    assert lanes.lonely(LANE, real_store.now_ms()) == ""
    assert not jobs.note(new_call(), [body("AuxRequested", id=fresh())]).ring, "whoever handed it over rings"
    assert step_of(lanes, LANE, "two", 5.0).word == "OK"
    assert lanes.lonely(LANE, real_store.now_ms()) is None


def test_what_was_closed_meanwhile_is_not_sent_and_does_not_keep_a_lane_open(real_store: Store) -> None:
    jobs, lanes = Jobs(real_store), Lanes(real_store)
    messages = [ask(jobs) for _ in range(4)]
    for index in (0, 1, 3):
        end(jobs, messages[index], "AuxFailed")
    step = step_of(lanes, LANE, "one", 5.0)
    assert [(w.id, w.deadline is None) for w in step.ids] == [(messages[2], False), (messages[3], True)]
    begin(jobs, LANE, "one", [messages[2]], 2)
    assert step_of(lanes, LANE, "one", 5.0, "LEAVE", through=[messages[2]]).word == "LEFT"


def test_a_lane_whose_owner_stalls_is_lonely_and_names_who_held_it(real_store: Store) -> None:
    jobs, lanes = Jobs(real_store), Lanes(real_store)
    ask(jobs)
    assert lanes.lonely(LANE, real_store.now_ms()) == ""
    step_of(lanes, LANE, "one", 1.0)
    assert lanes.lonely(LANE, real_store.now_ms()) is None
    assert until(lambda: lanes.lonely(LANE, real_store.now_ms()), 10) == "h:1:2"


def test_a_step_looks_at_so_many_and_no_more(real_store: Store) -> None:
    jobs, lanes = Jobs(real_store), Lanes(real_store)
    messages = [ask(jobs) for _ in range(5)]
    step = step_of(lanes, LANE, "one", 5.0, most=3)
    assert ([w.id for w in step.ids], step.waiting) == (messages[:3], 5)


def test_L1_nothing_that_is_pushed_is_forgotten_by_drains_that_come_and_go(real_store: Store) -> None:
    # Who pushes rings only where told to; who drains leaves an empty lane. Nobody else ever looks.
    jobs, lanes = Jobs(real_store), Lanes(real_store)
    bells: list[int] = []
    begun: list[str] = []
    failed: list[BaseException] = []
    over = threading.Event()

    def pushes(number: int) -> None:
        draw = random.Random(number)
        try:
            for _ in range(60):
                if jobs.note(new_call(), [body("AuxRequested", id=fresh())]).ring:
                    bells.append(1)
                time.sleep(draw.choice([0, 0, 0.002]))
        except BaseException as error:
            failed.append(error)

    def drains(token: str) -> None:
        try:
            while not over.is_set():
                try:
                    bells.pop()
                except IndexError:
                    time.sleep(0.0005)
                    continue
                step = step_of(lanes, LANE, token, 30.0)
                while step.word == "OK":
                    ids = [w.id for w in step.ids]
                    if ids:
                        begin(jobs, LANE, token, ids, len(ids))
                        begun.extend(ids)
                    step = step_of(lanes, LANE, token, 30.0, "GO" if ids else "LEAVE", through=ids)
        except BaseException as error:
            failed.append(error)

    pushers = [threading.Thread(target=pushes, args=(n,)) for n in range(3)]
    drainers = [threading.Thread(target=drains, args=(f"d{n}",)) for n in range(2)]
    for thread in pushers + drainers:
        thread.start()
    for thread in pushers:
        thread.join(60)
    try:
        until(lambda: failed or len(begun) == 180, 10, "a message waits, and nobody was rung for")
    finally:
        over.set()
        for thread in drainers:
            thread.join(10)
    assert failed == []
    assert begun == [e.body["id"] for e in read(real_store) if e.type == "AuxRequested"], "out of order, or twice"

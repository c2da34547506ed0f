"""Messages on the record: one outcome each, counted, and all that waits to be sent comes back from the log alone."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from engine.cell.lanes import target_of
from engine.cell.outcomes import ENDS, Outcomes, find_outcome
from engine.jobs import Jobs, Note
from events.append import NewEvent, Ops, WorkRefused
from events.bodies.base import Body
from events.envelope import Actor, Call
from events.errors import RecordDamaged
from events.read import last_position, read
from events.store import Store
from events.subjects import SITE
from tests.histories import body, event, live_works
from tests.support import check_record, fake_store, new_call, replayed
from tests.unit.test_append import everything
from workers.closing import close_all, fields_of

LANE = "aux:server"
OUTCOMES = {"AuxSent", "AuxReplied", "AuxFailed", "AuxOutcomeUnknown"}
_numbers = iter(range(10**9))


def fresh() -> str:
    """A message's id."""
    return f"{next(_numbers):032x}"


def ask(jobs: Jobs, job: str | None = None, name: str = "", **fields: Any) -> str:
    """Record that a message is to be sent; its id."""
    message = name or fresh()
    jobs.note(new_call(), [body("AuxRequested", id=message, **fields)], job)
    return message


def end(jobs: Jobs, message: str, kind: str = "AuxReplied", job: str | None = None) -> None:
    jobs.note(new_call(), [body(kind, id=message)], job)


def begin(jobs: Jobs, lane: str, token: str, messages: Sequence[str], taken: int) -> None:
    """What a drain records before bytes leave."""
    ops = Ops().take(lane, token, taken)
    for message in messages:
        ops.sending(lane, message, token, "h:1:2")
    started = body("SendStarted", lane=lane, token=token, ids=list(messages))
    jobs.note(new_call(), [started], None, ops)


def outbox(store: Store, lane: str = LANE) -> list[str]:
    found: list[str] = store.client.lrange(store.keys.outbox(lane), 0, -1)
    return found


def flying(store: Store, lane: str = LANE) -> set[str]:
    return set(store.client.smembers(store.keys.flying(lane)))


def lived(jobs: Jobs, job: str) -> None:
    """A job that is on the record."""
    for name in ("DeployRequested", "DeploySucceeded"):
        jobs.transact(new_call(), job, lambda state, name=name: [event(name, state)])


@pytest.fixture
def store() -> Store:
    return fake_store()


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return Jobs(store)


# -- work ---------------------------------------------------------------------------------------------


def test_a_request_opens_work_with_its_deadline_and_waits_in_its_targets_lane(store: Store, jobs: Jobs) -> None:
    before = store.now_ms()
    message = ask(jobs, deadline=2.5, attempts=4)
    (work,) = live_works(store).items()
    name, fields = work
    assert name == f"aux_{message}"
    asked = next(iter(read(store)))
    assert fields["position"] == asked.position
    assert int(fields["deadline"]) == int(asked.ms) + 2500
    assert int(asked.ms) >= before
    wanted = {"kind": "aux", "job": "", "max": "4", "target": "server", "reply": "1", "transport": "lane"}
    assert wanted.items() <= fields.items()
    assert outbox(store) == [message]
    assert store.client.smembers(store.keys.lanes) == {LANE}


def test_a_request_through_another_cell_opens_work_and_no_lane(store: Store, jobs: Jobs) -> None:
    ask(jobs, transport="cell", reply_key="")
    assert len(live_works(store)) == 1
    assert store.client.keys(f"{store.keys.prefix}out:*") == []
    assert store.client.exists(store.keys.lanes) == 0


def test_messages_to_one_target_share_a_lane_in_order_and_each_target_has_its_own(store: Store, jobs: Jobs) -> None:
    mine = [ask(jobs) for _ in range(5)]
    other = ask(jobs, target="site-2.job")
    assert outbox(store) == mine
    assert outbox(store, "aux:site-2.job") == [other]
    assert target_of("aux:site-2.job") == "site-2.job"


@pytest.mark.parametrize("first", sorted(OUTCOMES))
@pytest.mark.parametrize("second", sorted(OUTCOMES))
@pytest.mark.parametrize("job", [None, "j"])
def test_L1_a_message_has_one_outcome_and_the_second_changes_nothing(
    store: Store, jobs: Jobs, first: str, second: str, job: str | None
) -> None:
    lived(jobs, "j")
    message = ask(jobs, job)
    end(jobs, message, first, job)
    before = everything(store)
    with pytest.raises(WorkRefused) as caught:
        end(jobs, message, second, job)
    assert caught.value.why == "CLOSED"
    assert everything(store) == before
    assert live_works(store) == {}
    check_record(store)


def test_ENDS_are_the_events_that_close_a_message() -> None:
    assert ENDS == OUTCOMES


def test_an_outcome_without_a_request_is_refused_and_changes_nothing(store: Store, jobs: Jobs) -> None:
    ask(jobs)
    before = everything(store)
    with pytest.raises(WorkRefused):
        end(jobs, "f" * 32)
    assert everything(store) == before


def test_many_outcomes_in_one_append_are_all_recorded_or_none(store: Store, jobs: Jobs) -> None:
    lived(jobs, "j")
    first, second, third = ask(jobs), ask(jobs, "j"), ask(jobs)
    end(jobs, third)
    notes = [Note(body("AuxReplied", id=m), job) for m, job in ((first, ""), (second, "j"), (third, ""))]
    before = everything(store)
    with pytest.raises(WorkRefused):
        jobs.note_all(new_call(), notes)
    assert everything(store) == before
    jobs.note_all(new_call(), notes[:2])
    assert live_works(store) == {}
    assert [e.subject for e in list(read(store))[-2:]] == [SITE, "job/j"]


def site_of(jobs: Jobs) -> Any:
    """What closing needs of a site."""
    actor = Actor(id="flightlog:collector", kind="system")

    def system_call(step: str, *, call_id: str | None = None, role: str = "") -> Call:
        return Call(call_id=call_id or new_call().call_id, actor=actor, step=step)

    return SimpleNamespace(jobs=jobs, system_call=system_call)


def test_closing_many_leaves_out_what_has_an_outcome_and_keeps_cause_job_and_correlation(
    store: Store, jobs: Jobs
) -> None:
    lived(jobs, "j")
    site = site_of(jobs)
    open_ones = [ask(jobs), ask(jobs, "j"), ask(jobs)]
    closed, never = ask(jobs), fresh()
    known = dict(zip([closed], fields_of(site, [closed]), strict=True))
    end(jobs, closed)
    intents = {e.body["id"]: e for e in read(store) if e.type == "AuxRequested"}
    mark = last_position(store)
    outcomes: list[Body] = [body("AuxReplied", id=m) for m in (closed, open_ones[0], never, *open_ones[1:])]
    assert close_all(site, outcomes, role="collector", known=known) == 3
    new = list(read(store, after=mark))
    assert [e.body["id"] for e in new] == open_ones
    assert [e.subject for e in new] == [SITE, "job/j", SITE]
    for one in new:
        intent = intents[one.body["id"]]
        assert one.rest()["cause"] == intent.position
        assert one.rest()["correlation"] == intent.rest()["correlation"]
    assert live_works(store) == {}
    assert close_all(site, outcomes, role="collector") == 0
    assert close_all(site, [], role="collector") == 0
    check_record(store)


def test_fields_of_closed_or_unknown_messages_are_none(store: Store, jobs: Jobs) -> None:
    one, other = ask(jobs, deadline=9.0), ask(jobs)
    end(jobs, other)
    found = fields_of(site_of(jobs), [other, one, "no id at all"])
    assert (found[0], found[2]) == (None, None)
    assert found[1] is not None
    assert (found[1]["target"], found[1]["token"], found[1]["reply"]) == ("server", "", "1")


# -- counters -------------------------------------------------------------------------------------------


def test_L3_messages_of_a_job_are_counted_and_do_not_stand_in_the_way_of_its_transitions(
    store: Store, jobs: Jobs
) -> None:
    lived(jobs, "j")
    revision = jobs.load("j").revision
    for kind in ("AuxReplied", "AuxFailed", "AuxFailed", "AuxOutcomeUnknown"):
        end(jobs, ask(jobs, "j"), kind, "j")
    ask(jobs, "j")
    jobs.note(new_call(), [body("AuxReceived"), body("AuxHandled")], "j")
    ask(jobs)
    loaded = jobs.load("j")
    counted = {k: v for k, v in loaded.state.items() if k.startswith("messages")}
    assert counted == {"messages_out": "5", "messages_failed": "2", "messages_unknown": "1", "messages_in": "1"}
    assert loaded.revision == revision
    assert loaded.state == replayed(store, "j")
    check_record(store)


# -- the append's operations ------------------------------------------------------------------------------


def rung(store: Store, ago: int, lane: str = LANE) -> None:
    """As if somebody had rung for a lane so many ms ago."""
    store.client.hset(store.keys.lane(lane), "rung", store.now_ms() - ago)


def push(jobs: Jobs) -> bool:
    return jobs.note(new_call(), [body("AuxRequested", id=fresh())]).ring


def test_a_push_wants_a_bell_once_a_second_and_none_where_somebody_drains(store: Store, jobs: Jobs) -> None:
    assert push(jobs)
    assert not push(jobs)
    rung(store, ago=1500)
    assert push(jobs)
    store.client.hset(store.keys.lane(LANE), mapping={"token": "t", "until": store.now_ms() + 60_000})
    rung(store, ago=5000)
    assert not push(jobs)
    store.client.hset(store.keys.lane(LANE), "until", store.now_ms() - 1)
    assert push(jobs), "its owner's lease is over"


def test_several_pushes_of_one_append_want_one_bell_and_the_same_call_again_pushes_nothing(
    store: Store, jobs: Jobs
) -> None:
    call, messages = new_call(), [fresh() for _ in range(3)]
    bodies = [body("AuxRequested", id=m) for m in messages]
    assert jobs.note(call, bodies).ring
    again = jobs.note(call, bodies)
    assert (again.repeated, again.ring) == (True, False)
    assert outbox(store) == messages


def test_only_the_lanes_owner_takes_and_whoever_else_tries_changes_nothing(store: Store, jobs: Jobs) -> None:
    messages = [ask(jobs) for _ in range(5)]
    for owner in (None, "another"):
        if owner:
            store.client.hset(store.keys.lane(LANE), "token", owner)
        before = everything(store)
        with pytest.raises(WorkRefused) as caught:
            begin(jobs, LANE, "t", messages[:2], 2)
        assert caught.value.why == "FENCED"
        assert everything(store) == before
    store.client.hset(store.keys.lane(LANE), "token", "t")
    begin(jobs, LANE, "t", messages[:2], 2)
    assert outbox(store) == messages[2:]
    assert flying(store) == set(messages[:2])
    work = jobs.work(f"aux_{messages[0]}")
    assert (work["token"], work["claimed_by"], work["until"], work["attempts"]) == ("t", "h:1:2", "0", "1")
    begin(jobs, LANE, "t", messages[2:], 99)
    assert outbox(store) == []


def test_a_send_of_what_is_closed_begins_without_a_trace(store: Store, jobs: Jobs) -> None:
    closed, still = ask(jobs), ask(jobs)
    end(jobs, closed, "AuxFailed")
    store.client.hset(store.keys.lane(LANE), "token", "t")
    begin(jobs, LANE, "t", [closed, still], 2)
    assert flying(store) == {still}
    assert store.client.exists(store.keys.work(f"aux_{closed}")) == 0
    assert jobs.consistent() is None


@pytest.mark.parametrize("key", ["out:aux:server", "lane:aux:server", "lanes"])
def test_L7_a_push_past_a_key_of_another_type_is_refused_by_its_name_and_writes_nothing(
    store: Store, jobs: Jobs, key: str
) -> None:
    jobs.note(new_call(), [body("AgentSet")])
    store.client.set(store.keys.prefix + key, "planted")
    before = everything(store)
    with pytest.raises(RecordDamaged, match=key):
        ask(jobs)
    assert everything(store) == before


@pytest.mark.parametrize("planted", ["fly", "work", "attempts", "huge attempts"])
def test_L7_a_send_past_a_planted_key_is_refused_and_writes_nothing(store: Store, jobs: Jobs, planted: str) -> None:
    message = ask(jobs)
    store.client.hset(store.keys.lane(LANE), "token", "t")
    work = store.keys.work(f"aux_{message}")
    if planted == "fly":
        store.client.set(store.keys.flying(LANE), "planted")
    elif planted == "work":
        store.client.delete(work)
        store.client.set(work, "planted")
    else:
        store.client.hset(work, "attempts", "x" if planted == "attempts" else "9" * 19)
    before = everything(store)
    with pytest.raises(RecordDamaged):
        begin(jobs, LANE, "t", [message], 1)
    assert everything(store) == before, "an append that failed has written half of itself"


# -- outcomes ------------------------------------------------------------------------------------------------


def test_an_outcome_is_found_in_the_log_after_its_intent_only(store: Store, jobs: Jobs) -> None:
    message = fresh()
    early = jobs.log.append(new_call(), [NewEvent(SITE, body("AuxReplied", id=message))])  # of an earlier life
    ask(jobs, name=message)
    since = last_position(store)
    assert find_outcome(store, message, since) is None
    other = ask(jobs)
    end(jobs, other, "AuxFailed")
    assert find_outcome(store, message, since) is None
    end(jobs, message, "AuxOutcomeUnknown")
    found = find_outcome(store, message, since)
    assert found is not None
    assert found.type == "AuxOutcomeUnknown"
    assert found.position != early.positions[0]


def test_whoever_waits_is_told_of_their_own_outcome_and_of_nothing_else(store: Store, jobs: Jobs) -> None:
    outcomes = Outcomes()
    mine, other = ask(jobs), ask(jobs)
    expected = outcomes.expect(mine)
    end(jobs, other)
    outcomes.take(list(read(store)))
    assert expected.wait(0) is None
    end(jobs, mine, "AuxFailed")
    outcomes.take(list(read(store)))
    told = expected.wait(0)
    assert told is not None
    assert (told.type, told.body["id"]) == ("AuxFailed", mine)
    outcomes.forget(mine)
    assert outcomes._expected == {}

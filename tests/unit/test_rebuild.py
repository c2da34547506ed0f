"""L2: the log is the only truth. What derives from it can be deleted at any time and comes back as it was."""

from __future__ import annotations

import fnmatch
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.jobs import Jobs
from engine.rebuild import rebuild_site
from events.append import REMEMBERED, NewEvent
from events.envelope import Call, encode
from events.errors import CallIdReused, LogUnavailable
from events.read import count, read, read_job
from events.rebuild import DERIVED, rebuild
from events.store import Store
from events.subjects import SITE
from tests.histories import Player, body, event
from tests.support import TESTER, check_record, fake_store, new_call

STEPS = st.lists(st.integers(0, 9999), min_size=1, max_size=20)
OWN = {"@seq", "@ms", "site"}  # fields of heads that the rebuild's own event moves on


def content(store: Store) -> dict[str, Any]:
    """All that derives from the log: key -> content; without what a rebuild's own event adds."""
    client, prefix = store.client, store.keys.prefix
    reads = {
        "hash": client.hgetall,
        "list": lambda name: client.lrange(name, 0, -1),
        "zset": lambda name: dict(client.zrange(name, 0, -1, withscores=True)),
        "string": client.get,
    }
    found = {}
    for name in client.keys(f"{prefix}*"):
        short = name.removeprefix(prefix)
        if short in ("log", "lease:rebuild") or short.startswith("call:rebuild-"):
            continue
        found[short] = reads[client.type(name)](name)
    if "heads" in found:
        found["heads"] = {k: v for k, v in found["heads"].items() if k not in OWN}
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose content differs, with both contents."""
    return {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


def without_calls(values: dict[str, Any]) -> dict[str, Any]:
    """All but the remembered calls, which are compared by the answer that they give."""
    return {name: value for name, value in values.items() if not name.startswith("call:")}


def a_history(steps: list[int]) -> tuple[Store, Player]:
    """A record on which jobs have lived."""
    store = fake_store()
    player = Player(store)
    for choice in steps:
        player.step(choice)
    return store, player


def started(jobs: Jobs, job: str = "j") -> None:
    """A job whose launch waits."""
    for name in ("DeployRequested", "DeploySucceeded", "StartRequested"):
        jobs.transact(new_call(), job, lambda state, name=name: [event(name, state)])


@settings(max_examples=40, deadline=None)
@given(STEPS, st.data())
def test_l2_whatever_derived_keys_are_deleted_a_rebuild_restores_every_one_as_it_was(steps, data):
    store, player = a_history(steps)
    before = content(store)
    names = sorted(before)
    lost = data.draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
    store.client.delete(*[store.keys.prefix + name for name in lost])
    player.jobs.rebuild("a test")
    assert differences(without_calls(before), without_calls(content(store))) == {}
    assert content(store).keys() == before.keys()
    check_record(store)


@settings(max_examples=30, deadline=None)
@given(STEPS, st.data())
def test_l2_with_the_heads_deleted_the_next_load_or_append_restores_all_by_itself(steps, data):
    store, player = a_history([0, *steps])
    before = content(store)
    lost = {"heads", *data.draw(st.lists(st.sampled_from(sorted(before)), unique=True))}
    store.client.delete(*[store.keys.prefix + name for name in lost])
    if data.draw(st.booleans()):
        player.jobs.load("one")
        assert differences(without_calls(before), without_calls(content(store))) == {}
    else:
        player.jobs.note(new_call(), [body("AgentSet")])
        assert differences(without_calls(before), without_calls(content(store))) == {}
    rebuilt = [one for one in read(store) if one.type == "ProjectionRebuilt"]
    assert len(rebuilt) == 1
    assert rebuilt[0].subject == SITE
    check_record(store)


def delete(store: Store, pattern: str) -> None:
    """Delete the keys of a pattern; there must be some."""
    names = store.client.keys(store.keys.prefix + pattern)
    assert names, f"there is no {pattern}"
    store.client.delete(*names)


@pytest.mark.parametrize("pattern", ["heads", "job:*", "by:*", "by:time", "by:state:*", "open", "idx:*"])
def test_l2_one_kind_of_key_deleted_is_noticed_by_the_reconcilers_look_or_by_the_next_append(pattern):
    store = fake_store()
    jobs = Jobs(store)
    started(jobs)
    before = without_calls(content(store))
    delete(store, pattern)
    why = jobs.consistent()
    if why:
        jobs.rebuild(why)
    else:
        jobs.note(new_call(), [body("CallRepeated")], "j")
        before["job:j"]["repeats"] = "1"
        heads = before["heads"]["job/j"].split(" ")
        before["heads"]["job/j"] = f"{int(heads[0]) + 1} {heads[1]} {jobs.load('j').last}"
        before["idx:j"].append(jobs.load("j").last)
    assert differences(before, without_calls(content(store))) == {}


def test_l2_open_work_whose_hash_is_gone_is_noticed_without_an_append_that_touches_it():
    # Nobody would ever carry it out, nor expire it: whoever lists open work leaves it out.
    store = fake_store()
    jobs = Jobs(store)
    started(jobs)
    before = jobs.open_work()
    delete(store, "work:launch_j_1")
    why = jobs.consistent()
    if why:
        jobs.rebuild(why)
    assert jobs.open_work() == before


def test_l2_an_index_that_is_gone_is_noticed_by_reading_the_jobs_events_or_by_consistent():
    store = fake_store()
    jobs = Jobs(store)
    started(jobs)
    delete(store, "idx:j")
    why = jobs.consistent()
    if why:
        jobs.rebuild(why)
    assert [one.type for one in read_job(store, "j")] == ["DeployRequested", "DeploySucceeded", "StartRequested"]


def test_l2_a_projection_that_is_gone_is_noticed_by_whoever_lists_the_jobs():
    store = fake_store()
    jobs = Jobs(store)
    started(jobs)
    delete(store, "job:j")
    why = jobs.consistent()
    if why:
        jobs.rebuild(why)
    assert [(job, loaded.state.state) for job, loaded in jobs.load_many(jobs.ids())] == [("j", "starting")]


@pytest.mark.parametrize("pattern", ["heads", "by:time", "by:state:*", "open"])
def test_consistent_names_what_differs_and_is_silent_when_all_is_well(pattern):
    store = fake_store()
    jobs = Jobs(store)
    assert jobs.consistent() is None
    started(jobs)
    jobs.note(new_call(), [body("AgentSet")])
    assert jobs.consistent() is None
    delete(store, pattern)
    named = {"heads": "heads", "by:time": "job sets", "by:state:*": "job sets", "open": "open work"}[pattern]
    assert named in str(jobs.consistent())
    jobs.rebuild("a test")
    assert jobs.consistent() is None


# -- calls ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(STEPS)
def test_l2_a_call_that_comes_again_after_a_rebuild_gets_its_first_answer(steps):
    store, player = a_history(steps)
    store.client.delete(store.keys.heads, *store.client.keys("*call:*"))
    player.jobs.rebuild("a test")
    length = count(store)
    for call, first in player.made:
        known = player.jobs.log.known(call)
        assert known is not None
        assert known.positions[0] == first.positions[0]
        assert known.heads == first.heads, "version or revision of the first answer is not what it was"
        news = [NewEvent(SITE, body("AgentSet"))] * len(first.positions)
        again = player.jobs.log.append(call, news)
        assert again.repeated
        assert again.positions == first.positions
    assert count(store) == length


def test_l2_a_call_that_comes_again_after_a_rebuild_appends_nothing_and_with_other_arguments_is_refused():
    store = fake_store()
    jobs = Jobs(store)
    call = Call(call_id="c-1", actor=TESTER, arguments="a" * 16)
    first = jobs.transact(call, "j", lambda state: [body("DeployRequested")])
    assert first is not None
    store.client.delete(store.keys.heads)
    delete(store, "call:*")
    jobs.load("j")
    again = jobs.log.append(call, [NewEvent("job/j", body("DeployRequested"))])
    assert again.repeated
    assert again.positions == first.appended.positions
    with pytest.raises(CallIdReused):
        jobs.log.append(
            Call(call_id="c-1", actor=TESTER, arguments="b" * 16), [NewEvent("job/j", body("DeployRequested"))]
        )
    assert [one.type for one in read_job(store, "j")] == ["DeployRequested"]


def old_event(store: Store, ms: int, seq: int, version: int, call: Call, type_: str) -> None:
    """An event of job j in the log, with a time of its own."""
    told = encode(call, TESTER.model_dump_json(exclude_none=True), body(type_), 1)
    store.client.xadd(store.keys.log, {"t": type_, "s": "job/j", "v": str(version), "d": told}, id=f"{ms}-{seq}")


def test_l2_a_rebuild_remembers_an_old_call_as_long_as_its_work_is_open():
    store = fake_store()
    jobs = Jobs(store)
    old = store.now_ms() - 10 * REMEMBERED * 1000
    call = Call(call_id="old", actor=TESTER, arguments="a" * 16)
    old_event(store, old, 1, 1, call, "DeployRequested")
    jobs.load("j")
    assert jobs.log.known(call) is not None
    assert store.client.ttl(f"{store.keys.prefix}call:old:intent") == -1
    jobs.transact(new_call(), "j", lambda state: [body("DeploySucceeded")])
    assert 0 < store.client.ttl(f"{store.keys.prefix}call:old:intent") <= REMEMBERED


def test_l2_a_rebuild_remembers_a_call_for_ten_minutes_after_its_work_was_closed():
    store = fake_store()
    jobs = Jobs(store)
    now = store.now_ms()
    call = Call(call_id="old", actor=TESTER, arguments="a" * 16)
    old_event(store, now - 2 * REMEMBERED * 1000, 1, 1, call, "DeployRequested")
    old_event(store, now - 1000, 2, 2, new_call("outcome"), "DeploySucceeded")
    jobs.load("j")
    assert jobs.log.known(call) is not None, "the intent's work was closed a second ago"


def test_l2_a_rebuild_forgets_calls_that_were_closed_long_ago():
    store = fake_store()
    jobs = Jobs(store)
    old = store.now_ms() - 3 * REMEMBERED * 1000
    first, second = Call(call_id="one", actor=TESTER), Call(call_id="two", actor=TESTER)
    old_event(store, old, 1, 1, first, "DeployRequested")
    old_event(store, old + 5, 2, 2, second, "DeploySucceeded")
    assert jobs.load("j").state.state == "deployed"
    assert jobs.log.known(first) is None
    assert jobs.log.known(second) is None


# -- the rebuild itself --------------------------------------------------------------------


def test_l2_the_epoch_survives_a_rebuild_without_heads():
    store = fake_store()
    jobs = Jobs(store)
    started(jobs)
    store.client.hset(store.keys.heads, "@epoch", "3")
    jobs.note(new_call(), [body("AgentSet")])
    assert [one.rest()["epoch"] for one in read(store)][-1] == 3
    store.client.delete(store.keys.heads)
    jobs.note(new_call(), [body("AgentSet")])
    assert store.client.hget(store.keys.heads, "@epoch") == "3"
    assert [one.rest()["epoch"] for one in read(store)][-1] == 3


def test_l7_a_rebuild_records_itself_once_with_its_reason_and_counts():
    store = fake_store()
    jobs = Jobs(store)
    started(jobs, "one")
    started(jobs, "two")
    jobs.rebuild("a test")
    last = list(read(store))[-1]
    assert (last.type, last.subject) == ("ProjectionRebuilt", SITE)
    assert last.body == {"why": "a test", "events": 6, "jobs": 2}
    assert last.rest()["actor"]["kind"] == "system"


def test_a_rebuild_touches_no_key_of_another_site():
    store = fake_store()
    other = Store(store.client, "site-11", check=lambda client: None)
    wild = Store(store.client, "site-[1]*", check=lambda client: None)
    for one in (store, other, wild):
        started(Jobs(one))
    before = {name: store.client.dump(name) for name in store.client.keys("*") if not name.startswith("fl:{site-1}:")}
    assert before
    Jobs(store).rebuild("a test")
    after = {name: store.client.dump(name) for name in store.client.keys("*") if not name.startswith("fl:{site-1}:")}
    assert after == before
    mine = content(store)
    Jobs(wild).rebuild("a test")
    assert content(store) == mine


def test_a_rebuild_leaves_leases_and_cursors_alone():
    store = fake_store()
    jobs = Jobs(store)
    started(jobs)
    store.client.set(store.keys.lease("reconciler"), "me")
    store.client.set(store.keys.cursor("reactor"), "5-5")
    jobs.rebuild("a test")
    assert store.client.get(store.keys.lease("reconciler")) == "me"
    assert store.client.get(store.keys.cursor("reactor")) == "5-5"
    assert not store.client.exists(store.keys.lease("rebuild"))


def test_a_rebuild_of_nothing_writes_nothing():
    store = fake_store()
    assert rebuild_site(store) == 0
    assert store.client.keys("*") == []


def test_a_rebuild_takes_away_what_was_planted_among_the_derived_keys():
    store = fake_store()
    jobs = Jobs(store)
    started(jobs)
    before = content(store)
    planted = ("job:ghost", "idx:ghost", "by:state:running", "work:ghost", "call:ghost:intent")
    for name in planted:
        assert any(fnmatch.fnmatch(name, pattern) for pattern in DERIVED)
        store.client.set(store.keys.prefix + name, "planted")
    jobs.rebuild("a test")
    assert without_calls(content(store)) == without_calls(before)
    assert not store.client.exists(*[store.keys.prefix + name for name in planted])


def test_whoever_finds_another_rebuilding_does_not_rebuild_too_and_says_so_when_it_takes_too_long():
    store = fake_store()
    started(Jobs(store))
    before = content(store)
    store.client.set(store.keys.lease("rebuild"), "another")
    with pytest.raises(LogUnavailable, match="rebuilt by another"):
        rebuild(store, lambda: pytest.fail("it rebuilt although another does"), patience=0.1)
    assert content(store) == before
    assert store.client.get(store.keys.lease("rebuild")) == "another"


class Breaks:
    """A projector that fails in the middle."""

    def apply(self, event):
        raise RuntimeError("broken")

    def writes(self):
        return ()

    def open_work(self):
        return 0


def test_a_rebuild_that_dies_in_the_middle_gives_its_lock_back_and_the_next_one_restores_all():
    store = fake_store()
    jobs = Jobs(store)
    started(jobs)
    before = content(store)
    with pytest.raises(RuntimeError, match="broken"):
        rebuild(store, Breaks)
    assert not store.client.exists(store.keys.lease("rebuild"))
    assert jobs.load("j").state.state == "starting"
    assert differences(without_calls(before), without_calls(content(store))) == {}


def test_many_jobs_and_events_come_back_as_they_were():
    store = fake_store()
    jobs = Jobs(store)
    for number in range(30):
        started(jobs, f"job-{number}")
    for _ in range(11):  # more events than one page of the log, and than one write of the index
        jobs.note(new_call(), [body("OutputClosed")] * 500, "job-3")
    before = content(store)
    store.client.delete(store.keys.heads)
    jobs.load("job-3")
    assert differences(without_calls(before), without_calls(content(store))) == {}
    assert jobs.load("job-3").version == 3 + 11 * 500

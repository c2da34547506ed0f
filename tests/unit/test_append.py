"""One append: everything is checked first, then everything is written, or nothing is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import fakeredis
import pytest

from engine.jobs import Jobs
from engine.projection import facts_to_be, project
from events.append import REMEMBERED, Appended, Log, NeedsRebuild, NewEvent, Ops, WorkRefused
from events.bodies.base import Body
from events.envelope import Call
from events.epochs import open_epoch
from events.errors import CallIdReused, FlightlogError, LogUnavailable, RecordDamaged, RevisionConflict
from events.read import count, read
from events.standin import ms_of, position_of
from events.store import Store
from events.subjects import SITE
from tests.histories import body, event
from tests.support import TESTER, check_record, fake_store, new_call, until

NOTE = NewEvent(SITE, body("AgentSet"))


def job_event(type_: str, job: str = "j", **fields) -> NewEvent:
    """A new event of a job."""
    return NewEvent(f"job/{job}", body(type_, **fields))


def everything(store: Store) -> dict[str, tuple[object, bool]]:
    """Every key with its whole content, and whether it expires."""
    client = store.client
    return {name: (client.dump(name), client.ttl(name) >= 0) for name in client.keys("*")}


def run(jobs: Jobs, job: str, *names: str) -> None:
    """Record events one by one."""
    for name in names:
        jobs.transact(new_call(), job, lambda state, name=name: [event(name, state)])


# -- positions, versions, heads ------------------------------------------------------------


def test_l7_several_events_of_several_subjects_in_one_call_are_gapless_and_in_order():
    store = fake_store()
    log = Log(store)
    log.append(new_call(), [NOTE])
    mixed = [
        job_event("CallRepeated", "a"),
        NOTE,
        job_event("DeployRequested", "b"),
        job_event("LateExit", "a"),
        job_event("DeploySucceeded", "b"),
    ]
    answer = log.append(new_call(), mixed)
    events = list(read(store))
    assert [one.seq for one in events] == [1, 2, 3, 4, 5, 6]
    assert [one.position for one in events[1:]] == list(answer.positions)
    assert [(one.subject, one.version) for one in events[1:]] == [
        ("job/a", 1),
        ("site", 2),
        ("job/b", 1),
        ("job/a", 2),
        ("job/b", 2),
    ]
    assert answer.heads == {"job/a": (2, 0), "site": (2, 0), "job/b": (2, 2)}
    assert not answer.repeated
    assert len({one.ms for one in events[1:]}) == 1, "events of one call have one time"
    assert store.client.lrange(store.keys.index("a"), 0, -1) == [events[1].position, events[4].position]
    assert store.client.hget(store.keys.heads, "job/b") == f"2 2 {events[5].position}"


def test_an_event_carries_actor_call_cause_and_correlation():
    store = fake_store()
    call = Call(call_id="c-1", actor=TESTER, step="s", arguments="ab", cause="1-1", correlation="c-0")
    Log(store).append(call, [job_event("CallRepeated")])
    Log(store).append(Call(call_id="c-2", actor=TESTER), [NOTE])
    first, second = read(store)
    told = first.as_dict()
    assert told["actor"] == {"id": "tester", "kind": "person", "auth": "os-uid", "via": "python"}
    assert [told[n] for n in ("call_id", "step", "arguments", "cause", "correlation")] == [
        "c-1",
        "s",
        "ab",
        "1-1",
        "c-0",
    ]
    assert second.rest()["correlation"] == "c-2", "a first call is its own correlation"


def test_l7_time_never_goes_backwards_even_if_the_servers_clock_does():
    store = fake_store()
    log = Log(store)
    log.append(new_call(), [NOTE])
    future = store.now_ms() + 10**9
    # The clock was ahead when the last event came, and is set right now.
    last = next(iter(read(store)))
    store.client.xadd(store.keys.log, {"t": last.type, "s": "site", "v": "2", "d": last.raw}, id=f"{future}-2")
    head = {"@seq": "2", "@ms": str(future), "site": f"2 0 {future}-2"}
    store.client.hset(store.keys.heads, mapping=head)
    answer = log.append(new_call(), [NOTE, NOTE])
    assert answer.positions == (f"{future}-3", f"{future}-4")
    jobs = Jobs(store)
    run(jobs, "j", "DeployRequested")
    assert jobs.load("j").state["since"] == str(future)
    check_events = list(read(store))
    assert [int(one.ms) for one in check_events] == sorted(int(one.ms) for one in check_events)


def test_stand_ins_are_filled_with_the_time_and_position_of_their_event():
    store = fake_store()
    ops = (
        Ops()
        .set(
            "job:x",
            {"a": ms_of(0), "b": ms_of(1, 2500), "c": position_of(0), "d": position_of(1), "e": "", "f": "m0"},
        )
        .put("by:time", ms_of(1, 7), "x")
        .open("w", ms_of(0, 60_000), {"kind": "k", "at": position_of(1)})
    )
    answer = Log(store).append(new_call(), [NOTE, NOTE], ops)
    ms = int(answer.positions[0].partition("-")[0])
    first, second = answer.positions
    assert store.client.hgetall(store.keys.job("x")) == {
        "a": str(ms),
        "b": str(ms + 2500),
        "c": first,
        "d": second,
        "e": "",
        "f": "m0",
    }
    assert store.client.zscore(store.keys.by_time, "x") == ms + 7
    assert store.client.zscore(store.keys.open, "w") == ms + 60_000
    assert store.client.hget(store.keys.work("w"), "at") == second


def test_counters_add_and_sets_move():
    store = fake_store()
    log = Log(store)
    log.append(new_call(), [NOTE], Ops().add("job:x", "n", 2).add("job:x", "n").put("by:state:a", "5", "x"))
    log.append(new_call(), [NOTE], Ops().add("job:x", "n", -4).drop("by:state:a", "x").put("by:state:b", "6", "x"))
    assert store.client.hgetall(store.keys.job("x")) == {"n": "-1"}
    assert not store.client.exists(store.keys.state("a"))
    assert store.client.zrange(store.keys.state("b"), 0, -1, withscores=True) == [("x", 6.0)]


# -- the same call again -------------------------------------------------------------------


def asked(call_id: str = "c-1", arguments: str = "a1", step: str = "intent") -> Call:
    """A call with a name."""
    return Call(call_id=call_id, actor=TESTER, arguments=arguments, step=step)


def test_l4_the_same_call_and_step_again_gets_the_first_answer_and_writes_nothing():
    store = fake_store()
    log = Log(store)
    events = [job_event("CallRepeated"), job_event("LateExit")]
    first = log.append(asked(), events, Ops().add("job:j", "repeats"))
    log.append(new_call(), [job_event("CallRefused")])
    before = everything(store)
    again = log.append(asked(), events, Ops().add("job:j", "repeats"))
    assert again == Appended(first.positions, first.heads, repeated=True)
    assert log.known(asked()) == Appended(first.positions[:1], first.heads, repeated=True)
    assert everything(store) == before


def test_l4_another_step_of_the_same_call_is_an_append_of_its_own():
    store = fake_store()
    log = Log(store)
    assert not log.append(asked(step="one"), [NOTE]).repeated
    assert not log.append(asked(step="two"), [NOTE]).repeated
    assert log.known(asked(step="three")) is None
    assert count(store) == 2


def test_l9_a_call_id_with_other_arguments_is_refused_and_writes_nothing():
    store = fake_store()
    log = Log(store)
    log.append(asked(), [NOTE])
    before = everything(store)
    for other in (asked(arguments="a2"), asked(arguments="")):
        with pytest.raises(CallIdReused):
            log.append(other, [NOTE])
        with pytest.raises(CallIdReused):
            log.known(other)
    assert everything(store) == before


def test_l4_a_known_call_is_found_before_the_revision_is_compared():
    store = fake_store()
    log = Log(store)
    first = log.append(asked(), [job_event("DeployRequested")], expected=("job/j", 0))
    again = log.append(asked(), [job_event("DeployRequested")], expected=("job/j", 0))
    assert again.repeated
    assert again.positions == first.positions


def test_a_call_that_opened_work_is_remembered_while_it_is_open_and_ten_minutes_after():
    store = fake_store()
    log = Log(store)
    key = f"{store.keys.prefix}call:c-1:intent"
    log.append(asked(), [NOTE], Ops().open("w", "+inf", {"kind": "k"}))
    assert store.client.ttl(key) == -1
    # Somebody opens it again: it is the first who is remembered by the work.
    log.append(asked("c-2"), [NOTE], Ops().open("w", "+inf", {"kind": "k", "more": "1"}))
    assert store.client.ttl(key) == -1
    assert store.client.hgetall(store.keys.work("w")) == {"kind": "k", "more": "1", "call": "call:c-1:intent"}
    assert 0 < store.client.ttl(f"{store.keys.prefix}call:c-2:intent") <= REMEMBERED
    assert store.client.hget(store.keys.heads, "@open") == "1"
    log.append(new_call(), [NOTE], Ops().close("w"))
    assert 0 < store.client.ttl(key) <= REMEMBERED
    assert store.client.hget(store.keys.heads, "@open") == "0"


def test_a_call_that_opened_no_work_is_remembered_for_ten_minutes():
    store = fake_store()
    Log(store).append(asked(), [NOTE])
    assert REMEMBERED - 5 < store.client.ttl(f"{store.keys.prefix}call:c-1:intent") <= REMEMBERED == 600


@pytest.mark.parametrize("value", ["", "garbage", "a1 ", "a1 garbage", "a1 1", "a1 1 2 job/j"])
def test_l9_a_remembered_call_that_cannot_be_read_gives_a_clear_error_and_writes_nothing(value):
    store = fake_store()
    log = Log(store)
    log.append(new_call(), [NOTE])
    store.client.set(f"{store.keys.prefix}call:c-1:intent", value)
    before = everything(store)
    for look in (lambda: log.append(asked(), [NOTE]), lambda: log.known(asked())):
        with pytest.raises(FlightlogError):
            look()
    assert everything(store) == before


# -- the expected revision -----------------------------------------------------------------


def test_a_revision_that_has_moved_on_is_a_conflict_and_writes_nothing():
    store = fake_store()
    log = Log(store)
    log.append(
        new_call(), [job_event("DeployRequested")], Ops().set("job:j", {"state": "deploying"}), expected=("job/j", 0)
    )
    before = everything(store)
    for wrong in (0, 2):
        ops = Ops().set("job:j", {"x": "y"}).open("w", "1", {"kind": "k"})
        with pytest.raises(RevisionConflict, match="job/j is at revision 1") as caught:
            log.append(new_call(), [NOTE, job_event("DeploySucceeded")], ops, expected=("job/j", wrong))
        assert caught.value.context["revision"] == 1
    assert everything(store) == before
    assert log.append(new_call(), [job_event("DeploySucceeded")], expected=("job/j", 1)).heads == {"job/j": (2, 2)}


def test_notes_do_not_move_the_revision_so_that_they_starve_no_decision():
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", "DeployRequested")
    for _ in range(20):
        jobs.note(new_call(), [body("CallRefused")], "j")
    answer = jobs.log.append(new_call(), [job_event("DeploySucceeded")], expected=("job/j", 1))
    assert answer.heads == {"job/j": (22, 2)}


def test_l9_an_expected_revision_of_a_subject_without_an_event_is_a_clear_error_or_is_compared():
    store = fake_store()
    log = Log(store)
    log.append(new_call(), [job_event("DeployRequested")])
    before = everything(store)
    with pytest.raises((FlightlogError, ValueError)):
        log.append(new_call(), [NOTE], expected=("job/j", 0))
    assert everything(store) == before


def test_l9_an_append_without_events_is_refused_or_leaves_the_record_whole():
    store = fake_store()
    log = Log(store)
    log.append(new_call(), [NOTE])
    head = store.client.hgetall(store.keys.heads)
    until(lambda: store.now_ms() > int(head["@ms"]), 5, "the clock moves on")
    try:
        log.append(new_call(), [])
    except (FlightlogError, ValueError):
        assert store.client.hgetall(store.keys.heads) == head
    assert store.client.hget(store.keys.heads, "@ms") == head["@ms"], "the heads have left the end of the log"


def test_l9_an_append_of_very_many_events_is_written_whole_or_refused_whole():
    store = fake_store()
    jobs = Jobs(store)
    many = [body("CallRepeated")] * 9000
    try:
        jobs.note(new_call(), many, "j")
        written = 9000
    except (FlightlogError, ValueError):
        written = 0
    assert count(store) == written
    assert store.client.llen(store.keys.index("j")) == written


# -- claims --------------------------------------------------------------------------------


@dataclass
class Claims:
    """One piece of work and hands that reach for it."""

    store: Store
    deadline: str = "+inf"

    def __post_init__(self) -> None:
        self.log = Log(self.store)
        self.log.append(new_call(), [NOTE], Ops().open("w", self.deadline, {"kind": "k"}))

    def claim(self, token: str, lasts: int = 60_000, attempts: int = 3) -> Appended:
        """Claim it, from now on for some ms."""
        until = self.store.now_ms() + lasts
        ops = Ops().claim("w", token=token, worker=f"of {token}", until=until, attempts=attempts)
        return self.log.append(new_call(), [NOTE], ops)

    def close(self, how: str, token: str = "") -> Appended:
        """Close it under a condition."""
        return self.log.append(new_call(), [NOTE], Ops().close("w", how, token))

    def fields(self) -> dict[str, str]:
        """The work's hash."""
        return self.store.client.hgetall(self.store.keys.work("w"))


def refused(store: Store, why: str, act: Callable[[], object]) -> WorkRefused:
    """The act is refused for a reason, and nothing is written."""
    before = everything(store)
    with pytest.raises(WorkRefused) as caught:
        act()
    assert caught.value.why == why
    assert caught.value.context["work"] == "w"
    assert everything(store) == before
    return caught.value


def test_a_claim_names_its_holder_and_keeps_others_out_until_it_lapses():
    claims = Claims(fake_store())
    claims.claim("red")
    fields = claims.fields()
    assert (fields["token"], fields["claimed_by"], fields["attempts"]) == ("red", "of red", "1")
    error = refused(claims.store, "CLAIMED", lambda: claims.claim("blue"))
    assert error.until == int(fields["until"])


def test_a_lapsed_claim_can_be_taken_by_another_and_counts_as_an_attempt():
    claims = Claims(fake_store())
    claims.claim("red", lasts=-1)
    claims.claim("blue")
    assert (claims.fields()["token"], claims.fields()["attempts"]) == ("blue", "2")


def test_the_same_token_renews_its_claim_without_another_attempt_even_after_it_lapsed():
    claims = Claims(fake_store())
    claims.claim("red", lasts=-1)
    before = int(claims.fields()["until"])
    claims.claim("red", attempts=1)
    claims.claim("red", attempts=1)
    assert claims.fields()["attempts"] == "1"
    assert int(claims.fields()["until"]) > before


def test_l4_whoever_lost_a_claim_to_another_cannot_renew_it():
    claims = Claims(fake_store())
    claims.claim("red", lasts=-1)
    claims.claim("blue")
    refused(claims.store, "CLAIMED", lambda: claims.claim("red", attempts=2**31))
    assert claims.fields()["token"] == "blue"


def test_work_whose_attempts_are_used_up_cannot_be_claimed_again():
    claims = Claims(fake_store())
    for token in ("one", "two", "three"):
        claims.claim(token, lasts=-1, attempts=3)
    refused(claims.store, "EXHAUSTED", lambda: claims.claim("four", attempts=3))
    claims.claim("three", attempts=3)


def test_work_that_nobody_claimed_in_time_cannot_be_claimed_late():
    store = fake_store()
    claims = Claims(store, deadline=str(store.now_ms() - 1))
    refused(store, "EXPIRED", lambda: claims.claim("red"))


def test_work_that_was_claimed_in_time_does_not_expire_with_its_deadline():
    claims = Claims(fake_store())
    claims.claim("red", lasts=-1)
    claims.store.client.zadd(claims.store.keys.open, {"w": claims.store.now_ms() - 1})
    claims.claim("blue")
    assert claims.fields()["token"] == "blue"


def test_work_without_a_deadline_never_expires_and_with_one_ahead_can_be_claimed():
    for deadline in ("+inf", str(fake_store().now_ms() + 60_000)):
        claims = Claims(fake_store(), deadline=deadline)
        claims.claim("red")
        assert claims.fields()["token"] == "red"


def test_closed_work_cannot_be_claimed():
    claims = Claims(fake_store())
    claims.close("any")
    refused(claims.store, "CLOSED", lambda: claims.claim("red"))


# -- closing -------------------------------------------------------------------------------

HELD = {
    "nobody": lambda claims: None,
    "me": lambda claims: claims.claim("me"),
    "another": lambda claims: claims.claim("another"),
    "me, lapsed": lambda claims: claims.claim("me", lasts=-1),
    "another, lapsed": lambda claims: claims.claim("another", lasts=-1),
    "closed": lambda claims: claims.close("any"),
}
#: holder -> answer to any, open, unclaimed, lapsed, token "me"; "" is closed
CLOSES = {
    "nobody": ("", "", "", "", "FENCED"),
    "me": ("", "", "CLAIMED", "CLAIMED", ""),
    "another": ("", "", "CLAIMED", "CLAIMED", "FENCED"),
    "me, lapsed": ("", "", "CLAIMED", "", ""),
    "another, lapsed": ("", "", "CLAIMED", "", "FENCED"),
    "closed": ("", "CLOSED", "CLOSED", "CLOSED", "CLOSED"),
}


@pytest.mark.parametrize("holder", HELD)
@pytest.mark.parametrize(("column", "how"), [*enumerate(("any", "open", "unclaimed", "lapsed", "token"))])
def test_closing_work_depends_on_who_holds_it_and_a_refusal_writes_nothing(holder, column, how):
    claims = Claims(fake_store())
    HELD[holder](claims)
    expected = CLOSES[holder][column]
    if expected:
        refused(claims.store, expected, lambda: claims.close(how, "me"))
    else:
        claims.close(how, "me")
        assert claims.fields() == {}
        assert not claims.store.client.exists(claims.store.keys.open)
        assert claims.store.client.hget(claims.store.keys.heads, "@open") == "0"


def test_work_that_one_append_opens_and_closes_is_closed():
    store = fake_store()
    Log(store).append(new_call(), [NOTE], Ops().open("w", "+inf", {"kind": "k"}).close("w", "any"))
    assert not store.client.exists(store.keys.work("w"), store.keys.open)
    assert store.client.hget(store.keys.heads, "@open") == "0"
    Log(store).append(new_call(), [NOTE])


def test_one_refused_closing_among_several_refuses_all():
    store = fake_store()
    log = Log(store)
    log.append(new_call(), [NOTE], Ops().open("v", "+inf", {"kind": "k"}))
    claims = Claims(store)
    claims.claim("another")
    ops = Ops().set("job:x", {"a": "b"}).close("v", "any").close("w", "token", "me")
    refused(store, "FENCED", lambda: log.append(new_call(), [NOTE], ops))


# -- what others planted -------------------------------------------------------------------

TYPES = ("string", "list", "set", "zset", "hash", "stream")


def put(store: Store, key: str, type_: str) -> None:
    """Plant a key of a type."""
    client = store.client
    client.delete(key)
    {
        "string": lambda: client.set(key, "planted"),
        "list": lambda: client.rpush(key, "planted"),
        "set": lambda: client.sadd(key, "planted"),
        "zset": lambda: client.zadd(key, {"planted": 1}),
        "hash": lambda: client.hset(key, "planted", "1"),
        "stream": lambda: client.xadd(key, {"planted": "1"}),
    }[type_]()


def transition(store: Store, job: str, *names: str) -> Callable[[Call], Appended]:
    """An append of events with all that changes with them, worked out before anything is planted."""
    jobs = Jobs(store)
    loaded = jobs.load(job)
    bodies: list[Body] = []
    state = loaded.state
    for name in names:
        bodies.append(event(name, state))
        state, _ = project(job, state, facts_to_be(new_call(), [bodies[-1]]))
    _, ops = project(job, loaded.state, facts_to_be(asked(), bodies))
    return lambda call: jobs.log.append(
        call, [NewEvent(f"job/{job}", one) for one in bodies], ops, expected=(f"job/{job}", loaded.revision)
    )


#: name of a key -> (its right type, events before, events of the append that touches it)
DEPLOYED = ("DeployRequested", "DeploySucceeded")
TOUCHED = {
    "log": ("stream", DEPLOYED, ("StartRequested",)),
    "heads": ("hash", DEPLOYED, ("StartRequested",)),
    "open": ("zset", DEPLOYED, ("StartRequested",)),
    "idx:j": ("list", DEPLOYED, ("StartRequested",)),
    "job:j": ("hash", DEPLOYED, ("StartRequested", "CallRepeated")),
    "by:state:deployed": ("zset", DEPLOYED, ("StartRequested",)),
    "by:state:starting": ("zset", DEPLOYED, ("StartRequested",)),
    "by:time": ("zset", DEPLOYED, ("StartRequested",)),
    "work:launch_j_1": ("hash", DEPLOYED, ("StartRequested",)),
    "work:deploy_j_1": ("hash", DEPLOYED[:1], ("DeploySucceeded",)),
    "work:app_j_1": ("hash", (*DEPLOYED, "StartRequested"), ("AppSpawned",)),
    "call:c-1:intent": ("string", DEPLOYED, ("StartRequested",)),
}


def planted_key_is_refused(store: Store, name: str, type_: str) -> None:
    """A key of the wrong type is named in the error, and nothing at all is written."""
    _, before, then = TOUCHED[name]
    run(Jobs(store), "j", *before)
    act = transition(store, "j", *then)
    key = store.keys.prefix + name
    put(store, key, type_)
    seen = everything(store)
    with pytest.raises(RecordDamaged) as caught:
        act(asked())
    assert caught.value.context["key"] == key
    assert key in str(caught.value)
    assert everything(store) == seen


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("name", TOUCHED)
def test_l9_a_planted_key_of_the_wrong_type_is_named_and_nothing_is_written(name, type_):
    if type_ == TOUCHED[name][0]:
        store = fake_store()
        run(Jobs(store), "j", *TOUCHED[name][1])
        transition(store, "j", *TOUCHED[name][2])(asked())  # the right type is taken, so the test can fail
        assert store.client.type(store.keys.prefix + name) in (type_, "none")
    else:
        planted_key_is_refused(fake_store(), name, type_)


@pytest.mark.parametrize("type_", [t for t in TYPES if t != "hash"])
def test_l9_heads_of_the_wrong_type_are_refused_by_a_store_that_is_new_here_too(type_):
    store = fake_store()
    run(Jobs(store), "j", "DeployRequested")
    put(store, store.keys.heads, type_)
    seen = everything(store)
    fresh = Store(store.client, store.site, check=lambda client: None)
    with pytest.raises(RecordDamaged):
        Jobs(fresh).note(new_call(), [body("AgentSet")])
    with pytest.raises(RecordDamaged):
        Jobs(fresh).load("j")
    assert everything(store) == seen


@pytest.mark.parametrize("value", ["x", "1.5", "99999999999999999999", "9223372036854775807", ""])
def test_l9_a_counter_that_cannot_be_added_to_is_refused_and_nothing_is_written(value):
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", "DeployRequested")
    store.client.hset(store.keys.job("j"), "refusals", value)
    seen = everything(store)
    with pytest.raises(RecordDamaged):
        jobs.note(new_call(), [body("CallRefused")], "j")
    assert everything(store) == seen


@pytest.mark.parametrize("value", ["x", "99999999999999999999", "9223372036854775807"])
def test_l9_attempts_of_work_that_cannot_be_counted_are_refused_and_nothing_is_written(value):
    claims = Claims(fake_store())
    claims.store.client.hset(claims.store.keys.work("w"), "attempts", value)
    seen = everything(claims.store)
    with pytest.raises(FlightlogError):
        claims.claim("red", attempts=2**31)
    assert everything(claims.store) == seen


def test_l9_fields_that_were_planted_for_work_that_is_not_open_do_not_pass_for_a_claim():
    store = fake_store()
    jobs = Jobs(store)
    store.client.hset(store.keys.work("deploy_j_1"), mapping={"token": "evil", "until": str(10**14)})
    run(jobs, "j", "DeployRequested")
    assert "token" not in dict(jobs.open_work())["deploy_j_1"]


@pytest.mark.parametrize("field", ["foo", "t"])
def test_l7_a_strangers_entry_in_the_log_is_named_in_a_clear_error(field):
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", "DeployRequested")
    store.client.xadd(store.keys.log, {field: "bar"})
    with pytest.raises(FlightlogError, match="log"):
        jobs.note(new_call(), [body("AgentSet")])
    with pytest.raises(FlightlogError, match="log"):
        list(read(store))


# -- heads that do not match ---------------------------------------------------------------

BROKEN = {
    "@seq": "x",
    "@ms": "",
    "@open": "many",
    "@epoch": "first",
    "job/j": "garbage",
}


@pytest.mark.parametrize("fresh", [False, True], ids=["a store that is at work", "a store that is new here"])
@pytest.mark.parametrize("field", BROKEN)
def test_l2_a_head_that_cannot_be_read_is_written_anew_from_the_log(field, fresh):
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", "DeployRequested", "DeploySucceeded")
    before = store.client.hget(store.keys.heads, "job/j")
    store.client.hset(store.keys.heads, field, BROKEN[field])
    if fresh:
        jobs = Jobs(Store(store.client, store.site, check=lambda client: None))
    jobs.log.append(new_call(), [job_event("OutputClosed")], Ops().set("job:j", {"output_bytes": "5"}))
    heads = store.client.hgetall(store.keys.heads)
    version, revision, _ = heads["job/j"].split(" ")
    assert (version, revision) == ("3", "2")
    assert before.startswith("2 2 ")
    assert (heads["@seq"], heads["@open"]) == ("4", "0")
    assert "ProjectionRebuilt" in [one.type for one in read(store)]


@pytest.mark.parametrize("value", ["garbage", "1 2", "x 2 3-3", "1 2 3-3 4"])
def test_l2_a_head_that_cannot_be_read_is_written_anew_by_whoever_loads_the_job(value):
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", "DeployRequested", "DeploySucceeded")
    before = jobs.load("j")
    store.client.hset(store.keys.heads, "job/j", value)
    assert jobs.load("j") == before
    assert jobs.load_many(["j"]) == [("j", before)]


@pytest.mark.parametrize("field", ["@seq", "@ms", "@open", "@epoch", "job/j"])
def test_l2_a_head_that_is_missing_is_written_anew_from_the_log(field):
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", "DeployRequested", "DeploySucceeded")
    store.client.hdel(store.keys.heads, field)
    run(jobs, "j", "StartRequested")
    assert store.client.hget(store.keys.heads, "job/j").startswith("3 3 ")
    assert jobs.consistent() is None
    check_record(store)


@pytest.mark.parametrize("seq", ["1", "3"])
def test_l2_heads_that_point_elsewhere_than_the_end_of_the_log_are_written_anew(seq):
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", "DeployRequested", "DeploySucceeded")
    store.client.hset(store.keys.heads, "@seq", seq)
    run(jobs, "j", "StartRequested")
    check_record(store)


def test_without_anybody_to_rebuild_the_append_says_so_and_writes_nothing():
    store = fake_store()
    log = Log(store)
    log.append(new_call(), [NOTE])
    store.client.hset(store.keys.heads, "@open", "7")
    seen = everything(store)
    with pytest.raises(NeedsRebuild, match="open work"):
        log.append(new_call(), [NOTE])
    assert everything(store) == seen


def test_a_rebuild_that_does_not_help_ends_in_an_error_and_not_in_a_loop():
    store = fake_store()
    tried: list[str] = []
    log = Log(store, tried.append)
    log.append(new_call(), [NOTE])
    store.client.hset(store.keys.heads, "@open", "7")
    with pytest.raises(NeedsRebuild, match="does not settle"):
        log.append(new_call(), [NOTE])
    assert 1 <= len(tried) <= 10


@pytest.mark.parametrize("field", ["hash", "listed"])
def test_l2_work_that_is_only_half_there_is_written_anew_by_the_append_that_touches_it(field):
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", *DEPLOYED, "StartRequested")
    if field == "hash":
        store.client.delete(store.keys.work("launch_j_1"))
    else:
        store.client.zrem(store.keys.open, "launch_j_1")
        store.client.zadd(store.keys.open, {"another": 1})  # the count is right
        store.client.hset(store.keys.work("another"), "kind", "k")
    run(jobs, "j", "AppSpawned")
    assert [name for name, _ in jobs.open_work()] == ["app_j_1"]
    check_record(store)


# -- epochs and the connection -------------------------------------------------------------


def test_an_append_from_an_older_epoch_is_made_again_in_the_current_one():
    store = fake_store()
    log = Log(store)
    log.append(new_call(), [NOTE])
    store.client.hset(store.keys.heads, "@epoch", "4")
    log.append(new_call(), [NOTE])
    assert [one.rest()["epoch"] for one in read(store)] == [1, 4]
    assert store.epoch == 4
    assert store.client.hget(store.keys.heads, "@epoch") == "4"


def test_l7_an_epoch_begins_with_the_event_that_says_why_or_not_at_all():
    store = fake_store()
    Log(store).append(new_call(), [NOTE])
    other = Store(store.client, store.site, check=lambda client: None)
    store.client.hset(store.keys.heads, "@seq", "77")
    with pytest.raises(NeedsRebuild):
        open_epoch(store, new_call(), [body("HistoryLost")])
    store.client.hset(store.keys.heads, "@seq", "1")
    assert store.client.hget(store.keys.heads, "@epoch") == "1"
    for number in (2, 3):
        call = new_call()
        assert open_epoch(store, call, [body("HistoryLost")]) == number
        Log(other).append(new_call(), [NOTE])  # who has not heard of it writes in it
        if number == 3:  # asked again, since the answer was lost
            assert open_epoch(store, call, [body("HistoryLost")]) == 3
    told = [(one.type, one.rest()["epoch"]) for one in read(store)]
    note = NOTE.body.name()
    assert told == [(note, 1), ("HistoryLost", 2), (note, 2), ("HistoryLost", 3), (note, 3)]


def test_a_store_that_is_new_here_takes_the_epoch_of_the_record():
    store = fake_store()
    Log(store).append(new_call(), [NOTE])
    store.client.hset(store.keys.heads, "@epoch", "4")
    fresh = Store(store.client, store.site, check=lambda client: None)
    fresh.ensure_safe()
    assert fresh.epoch == 4


def test_a_server_that_is_away_is_an_error_of_the_catalogue_and_the_next_append_works():
    server = fakeredis.FakeServer()
    client = fakeredis.FakeRedis(server=server, decode_responses=True)
    store = Store(client, "site-1", check=lambda client: None)
    log = Log(store)
    log.append(new_call(), [NOTE])
    server.connected = False
    with pytest.raises(LogUnavailable, match="does not answer"):
        log.append(new_call(), [NOTE])
    server.connected = True
    log.append(new_call(), [NOTE])
    assert count(store) == 2

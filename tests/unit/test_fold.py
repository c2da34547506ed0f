"""L3: status is a fold. The live projection equals the replayed one, for every prefix of every history."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.fold import COUNTERS, LAST_WRITER, Illegal, JobState, apply, fact_of, fold
from engine.jobs import Jobs
from engine.lifecycle import EVENTS, State
from events.append import Log, NewEvent, WorkRefused
from events.bodies import BODIES
from events.bodies.base import Body
from events.read import read, read_job
from events.store import Store
from events.subjects import job_subject
from tests.histories import (
    FIELDS,
    Player,
    body,
    commands,
    decided,
    event,
    fact,
    folded_works,
    legal,
    live_works,
    outcomes,
)
from tests.support import check_record, fake_store, new_call, replayed

#: Text that people and apps may bring; what a database or a JSON writer may choke on, too.
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12).filter(lambda t: t[:1] != "\x01")
STEPS = st.lists(st.tuples(st.integers(0, 9999), TEXTS), max_size=25)


def same_everywhere(store: Store, jobs: Jobs, names: tuple[str, ...]) -> None:
    """Live and replayed state of each job agree field by field, and open work does."""
    events = list(read(store))
    by_fold = fold(events)
    for name in names:
        told = by_fold.get(name, JobState())
        assert dict(jobs.load(name).state) == dict(told), f"{name}: loaded and folded state differ"
        assert store.client.hgetall(store.keys.job(name)) == dict(told), f"{name}: raw hash and fold differ"
        assert jobs.load(name).version == sum(1 for e in events if e.subject == job_subject(name))
    assert live_works(store) == folded_works(events)


@settings(max_examples=60, deadline=None)
@given(STEPS)
@example([(0, "why"), (0, "why"), (0, "why")])
def test_l3_live_status_equals_the_replayed_one_after_every_append_of_any_history(steps):
    store = fake_store()
    player = Player(store)
    for choice, text in steps:
        player.step(choice, text)
        same_everywhere(store, player.jobs, player.names)
    check_record(store)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_l3_open_work_a_set_by_state_and_heads_agree_with_the_fold_at_the_end(steps):
    store = fake_store()
    player = Player(store)
    for choice, text in steps:
        player.step(choice, text)
    states = fold(list(read(store)))
    for state in State:
        expected = {job: float(s["since"]) for job, s in states.items() if s.get("state") == state.value}
        listed = dict(store.client.zrange(store.keys.state(state.value), 0, -1, withscores=True))
        assert listed == expected, f"the set of {state.value} jobs differs"
    everything = {job: float(s["since"]) for job, s in states.items()}
    assert dict(store.client.zrange(store.keys.by_time, 0, -1, withscores=True)) == everything
    assert player.jobs.consistent() is None


def test_l3_several_transitions_in_one_append_leave_the_same_status_as_one_by_one():
    together, apart = fake_store(), fake_store()
    for store in (together, apart):
        run(Jobs(store), "j", "DeployRequested", "DeploySucceeded", "StartRequested")
    story = [event(name, Jobs(apart).load("j").state) for name in ("AppSpawned", "AppStarted", "AppFinished")]
    Jobs(together).transact(new_call(), "j", lambda state: story)
    for new in story:
        Jobs(apart).transact(new_call(), "j", lambda state, new=new: [new])
    timeless = [{k: v for k, v in Jobs(s).load("j").state.items() if k not in WHEN} for s in (together, apart)]
    assert timeless[0] == timeless[1]
    same_everywhere(together, Jobs(together), ("j",))


WHEN = ("position", "since", "created", "started_at", "ended_at", "asked_at", "start_position", "correlation")


def test_l3_a_return_to_the_same_state_in_one_append_moves_the_job_in_its_set():
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", "DeployRequested", "DeploySucceeded", "StartRequested", "LaunchFailed")
    store.client.zadd(store.keys.state("launch_failed"), {"j": 1})  # long ago
    again = [body("StartRequested", 2), body("LaunchFailed", 2)]
    jobs.transact(new_call(), "j", lambda state: again)
    since = float(jobs.load("j").state["since"])
    assert store.client.zscore(store.keys.by_time, "j") == since
    assert store.client.zscore(store.keys.state("launch_failed"), "j") == since


FOREIGN = {
    "reason": ("DeployRequested", "reason", "reason"),
    "app": ("DeployRequested", "app", "next_app"),
    "manager": ("StartRequested", "manager", "manager"),
    "host": ("AppSpawned", "host", "host"),
    "error": ("DeleteFailed", "error", "error"),
}


STAND_INS = ("\x01m0", "\x01m0+5", "\x01p0", "\x01", "\x01 told by a terminal")


@pytest.mark.parametrize("kind", FOREIGN)
def test_l3_foreign_text_that_looks_like_a_stand_in_is_stored_as_it_is(kind):
    name, field, shown = FOREIGN[kind]
    path = {
        "StartRequested": ("DeployRequested", "DeploySucceeded"),
        "AppSpawned": ("DeployRequested", "DeploySucceeded", "StartRequested"),
        "DeleteFailed": ("DeployRequested", "DeployFailed", "DeleteRequested"),
    }.get(name, ())
    for text in STAND_INS:
        store = fake_store()
        jobs = Jobs(store)
        run(jobs, "j", *path)
        jobs.transact(new_call(), "j", lambda state, text=text: [event(name, state, **{field: text})])
        assert replayed(store, "j")[shown] == text
        assert jobs.load("j").state[shown] == text


def test_l3_a_deadline_of_any_size_is_the_same_live_and_replayed():
    for seconds in (0.001, 0.0015, 1.0005, 59.9999, 86_400.0, 1e9):
        store = fake_store()
        jobs = Jobs(store)
        jobs.transact(new_call(), "j", lambda state, s=seconds: [body("DeployRequested", deadline=s)])
        same_everywhere(store, jobs, ("j",))


@pytest.mark.parametrize("name", ["DeployRequested", "CallRefused"])
def test_l3_what_a_transaction_gives_back_is_the_state_that_the_record_has(name):
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", "DeployRequested", "DeployFailed")
    recorded = jobs.transact(new_call(), "j", lambda state: [event(name, state)])
    assert recorded is not None
    assert recorded.state == jobs.load("j").state
    assert recorded.revision == jobs.load("j").revision


def test_l4_the_same_call_again_through_a_transaction_gets_its_first_answer():
    store = fake_store()
    jobs = Jobs(store)
    call = new_call()
    first = jobs.transact(call, "j", lambda state: [body("DeployRequested")])
    again = jobs.transact(call, "j", lambda state: [body("DeployRequested")])
    assert first is not None
    assert again is not None
    assert again.appended.repeated
    assert again.position == first.position
    assert len(list(read(store))) == 1


# -- what is illegal -----------------------------------------------------------------------


def run(jobs: Jobs, job: str, *names: str) -> JobState:
    """Record events one by one."""
    for name in names:
        jobs.transact(new_call(), job, lambda state, name=name: [event(name, state)])
    return jobs.load(job).state


PATHS = {
    "new": (),
    "deploying": ("DeployRequested",),
    "redeploying": ("DeployRequested", "DeploySucceeded", "DeployRequested"),
    "deployed": ("DeployRequested", "DeploySucceeded"),
    "deploy_failed": ("DeployRequested", "DeployFailed"),
    "starting": ("DeployRequested", "DeploySucceeded", "StartRequested"),
    "running": ("DeployRequested", "DeploySucceeded", "StartRequested", "AppSpawned", "AppStarted"),
    "deleting": ("DeployRequested", "DeployFailed", "DeleteRequested"),
}
PATHS |= {
    "finishing": (*PATHS["running"], "AppStopping"),
    "aborting": (*PATHS["running"], "AbortRequested"),
    "finished": (*PATHS["running"], "AppFinished"),
    "failed": (*PATHS["running"], "AppFailed"),
    "aborted": (*PATHS["running"], "AppAborted"),
    "launch_failed": (*PATHS["starting"], "LaunchFailed"),
    "delete_failed": (*PATHS["deleting"], "DeleteAbandoned"),
    "deleted": (*PATHS["deleting"], "DeleteSucceeded"),
}


def everything(store: Store) -> dict[str, object]:
    """Every key with its whole content."""
    return {name: store.client.dump(name) for name in store.client.keys("*")}


@pytest.mark.parametrize("state", list(State), ids=str)
def test_l9_an_illegal_event_raises_and_writes_nothing(state):
    store = fake_store()
    jobs = Jobs(store)
    now = run(jobs, "j", *PATHS[state.value])
    assert now.state is state
    before = everything(store)
    illegal = [event(name, now) for name in EVENTS if not legal(now, event(name, now))]
    assert illegal
    for new in illegal:
        with pytest.raises(Illegal, match=rf" {new.name()} "):
            jobs.transact(new_call(), "j", lambda state, new=new: [new])
    assert everything(store) == before


def test_l9_one_illegal_event_among_legal_ones_writes_none_of_them():
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", *PATHS["starting"])
    before = everything(store)
    story = [body("AppSpawned"), body("AppStarted"), body("DeploySucceeded")]
    with pytest.raises(Illegal, match="DeploySucceeded cannot come in state running"):
        jobs.transact(new_call(), "j", lambda state: story)
    assert everything(store) == before


OF_ATTEMPT = [name for name in EVENTS if "attempt" in BODIES[name].model_fields]


@pytest.mark.parametrize("name", OF_ATTEMPT)
@pytest.mark.parametrize("off", [-1, 1])
def test_an_event_of_another_attempt_is_illegal(name, off):
    store = fake_store()
    jobs = Jobs(store)
    path = ["DeployRequested", "DeploySucceeded", "StartRequested", "LaunchFailed", "StartRequested"]
    if name == "StartRequested":
        path = path[:-1]
    if name.startswith("AppS") is False and name.startswith("App"):
        path.append("AppSpawned")
    now = run(jobs, "j", *path)
    right = now.attempt + (name == "StartRequested")
    assert legal(now, body(name, right)), "the test is about the attempt alone"
    with pytest.raises(Illegal, match=f"{name} of attempt {right + off}, but the job is at attempt {right}"):
        jobs.transact(new_call(), "j", lambda state: [body(name, right + off)])


def test_a_second_spawn_of_the_same_attempt_changes_nothing():
    store = fake_store()
    jobs = Jobs(store)
    before = run(jobs, "j", *PATHS["starting"], "AppSpawned")
    works = live_works(store)
    other = body("AppSpawned", pid=999, host="another", keeper_pid=998)
    recorded = jobs.transact(new_call(), "j", lambda state: [other])
    assert recorded is not None
    assert recorded.state == before
    assert jobs.load("j").state == before
    assert {name: work["kind"] for name, work in live_works(store).items()} == {"app_j_1": "app"}
    assert works.keys() == live_works(store).keys()
    same_everywhere(store, jobs, ("j",))


@pytest.mark.parametrize("name", ["LaunchFailed", "LaunchExpired"])
@pytest.mark.parametrize("state", ["starting", "aborting"])
def test_a_launch_that_has_spawned_can_no_longer_fail_or_expire(name, state):
    store = fake_store()
    jobs = Jobs(store)
    aborts = ("AbortRequested",) if state == "aborting" else ()
    now = run(jobs, "j", *PATHS["starting"], "AppSpawned", *aborts)
    assert now.state == state
    with pytest.raises(Illegal, match=f"{name} although the attempt has spawned"):
        jobs.transact(new_call(), "j", lambda state: [body(name)])


def test_a_new_attempt_starts_with_a_clean_slate():
    state = JobState()
    for name in (*PATHS["failed"], "StartRequested"):
        state = apply(state, fact(event(name, state)))
    assert state.attempt == 2
    assert not state.spawned
    for field in ("pid", "host", "exit_code", "outcome", "duration", "started_at", "ended_at", "error"):
        assert state[field] == "", f"{field} is left from the first attempt"
    assert legal(state, body("LaunchFailed", 2))


def test_a_job_that_is_started_while_its_notes_come_keeps_its_status():
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", *PATHS["running"])
    for number in range(3):
        for name in COUNTERS:  # the order of the table: what asks for a message comes before what ends it
            fields = {"id": f"{number:032x}"} if name == "AuxRequested" else {}
            if name == "AuxOutcomeUnknown":
                jobs.note(new_call(), [body("AuxRequested", id=f"{number + 9:032x}")])
                fields = {"id": f"{number + 9:032x}"}
            if name == "AuxFailed":
                fields = {"id": f"{number:032x}"}
            jobs.note(new_call(), [body(name, **fields)], "j")
    state = jobs.load("j").state
    assert {name: state[field] for name, field in COUNTERS.items()} == dict.fromkeys(COUNTERS, "3")
    assert state.state is State.RUNNING
    same_everywhere(store, jobs, ("j",))


def test_a_note_leaves_the_revision_alone_and_raises_the_version():
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", *PATHS["running"])
    before = jobs.load("j")
    jobs.note(new_call(), [body("AuxRequested", id="f" * 32)])  # for what can only end a message
    names = [*COUNTERS, *LAST_WRITER]
    for name in names:
        fields = {"id": "f" * 32} if name == "AuxOutcomeUnknown" else {}
        jobs.note(new_call(), [body(name, **fields)], "j")
    after = jobs.load("j")
    assert after.revision == before.revision
    assert after.version == before.version + len(names)


def test_two_counts_in_one_append_both_count():
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", *PATHS["running"])
    jobs.note(new_call(), [body("CallRefused"), body("CallRefused"), body("LateExit")], "j")
    jobs.transact(new_call(), "j", lambda s: [body("CallRepeated"), event("AppStopping", s), body("CallRepeated")])
    state = jobs.load("j").state
    assert (state["refusals"], state["late_exits"], state["repeats"]) == ("2", "1", "2")
    same_everywhere(store, jobs, ("j",))


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_a_note_cannot_carry_a_transition(name):
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", *PATHS["starting"])
    before = everything(store)
    with pytest.raises(ValueError, match=f"{name} is no note"):
        jobs.note(new_call(), [body("CallRepeated"), body(name)], "j")
    assert everything(store) == before


@pytest.mark.parametrize("ending", ["AppSpawned", "LaunchFailed", "LaunchExpired"])
@pytest.mark.parametrize("notice", ["AppStarted", "AppStopping"])
def test_l1_a_launch_can_be_brought_to_its_end_after_a_notice_that_overtook_its_spawn(notice, ending):
    # A worker stalls between the app's exec and its record (L4), or none ever took the launch; the app,
    # or whoever speaks for it, notifies meanwhile. Either that is refused, or the launch can still end.
    state = JobState()
    for name in (*PATHS["starting"], notice):
        new = event(name, state)
        if name != notice or legal(state, new):
            state = apply(state, fact(new))
    assert legal(state, event(ending, state)), f"{ending} cannot come in {state.state} of an unspawned attempt"


# -- conditions and conflicts --------------------------------------------------------------


def test_a_decision_is_made_anew_when_the_job_moved_between_looking_and_recording():
    store = fake_store()
    jobs, other = Jobs(store), Jobs(store)
    run(jobs, "j", *PATHS["starting"])
    seen = []

    def choose(state: JobState) -> list[Body]:
        seen.append(state.state)
        if len(seen) == 1:
            run(other, "j", "AppSpawned", "AppStarted")
        return decided(state, commands()[-1])  # notify_stopped

    jobs.transact(new_call(), "j", choose)
    assert seen == [State.STARTING, State.RUNNING]
    assert jobs.load("j").state.state is State.FINISHING
    same_everywhere(store, jobs, ("j",))


def test_a_condition_that_does_not_hold_refuses_the_outcome_and_writes_nothing():
    store = fake_store()
    jobs = Jobs(store)
    run(jobs, "j", "DeployRequested")
    before = everything(store)
    with pytest.raises(WorkRefused, match="fenced"):
        jobs.transact(new_call(), "j", lambda s: [body("DeploySucceeded")], conditions={"deploy": ("token", "mine")})
    assert everything(store) == before


def test_the_outcomes_that_tests_play_are_all_there_are():
    seen = set()
    for path in PATHS.values():
        state = JobState()
        for name in path:
            state = apply(state, fact(event(name, state)))
        seen |= {new.name() for bodies in outcomes(state) for new in bodies}
    assert seen == set(EVENTS)
    assert FIELDS.keys() == BODIES.keys(), "tests.histories.FIELDS needs a body of every type"


def test_replay_of_a_prefix_is_the_status_of_that_time():
    store = fake_store()
    jobs = Jobs(store)
    live = []
    for name in (*PATHS["aborting"], "AppAborted", "DeleteRequested", "DeleteSucceeded", "DeployRequested"):
        live.append(run(jobs, "j", name))
    state = JobState()
    for one, then in zip(read_job(store, "j"), live, strict=True):
        state = apply(state, fact_of(one))
        assert state == then


def test_an_event_that_no_fold_could_have_taken_is_found_by_replay():
    store = fake_store()
    Log(store).append(new_call(), [NewEvent(job_subject("j"), body("DeploySucceeded"))])
    with pytest.raises(Illegal, match="DeploySucceeded cannot come in state new"):
        fold(list(read(store)))

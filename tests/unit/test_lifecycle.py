"""The lifecycle: the machine, the compiled fold and ``decide`` say the same, and no state is a trap."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cache

import pytest

from engine.decide import TABLE as ANSWERS
from engine.decide import Abort, Accepted, Refused, Repeated, allowed, decide
from engine.errors import CATALOGUE
from engine.fold import Illegal, JobState, apply, next_state
from engine.lifecycle import AT_REST, COMMANDS, EVENTS, EXECUTORS, GUARDS, LIVE, WORK, State
from engine.machine import MachineError, build, diagram
from engine.rebuild import Works
from engine.refusals import refusal
from tests.histories import body, commands, decided, event, fact, legal

STATES = [state.value for state in State]


def a_job(state: str, **fields: str) -> JobState:
    """A job in a state, at its first attempt where it ever had one."""
    meta = '{"job_id": "j", "scope": "s"}'
    never = state in ("new", "deploying", "deploy_failed")
    return JobState({"state": state, "attempt": "" if never else "1", "meta": meta, **fields})


# -- the table, the machine and the fold ---------------------------------------------------


@pytest.mark.parametrize("name", EVENTS)
def test_machine_and_fold_agree_on_an_event_in_every_state(name):
    machine = build()
    differ = []
    for state in STATES:
        machine.set_state(state)
        try:
            machine.model.trigger(name)
            by_machine = machine.model.state
        except MachineError:
            by_machine = None
        job = a_job(state)
        try:
            by_fold = apply(job, fact(event(name, job))).state.value
        except Illegal:
            by_fold = None
        if not by_machine == by_fold == next_state(state, name):
            differ.append(f"{state} x {name}: machine {by_machine}, fold {by_fold}")
    assert not differ


def test_the_table_gives_every_pair_of_state_and_event_at_most_one_destination():
    for name, rows in EVENTS.items():
        sources = [source for states, _ in rows for source in states]
        assert len(sources) == len(set(sources)), f"{name} has two destinations"


def test_the_table_gives_every_pair_of_state_and_command_exactly_one_answer():
    for name, rows in COMMANDS.items():
        states = [state for group, _ in rows for state in group]
        assert sorted(states) == sorted(State), f"{name} leaves a state out, or answers it twice"


def test_guarded_events_are_those_that_the_fold_refuses_once_the_attempt_has_spawned():
    refused = {
        name
        for name in EVENTS
        for state in STATES
        if legal(a_job(state), event(name, a_job(state)))
        and not legal(a_job(state, spawned="1"), event(name, a_job(state)))
    }
    assert refused == set(GUARDS)


def test_the_diagram_names_every_state_and_every_event():
    text = diagram()
    assert text.startswith("stateDiagram-v2\n")
    assert text.count("[*] --> new") == 1, "the entry is drawn twice"
    for word in [*STATES, *EVENTS]:
        assert word in text, f"{word} is not in the diagram"


@pytest.mark.parametrize(
    ("status", "states"),
    {
        "not started": "new deploying redeploying deployed deploy_failed deleted",
        "starting": "starting",
        "started": "running",
        "stopped": "finishing finished aborted failed deleting delete_failed",
        "exception": "launch_failed",
    }.items(),
)
def test_the_reference_status_of_a_state(status, states):
    assert {a_job(state).client_status for state in states.split()} == {status}


@pytest.mark.parametrize(
    ("story", "status"),
    [
        ("AbortRequested", "starting"),
        ("AppSpawned AbortRequested AppStarted", "started"),
        ("AppSpawned AppStarted AbortRequested", "started"),
        ("AppSpawned AppStarted AppStopping AbortRequested AppStarted", "stopped"),
        ("AppSpawned AbortRequested AppStopping", "stopped"),
    ],
)
def test_an_aborting_job_shows_the_furthest_status_that_was_seen(story, status):
    state = a_job("deployed")
    for name in ["StartRequested", *story.split()]:
        state = apply(state, fact(event(name, state)))
    assert state.state is State.ABORTING
    assert state.client_status == status


# -- decide --------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("spawned", ["", "1"])
@pytest.mark.parametrize("origin", ["", "user", "heartbeat", "server", "deadline"])
def test_decide_answers_every_command_and_what_it_accepts_is_legal_by_the_fold(state, spawned, origin):
    job = a_job(state, spawned=spawned, abort_origin=origin)
    for command in commands():
        decision = decide(job, command)
        row = ANSWERS[command.method][state]
        if isinstance(decision, Accepted):
            assert decision.bodies
            for new in decision.bodies:
                assert legal(job, new), f"{command} in {state} is accepted, but {new.name()} is illegal"
            assert not row.startswith("-")
        elif isinstance(decision, Repeated):
            assert row == "="
            assert decision.body.state == state
        else:
            assert decision.code == "META_DIFFERS" or row == f"-{decision.code}"


@pytest.mark.parametrize("state", STATES)
def test_every_refusal_has_a_code_of_the_catalogue_and_a_text_with_a_fix(state):
    job = a_job(state, asked_by="somebody", since="1000")
    for command in commands():
        decision = decide(job, command)
        if isinstance(decision, Refused):
            error = refusal(decision, "job-1", job)
            assert CATALOGUE[decision.code] is type(error)
            assert "job-1" in f"{error.what} {error.fix}", f"{decision.code} does not name the job"
            assert error.fix, f"{decision.code} names no fix"


@pytest.mark.parametrize("state", STATES)
def test_allowed_says_what_decide_does(state):
    for command in commands():
        decision = decide(a_job(state), command)
        code = allowed(a_job(state))[command.method]
        assert isinstance(decision, Refused) == bool(code) or decision.code == "META_DIFFERS"


@pytest.mark.parametrize("before", ["user", "server", "heartbeat", "deadline"])
@pytest.mark.parametrize("origin", ["user", "server", "heartbeat", "deadline"])
def test_only_a_users_abort_goes_over_one_that_no_user_asked_for(before, origin):
    decision = decide(a_job("aborting", abort_origin=before), Abort(origin=origin, grace=1.0))
    goes_over = origin == "user" and before in ("heartbeat", "deadline")
    assert isinstance(decision, Accepted if goes_over else Repeated)


def test_a_start_with_other_metadata_is_refused_with_the_key_that_differs():
    start = next(c for c in commands() if getattr(c, "meta", None) == {"job_id": "another"})
    decision = decide(a_job("deployed"), start)
    assert decision == Refused("META_DIFFERS", State.DEPLOYED, "job_id")


def test_a_state_at_rest_accepts_at_least_one_command():
    for state in AT_REST:
        accepted = [c for c in commands() if isinstance(decide(a_job(state), c), Accepted)]
        assert accepted, f"nothing can be done with a job that is {state}"


# -- no state is a trap --------------------------------------------------------------------

#: What the executor of each kind of work can bring by itself: no app that cooperates, no person.
BRINGS = {
    "deploy": ("DeploySucceeded", "DeployFailed", "DeployExpired"),
    "launch": ("AppSpawned", "LaunchFailed", "LaunchExpired"),
    "app": ("AppFinished", "AppFailed", "AppAborted", "AppLost"),
    "abort": ("LaunchExpired",),
    "delete": ("DeleteSucceeded", "DeleteFailed", "DeleteAbandoned"),
    "settle": ("JobSettled",),
    "aux": ("AuxSent", "AuxReplied", "AuxFailed", "AuxOutcomeUnknown"),
    "transfer": ("TransferClosed",),
}
Key = tuple[str, bool, frozenset[str]]


@dataclass
class Node:
    """A job as some history leaves it: its state, its open work, and the events that led here."""

    state: JobState
    works: dict[str, dict[str, str]]
    story: tuple[str, ...]

    @property
    def key(self) -> Key:
        """What makes two histories the same here."""
        return (self.state.state.value, self.state.spawned, frozenset(w["kind"] for w in self.works.values()))

    def after(self, new) -> Node | None:
        """The node after an event; None where it is illegal."""
        told = fact(new)
        try:
            state = apply(self.state, told)
        except Illegal:
            return None
        works = Works()
        works.open = {name: dict(work) for name, work in self.works.items()}
        works.apply("j", state, told, "call:c:intent")
        return Node(state, works.open, (*self.story, new.name()))

    def brought(self) -> list[Node]:
        """Where the executors of its open work can bring it."""
        found = []
        for work in self.works.values():
            for name in BRINGS[work["kind"]]:
                node = self.after(body(name, int(work["number"]) or 1))
                if node is not None:
                    found.append(node)
        return found

    def commanded(self) -> list[Node]:
        """Where commands can bring it."""
        nodes = [self.after(new) for command in commands() for new in decided(self.state, command)]
        return [node for node in nodes if node is not None]


@cache
def reachable() -> dict[Key, Node]:
    """Every (state, spawned, kinds of open work) that some history reaches, with the shortest one."""
    start = Node(JobState(), {}, ())
    seen, queue = {start.key: start}, deque([start])
    while queue:
        node = queue.popleft()
        for found in node.commanded() + node.brought():
            if found.key not in seen:
                seen[found.key] = found
                queue.append(found)
    return seen


def leads_to_rest(node: Node) -> bool:
    """Whether open work alone brings a job to rest."""
    seen, queue = {node.key}, deque([node])
    while queue:
        here = queue.popleft()
        if here.state.at_rest:
            return True
        for found in here.brought():
            if found.key not in seen:
                seen.add(found.key)
                queue.append(found)
    return False


def test_the_walk_reaches_every_state_of_the_table():
    assert {state for state, _, _ in reachable()} == set(STATES)


def test_what_executors_bring_and_what_closes_work_are_the_same_table():
    assert BRINGS.keys() == EXECUTORS.keys()
    for kind, names in BRINGS.items():
        for name in names:
            closes = f"-{kind}" in WORK.get(name, "").split()
            assert closes or name == "DeleteFailed", f"{name} does not close {kind} work"
    opened = {effect[1:] for effects in WORK.values() for effect in effects.split() if effect[0] == "+"}
    closed = {effect[1:] for effects in WORK.values() for effect in effects.split() if effect[0] == "-"}
    assert opened == closed == EXECUTORS.keys()


def test_l1_no_state_is_a_trap_open_work_alone_brings_every_job_to_rest():
    traps = [
        f"{key[0]} (spawned: {key[1]}, open: {sorted(key[2])}) after {' > '.join(node.story)}"
        for key, node in reachable().items()
        if not leads_to_rest(node)
    ]
    assert not traps, "\n".join(["nothing leads out of:", *traps])


def test_l1_a_job_that_is_not_at_rest_has_open_work_other_than_settling():
    for (state, _, kinds), node in reachable().items():
        if not node.state.at_rest:
            assert kinds - {"settle"}, f"{state} after {' > '.join(node.story)} waits for nobody"


def test_l1_a_job_at_rest_has_no_open_work_but_settling():
    for (state, _, kinds), node in reachable().items():
        if node.state.at_rest:
            assert kinds <= {"settle"}, f"{state} after {' > '.join(node.story)} leaves {sorted(kinds)} open"


def test_l1_a_job_that_is_not_at_rest_says_who_asked_and_what_it_waits_for():
    for key, node in reachable().items():
        if node.state.at_rest:
            assert not node.state.get("waiting_for"), f"{key} waits for {node.state['waiting_for']}"
            assert not node.state.get("deadline"), f"{key} has a deadline although nothing is to come"
        else:
            for name in ("asked", "asked_by", "asked_at", "correlation", "waiting_for"):
                assert node.state.get(name), f"{key} after {' > '.join(node.story)} has no {name}"


def test_l1_an_app_that_has_spawned_is_watched_until_its_end_is_recorded():
    for (state, spawned, kinds), node in reachable().items():
        if state in LIVE and spawned:
            assert "app" in kinds, f"{state} after {' > '.join(node.story)}: nobody watches the app"
            assert "launch" not in kinds, f"{state} after {' > '.join(node.story)}: it would be launched again"


def test_work_that_nobody_takes_has_a_deadline_where_the_table_says_that_it_expires():
    for key, node in reachable().items():
        for name, work in node.works.items():
            bound = work["kind"] in ("deploy", "launch", "delete")
            assert (work["deadline"] != "+inf") == bound, f"{name} at {key}"
            assert (int(work["max"]) > 0) == bound, f"{name} at {key}"
            assert ("expires" in EXECUTORS[work["kind"]][1] or "given up" in EXECUTORS[work["kind"]][1]) == bound

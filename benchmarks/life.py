"""Lives of jobs as a busy site records them, made up from a seed: the same in every run."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from engine.actors import system_actor
from engine.fold import JobState
from engine.jobs import Jobs
from engine.projection import facts_to_be, note_ops, project
from events.append import NewEvent, Ops
from events.bodies.app import (
    AbortSignalled,
    AppAborted,
    AppFailed,
    AppFinished,
    AppSpawned,
    AppStarted,
    JobSettled,
    OutputClosed,
    ResourcesFreed,
    StartRequested,
)
from events.bodies.base import Body
from events.bodies.job import (
    AbortRequested,
    CallRefused,
    DeployRequested,
    DeploySucceeded,
    ReadsObserved,
    WorkClaimed,
)
from events.bodies.site import FLEventFired
from events.envelope import Actor, Call
from events.subjects import SITE, job_subject

OPERATOR = Actor(id="operator", kind="person", auth="os-uid", via="cli")
WORKER, CARETAKER, REACTOR = system_actor("worker"), system_actor("caretaker"), system_actor("reactor")
EPOCH_MS = 1_760_000_000_000
RESOURCES = {"num_of_gpus": 1, "mem_per_gpu_in_GiB": 8}


class Step(NamedTuple):
    """One event of a life: about the job, or (``job`` is empty) about the site."""

    call: Call
    body: Body
    job: str


def deploy_request(job: str) -> DeployRequested:
    """A deploy with metadata of a usual size."""
    meta = {
        "job_id": job,
        "name": "breast_cancer",
        "submitter_name": "researcher@hospital.example",
        "submitter_org": "hospital",
        "submitter_role": "lead",
        "min_clients": 2,
        "resource_spec": {"site-1": RESOURCES},
        "deploy_map": {"app": ["@ALL"]},
    }
    digest = hashlib.sha256(job.encode()).hexdigest()
    return DeployRequested(
        app="breast_cancer",
        sha256=digest,
        size=102_400,
        meta_sha256=digest,
        meta=meta,
        byoc=True,
        deadline=60,
        attempts=3,
    )


def start_request(attempt: int) -> StartRequested:
    """A start with one GPU."""
    return StartRequested(attempt=attempt, resources=RESOURCES, manager="resource_manager", deadline=60, attempts=3)


def claimed(kind: str, job: str, number: int = 1) -> WorkClaimed:
    """A worker took the work."""
    work = f"{kind}_{job}_{number}"
    token = hashlib.sha256(work.encode()).hexdigest()[:16]
    return WorkClaimed(work=work, token=token, worker="node-1:41234:1234567", until=EPOCH_MS + 15_000)


def reads(count: int) -> ReadsObserved:
    """A second's reads of one getter."""
    return ReadsObserved(method="get_engine_status", result="ok", count=count, first=EPOCH_MS, last=EPOCH_MS + 990)


def life(job: str, chance: random.Random, *, ends: str = "") -> list[Step]:
    """A job from its deploy to its settled end: 15 to 21 events, four or five of them the site's.

    Args:
        job: its id.
        chance: where the choices come from.
        ends: finished, failed or aborted; empty: as it comes.
    """
    how = ends or chance.choices(["finished", "failed", "aborted"], [85, 10, 5])[0]
    steps: list[Step] = []

    def record(actor: Actor, call: str, step: str, *bodies: Body, site: bool = False) -> None:
        made = Call(
            call_id=f"{call}:{job}",
            actor=actor,
            step=step,
            arguments=hashlib.sha256(job.encode()).hexdigest()[:16] if actor is OPERATOR else "",
            cause=None if actor is OPERATOR else f"{EPOCH_MS}-1",
            correlation=f"call:{job}",
        )
        steps.extend(Step(made, body, "" if site else job) for body in bodies)

    def fired(event: str) -> None:
        actor = OPERATOR if event == "_before_job_launch" else REACTOR
        record(actor, event, "fired", FLEventFired(event=event, job=job, handlers=3), site=True)

    record(OPERATOR, "deploy", "intent", deploy_request(job))
    record(WORKER, "deploy-work", "claim", claimed("deploy", job))
    record(WORKER, "deploy-work", "outcome", DeploySucceeded(files=12, bytes=310_000))
    if chance.random() < 0.3:
        refused = CallRefused(
            method="start_app", code="META_DIFFERS", message="job_meta['scope'] is not what was deployed"
        )
        record(OPERATOR, "refused", "refused", refused)
    fired("_before_job_launch")
    record(OPERATOR, "start", "intent", start_request(1))
    record(WORKER, "launch-work", "claim", claimed("launch", job))
    spawned = AppSpawned(
        attempt=1,
        host="node-1",
        keeper_pid=41_240,
        pid=41_241,
        start_ticks=1_234_600,
        argv_sha256=hashlib.sha256(b"python").hexdigest(),
        started_by="launcher",
        isolation="none",
        network="open",
    )
    record(WORKER, "launch-work", "outcome", spawned, AppStarted(attempt=1, by="launcher"))
    fired("_after_job_launch")
    for number in range(chance.choice((1, 2, 2, 3))):
        record(OPERATOR, f"reads-{number}", "reads", reads(40 + number), site=True)
    exit_ = {
        "attempt": 1,
        "exit_code": {"finished": 0, "failed": 1, "aborted": None}[how],
        "signal": 15 if how == "aborted" else None,
        "outcome": {"finished": 0, "failed": 1, "aborted": 9}[how],
        "code_source": "process",
        "duration": round(chance.uniform(30, 3000), 3),
        "signalled_before": how == "aborted",
        "killed": 0,
    }
    if how == "aborted":
        record(OPERATOR, "abort", "intent", AbortRequested(attempt=1, origin="user", grace=10, reason="wrong data"))
        told = AbortSignalled(attempt=1, signal="SIGTERM", pids=[41_240, 41_239])
        record(CARETAKER, "abort-work", "signalled", told)
    end = {"finished": AppFinished, "failed": AppFailed, "aborted": AppAborted}[how]
    record(CARETAKER, "exit", "exit", end.model_validate(exit_))
    closed = OutputClosed(attempt=1, bytes=81_234, sha256=hashlib.sha256(job.encode()).hexdigest())
    record(CARETAKER, "exit", "output", closed)
    freed = ResourcesFreed(attempt=1, resources=RESOURCES, why="the attempt ended")
    record(REACTOR, "freed", "freed", freed)
    fired("_job_completed")
    record(REACTOR, "settle", "settled", JobSettled(attempt=1, freed="yes", completed_fired=True))
    return steps


def lives(count: int, *, ends: str = "", seed: int = 7) -> Iterator[tuple[str, list[Step]]]:
    """Ids and lives of so many jobs."""
    chance = random.Random(seed)
    for number in range(count):
        job = f"{hashlib.sha256(str(number).encode()).hexdigest()[:8]}-{number:06}"
        yield job, life(job, chance, ends=ends)


def append_lives(jobs: Jobs, batch: Sequence[tuple[str, list[Step]]]) -> int:
    """Record whole lives through the real append path, and the settling apart; how many events.

    One append of several jobs instead of a dozen of each: the same entries and derived keys, in a
    tenth of the time. All have the batch's one call, so fewer calls are remembered.
    """
    name = batch[0][0]
    call = Call(call_id=f"lives:{name}", actor=OPERATOR, arguments="0123456789abcdef")
    events: list[NewEvent] = []
    ops, settled = Ops(), Ops()
    last: list[NewEvent] = []
    for job, steps in batch:
        facts = []
        for step in steps:
            if isinstance(step.body, JobSettled):
                note_ops(call, job, [step.body], settled, first=len(last))
                last.append(NewEvent(job_subject(job), step.body))
                continue
            if step.job:
                facts += facts_to_be(call, [step.body], first=len(events))
            events.append(NewEvent(job_subject(job) if step.job else SITE, step.body))
        project(job, JobState(), facts, ops=ops)
    jobs.log.append(call, events, ops)
    jobs.log.append(call.at("settled"), last, settled)
    return len(events) + len(last)

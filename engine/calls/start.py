"""start_app: launch the app that is in place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.actors import current_reason
from engine.core import Core
from engine.decide import Accepted, Start, decide
from engine.errors import CATALOGUE, ArgumentTypeInvalid, CallTimeout, LaunchFailedError, NoWorker, from_code
from engine.fold import JobState, work_id
from engine.ids import check_job_id
from engine.lifecycle import State
from engine.meta import check_meta
from engine.network import asked_network, chosen, tighter
from engine.owner import owner_of
from engine.refusals import clock
from events.bodies.app import LaunchExpired, Network
from events.envelope import Call, digest_of
from events.errors import FlightlogError


@dataclass(frozen=True, kw_only=True)
class Allotment:
    """What was allocated to a start, and who gets it back."""

    resources: Mapping[str, Any] = field(default_factory=dict)
    token: str | None = None
    manager: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def token_digest(self) -> str | None:
        """The token is a secret; its digest is not."""
        return hashlib.sha256(self.token.encode()).hexdigest()[:32] if self.token else None


@dataclass(frozen=True, slots=True)
class Started:
    """What came of a start: the attempt that was recorded, and the job's state with its process."""

    attempt: int
    state: JobState


def start(
    core: Core,
    call: Call,
    job_id: str,
    job_meta: Mapping[str, Any] | None,
    allotment: Allotment,
    *,
    timeout: float | None = None,
    before: Callable[[Mapping[str, Any]], None] | None = None,
    recorded: Callable[[], None] | None = None,
) -> Started:
    """Start an app (reference 2.2) and wait until its process is there.

    Its network is the site's, or what ``engine.network.on_network`` says.

    Args:
        core: the engine's.
        call: made by ``core.call("start_app", ...)``.
        job_id: which job.
        job_meta: must agree with the deployed metadata; None: not said.
        allotment: the resources it gets.
        timeout: seconds to wait; 0: not at all.
        before: called with the metadata once it is sure that nothing stands against the start.
        recorded: called as soon as the intent is on the record.

    Raises:
        ArgumentInvalid, JobIdInvalid: bad input.
        JobUnknown, NotDeployed, AlreadyStarted, StillRegistered, MetaDiffers, ...: refused.
        NoWorker: nobody took it in time; it was withdrawn and never launches.
        CallTimeout: the outcome is not known yet.
        LaunchFailedError or the worker's error: it could not be launched.
        The last three have ``attempt`` in their context: they were recorded.
    """
    method = "start_app"
    asked = asked_network()
    if asked is not None:  # another network is another question, which an earlier answer does not answer
        call = replace(call, arguments=digest_of(call.arguments, asked))
    meta = core.guarded(call, method, job_id, lambda: _checked(job_id, job_meta))
    network = network_of(core, call, job_id)
    settings = core.site.settings
    command = Start(
        meta=meta,
        resources=allotment.resources,
        resource_token_digest=allotment.token_digest,
        manager=allotment.manager,
        environment=allotment.environment,
        network=network,
        reason=current_reason(),
        deadline=settings.claim_deadline,
        attempts=settings.attempts,
    )
    if before is not None and isinstance(decide(core.site.jobs.load(job_id).state, command), Accepted):
        before(meta or {})
    done = core.command(call, job_id, command)
    if recorded is not None:
        recorded()
    if done is None:
        state = core.site.jobs.load(job_id).state
        return Started(state.attempt, state)
    attempt = done.state.attempt
    core.ring("launch", work_id("launch", job_id, done.state))
    wait = settings.start_timeout if timeout is None else timeout
    if wait <= 0:
        return Started(attempt, done.state)

    def there(state: JobState) -> bool:
        return state.attempt != attempt or state.spawned or not state.live

    state = core.view.wait(job_id, done.version, there, wait) or _give_up(core, call, job_id, wait, done.state)
    if state.attempt == attempt and (error := failure(job_id, state)) is not None:
        raise error
    return Started(attempt, state)


def failure(job_id: str, state: JobState) -> FlightlogError | None:
    """The error of a start that is over; None where its process is, or was, there."""
    if state.spawned or state.live:
        return None
    fix, attempt = f"flightlog why {job_id}", state.attempt
    code, _, text = state.told("error").partition(": ")
    if code in CATALOGUE:
        return from_code(code, text, fix, attempt=attempt)
    return LaunchFailedError(f"{job_id} was not launched: {state.get('error')}", fix, attempt=attempt)


def network_of(core: Core, call: Call, job_id: str) -> Network:
    """The network that a start gets. The setting of whoever has the site up counts beside our own.

    Raises:
        ArgumentInvalid: what was asked for is no network, or would open what the site has closed.
    """

    def choose() -> Network:
        owner = owner_of(core.site.workspace) or {}
        return chosen(tighter(core.site.settings.network, owner.get("network", "open")), asked_network())

    network: Network = core.guarded(call, "start_app", job_id, choose)
    return network


def _give_up(core: Core, call: Call, job_id: str, wait: float, state: JobState) -> JobState:
    """The caller stops waiting: what nobody has claimed is withdrawn, so that it can never fire late."""
    attempt = state.attempt

    def expire(now: JobState) -> list[LaunchExpired]:
        waits = now.attempt == attempt and now.state is State.STARTING and not now.spawned
        return [LaunchExpired(attempt=attempt, why="withdrawn")] if waits else []

    if core.withdraw(call, job_id, expire, {"launch": ("unclaimed", "")}):
        raise NoWorker(
            f"no worker took the start of {job_id} within {wait:g} s, so it was withdrawn",
            "flightlog up, or flightlog worker",
            attempt=attempt,
        )
    now = core.site.jobs.load(job_id).state
    if now.attempt == attempt and now.live and not now.spawned:
        raise CallTimeout(
            f"the start of {job_id} is pending until {clock(state['deadline'])}",
            f"flightlog wait {job_id}",
            attempt=attempt,
        )
    return now


def _checked(job_id: str, job_meta: Any) -> dict[str, Any] | None:
    check_job_id(job_id)
    if job_meta is None:
        return None
    if not isinstance(job_meta, Mapping):
        raise ArgumentTypeInvalid(
            f"job_meta is {type(job_meta).__name__}, not a dict", "give the job's metadata", field="job_meta"
        )
    return check_meta(dict(job_meta), job_id)

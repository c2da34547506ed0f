"""``decide(state, command) -> what to record``: pure, from the table and a few rules beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from engine.fold import DRIFT_KEYS, JobState
from engine.lifecycle import REPEAT, State, compiled_commands
from events.bodies.app import AppStarted, AppStopping, Network, StartRequested
from events.bodies.base import Body
from events.bodies.job import AbortRequested, CallRepeated, DeleteRequested, DeployRequested, Origin

#: command -> state -> answer
TABLE = compiled_commands()


class Command:
    """What a caller asks of a job."""

    method: ClassVar[str]

    def event(self, state: JobState) -> Body:
        """The event that records it, where the table allows it."""
        raise TypeError(type(self))  # the base class is no command


@dataclass(frozen=True, kw_only=True)
class Deploy(Command):
    """Put an app in place."""

    method: ClassVar[str] = "deploy_app"
    request: DeployRequested

    def event(self, state: JobState) -> Body:
        """DeployRequested, as prepared."""
        return self.request


@dataclass(frozen=True, kw_only=True)
class Start(Command):
    """Launch the app. ``meta`` is what the caller says the job's metadata is; None: not said."""

    method: ClassVar[str] = "start_app"
    meta: Mapping[str, Any] | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    resource_token_digest: str | None = None
    manager: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    network: Network = "open"
    reason: str | None = None
    deadline: float
    attempts: int

    def event(self, state: JobState) -> Body:
        """StartRequested for the next attempt."""
        return StartRequested(
            attempt=state.attempt + 1,
            resources=dict(self.resources),
            resource_token_digest=self.resource_token_digest,
            manager=self.manager,
            environment=dict(self.environment),
            network=self.network,
            reason=self.reason,
            deadline=self.deadline,
            attempts=self.attempts,
        )


@dataclass(frozen=True, kw_only=True)
class Abort(Command):
    """End the app."""

    method: ClassVar[str] = "abort_app"
    origin: Origin
    grace: float
    reason: str | None = None

    def event(self, state: JobState) -> Body:
        """AbortRequested for the current attempt."""
        return AbortRequested(attempt=state.attempt, origin=self.origin, grace=self.grace, reason=self.reason)


@dataclass(frozen=True, kw_only=True)
class Delete(Command):
    """Remove the run folder."""

    method: ClassVar[str] = "delete_run"
    reason: str | None = None
    deadline: float
    attempts: int

    def event(self, state: JobState) -> Body:
        """DeleteRequested."""
        return DeleteRequested(reason=self.reason, deadline=self.deadline, attempts=self.attempts)


@dataclass(frozen=True, kw_only=True)
class NotifyStarted(Command):
    """The job says that it runs."""

    method: ClassVar[str] = "notify_started"
    by: str

    def event(self, state: JobState) -> Body:
        """AppStarted of the current attempt."""
        return AppStarted(attempt=state.attempt, by=self.by)


@dataclass(frozen=True, kw_only=True)
class NotifyStopped(Command):
    """The job says that its work is over."""

    method: ClassVar[str] = "notify_stopped"
    by: str
    ends_within: float

    def event(self, state: JobState) -> Body:
        """AppStopping of the current attempt."""
        return AppStopping(attempt=state.attempt, by=self.by, ends_within=self.ends_within)


@dataclass(frozen=True, slots=True)
class Accepted:
    """Record these."""

    bodies: tuple[Body, ...]


@dataclass(frozen=True, slots=True)
class Repeated:
    """It is under way already: record only that it was asked again."""

    body: CallRepeated


@dataclass(frozen=True, slots=True)
class Refused:
    """It may not happen, with the code of the catalogue; ``key`` names the field that is at fault."""

    code: str
    state: State
    key: str | None = None


Decision = Accepted | Repeated | Refused


def decide(state: JobState, command: Command) -> Decision:
    """May this happen now, and what is to be recorded?"""
    here = state.state
    answer = TABLE[command.method][here.value]
    if answer.startswith("-"):
        return Refused(answer[1:], here)
    if answer == REPEAT and not _overrides(state, command):
        return Repeated(CallRepeated(method=command.method, state=here.value))
    if isinstance(command, Start) and command.meta is not None:
        key = drift(state.deployed_meta, command.meta)
        if key is not None:
            return Refused("META_DIFFERS", here, key)

    return Accepted((command.event(state),))


def _overrides(state: JobState, command: Command) -> bool:
    """A user's abort goes over a heartbeat's, never the reverse (reference 2.2)."""
    return (
        isinstance(command, Abort)
        and command.origin == "user"
        and state.get("abort_origin") in ("heartbeat", "deadline")
    )


def drift(deployed: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """The first key in which the given metadata differs from the deployed; absent equals None."""
    return next((key for key in DRIFT_KEYS if deployed.get(key) != given.get(key)), None)


def allowed(state: JobState) -> dict[str, str]:
    """Command -> "" where it may come now, else the code it would be refused with."""
    here = state.state.value
    return {method: row[here][1:] if row[here].startswith("-") else "" for method, row in TABLE.items()}

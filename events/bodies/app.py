"""A run of an app: launch, process, exit, resources. Each of these names its attempt."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, JsonValue

from events.bodies.base import Body, Personal
from events.bodies.job import Why

Network = Literal["open", "none"]


class OfAttempt(Body):
    """A body that concerns one run of an app."""

    attempt: int = Field(ge=1, description="1 for the first start of the job")


class AttemptLifecycle(OfAttempt):
    """One that moves the job through its lifecycle."""

    lifecycle: ClassVar[bool] = True


class StartRequested(AttemptLifecycle):
    """Somebody asked for the app to be launched."""

    type: Literal["StartRequested"] = "StartRequested"
    resources: dict[str, JsonValue] = Field(default_factory=dict, description="what was allocated to it")
    resource_token_digest: str | None = Field(default=None, description="the token itself is a secret")
    manager: str | None = Field(default=None, description="component that gets the resources back")
    environment: dict[str, str] = Field(default_factory=dict, description="variables from the consumer")
    network: Network = Field(default="open", description="what it may have at most; none: no more than a loopback")
    reason: Personal | None = None
    deadline: float = Field(gt=0, description="seconds within which a worker must claim it")
    attempts: int = Field(ge=1)


class LaunchFailed(AttemptLifecycle):
    """The app never came to run."""

    type: Literal["LaunchFailed"] = "LaunchFailed"
    code: str
    error: Personal


class LaunchExpired(AttemptLifecycle):
    """Nobody launched it: the deadline passed, the caller withdrew, or it was aborted before."""

    type: Literal["LaunchExpired"] = "LaunchExpired"
    why: Why


class AppSpawned(AttemptLifecycle):
    """The app's process exists."""

    type: Literal["AppSpawned"] = "AppSpawned"
    host: str
    keeper_pid: int
    pid: int
    start_ticks: int = Field(description="clock ticks after boot; with the pid it names the process")
    argv_sha256: str
    started_by: Literal["launcher", "notify"] = Field(description="who will say that it has started")
    started_within: float | None = Field(
        default=None, gt=0, description="seconds for the app to say so; null where the launcher does"
    )
    isolation: str = Field(description="what keeps the app from the site's own files")
    network: Network = Field(description="what it has; none: a network namespace of its own, with a loopback")
    run_key: str | None = Field(
        default=None, description="public key of the run: what it says of itself is signed with the other half"
    )


class AppStarted(AttemptLifecycle):
    """The app runs."""

    type: Literal["AppStarted"] = "AppStarted"
    by: str = Field(description="launcher, or who notified")


class AppStopping(AttemptLifecycle):
    """The app said that its work is over; its process may still be there."""

    type: Literal["AppStopping"] = "AppStopping"
    by: str
    ends_within: float = Field(gt=0, description="seconds for its process to end")


class Exit(OfAttempt):
    """How a process ended, from what its keeper wrote to disk."""

    exit_code: int | None = Field(description="of the process; null when a signal ended it")
    signal: int | None = Field(default=None, description="the signal that ended it")
    outcome: int = Field(description="return code in the reference's terms")
    code_source: Literal["process", "rc_file", "launcher"]
    duration: float = Field(ge=0, description="seconds from spawn to end")
    signalled_before: bool = Field(description="we had signalled it before it ended")
    killed: int = Field(ge=0, description="processes of its tree that had to be killed")


class AppFinished(Exit):
    """The app ended well."""

    type: Literal["AppFinished"] = "AppFinished"
    lifecycle: ClassVar[bool] = True


class AppFailed(Exit):
    """The app ended with an error."""

    type: Literal["AppFailed"] = "AppFailed"
    lifecycle: ClassVar[bool] = True


class AppAborted(Exit):
    """The app ended because it was told to."""

    type: Literal["AppAborted"] = "AppAborted"
    lifecycle: ClassVar[bool] = True


class AppLost(AttemptLifecycle):
    """Nobody saw the end. What was left of the app has been found and ended; there is no code."""

    type: Literal["AppLost"] = "AppLost"
    reason: str
    declared_by: Personal | None = Field(default=None, description="the operator who declared it, if one did")


class AbortSignalled(OfAttempt):
    """The keeper was told to end the app."""

    type: Literal["AbortSignalled"] = "AbortSignalled"
    signal: str
    pids: list[int]


class AppAdopted(OfAttempt):
    """A caretaker took over the watch of an app that was running already."""

    type: Literal["AppAdopted"] = "AppAdopted"
    caretaker: str
    host: str


class LateExit(Exit):
    """An attempt ended after the record had closed it."""

    type: Literal["LateExit"] = "LateExit"


class OutputClosed(OfAttempt):
    """The app's output is complete."""

    type: Literal["OutputClosed"] = "OutputClosed"
    bytes: int = Field(ge=0)
    sha256: str


class ResourcesRestored(OfAttempt):
    """A site that opened again took hold of what a live attempt had been given."""

    type: Literal["ResourcesRestored"] = "ResourcesRestored"
    resources: dict[str, JsonValue]


class ResourcesFreed(Body):
    """Resources went back to their manager."""

    type: Literal["ResourcesFreed"] = "ResourcesFreed"
    attempt: int | None = Field(description="null where the start was refused")
    resources: dict[str, JsonValue]
    why: str


class JobSettled(OfAttempt):
    """All that an attempt's end brings with it has been done."""

    type: Literal["JobSettled"] = "JobSettled"
    freed: Literal["yes", "nothing", "caller", "unknown"]
    completed_fired: bool

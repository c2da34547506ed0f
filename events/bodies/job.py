"""Deploying, aborting and deleting a job, and the notes about its calls and its work."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from events.bodies.base import Body, Lifecycle, Personal, PersonalJson

Origin = Literal["user", "heartbeat", "server", "deadline"]
Why = Literal["deadline", "withdrawn", "attempts", "aborted"]


class DeployRequested(Lifecycle):
    """Somebody asked for an app to be put in place; its archive waits as a blob."""

    type: Literal["DeployRequested"] = "DeployRequested"
    app: str = Field(description="name of the app")
    sha256: str = Field(description="digest of the archive, which is also the blob's name")
    size: int = Field(ge=0, description="bytes of the archive")
    meta_sha256: str = Field(description="digest of the job's metadata")
    meta: PersonalJson = Field(description="the job's metadata as the caller gave it")
    byoc: bool = Field(description="the app brings code of its own")
    signers: list[Personal] = Field(default_factory=list, description="who signed the app")
    reason: Personal | None = None
    deadline: float = Field(gt=0, description="seconds within which a worker must claim it")
    attempts: int = Field(ge=1, description="claims that may be made before it counts as failed")


class DeploySucceeded(Lifecycle):
    """The app is in place, whole."""

    type: Literal["DeploySucceeded"] = "DeploySucceeded"
    files: int = Field(ge=0)
    bytes: int = Field(ge=0, description="unpacked bytes")


class DeployFailed(Lifecycle):
    """The app could not be put in place; what stood there before is untouched."""

    type: Literal["DeployFailed"] = "DeployFailed"
    code: str = Field(description="error code of the catalogue, or ATTEMPTS")
    error: Personal


class DeployExpired(Lifecycle):
    """Nobody claimed the deploy in time, or the caller withdrew it."""

    type: Literal["DeployExpired"] = "DeployExpired"
    why: Why


class AbortRequested(Lifecycle):
    """Somebody, or a deadline, asked for the app's end."""

    type: Literal["AbortRequested"] = "AbortRequested"
    attempt: int = Field(ge=1)
    origin: Origin
    grace: float = Field(ge=0, description="seconds between the polite signal and the kill")
    reason: Personal | None = None


class DeleteRequested(Lifecycle):
    """Somebody asked for the job's run folder to be removed."""

    type: Literal["DeleteRequested"] = "DeleteRequested"
    reason: Personal | None = None
    deadline: float = Field(gt=0, description="seconds within which the caretaker must claim it")
    attempts: int = Field(ge=1)


class DeleteSucceeded(Lifecycle):
    """The run folder is gone."""

    type: Literal["DeleteSucceeded"] = "DeleteSucceeded"
    existed: bool
    bytes: int = Field(ge=0, description="bytes that were freed")


class DeleteFailed(Lifecycle):
    """The run folder could not be removed; it is tried again."""

    type: Literal["DeleteFailed"] = "DeleteFailed"
    error: Personal


class DeleteAbandoned(Lifecycle):
    """The delete was given up."""

    type: Literal["DeleteAbandoned"] = "DeleteAbandoned"
    why: Why
    error: Personal | None = None


class CallRefused(Body):
    """A call was judged and refused; nothing else changed."""

    type: Literal["CallRefused"] = "CallRefused"
    method: str
    code: str
    message: Personal
    job: Personal | None = Field(default=None, description="the id as given, where no such job is known")
    state: str | None = Field(default=None, description="the state it judged")
    revision: int | None = Field(default=None, description="the revision it judged")


class CallRepeated(Body):
    """A call asked for what is under way already."""

    type: Literal["CallRepeated"] = "CallRepeated"
    method: str
    state: str


class WorkClaimed(Body):
    """A worker took open work, or holds on to it (the same token again)."""

    type: Literal["WorkClaimed"] = "WorkClaimed"
    work: str
    token: str
    worker: str = Field(description="host:pid:start ticks")
    until: int = Field(description="ms since the epoch, by the record's clock, when the claim lapses")


class ReadsObserved(Body):
    """Getters and queries, folded: one event per method, actor, result and second."""

    type: Literal["ReadsObserved"] = "ReadsObserved"
    method: str
    result: str
    count: int = Field(ge=1)
    first: int = Field(description="ms since the epoch, by the engine's clock")
    last: int
    dropped: int = Field(default=0, ge=0, description="reads that were not kept, for want of room")

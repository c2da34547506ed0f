"""What happens to the site itself: engines, pools, workers, components, the record."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from events.bodies.base import Body, Personal


class EngineOpened(Body):
    """An engine opened the site."""

    type: Literal["EngineOpened"] = "EngineOpened"
    role: Literal["owner", "client"]
    host: str
    pid: int
    rank: str | None = Field(default=None, description="the rank the caller gave, as text")
    release: str


class EngineClosed(Body):
    """An engine closed."""

    type: Literal["EngineClosed"] = "EngineClosed"
    role: Literal["owner", "client"]
    pid: int


class ApiOpened(Body):
    """The status API is served."""

    type: Literal["ApiOpened"] = "ApiOpened"
    host: str
    pid: int
    address: str = Field(description="that it listens on")
    port: int


class ApiClosed(Body):
    """The status API is served no more."""

    type: Literal["ApiClosed"] = "ApiClosed"
    host: str
    pid: int


class AccessChanged(Body):
    """A token for the status API was given out, or taken back."""

    type: Literal["AccessChanged"] = "AccessChanged"
    who: Personal = Field(description="has the token")
    role: Literal["viewer", "operator"] | None = Field(description="none: it was taken back")


class PoolStarted(Body):
    """A worker pool started."""

    type: Literal["PoolStarted"] = "PoolStarted"
    host: str
    pid: int
    workers: int


class PoolStopped(Body):
    """A worker pool ended in order."""

    type: Literal["PoolStopped"] = "PoolStopped"
    host: str
    pid: int


class WorkerDied(Body):
    """A worker process ended and was started anew."""

    type: Literal["WorkerDied"] = "WorkerDied"
    worker: str
    returncode: int


class WorkerKilled(Body):
    """A worker kept a lapsed claim and was ended, so that it cannot act late."""

    type: Literal["WorkerKilled"] = "WorkerKilled"
    worker: str
    work: str


class TaskRefused(Body):
    """Something that is not a registered task was found in the queue and not run."""

    type: Literal["TaskRefused"] = "TaskRefused"
    queue: str
    job: str
    why: Personal


class WorkRerung(Body):
    """The reconciler rang again for open work."""

    type: Literal["WorkRerung"] = "WorkRerung"
    works: list[str]


class ServerAdopted(Body):
    """A server was started again, or found running, by this site."""

    type: Literal["ServerAdopted"] = "ServerAdopted"
    server: Literal["record", "fabric"]
    pid: int
    started: bool


class SpoolDrained(Body):
    """Orders that were given while the record was away entered it."""

    type: Literal["SpoolDrained"] = "SpoolDrained"
    orders: int


class ComponentAdded(Body):
    """A component joined the engine."""

    type: Literal["ComponentAdded"] = "ComponentAdded"
    component_id: str
    kind: str


class AgentSet(Body):
    """The admin agent was set."""

    type: Literal["AgentSet"] = "AgentSet"
    kind: str


class FLEventFired(Body):
    """A component event was fired to the handlers."""

    type: Literal["FLEventFired"] = "FLEventFired"
    event: str
    job: str | None = None
    handlers: int


class FLHandlerFailed(Body):
    """A handler of a component event raised."""

    type: Literal["FLHandlerFailed"] = "FLHandlerFailed"
    event: str
    handler: str
    error: Personal


class ShutdownRequested(Body):
    """The client was asked to shut down."""

    type: Literal["ShutdownRequested"] = "ShutdownRequested"
    live_jobs: list[str]


class RestartRequested(Body):
    """The client was asked to restart."""

    type: Literal["RestartRequested"] = "RestartRequested"
    live_jobs: list[str]


class ProjectionRebuilt(Body):
    """Everything that derives from the log was written anew from it."""

    type: Literal["ProjectionRebuilt"] = "ProjectionRebuilt"
    why: str
    events: int
    jobs: int

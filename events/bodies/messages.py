"""Messages: what was asked to be sent, what came of it, what came in, and the tasks of a job."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from events.bodies.base import Body, Personal


class OfMessage(Body):
    """A body about one message."""

    id: str = Field(description="the message's id: 32 hex digits")


class AuxRequested(OfMessage):
    """Somebody asked for a message to be sent; its payload waits on the fabric under its id."""

    type: Literal["AuxRequested"] = "AuxRequested"
    channel: str
    topic: str
    target: str = Field(description="FQCN of the receiver")
    size: int = Field(ge=0, description="bytes of the payload")
    digest: str = Field(description="keyed digest of the payload; the key is the workspace's")
    reply: bool = Field(description="an answer is waited for; if not, the message is forgotten once it is sent")
    reply_key: str = Field(description="digest of what an answer must show to be one")
    secure: bool = Field(description="sealed from sender to receiver")
    optional: bool = Field(description="the caller does not mind a failure")
    inside: bool = Field(default=False, description="it stays within the site: engine and jobs among themselves")
    transport: Literal["lane", "cell"] = Field(description="lane: an io worker sends it; cell: the engine's own cell")
    deadline: float = Field(gt=0, description="seconds within which it is sent and answered")
    attempts: int = Field(ge=1, description="sends that may be begun")


class SendStarted(Body):
    """Messages are about to leave: from here on, they may have arrived."""

    type: Literal["SendStarted"] = "SendStarted"
    lane: str
    token: str = Field(description="of the drain that owns the lane")
    worker: str
    ids: list[str]


class AuxSent(OfMessage):
    """A message that expects no answer is in its receiver's inbox."""

    type: Literal["AuxSent"] = "AuxSent"


class AuxReplied(OfMessage):
    """The answer is there."""

    type: Literal["AuxReplied"] = "AuxReplied"
    code: str = Field(description="return code of the cell")
    size: int = Field(ge=0)
    digest: str = Field(description="digest of the answer's payload, as the answer says")
    ms: int = Field(ge=0, description="milliseconds since the intent")


class AuxFailed(OfMessage):
    """The message was not sent, or not answered in time."""

    type: Literal["AuxFailed"] = "AuxFailed"
    code: str = Field(description="return code of the cell, or PAYLOAD_LOST")
    why: str


class AuxOutcomeUnknown(OfMessage):
    """The message may have arrived or not, and is not sent again."""

    type: Literal["AuxOutcomeUnknown"] = "AuxOutcomeUnknown"
    why: str


class AuxReplyLost(OfMessage):
    """An answer that was recorded could not be handed to the caller."""

    type: Literal["AuxReplyLost"] = "AuxReplyLost"
    code: str
    why: str


class AuxReceived(OfMessage):
    """A message came in and is about to be handled."""

    type: Literal["AuxReceived"] = "AuxReceived"
    channel: str
    topic: str
    sender: str = Field(description="FQCN")
    size: int = Field(ge=0)
    digest: str
    secure: bool
    reply: bool
    inside: bool = Field(default=False, description="it comes from within the site")


class AuxHandled(OfMessage):
    """A message was handled; where an answer is expected, it is about to leave."""

    type: Literal["AuxHandled"] = "AuxHandled"
    channel: str
    topic: str
    target: str = Field(description="FQCN to which the answer goes")
    code: str
    size: int = Field(ge=0, description="bytes of the answer")
    digest: str
    secure: bool
    reply: bool
    ms: int = Field(ge=0, description="milliseconds in the handler")


class MessageRefused(Body):
    """A message or an answer was not taken: for another site, corrupted, forged, by an unknown key."""

    type: Literal["MessageRefused"] = "MessageRefused"
    id: Personal = Field(description="as it says itself")
    code: str
    why: Personal
    sender: Personal


class RepliesDropped(Body):
    """Answers that nobody waits for any more were dropped."""

    type: Literal["RepliesDropped"] = "RepliesDropped"
    count: int = Field(ge=1)
    last: str = Field(description="id of the last one's request")


class CellAttached(Body):
    """The engine got its cell."""

    type: Literal["CellAttached"] = "CellAttached"
    fqcn: str
    kind: str


class AddressChanged(Body):
    """Another cell has taken over the site's address on the fabric, or it is the site's again."""

    type: Literal["AddressChanged"] = "AddressChanged"
    fqcn: str
    ours: bool


class HandlerRegistered(Body):
    """A handler for a topic was registered."""

    type: Literal["HandlerRegistered"] = "HandlerRegistered"
    topic: str
    handler: str


class TaskReceived(Body):
    """The job's process got a task."""

    type: Literal["TaskReceived"] = "TaskReceived"
    task_id: str
    task: str = Field(description="the task's name")
    sender: str
    size: int = Field(ge=0)


class TaskStarted(Body):
    """The job's process begins with a task."""

    type: Literal["TaskStarted"] = "TaskStarted"
    task_id: str
    task: str = Field(description="the task's name")


class TaskDone(Body):
    """The job's process is through with a task; its result, if any, is on its way."""

    type: Literal["TaskDone"] = "TaskDone"
    task_id: str
    task: str = Field(description="the task's name")
    code: str = Field(description="return code of the result")
    size: int = Field(ge=0, description="bytes of the result")
    ms: int = Field(ge=0, description="milliseconds in the executor")


class RunEndRequested(Body):
    """The server said that the run is over: no more tasks come."""

    type: Literal["RunEndRequested"] = "RunEndRequested"
    sender: str


class TaskAbortRequested(Body):
    """Somebody asked the job to give up its current task; the job goes on."""

    type: Literal["TaskAbortRequested"] = "TaskAbortRequested"
    reason: Personal | None = None


class JobLogConfigured(Body):
    """The logging of a job's process was changed."""

    type: Literal["JobLogConfigured"] = "JobLogConfigured"
    config: Personal = Field(description="a level, or the digest of a whole config")


class ErrorsReset(Body):
    """The errors that a job's process keeps were cleared."""

    type: Literal["ErrorsReset"] = "ErrorsReset"

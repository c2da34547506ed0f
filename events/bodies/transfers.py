"""Transfers: what was streamed, to whom or from whom, how far it got, and how it ended. Never what was in it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from events.bodies.base import Body, Personal

Direction = Literal["out", "in"]


class OfTransfer(Body):
    """A body about one transfer, as one of its ends sees it."""

    id: str = Field(description="the transfer's id, the same at both ends: 32 hex digits")
    direction: Direction = Field(description="out: this site streams; in: it is streamed to")


class TransferOpened(OfTransfer):
    """A stream of objects is about to leave for its targets, or has begun to come in."""

    type: Literal["TransferOpened"] = "TransferOpened"
    channel: str
    topic: str
    sender: str = Field(description="FQCN")
    targets: list[str] = Field(description="FQCNs")
    secure: bool = Field(description="objects are sealed from sender to each target")
    optional: bool = Field(default=False, description="the caller does not mind a failure")
    inside: bool = Field(default=False, description="it stays within the site")
    window: int = Field(ge=1, description="objects that may be on their way at once")
    stall: float = Field(gt=0, description="seconds without an acknowledged object, after which a target is given up")
    kind: str = Field(default="objects", description="objects, file, or log")
    file: Personal | None = Field(default=None, description="of the file, where it is one")
    process: str = Field(description="of the producer, or of the consumer: host:pid:start ticks")


class TransferProgress(OfTransfer):
    """How far a transfer got; at most once a second, and only where something moved."""

    type: Literal["TransferProgress"] = "TransferProgress"
    objects: int = Field(ge=0, description="acknowledged by all targets, or consumed")
    bytes: int = Field(ge=0, description="payload of those objects")
    total: int | None = Field(default=None, ge=0, description="bytes that there will be, where the producer knows")


class TransferResumed(OfTransfer):
    """A transfer goes on after something of it had died."""

    type: Literal["TransferResumed"] = "TransferResumed"
    at: int = Field(ge=0, description="number of the object with which it goes on")
    why: Personal


class TransferClosed(OfTransfer):
    """A transfer is over."""

    type: Literal["TransferClosed"] = "TransferClosed"
    code: str = Field(description="return code; PRODUCER_LOST or CONSUMER_LOST where a process died over it")
    why: Personal
    objects: int = Field(ge=0, description="made, or consumed")
    bytes: int = Field(ge=0, description="payload of those objects, each counted once")
    ms: int = Field(ge=0, description="milliseconds since it was opened")
    codes: dict[str, str] = Field(default={}, description="FQCN of a target -> how it ended there")
    acknowledged: dict[str, int] = Field(default={}, description="FQCN of a target -> objects that it took in")
    left: dict[str, int] = Field(
        default={}, description="FQCN of a target -> payload bytes handed over for it, whether it took them in or not"
    )
    at_least: bool = Field(
        default=False, description="the counts are the last that were seen before a process died; more may have left"
    )
    digest: str | None = Field(
        default=None, description="keyed digest of the whole: of the digests of all objects, in order"
    )


class LogSharingSet(Body):
    """Somebody decided what the server is sent of a job's log. Logs can hold what nobody should see."""

    type: Literal["LogSharingSet"] = "LogSharingSet"
    what: Literal["off", "errors", "live"] = Field(
        description="nothing; the error log when the job ends; that, and its output as it grows"
    )
    reason: Personal | None = None

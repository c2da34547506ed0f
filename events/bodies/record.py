"""What happens to the record itself: it is sealed, witnessed, kept, looked at, carried away, and forgotten."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from events.bodies.base import Body, Personal

Verdict = Literal["WITNESSED", "SITE-SIGNED", "UNSEALED", "DAMAGED"]


class CheckpointSigned(Body):
    """The site signed what its log was; it signs more often than it records that it did."""

    type: Literal["CheckpointSigned"] = "CheckpointSigned"
    size: int = Field(description="events that it is over")
    root: str = Field(description="of the Merkle tree over them, hex")
    key: str = Field(description="name and id of the key")


class CheckpointWitnessed(Body):
    """A witness cosigned a checkpoint: from then on it refuses a log that does not begin with it."""

    type: Literal["CheckpointWitnessed"] = "CheckpointWitnessed"
    size: int
    root: str
    witness: str = Field(description="its key: name, id and public part")
    note: str = Field(description="the checkpoint with both signatures")


class WitnessRefused(Body):
    """A witness did not cosign a checkpoint: it has seen another log under this name."""

    type: Literal["WitnessRefused"] = "WitnessRefused"
    size: int
    url: str
    why: str


class KeyRotated(Body):
    """The site signs with another key from here on; what the old one signed stays valid."""

    type: Literal["KeyRotated"] = "KeyRotated"
    old: str
    new: str
    proof: str = Field(description="the old key's signature over the new one, base64")


class SegmentWritten(Body):
    """A part of the history went to disk."""

    type: Literal["SegmentWritten"] = "SegmentWritten"
    first: int
    last: int
    sha256: str
    size: int = Field(description="bytes on disk")


class HistoryLost(Body):
    """The log ended earlier than what had been sealed; a new epoch begins, and this is what is missing."""

    type: Literal["HistoryLost"] = "HistoryLost"
    first: int = Field(description="sequence of the first event that is missing")
    last: int = Field(description="sequence of the last that is known to have been")
    note: str = Field(description="the last checkpoint over them")
    reason: Personal


class RoomLow(Body):
    """Memory or disk is getting full; from ``full`` on, new work is refused."""

    type: Literal["RoomLow"] = "RoomLow"
    what: Literal["memory", "disk"]
    used: int
    limit: int
    full: bool


class Verified(Body):
    """Somebody had the record verified."""

    type: Literal["Verified"] = "Verified"
    verdict: Verdict
    first: int
    last: int
    problems: int
    witnessed: int = Field(description="events up to which a witness vouches")
    signed: int = Field(description="events up to which the site's signature does")


class ReviewRecorded(Body):
    """Somebody looked at the history, up to a position, and says so."""

    type: Literal["ReviewRecorded"] = "ReviewRecorded"
    until: str
    note: Personal


class Exported(Body):
    """A part of the record left in a file."""

    type: Literal["Exported"] = "Exported"
    what: Literal["cloudevents", "csv", "bundle", "backup", "proof"]
    job: str | None = None
    first: int
    last: int
    events: int
    sha256: str = Field(description="of the file")
    with_log: bool = False
    keys: int = Field(default=0, description="keys of jobs that went with it, to read personal fields with")


class Imported(Body):
    """A history came in from an export; the site goes on from there in an epoch of its own."""

    type: Literal["Imported"] = "Imported"
    origin: str
    events: int
    root: str
    sha256: str


class BackupRestored(Body):
    """The site was restored from a backup."""

    type: Literal["BackupRestored"] = "BackupRestored"
    taken: str = Field(description="when the backup was made")
    last: int = Field(description="sequence of its last event")
    reason: Personal


class Erased(Body):
    """The personal fields of a job were forgotten: its key was destroyed."""

    type: Literal["Erased"] = "Erased"
    reason: Personal
    lives: int = Field(description="of its keys, so many were destroyed: what came after this has another")


class HoldSet(Body):
    """A legal hold: nothing of this job may be forgotten until it is lifted."""

    type: Literal["HoldSet"] = "HoldSet"
    reason: Personal


class HoldLifted(Body):
    """The legal hold on a job is over."""

    type: Literal["HoldLifted"] = "HoldLifted"
    reason: Personal

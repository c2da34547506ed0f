"""The root of every error that Flightlog raises, and the ones that the record itself can give.

Each class has a stable ``code``, the HTTP status it maps to and whether a retry helps.
The docstring is the help page: first line what happened, then what to do.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

Retry = Literal["no", "yes", "later", "see record"]


class FlightlogError(Exception):
    """Something Flightlog refused or could not do.

    Args:
        what: one sentence that names the field or thing and what is wrong with it.
        fix: what the reader can do about it, as a command where there is one.
        context: facts for programs (state, revision, job id); JSON values only.
    """

    code: ClassVar[str] = "FLIGHTLOG"
    http: ClassVar[int] = 500
    retry: ClassVar[Retry] = "no"

    def __init__(self, what: str, fix: str = "", **context: Any) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.context = context
        #: Position of the event that recorded this error, where one was.
        self.recorded: str | None = None

    def __str__(self) -> str:
        parts = [f"{self.code}: {self.what}"]
        if self.fix:
            parts.append(f"Try: {self.fix}")
        if self.recorded:
            parts.append(f"Recorded as event {self.recorded}.")
        return " ".join(parts)


class LogUnavailable(FlightlogError):
    """The record server does not answer.

    Nothing was changed. Running apps go on; an abort still works, it waits in the
    workspace's spool. Start the server, or the site: ``flightlog up``.
    """

    code, http, retry = "LOG_UNAVAILABLE", 503, "yes"


class RecordFull(FlightlogError):
    """The record server has no memory left for new intents.

    Raise its ``maxmemory``, then call again. Exits and aborts of running apps are
    on disk and enter the log once there is room.
    """

    code, http, retry = "RECORD_FULL", 503, "yes"


class RecordDamaged(FlightlogError):
    """A key of the record has the wrong type or a value that cannot be read.

    Nothing was written. Somebody else writes to this server: give the site a server
    (or a database) of its own, remove the planted key that is named, and call again.
    """

    code, http, retry = "RECORD_DAMAGED", 500, "no"


class HistoryBroken(FlightlogError):
    """The log is not what was sealed: it is shorter, or begins differently.

    Nothing of it is sealed from then on. ``flightlog verify`` says where it differs. A restored backup or a
    failover is disclosed with ``flightlog new-epoch --reason TEXT``; anything else is for whoever looks after
    the record, and for the witness.
    """

    code, http, retry = "HISTORY_BROKEN", 503, "no"


class ServerUnsafe(FlightlogError):
    """The record server could lose or evict the log.

    Change the setting that is named (for instance ``appendonly yes`` or
    ``maxmemory-policy noeviction``), or leave ``record_url`` out and use the embedded one.
    """

    code, http, retry = "SERVER_UNSAFE", 503, "no"


class RevisionConflict(FlightlogError):
    """The job changed between looking and recording, several times in a row.

    Nothing was recorded. Look at the job and decide again.
    """

    code, http, retry = "REVISION_CONFLICT", 412, "yes"


class CallIdReused(FlightlogError):
    """The same call id came again with different arguments.

    A call id names one call for ever. Use a new one for a new call.
    """

    code, http, retry = "CALL_ID_REUSED", 409, "no"


class Fenced(FlightlogError):
    """The work was closed or given to someone else meanwhile.

    Internal to workers: whoever holds a lapsed claim stops and records nothing.
    """

    code, http, retry = "FENCED", 409, "no"

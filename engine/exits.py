"""Exit codes of the command line: one small number per kind of trouble, so that a script can branch on it."""

from __future__ import annotations

from enum import IntEnum

from events.errors import FlightlogError


class Exit(IntEnum):
    """What a command's exit code says. ``flightlog run`` ends with the app's own code instead."""

    OK = 0
    FAILED = 1
    USAGE = 2
    TIMED_OUT = 3
    REFUSED = 4
    NOT_FOUND = 5
    UNREACHABLE = 6
    DAMAGED = 7
    UNVERIFIED = 8


MEANING: dict[Exit, str] = {
    Exit.OK: "done",
    Exit.FAILED: "tried, and failed",
    Exit.USAGE: "the call itself is wrong: an argument, an archive, a config",
    Exit.TIMED_OUT: "the outcome is not known yet; the record will have it",
    Exit.REFUSED: "refused, by where the job stands or by the site's rules",
    Exit.NOT_FOUND: "there is no such job, or no such site",
    Exit.UNREACHABLE: "the site or a server of it cannot be reached or used",
    Exit.DAMAGED: "the record is damaged",
    Exit.UNVERIFIED: "could not verify",
}

#: Error code -> exit code. ``docs/errors/`` shows it; a test holds that no code is missing.
EXIT_CODES: dict[str, Exit] = {
    "DEPLOY_FAILED": Exit.FAILED,
    "LAUNCH_FAILED": Exit.FAILED,
    "DELETE_FAILED": Exit.FAILED,
    "NETWORK_ISOLATION_UNAVAILABLE": Exit.FAILED,
    "DISK_FULL": Exit.FAILED,
    "HOST_ERROR": Exit.FAILED,
    "JOB_ID_INVALID": Exit.USAGE,
    "ARGUMENT_INVALID": Exit.USAGE,
    "BAD_ARCHIVE": Exit.USAGE,
    "BAD_CONFIG": Exit.USAGE,
    "COMMAND_NOT_FOUND": Exit.USAGE,
    "CALL_ID_REUSED": Exit.USAGE,
    "PAYLOAD_INVALID": Exit.USAGE,
    "PAYLOAD_TOO_LARGE": Exit.USAGE,
    "CELL_MISSING": Exit.UNREACHABLE,
    "TRANSFER_FAILED": Exit.FAILED,
    "STREAMER_DOWN": Exit.UNREACHABLE,
    "ADDRESS_TAKEN": Exit.REFUSED,
    "CALL_TIMEOUT": Exit.TIMED_OUT,
    "JOB_LIVE": Exit.REFUSED,
    "JOB_BUSY": Exit.REFUSED,
    "DEPLOY_IN_PROGRESS": Exit.REFUSED,
    "NOT_DEPLOYED": Exit.REFUSED,
    "NOT_STARTED": Exit.REFUSED,
    "NOT_LIVE": Exit.REFUSED,
    "ALREADY_STARTED": Exit.REFUSED,
    "ALREADY_STOPPED": Exit.REFUSED,
    "STILL_REGISTERED": Exit.REFUSED,
    "BACKWARDS": Exit.REFUSED,
    "META_DIFFERS": Exit.REFUSED,
    "RESOURCES_LACKING": Exit.REFUSED,
    "REVISION_CONFLICT": Exit.REFUSED,
    "SCOPE_DENIED": Exit.REFUSED,
    "BYOC_DENIED": Exit.REFUSED,
    "SIGNATURE_BAD": Exit.REFUSED,
    "NOT_AUTHORISED": Exit.REFUSED,
    "KEY_UNKNOWN": Exit.REFUSED,
    "FENCED": Exit.REFUSED,
    "PATH_UNKNOWN": Exit.NOT_FOUND,
    "METHOD_NOT_ALLOWED": Exit.USAGE,
    "MEDIA_TYPE_WRONG": Exit.USAGE,
    "HOST_UNKNOWN": Exit.REFUSED,
    "CROSS_SITE": Exit.REFUSED,
    "JOB_UNKNOWN": Exit.NOT_FOUND,
    "SITE_UNKNOWN": Exit.NOT_FOUND,
    "LOG_UNAVAILABLE": Exit.UNREACHABLE,
    "ENGINE_DOWN": Exit.UNREACHABLE,
    "NO_WORKER": Exit.UNREACHABLE,
    "SERVER_UNSAFE": Exit.UNREACHABLE,
    "RECORD_FULL": Exit.UNREACHABLE,
    "REBUILD": Exit.UNREACHABLE,
    "ILLEGAL_TRANSITION": Exit.REFUSED,
    "RECORD_DAMAGED": Exit.DAMAGED,
    "HISTORY_BROKEN": Exit.DAMAGED,
    "LEGAL_HOLD": Exit.REFUSED,
    "RETAINED": Exit.REFUSED,
    "NOT_DELETED": Exit.REFUSED,
    "SITE_NOT_EMPTY": Exit.REFUSED,
    "EXPORT_INVALID": Exit.UNVERIFIED,
    "UNVERIFIABLE": Exit.UNVERIFIED,
    "SEAL_BROKEN": Exit.UNVERIFIED,
}


def exit_code(error: BaseException | None) -> int:
    """The exit code for an error; 0 for none, 1 for one that is not Flightlog's.

    Args:
        error: what ended the command.
    """
    if error is None:
        return int(Exit.OK)
    if isinstance(error, FlightlogError):
        return int(EXIT_CODES.get(error.code, Exit.FAILED))
    return int(Exit.FAILED)

"""What cells send each other: a message with headers, and the codes that come back (reference 6.3, 6.4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final


class CellChannel(StrEnum):
    """Channels that are in use between server, site and job."""

    CLIENT_MAIN = "admin"
    SERVER_MAIN = "task"
    CLIENT_COMMAND = "client_command"
    SERVER_COMMAND = "server_command"
    AUX_COMMUNICATION = "aux_communication"


class CellReturnCode(StrEnum):
    """What came of a request, as the cell says it."""

    OK = "ok"
    TIMEOUT = "timeout"
    INVALID_TARGET = "invalid_target"
    TARGET_UNREACHABLE = "target_unreachable"
    COMM_ERROR = "comm_error"
    MSG_TOO_BIG = "msg_too_big"
    FILTER_ERROR = "filter_error"
    INVALID_REQUEST = "invalid_request"
    PROCESS_EXCEPTION = "process_exception"
    AUTHENTICATION_ERROR = "authentication_error"
    UNAUTHENTICATED = "unauthenticated"
    SERVICE_UNAVAILABLE = "service_unavailable"
    INVALID_SESSION = "invalid_session"
    ABORT_RUN = "abort_run"


#: What a return code may look like: a handler of an app gives its own.
CODE = re.compile(r"[A-Za-z0-9_-]{1,64}")

#: What the fabric says of a message that it does not take -> return code, and words for it.
REFUSED: dict[str, tuple[str, str]] = {
    "LOST": ("PAYLOAD_LOST", "its payload is gone: the fabric server has lost it, or it waited too long"),
    "FULL": (CellReturnCode.SERVICE_UNAVAILABLE, "the receiver's inbox is full"),
    "DOWN": (CellReturnCode.TARGET_UNREACHABLE, "the receiver is not there now"),
    "UNKNOWN": (CellReturnCode.INVALID_TARGET, "no cell has ever had this address"),
}


def cell_code(code: str) -> str:
    """A recorded code as a cell says it: what is none of its own is COMM_ERROR."""
    return code if code in set(CellReturnCode) else CellReturnCode.COMM_ERROR


class MessageHeaderKey:
    """Headers that the cell itself writes."""

    RETURN_CODE: Final = "return_code"
    ERROR: Final = "error"
    ORIGIN: Final = "origin"
    DESTINATION: Final = "destination"
    CHANNEL: Final = "channel"
    TOPIC: Final = "topic"
    REQUEST_ID: Final = "request_id"
    #: True where the receiver has made sure that the origin's key sealed it.
    SECURE: Final = "secure"


class Message:
    """Headers and a payload.

    Args:
        headers: name -> value; copied.
        payload: anything that ``engine.codec`` can encode.
    """

    def __init__(self, headers: Mapping[str, Any] | None = None, payload: Any = None) -> None:
        self.headers: dict[str, Any] = dict(headers or {})
        self.payload = payload

    def set_header(self, key: str, value: Any) -> None:
        """Set a header."""
        self.headers[key] = value

    def get_header(self, key: str, default: Any = None) -> Any:
        """The header's value, or ``default``."""
        return self.headers.get(key, default)

    @property
    def return_code(self) -> str:
        """What came of the request that this replies to."""
        return str(self.headers.get(MessageHeaderKey.RETURN_CODE, CellReturnCode.OK))


def new_cell_message(headers: Mapping[str, Any] | None = None, payload: Any = None) -> Message:
    """A message; the reference's name for the constructor."""
    return Message(headers, payload)


def failed(code: str, why: str = "") -> Message:
    """A reply that says what went wrong."""
    return Message({MessageHeaderKey.RETURN_CODE: str(code), MessageHeaderKey.ERROR: why})

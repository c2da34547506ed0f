"""From what the cell says of a request to what the caller of an aux request reads (reference 4.4)."""

from __future__ import annotations

from engine.cell.message import CellReturnCode as Cell
from engine.cell.message import Message
from engine.constants import ReturnCode
from engine.shareable import Shareable, make_reply

#: The reference's mapping; what is not here is an ERROR.
CODES: dict[str, str] = {
    Cell.OK: ReturnCode.OK,
    Cell.TIMEOUT: ReturnCode.TIMEOUT,
    Cell.COMM_ERROR: ReturnCode.COMMUNICATION_ERROR,
    Cell.PROCESS_EXCEPTION: ReturnCode.EXECUTION_EXCEPTION,
    Cell.ABORT_RUN: Cell.ABORT_RUN,
    Cell.INVALID_REQUEST: Cell.INVALID_REQUEST,
    Cell.INVALID_SESSION: Cell.INVALID_SESSION,
    Cell.AUTHENTICATION_ERROR: Cell.UNAUTHENTICATED,
    Cell.SERVICE_UNAVAILABLE: ReturnCode.SERVICE_UNAVAILABLE,
}

#: Why an aux request failed, in words: a header of the reply that the caller gets.
WHY = "__why__"


def code_of(cell_code: str) -> str:
    """The return code of an aux reply for a cell's."""
    return str(CODES.get(cell_code, ReturnCode.ERROR))


def reply_of(code: str, why: str, answer: Message | None) -> Shareable:
    """What the caller of an aux request gets. A failure is never an empty success."""
    if code == Cell.OK and answer is not None and isinstance(answer.payload, Shareable):
        return answer.payload
    if code == Cell.OK and answer is not None:
        why = f"the answer is a {type(answer.payload).__name__}, not a Shareable"
        return make_reply(ReturnCode.ERROR, {WHY: why})
    if code == Cell.OK:
        return Shareable()  # sent, and no answer expected
    return make_reply(code_of(code), {WHY: why})

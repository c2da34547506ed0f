"""The aux runner: handlers by topic for what comes in, and requests that go out on the record (reference 4)."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from engine import codec
from engine.actors import current_call_id
from engine.aux.codes import WHY, reply_of
from engine.aux.dispatch import AuxHandler, dispatch
from engine.cell.message import CellChannel, CellReturnCode, Message, MessageHeaderKey
from engine.cell.outgoing import Outgoing, Sends, check_timeout
from engine.cell.protocol import check_name
from engine.constants import ReservedKey, ReturnCode
from engine.context import FLContext
from engine.core import Core
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid, CellMissing
from engine.shareable import Shareable, make_reply
from events.bodies.messages import AuxReplyLost, HandlerRegistered
from events.envelope import Call
from events.errors import FlightlogError

log = logging.getLogger("flightlog.aux")

POLL = 0.05  # seconds between two looks for the cell


class AuxRunner:
    """Aux messages of one process.

    Args:
        core: of the process.
        contexts: makes a context for each message that comes in.
        sender: gives the sender, or None while there is no cell.
        server: address that requests go to.
        job: whose record they are on; None: the site's.
    """

    def __init__(
        self,
        core: Core,
        contexts: Callable[[], FLContext],
        sender: Callable[[], Sends | None],
        *,
        server: str = "server",
        job: str | None = None,
    ) -> None:
        self._core = core
        self._contexts = contexts
        self._sender = sender
        self._server = server
        self._job = job
        self._handlers: dict[str, AuxHandler] = {}
        self._lock = threading.Lock()

    # -- in ----------------------------------------------------------------------------------------

    def register(self, topic: str, handler: AuxHandler) -> None:
        """Have ``handler`` answer requests on a topic (reference 4.1).

        Raises:
            ArgumentTypeInvalid: the topic is no string, or the handler cannot be called.
            ArgumentInvalid: the topic is empty or taken, or the handler None.
        """
        method = "register_aux_message_handler"
        call = self._core.call(method, str(topic))
        with self._lock:
            self._core.guarded(call, method, self._job, lambda: self._check(topic, handler))
            registered = HandlerRegistered(topic=topic, handler=_name_of(handler))
            self._core.site.jobs.note(call, [registered], self._job)
            self._handlers[topic] = handler

    def own(self, topic: str, handler: AuxHandler) -> None:
        """A handler of the engine itself: of a topic that nobody else can take."""
        with self._lock:
            self._handlers[topic] = handler

    def _check(self, topic: object, handler: object) -> None:
        check_name("topic", topic)
        if handler is None:
            raise ArgumentInvalid("message handler function is not specified", "give a function", field="handler")
        if not callable(handler):
            raise ArgumentTypeInvalid(
                f"message handler must be callable but got {type(handler).__name__}",
                "give a function",
                field="handler",
            )
        if topic in self._handlers:
            raise ArgumentInvalid(f"handler already registered for topic {topic}", "use another topic", field="topic")

    def handle(self, message: Message) -> Message:
        """A request from the cell; its reply carries our public properties as the peer's context.

        Raises:
            AssertionError: the handler returned no Shareable.
        """
        topic = str(message.get_header(MessageHeaderKey.TOPIC, ""))
        fl_ctx = self._contexts()
        reply = dispatch(self._handlers, topic, message.payload, fl_ctx)
        reply.set_peer_props(sendable_props(fl_ctx))
        return Message({MessageHeaderKey.RETURN_CODE: CellReturnCode.OK}, reply)

    # -- out ---------------------------------------------------------------------------------------

    def send(
        self,
        topic: str,
        request: Shareable,
        timeout: float,
        fl_ctx: FLContext,
        *,
        optional: bool = False,
        secure: bool = False,
        method: str = "send_aux_request",
        target: str | None = None,
    ) -> Shareable:
        """A request to the server (reference 4.3); what keeps it from being sent is recorded and told.

        Returns:
            The server's reply. Where there is none, a reply whose return code says what happened. An empty
            ``Shareable`` where no answer is waited for and the intent is durable.
        """
        optional, secure = bool(optional), bool(secure)
        call = self._core.call(method, str(topic)[:500], optional, secure, target, _repeatable(request, timeout))
        try:
            seconds = self._core.guarded(call, method, self._job, lambda: _checked(topic, request, timeout))
            if not isinstance(fl_ctx, FLContext):
                raise ArgumentTypeInvalid(f"fl_ctx must be FLContext but got {type(fl_ctx).__name__}", field="fl_ctx")
            request.set_header(ReservedKey.TOPIC, topic)
            request.set_peer_props(sendable_props(fl_ctx))
            sent = self.found_sender().send(
                call,
                Outgoing(
                    channel=CellChannel.AUX_COMMUNICATION,
                    topic=topic,
                    target=target or self._server,
                    message=Message(payload=request),
                    timeout=seconds,
                    job=self._job,
                    reply=seconds > 0,
                    secure=secure,
                    optional=optional,
                ),
            )
        except FlightlogError as error:
            if error.recorded is None:
                error = self._core.refuse(call, method, error, self._job)
            log.log(logging.DEBUG if optional else logging.ERROR, "%s was not sent: %s", repr(topic)[:200], error)
            return make_reply(_code_for(error), {WHY: str(error)})
        reply = reply_of(sent.code, sent.why, sent.answer)
        if sent.ok and WHY in reply.get(ReservedKey.HEADERS, {}):
            self._unusable(call, sent.id, str(reply.get_header(WHY)))
        return reply

    def _unusable(self, call: Call, message: str, why: str) -> None:
        """An answer that the record has as one, and that the caller cannot be given."""
        try:
            lost = AuxReplyLost(id=message, code=ReturnCode.ERROR, why=why[:500])
            self._core.site.jobs.note(call.at("unusable"), [lost], self._job)
        except FlightlogError as error:
            log.warning("that an answer could not be used was not recorded: %s", error)

    def found_sender(self) -> Sends:
        """The sender; waits a moment for the cell that may be about to come."""
        until = time.monotonic() + self._core.site.settings.cell_wait
        while (sender := self._sender()) is None:
            if time.monotonic() >= until:
                raise CellMissing("the engine has no cell", "call initialize_comm(cell) first")
            time.sleep(POLL)
        return sender


def sendable_props(fl_ctx: FLContext) -> dict[str, Any]:
    """The public properties of a context that a peer can be told."""
    return {
        name: value
        for name, value in fl_ctx.get_all_public_props().items()
        if isinstance(value, str | int | float | bool | bytes | list | dict | tuple | type(None))
    }


def _checked(topic: object, request: object, timeout: object) -> float:
    """The timeout, once that topic, request and timeout are what they have to be."""
    check_name("topic", topic)
    if not isinstance(request, Shareable):
        raise ArgumentTypeInvalid(
            f"request must be Shareable but got {type(request).__name__}", "give a Shareable", field="request"
        )
    if not isinstance(request.get(ReservedKey.HEADERS), dict):
        raise ArgumentInvalid("the request's headers are no dict", "leave __headers__ to it", field="request")
    return check_timeout(timeout)


def _repeatable(request: object, timeout: object) -> str:
    """What of a request tells it from another under the same call id; "" for a call of its own."""
    if current_call_id() is None:
        return ""
    try:
        return hashlib.sha256(codec.encode([request, timeout])).hexdigest()
    except FlightlogError:
        return "cannot be sent"  # told below


def _code_for(error: FlightlogError) -> str:
    """What the caller reads where a request was refused before it was sent."""
    if isinstance(error, ArgumentInvalid) or error.http == 422:
        return ReturnCode.BAD_REQUEST_DATA
    if error.code in ("LOG_UNAVAILABLE", "CELL_MISSING", "RECORD_FULL"):
        return ReturnCode.COMMUNICATION_ERROR
    return ReturnCode.ERROR


def _name_of(handler: object) -> str:
    name = getattr(handler, "__qualname__", None) or type(handler).__qualname__
    return f"{getattr(handler, '__module__', '?')}.{name}"[:200]

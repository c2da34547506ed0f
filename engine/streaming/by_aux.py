"""Streams over another transport: the reference's protocol of aux requests, an object at a time (reference 5.2).

Each object is an aux request of its own, recorded as one; what left is counted by the transfer.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engine import codec
from engine.aux.codes import WHY
from engine.aux.runner import AuxRunner
from engine.constants import ReservedKey, ReturnCode
from engine.context import FLContext
from engine.shareable import Shareable, make_reply
from engine.streaming.chunk import Header, Topic
from engine.streaming.incoming import Arrival
from engine.streaming.session import Sessions
from engine.streaming.transfer import Transfer
from engine.streaming.window import Flying
from events.errors import FlightlogError


class AuxTransfer(Transfer):
    """One stream, whose objects are aux requests. There is no window, and nothing is resumed.

    Args:
        aux: sends them.
        given: as ``Transfer`` takes it.
    """

    def __init__(self, aux: AuxRunner, *given: Any) -> None:
        super().__init__(*given)
        self._aux = aux

    def _prepare(self) -> None:
        """Nothing: the first object has the context."""

    def _run(self) -> tuple[str, str, Any]:
        with ThreadPoolExecutor(min(32, len(self._names)), thread_name_prefix="targets") as pool:
            while True:
                if self._told_to_end():
                    return ReturnCode.TASK_ABORTED, "it was aborted", None
                made = self._made()
                if made is None:
                    return ReturnCode.OK, "", None
                if self._told_to_end():
                    return ReturnCode.TASK_ABORTED, "it was aborted", None
                one, timeout = made
                plain = codec.encode(one)
                self._whole.update(hashlib.sha256(plain).digest())
                flying = Flying(self._window.made, {}, len(plain), timeout, self._clock())
                self._window.add(flying)
                asked = {name: pool.submit(self._ask, name, one, timeout) for name in self._window.alive}
                for name, future in asked.items():
                    self._window.take(name, flying.seq, future.result(), self._clock())
                if (ended := self._processed()) is not None:
                    return ended

    def _ask(self, target: str, one: Shareable, timeout: float) -> Shareable:
        request = Shareable(one)
        order = self._order
        return self._aux.send(
            Topic.REQUEST,
            request,
            timeout,
            order.fl_ctx,
            optional=order.optional,
            secure=order.secure,
            method="stream_object",
            target=target,
        )

    def _tell_end(self, targets: list[str], why: str) -> None:
        for target in targets:
            self._aux.send(
                Topic.ABORT,
                self._notice(why),
                0.0,
                self._order.fl_ctx,
                optional=True,
                secure=self._order.secure,
                method="stream_end",
                target=target,
            )


class ByAux:
    """What comes in by the reference's protocol.

    Args:
        sessions: who consumes it.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def take(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """An object."""
        sender = str(request.get_peer_prop(ReservedKey.IDENTITY_NAME, "") or "?")
        plain = codec.encode(request)
        try:
            return self._sessions.take(Arrival(request, sender, len(plain), hashlib.sha256(plain).digest()))
        except FlightlogError as error:
            return make_reply(ReturnCode.SERVICE_UNAVAILABLE, {WHY: str(error)})

    def end(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """A notice that a stream is over; that of one which nobody knows is no error."""
        tx = request.get_header(Header.TX_ID)
        if not isinstance(tx, str) or not tx:
            return make_reply(ReturnCode.BAD_REQUEST_DATA, {WHY: f"{Header.TX_ID} is missing"})
        self._sessions.end(tx, ReturnCode.TASK_ABORTED, str(request.get_header(Header.WHY, "its producer ended it")))
        return make_reply(ReturnCode.OK)

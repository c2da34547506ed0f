"""A request to the handler of its topic, with the checks of reference 4.2 in their order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from engine.aux.codes import WHY
from engine.constants import ReturnCode
from engine.context import FLContext
from engine.errors import ArgumentInvalid
from engine.shareable import Shareable, make_reply

log = logging.getLogger("flightlog.aux")

#: Called as ``handler(topic=..., request=..., fl_ctx=...)``; returns the reply.
AuxHandler = Callable[..., Shareable]


def dispatch(handlers: Mapping[str, AuxHandler], topic: str, request: Any, fl_ctx: FLContext) -> Shareable:
    """The reply to a request: the handler's, or one whose return code says why there is none.

    Raises:
        AssertionError: the handler returned something else than a Shareable, as in reference 1.2.
    """
    if not isinstance(request, Shareable):
        return make_reply(ReturnCode.BAD_REQUEST_DATA)
    props = request.get_peer_props()
    handler = handlers.get(topic)
    if handler is None:
        log.error("nobody handles aux messages of topic %s", repr(topic)[:200])
        return make_reply(ReturnCode.TOPIC_UNKNOWN)
    if props is None:
        return make_reply(ReturnCode.MISSING_PEER_CONTEXT)
    try:
        peer = request.get_peer_context()
    except ArgumentInvalid:
        return make_reply(ReturnCode.BAD_PEER_CONTEXT)
    if peer is not None:
        fl_ctx.set_peer_context(peer)
    try:
        reply = handler(topic=topic, request=request, fl_ctx=fl_ctx)
    except Exception as error:
        log.exception("the handler of aux topic %s raised", topic)
        return make_reply(ReturnCode.HANDLER_EXCEPTION, {WHY: f"{type(error).__name__}: {error}"[:500]})
    if not isinstance(reply, Shareable):
        raise AssertionError(  # noqa: TRY004 - the reference's
            f"the handler of {topic} must return a Shareable but got {type(reply).__name__}"
        )
    jar = request.get_cookie_jar()
    if jar:
        reply.set_cookie_jar(jar)
    return reply

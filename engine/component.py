"""Components: the site's own code that hears the engine's events.

Source: reference 1.2 (``fire_event``) and appendix B.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

from engine.constants import EventScope, FLContextKey
from engine.context import FLContext
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid

#: Called as ``callback(event_type, fl_ctx, **kwargs)``.
Callback = Callable[..., None]

#: How many events may be fired from within one another.
MAX_EVENT_DEPTH = 20

# Per thread, not per context as in the reference: a handler that fires on a new context
# each time would never be stopped.
_depth: ContextVar[int] = ContextVar("flightlog_event_depth", default=0)

_PER_EVENT = (FLContextKey.EVENT_DATA, FLContextKey.EVENT_ORIGIN)


class FLComponent:
    """Base of everything that hears events.

    Override ``handle_event``, or register a callback per event type. A subclass need not
    call ``super().__init__()``.
    """

    _callbacks: dict[str, list[tuple[Callback, dict[str, Any]]]] | None = None

    @property
    def name(self) -> str:
        """What log lines and the context's EXCEPTIONS call this component."""
        return type(self).__name__

    @property
    def logger(self) -> logging.Logger:
        """The logger of the component's class."""
        return logging.getLogger(f"{type(self).__module__}.{type(self).__qualname__}")

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Hear an event for which no callback is registered. Does nothing by default.

        Args:
            event_type: one of ``EventType``, or a component's own.
            fl_ctx: what the event carries; a handler answers by setting props.
        """

    def register_event_handler(self, event_types: str | Sequence[str], handler: Callback, **kwargs: Any) -> None:
        """Have ``handler`` called for these events, instead of ``handle_event``.

        A handler registered twice for one event is called once, as it was registered first.

        Args:
            event_types: one event type or several.
            handler: called as ``handler(event_type, fl_ctx, **kwargs)``.
            kwargs: handed to the handler each time.

        Raises:
            ArgumentTypeInvalid: an event type is not a string, or the handler not callable.
        """
        types = [event_types] if isinstance(event_types, str) else event_types
        if not isinstance(types, Sequence) or not all(isinstance(each, str) for each in types):
            raise ArgumentTypeInvalid("event_types must be a str or a list of str")
        if not callable(handler):
            raise ArgumentTypeInvalid(f"handler must be callable, not {type(handler).__name__}")
        if self._callbacks is None:
            self._callbacks = {}
        for event_type in types:
            callbacks = self._callbacks.setdefault(event_type, [])
            if all(known != handler for known, _ in callbacks):
                callbacks.append((handler, kwargs))

    def get_event_handlers(self) -> dict[str, list[tuple[Callback, dict[str, Any]]]]:
        """The registered callbacks with their keyword arguments, by event type (a copy)."""
        return {event_type: list(callbacks) for event_type, callbacks in (self._callbacks or {}).items()}

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Have the context's engine tell all its components, this one included.

        Raises:
            ArgumentTypeInvalid: the event type is not a string.
            ArgumentInvalid: the context has no engine.
            RuntimeError: events fire one another more than ``MAX_EVENT_DEPTH`` deep.
        """
        if not isinstance(event_type, str):
            raise ArgumentTypeInvalid(f"event_type must be a str, not {type(event_type).__name__}")
        engine = fl_ctx.get_engine()
        if engine is None:
            raise ArgumentInvalid("fl_ctx has no engine", "take the context from engine.new_context()")
        engine.fire_event(event_type, fl_ctx)

    def log_debug(self, fl_ctx: FLContext, msg: str) -> None:
        """Log a detail, with site and job in front."""
        self.logger.debug("%s%s", _where(fl_ctx), msg)

    def log_info(self, fl_ctx: FLContext, msg: str) -> None:
        """Log what happened, with site and job in front."""
        self.logger.info("%s%s", _where(fl_ctx), msg)

    def log_warning(self, fl_ctx: FLContext, msg: str) -> None:
        """Log what may be wrong, with site and job in front."""
        self.logger.warning("%s%s", _where(fl_ctx), msg)

    def log_error(self, fl_ctx: FLContext, msg: str) -> None:
        """Log what went wrong, with site and job in front."""
        self.logger.error("%s%s", _where(fl_ctx), msg)

    def log_exception(self, fl_ctx: FLContext, msg: str) -> None:
        """Log what went wrong and the traceback of the exception being handled."""
        self.logger.exception("%s%s", _where(fl_ctx), msg)

    def log_critical(self, fl_ctx: FLContext, msg: str) -> None:
        """Log what endangers the site, with site and job in front."""
        self.logger.critical("%s%s", _where(fl_ctx), msg)


def dispatch(event_type: str, handlers: Iterable[FLComponent], fl_ctx: FLContext) -> list[tuple[str, Exception]]:
    """Tell every component about an event: in order, on this thread, one after the other.

    A handler that raises does not keep the event from the next one. Its exception is logged
    and kept in the context's EXCEPTIONS by the handler's name.

    Args:
        event_type: one of ``EventType``, or a component's own.
        handlers: the components. One that is added meanwhile hears the next event.
        fl_ctx: what the event carries. EVENT_ID, EVENT_DATA, EVENT_ORIGIN and EVENT_SCOPE are
            set anew for each handler, since the one before may have fired an event itself.

    Returns:
        Name and exception of every handler that raised, in order.

    Raises:
        ArgumentTypeInvalid: a handler is not an ``FLComponent``; none was called
            (a ``TypeError``, as in reference 1.2).
        RuntimeError: events fire one another more than ``MAX_EVENT_DEPTH`` deep.
    """
    components = list(handlers)
    for each in components:
        if not isinstance(each, FLComponent):
            raise ArgumentTypeInvalid(f"a handler must be an FLComponent, not {type(each).__name__}")
    depth = _depth.get()
    if depth > MAX_EVENT_DEPTH:
        raise RuntimeError(f"event {event_type!r}: events fire one another more than {MAX_EVENT_DEPTH} deep")

    event: dict[str, Any] = {key: fl_ctx.get_prop(key) for key in _PER_EVENT}
    event[FLContextKey.EVENT_SCOPE] = fl_ctx.get_prop(FLContextKey.EVENT_SCOPE, EventScope.LOCAL)
    event[FLContextKey.EVENT_ID] = str(uuid4())

    failures: list[tuple[str, Exception]] = []
    token = _depth.set(depth + 1)
    try:
        for component in components:
            for key, value in event.items():
                fl_ctx.set_prop(key, value, private=True, sticky=False)
            try:
                _tell(component, event_type, fl_ctx)
            except Exception as error:
                component.logger.exception("%sfailed on event %r", _where(fl_ctx), event_type)
                failures.append((component.name, error))
                _keep(component.name, error, fl_ctx)
    finally:
        _depth.reset(token)
    return failures


def _tell(component: FLComponent, event_type: str, fl_ctx: FLContext) -> None:
    callbacks = component.get_event_handlers().get(event_type)
    if not callbacks:
        component.handle_event(event_type, fl_ctx)
        return
    for callback, kwargs in callbacks:
        callback(event_type, fl_ctx, **kwargs)


def _keep(name: str, error: Exception, fl_ctx: FLContext) -> None:
    exceptions = fl_ctx.get_prop(FLContextKey.EXCEPTIONS) or {}
    exceptions[name] = error
    fl_ctx.set_prop(FLContextKey.EXCEPTIONS, exceptions, private=True, sticky=False)


def _where(fl_ctx: FLContext) -> str:
    """``[site-1, job-7] ``, as far as the context knows."""
    known = [part for part in (fl_ctx.get_identity_name(), fl_ctx.get_job_id()) if part]
    return f"[{', '.join(known)}] " if known else ""

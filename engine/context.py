"""What a call or an event carries along: named props, some of them shared by all contexts.

A prop is private or public (public ones may be shown to a peer) and sticky or not (a sticky
value lives in the manager, and every context of that manager sees it). Source: reference 6.1.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from engine.constants import FLContextKey, ReservedKey
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid

_log = logging.getLogger(__name__)


class _Prop(NamedTuple):
    value: Any
    private: bool
    sticky: bool

    def __str__(self) -> str:
        return f"{'private' if self.private else 'public'} {'sticky' if self.sticky else 'non-sticky'}"


class FLContext:
    """The props of one call or event. Make one with ``FLContextManager.new_context``.

    A context made directly has no manager; its sticky props are its own. Such is the context
    of a peer. All methods may be called from any thread.

    Args:
        manager: whose sticky values this context shares.
    """

    def __init__(self, manager: FLContextManager | None = None) -> None:
        self._manager = manager
        # One lock per manager guards its sticky values and the props of all its contexts,
        # so there is no order of locks to get wrong.
        self._lock = manager._lock if manager else threading.RLock()
        self._props: dict[str, _Prop] = {}
        if manager:
            with self._lock:
                self._props.update(manager._sticky)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Do nothing: a context holds nothing that must be released."""

    def _find(self, key: str) -> _Prop | None:
        """The prop as this context sees it: the manager decides what a sticky value is."""
        own = self._props.get(key)
        if self._manager is None or (own is not None and not own.sticky):
            return own
        return self._manager._sticky.get(key)

    def _write(self, key: str, prop: _Prop) -> None:
        self._props[key] = prop
        if prop.sticky and self._manager is not None:
            self._manager._sticky[key] = prop

    def set_prop(self, key: str, value: Any, private: bool = True, sticky: bool = True) -> bool:
        """Set a prop, unless it exists with other attributes.

        Args:
            key: its name.
            value: anything.
            private: whether peers must not see it.
            sticky: whether all contexts of the manager see it.

        Returns:
            False, with a warning in the log and nothing written, if the prop exists and is
            not private or sticky in the same way; else True.

        Raises:
            ArgumentInvalid: the key is not a string (a ``ValueError``, as in reference 6.1).
        """
        prop = _Prop(value, bool(private), bool(sticky))
        _check_key(key)
        with self._lock:
            old = self._find(key)
            if old is None or old[1:] == prop[1:]:
                self._write(key, prop)
                return True
        _log.warning("prop %r is %s and cannot become %s: not set", key, old, prop)
        return False

    def put(self, key: str, value: Any, private: bool, sticky: bool) -> None:
        """Set a prop whatever its attributes were. For the engine, not for components.

        Raises:
            ArgumentInvalid: the key is not a string.
        """
        _check_key(key)
        with self._lock:
            self._write(key, _Prop(value, bool(private), bool(sticky)))

    def get_prop(self, key: str, default: Any = None) -> Any:
        """The prop's value, or ``default``. A sticky value is the manager's current one."""
        with self._lock:
            prop = self._find(key)
        return default if prop is None else prop.value

    def get_prop_detail(self, key: str) -> dict[str, Any] | None:
        """``{"value", "private", "sticky"}`` of the prop, or None if there is none."""
        with self._lock:
            prop = self._find(key)
        return None if prop is None else prop._asdict()

    def remove_prop(self, key: str, force_removal: bool = False) -> bool:
        """Remove a prop; a sticky one from all contexts of the manager.

        Args:
            key: its name.
            force_removal: remove it even if it is reserved (its name begins with ``__``).

        Returns:
            False, with a warning in the log, if the prop is reserved; else True, also when
            there was no such prop.

        Raises:
            ArgumentInvalid: the key is not a string.
        """
        _check_key(key)
        if key.startswith("__") and not force_removal:
            _log.warning("prop %r is reserved: not removed", key)
            return False
        with self._lock:
            prop = self._find(key)
            self._props.pop(key, None)
            if prop is not None and prop.sticky and self._manager is not None:
                self._manager._sticky.pop(key, None)
        return True

    def get_all_public_props(self) -> dict[str, Any]:
        """Name and value of every public prop, sticky ones included: what a peer may see."""
        with self._lock:
            keys = {**self._props, **(self._manager._sticky if self._manager else {})}
            found = {key: self._find(key) for key in keys}
        return {key: prop.value for key, prop in found.items() if prop is not None and not prop.private}

    def set_public_props(self, props: Mapping[str, Any]) -> None:
        """Replace this context's public props with ``props``, public and non-sticky.

        Private props stay, and a name that is private here stays as it is, with a warning:
        what a peer sends must not replace the engine. Sticky values of the manager stay too.

        Raises:
            ArgumentTypeInvalid: ``props`` is not a mapping.
            ArgumentInvalid: a key is not a string. Nothing was changed.
        """
        if not isinstance(props, Mapping):
            raise ArgumentTypeInvalid(f"props must be a mapping, not {type(props).__name__}")
        for key in props:
            _check_key(key)
        with self._lock:
            self._props = {key: prop for key, prop in self._props.items() if prop.private}
            for key, value in props.items():
                old = self._find(key)
                if old is not None and old.private:
                    _log.warning("prop %r is private and cannot become public: not set", key)
                else:
                    self._props[key] = _Prop(value, private=False, sticky=False)

    def set_peer_context(self, ctx: FLContext) -> None:
        """Keep the context of the peer that this call is about.

        Raises:
            ArgumentTypeInvalid: ``ctx`` is not an ``FLContext``.
        """
        if not isinstance(ctx, FLContext):
            raise ArgumentTypeInvalid(f"ctx must be an FLContext, not {type(ctx).__name__}")
        self.put(FLContextKey.PEER_CONTEXT, ctx, private=True, sticky=False)

    def get_peer_context(self) -> FLContext | None:
        """The context of the peer, or None."""
        ctx: FLContext | None = self.get_prop(FLContextKey.PEER_CONTEXT)
        return ctx

    def clone(self) -> FLContext:
        """A context of the same manager with the same props; the values are not copied."""
        copy = FLContext(self._manager)
        with self._lock:
            copy._props = dict(self._props)
        return copy

    # The getters below read what the context was made with: another context that changes a
    # sticky value does not move this call to another job or site (reference 6.1).

    def _own(self, key: str, default: Any) -> Any:
        with self._lock:
            prop = self._props.get(key)
        return default if prop is None else prop.value

    def get_engine(self, default: Any = None) -> Any:
        """The engine that made this context."""
        return self._own(ReservedKey.ENGINE, default)

    def get_job_id(self, default: str | None = None) -> str | None:
        """The job that this process runs; ``""`` in a client parent, which runs none itself."""
        job_id: str | None = self._own(ReservedKey.RUN_NUM, default)
        return job_id

    def get_identity_name(self, default: str = "") -> str:
        """The name of this site."""
        name: str = self._own(ReservedKey.IDENTITY_NAME, default)
        return name

    def get_process_type(self, default: str | None = None) -> str | None:
        """One of ``ProcessType``."""
        process_type: str | None = self._own(FLContextKey.PROCESS_TYPE, default)
        return process_type

    def get_run_abort_signal(self) -> Any:
        """What tells that the run was aborted, or None where no run is (a client parent)."""
        return self._own(FLContextKey.RUN_ABORT_SIGNAL, None)


class FLContextManager:
    """Makes contexts and holds the sticky values that they share.

    Args:
        engine: what ``FLContext.get_engine`` gives.
        identity_name: the site's name.
        job_id: the job of this process; ``""`` in a client parent.
        public_stickers: sticky props that peers may see.
        private_stickers: sticky props that they may not.

    Raises:
        ArgumentInvalid: a sticker's name is not a string, or is public and private at once.
    """

    def __init__(
        self,
        engine: Any = None,
        identity_name: str = "",
        job_id: str = "",
        public_stickers: Mapping[str, Any] | None = None,
        private_stickers: Mapping[str, Any] | None = None,
    ) -> None:
        self._engine = engine
        self._identity_name = identity_name
        self._lock = threading.RLock()
        self._sticky = {ReservedKey.RUN_NUM: _Prop(job_id, private=False, sticky=True)}
        public, private = public_stickers or {}, private_stickers or {}
        for key in (*public, *private):
            _check_key(key)
        if both := public.keys() & private.keys():
            raise ArgumentInvalid(f"stickers are public and private at once: {', '.join(sorted(both))}")
        self._sticky |= {key: _Prop(value, private=False, sticky=True) for key, value in public.items()}
        self._sticky |= {key: _Prop(value, private=True, sticky=True) for key, value in private.items()}

    def new_context(self) -> FLContext:
        """A context with the engine, the site's name and all sticky values.

        Also usable as ``with manager.new_context() as fl_ctx``.
        """
        ctx = FLContext(self)
        ctx.put(ReservedKey.MANAGER, self, private=True, sticky=False)
        ctx.put(ReservedKey.ENGINE, self._engine, private=True, sticky=False)
        ctx.put(ReservedKey.IDENTITY_NAME, self._identity_name, private=False, sticky=False)
        return ctx


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise ArgumentInvalid(f"key must be a str, not {type(key).__name__}")

"""What site, job and server tell each other: a dict with headers (reference 6.2)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from engine.constants import ReservedKey, ReturnCode
from engine.context import FLContext
from engine.errors import ArgumentTypeInvalid


class Shareable(dict[str, Any]):
    """Named values for a peer, and headers for those who carry them.

    The headers are under the key ``__headers__``: a dict of name -> value.

    Args:
        data: the values to begin with; headers among them are copied.

    Raises:
        ArgumentTypeInvalid: the headers in ``data`` are not a mapping.
    """

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(data or {})
        headers = self.get(ReservedKey.HEADERS, {})
        if not isinstance(headers, Mapping):
            raise ArgumentTypeInvalid(f"__headers__ must be a mapping, not {type(headers).__name__}")
        self[ReservedKey.HEADERS] = dict(headers)

    def set_header(self, key: str, value: Any) -> None:
        """Set a header."""
        self.setdefault(ReservedKey.HEADERS, {})[key] = value

    def get_header(self, key: str, default: Any = None) -> Any:
        """The header's value, or ``default``."""
        return self.get(ReservedKey.HEADERS, {}).get(key, default)

    def set_return_code(self, rc: str) -> None:
        """Say what came of the request that this replies to: one of ``ReturnCode``."""
        self.set_header(ReservedKey.RC, str(rc))

    def get_return_code(self, default: str = ReturnCode.OK) -> str:
        """The return code.

        Without one it is OK, so an empty ``Shareable`` looks like a success (reference 4.7).
        """
        rc: str = self.get_header(ReservedKey.RC, str(default))
        return rc

    def add_cookie(self, name: str, data: Any) -> None:
        """Give the peer something to send back with its reply."""
        jar = self.get_cookie_jar()
        if jar is None:
            jar = {}
            self.set_cookie_jar(jar)
        jar[name] = data

    def get_cookie(self, name: str, default: Any = None) -> Any:
        """The cookie's data, or ``default``."""
        return (self.get_cookie_jar() or {}).get(name, default)

    def set_cookie_jar(self, jar: dict[str, Any] | None) -> None:
        """Replace all cookies: name -> data."""
        self.set_header(ReservedKey.COOKIE_JAR, jar)

    def get_cookie_jar(self) -> dict[str, Any] | None:
        """All cookies, or None if there is no jar. Copy it from a request to its reply."""
        jar: dict[str, Any] | None = self.get_header(ReservedKey.COOKIE_JAR)
        return jar

    def set_peer_props(self, props: Mapping[str, Any]) -> None:
        """Add the sender's public props.

        Raises:
            ArgumentTypeInvalid: ``props`` is not a mapping.
        """
        if not isinstance(props, Mapping):
            raise ArgumentTypeInvalid(f"props must be a mapping, not {type(props).__name__}")
        self.set_header(ReservedKey.PEER_PROPS, dict(props))

    def get_peer_props(self) -> Any:
        """The sender's public props, or None. From a foreign sender it may be anything."""
        return self.get_header(ReservedKey.PEER_PROPS)

    def get_peer_prop(self, key: str, default: Any = None) -> Any:
        """One of the sender's public props, or ``default``."""
        props = self.get_peer_props()
        return props.get(key, default) if isinstance(props, Mapping) else default

    def set_peer_context(self, ctx: FLContext) -> None:
        """Add the public props of ``ctx``, the sender's. The context itself is not sent."""
        self.set_peer_props(ctx.get_all_public_props())

    def get_peer_context(self) -> FLContext | None:
        """A context of the sender's public props, or None if there are none.

        Raises:
            ArgumentTypeInvalid: the sender's props are not a mapping.
            ArgumentInvalid: one of their names is not a string.
        """
        props = self.get_peer_props()
        if props is None:
            return None
        ctx = FLContext()
        ctx.set_public_props(props)
        return ctx


def make_reply(rc: str, headers: Mapping[str, Any] | None = None) -> Shareable:
    """A reply without values.

    Args:
        rc: one of ``ReturnCode``; it wins over a return code among the headers.
        headers: further headers.
    """
    reply = Shareable({ReservedKey.HEADERS: headers or {}})
    reply.set_return_code(rc)
    return reply


def make_copy(source: Shareable) -> Shareable:
    """A copy with headers of its own. The values, which may be large, are shared."""
    twin = copy.copy(source)
    twin[ReservedKey.HEADERS] = copy.deepcopy(source.get(ReservedKey.HEADERS, {}))
    return twin

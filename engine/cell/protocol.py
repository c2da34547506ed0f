"""What the engine needs of a cell, so that another transport plugs in."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from engine.cell.message import Message
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid

#: Called with a request; returns the reply, or None where none is expected.
RequestHandler = Callable[[Message], Message | None]

_FQCN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}(\.[A-Za-z0-9][A-Za-z0-9_-]{0,127}){0,3}")


class Cell(Protocol):
    """One end of a federation's network, with an address (reference 6.4)."""

    def get_fqcn(self) -> str:
        """The address: ``server``, ``site-1``, ``site-1.<job>``."""

    def register_request_cb(self, channel: str, topic: str, cb: RequestHandler) -> None:
        """Have ``cb`` handle requests; ``*`` is any topic."""

    def send_request(
        self,
        channel: str,
        topic: str,
        target: str,
        request: Message,
        timeout: float,
        secure: bool = False,
        optional: bool = False,
    ) -> Message:
        """Send and wait; a failure is a reply whose RETURN_CODE says so."""

    def broadcast_request(
        self,
        channel: str,
        topic: str,
        targets: Sequence[str],
        request: Message,
        timeout: float,
        secure: bool = False,
        optional: bool = False,
    ) -> dict[str, Message]:
        """Send to several at once and wait for all; target -> reply."""

    def fire_and_forget(
        self,
        channel: str,
        topic: str,
        targets: str | Sequence[str],
        message: Message,
        secure: bool = False,
        optional: bool = False,
    ) -> dict[str, str]:
        """Send without waiting for an answer; target -> what kept it from leaving, or ""."""


_NEEDED = ("get_fqcn", "register_request_cb", "send_request", "broadcast_request", "fire_and_forget")


def check_cell(cell: Any) -> Cell:
    """The cell, if it is one.

    Raises:
        ArgumentTypeInvalid: it lacks a method.
    """
    if isinstance(cell, type):
        raise ArgumentTypeInvalid(f"the class {cell.__name__} is no cell", "give one of its objects", field="cell")
    missing = [name for name in _NEEDED if not callable(getattr(cell, name, None))]
    if missing:
        raise ArgumentTypeInvalid(
            f"a {type(cell).__name__} is no cell: it lacks {', '.join(missing)}",
            "give an engine.cell.cell.FabricCell, or anything with these methods",
            field="cell",
        )
    found: Cell = cell
    return found


def check_fqcn(fqcn: object) -> str:
    """The address, if it is one: names as a site's or a job's, joined by dots.

    Raises:
        ArgumentTypeInvalid: no string. ArgumentInvalid: not an address.
    """
    if not isinstance(fqcn, str):
        raise ArgumentTypeInvalid(f"a target must be a string, not {type(fqcn).__name__}", field="target")
    if not _FQCN.fullmatch(fqcn):
        raise ArgumentInvalid(
            f"{fqcn[:200]!r} is no address of a cell",
            "give server, a site, or a site and a job joined by a dot",
            field="target",
        )
    return fqcn


def check_name(field: str, value: object) -> str:
    """A channel or topic: a string that is not empty, of at most 200 characters.

    Raises:
        ArgumentTypeInvalid: no string. ArgumentInvalid: empty or too long.
    """
    if not isinstance(value, str):
        raise ArgumentTypeInvalid(f"{field} must be str but got {type(value).__name__}", "give a string", field=field)
    if not value:
        raise ArgumentInvalid(f"{field} must not be empty", f"name the {field}", field=field)
    if len(value) > 200 or not value.isprintable():
        raise ArgumentInvalid(
            f"{field} has {len(value)} characters, or one that cannot be printed",
            "use at most 200 printable characters",
            field=field,
        )
    return value


def root_of(fqcn: str) -> str:
    """The site or server that an address belongs to: what stands before the first dot."""
    return fqcn.partition(".")[0]

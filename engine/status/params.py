"""What requests say: cursors, bounds and times; what makes no sense is refused by name."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from engine.errors import ArgumentInvalid

LIMIT = 50
LIMIT_MAX = 500


def encoded(value: list[Any]) -> str:
    """A cursor: where the next page begins. Only this server reads it."""
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode().rstrip("=")


def decoded(cursor: str | None, *kinds: type | tuple[type, ...]) -> list[Any] | None:
    """What a cursor says; None for none.

    Args:
        cursor: as it was given.
        kinds: of its parts.

    Raises:
        ArgumentInvalid: it is none of ours.
    """
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        value = json.loads(text, parse_constant=lambda name: None)
        json.dumps(value, ensure_ascii=False).encode()  # half of a character is none
    except (binascii.Error, ValueError, RecursionError):
        value = None
    fits = isinstance(value, list) and len(value) == len(kinds)
    if not fits or not all(_is(part, kind) for part, kind in zip(value, kinds, strict=True)):
        raise ArgumentInvalid(
            f"cursor is {cursor[:80]!r}, which this server did not give",
            "take `next` of the page before, or leave it out",
            field="cursor",
        )
    return list(value)


def _is(part: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether a part is of its kind, and finite where it is a number."""
    if isinstance(part, bool) or (isinstance(part, int | float) and not -(2**53) <= part <= 2**53):
        return False
    return isinstance(part, kind)


def position(given: str | None, field: str) -> str | None:
    """A position ``<ms>-<seq>``; raises ``ArgumentInvalid``."""
    if given is None:
        return None
    ms, dash, seq = given.partition("-")
    if not (dash and given.isascii() and ms.isdigit() and seq.isdigit() and len(ms) < 16 and len(seq) < 16):
        raise ArgumentInvalid(
            f"{field} is {given[:80]!r}", "a position reads <ms>-<seq>, as events have it", field=field
        )
    return f"{int(ms)}-{int(seq)}"


def one_of(given: list[str] | None, known: Any, field: str) -> list[str]:
    """Values that are all known; raises ``ArgumentInvalid``."""
    for value in given or ():
        if value not in known:
            raise ArgumentInvalid(f"{field} is {value[:80]!r}", f"one of {', '.join(known)}", field=field)
    return list(given or ())


def span(first: int | None, last: int | None, names: tuple[str, str]) -> None:
    """Refuse a range that ends before it begins."""
    if first is not None and last is not None and first > last:
        raise ArgumentInvalid(f"{names[0]} is after {names[1]}", f"swap {names[0]} and {names[1]}", field=names[0])

"""Times as people give them: a moment, or so long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from engine.errors import ArgumentInvalid

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def moment_ms(given: str, field: str, now_ms: int) -> int:
    """A time (RFC 3339), or a span back from now (``30m``, ``2h``, ``7d``), in ms since the epoch.

    Raises:
        ArgumentInvalid: it is neither.
    """
    span = re.fullmatch(r"([0-9]{1,9})([smhd])", given)
    if span:
        return max(0, now_ms - int(span[1]) * _UNITS[span[2]] * 1000)
    try:
        moment = datetime.fromisoformat(given)
        return max(0, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000))
    except (ValueError, OverflowError):
        raise ArgumentInvalid(
            f"{field} is {given[:80]!r}",
            "a time like 2026-11-24T03:00:00Z, or a span like 30m, 2h, 7d",
            field=field,
        ) from None

"""Upcasters: what an older schema of an event type becomes today.

Schema 1 is frozen with release 0.1.0. Whoever raises a body's ``schema_version`` adds here, for the version
before, how its facts become those of the next; golden histories of every release replay through them for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from events.bodies import BODIES

Facts = dict[str, Any]
#: (event type, schema version) -> its facts as the next version has them. Pure, and never changed once released.
UPCASTERS: dict[tuple[str, int], Callable[[Facts], Facts]] = {}


def upcast(kind: str, schema: int, facts: Facts) -> Facts:
    """Facts of an older schema as today's; those of an unknown or a later one are given back as they are."""
    body = BODIES.get(kind)
    while body is not None and schema < body.schema_version:
        facts, schema = UPCASTERS[kind, schema](facts), schema + 1
    return facts

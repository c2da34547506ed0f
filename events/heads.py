"""The head of a subject, as ``append.lua`` keeps it: ``<version> <revision> <position>[ <base>]``."""

from __future__ import annotations

from typing import NamedTuple


class Head(NamedTuple):
    """Where a subject's history has come to. ``base`` versions are on disk, and no longer in Redis."""

    version: int
    revision: int
    last: str
    base: int = 0


def parse(head: object) -> Head | None:
    """A head from its text; None where it is none."""
    parts = str(head or "").split(" ")
    if len(parts) not in (3, 4) or not (parts[0].isdigit() and parts[1].isdigit()):
        return None
    base = parts[3] if len(parts) == 4 else "0"
    if not base.isdigit() or int(base) > int(parts[0]):
        return None
    return Head(int(parts[0]), int(parts[1]), parts[2], int(base))

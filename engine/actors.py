"""Who acts: from the kernel where it can be had, never from what a caller says of itself."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Literal, NamedTuple

from events.envelope import Actor


class _Acting(NamedTuple):
    actor: Actor
    reason: str | None
    call_id: str | None
    revision: int | None


_ACTING: ContextVar[_Acting | None] = ContextVar("flightlog_acting", default=None)


@lru_cache(maxsize=8)
def os_actor(via: Literal["python", "cli", "api", "cell"] = "python") -> Actor:
    """The person that the kernel says this process runs as; names from the environment are only claimed."""
    name = os_name(os.getuid())
    claimed = os.environ.get("SUDO_USER") or os.environ.get("LOGNAME")
    return Actor(
        id=name,
        kind="person",
        auth="os-uid",
        via=via,
        claimed=claimed[:200] if claimed and claimed != name else None,
    )


def os_name(uid: int) -> str:
    """The name of a user of this host."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid-{uid}"


def system_actor(role: str) -> Actor:
    """A part of Flightlog itself."""
    return Actor(id=f"flightlog:{role}", kind="system")


@contextmanager
def acting_as(
    actor: Actor | str, *, reason: str | None = None, call_id: str | None = None, revision: int | None = None
) -> Iterator[Actor]:
    """Within the block, calls are of this actor, for this reason.

    Args:
        actor: who. A bare name is only claimed: the kernel's name stays beside it.
        reason: why; it is recorded with the intent.
        call_id: makes the one call in the block idempotent: the same again gets the first answer.
        revision: the job's revision that the caller has seen; at another one the call is refused.
    """
    who = actor if isinstance(actor, Actor) else os_actor().model_copy(update={"claimed": actor[:200]})
    was = _ACTING.set(_Acting(who, reason, call_id, revision))
    try:
        yield who
    finally:
        _ACTING.reset(was)


_process: Actor | None = None


def set_process_actor(actor: Actor) -> None:
    """Who acts in this process where nobody says otherwise; a job's process is no person."""
    global _process
    _process = actor


def current_actor() -> Actor:
    """Who acts now: as said by ``acting_as``, else the process's own user."""
    acting = _ACTING.get()
    return acting.actor if acting else _process or os_actor()


def current_reason() -> str | None:
    """Why, as said by ``acting_as(..., reason=...)``."""
    acting = _ACTING.get()
    return acting.reason if acting else None


def current_call_id() -> str | None:
    """The call id that ``acting_as`` gave, if one."""
    acting = _ACTING.get()
    return acting.call_id if acting else None


def expected_revision() -> int | None:
    """The revision that ``acting_as`` says the job must have, if it does."""
    acting = _ACTING.get()
    return acting.revision if acting else None

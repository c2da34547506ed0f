"""The names that come from outside, checked, and the ids that we make ourselves.

A job id becomes a folder of the workspace, a part of a cell's name and a part of record keys,
so it is checked once, here, before anything else sees it (reference 3.3, TABLES "Files").
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
import uuid

from engine.errors import ArgumentInvalid, ArgumentTypeInvalid, JobIdInvalid

MAX_NAME = 128  # characters

#: Taken already. A run folder is ``<workspace>/<job id>``, beside the folders of a startup kit
#: (startup, local, transfer); the record's other subject is ``site``; the root cell is ``server``.
#: Names with a dot (log.txt, .flightlog) cannot be job ids anyway.
RESERVED = frozenset({"startup", "local", "transfer", "site", "server"})

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_FIX = "use letters, digits, - and _, beginning with a letter or digit, at most 128 characters"


def check_job_id(job_id: object) -> str:
    """The job id, if it is one.

    Raises:
        JobIdInvalid: not a string, empty, too long, reserved, or with anything but ASCII
            letters, digits, ``-`` and ``_`` (so also: anything with a path in it).
    """
    if fault := _fault("job_id", job_id):
        raise JobIdInvalid(fault, _FIX, field="job_id")
    return str(job_id)


def check_site_name(name: object) -> str:
    """The site's name, if it is one; the rules are those of a job id.

    Raises:
        ArgumentTypeInvalid: not a string.
        ArgumentInvalid: a string that no site can be called.
    """
    if fault := _fault("site", name):
        error = ArgumentInvalid if isinstance(name, str) else ArgumentTypeInvalid
        raise error(fault, _FIX, field="site")
    return str(name)


def _fault(field: str, name: object) -> str | None:
    if not isinstance(name, str):
        return f"{field} must be a string, not {type(name).__name__}"
    if not name:
        return f"{field} is empty"
    if len(name) > MAX_NAME:
        return f"{field} has {len(name)} characters, {MAX_NAME} are allowed"
    if "/" in name or "\\" in name or name in {".", ".."}:
        return f"{field} {name!r} holds a path"
    if not _NAME.fullmatch(name):
        return f"{field} {name!r} holds a character that is not allowed"
    # lower(): on a file system that folds case, Startup is startup.
    if name.lower() in RESERVED:
        return f"{field} {name!r} is reserved: the workspace uses that name itself"
    return None


_lock = threading.Lock()
_last = 0


def new_call_id() -> str:
    """A UUIDv7 in its text form; later ones of one process sort after earlier ones.

    The 12 bits after the milliseconds carry the fraction of the millisecond and count on
    where the clock stands still or steps back; the other 62 are random (RFC 9562, 5.7 and
    6.2, method 3).
    """
    global _last
    ms, ns = divmod(time.time_ns(), 1_000_000)
    with _lock:
        _last = max((ms << 12) | (ns << 12) // 1_000_000, _last + 1)
        tick = _last
    value = (tick >> 12) << 80 | 0x7 << 76 | (tick & 0xFFF) << 64 | 0b10 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=value))


def _unlock_in_child() -> None:
    global _lock
    # Workers fork: another thread of the parent may have held the lock at that moment.
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock_in_child)

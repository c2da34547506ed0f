"""Whether the site can do its work, check by check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis

from engine import overview
from engine.status.desk import Desk
from engine.status.moving import STUCK
from engine.status.reads import lease_holder
from events.errors import FlightlogError
from events.read import last_position
from events.safety import check_server

Check = dict[str, Any]


def readiness(desk: Desk) -> dict[str, Any]:
    """All checks, and whether all of them hold."""
    checks = list(_servers(desk))
    if all(check["ok"] for check in checks):
        checks += [*_followers(desk), _caretaker(desk), _reconciler(desk)]
    return {"ready": all(check["ok"] for check in checks), "checks": checks}


def _servers(desk: Desk) -> Iterator[Check]:
    try:
        check_server(desk.store.client)
        yield _check("record", True, "answers, and is safe")
    except FlightlogError as error:
        yield _check("record", False, error.what)
    except redis.RedisError as error:
        yield _check("record", False, str(error))
    try:
        desk.site.bells.client.ping()
        yield _check("fabric", True, "answers")
    except redis.RedisError as error:
        yield _check("fabric", False, str(error))


def _followers(desk: Desk) -> Iterator[Check]:
    end = _seq(last_position(desk.store))
    for name, at in (("live events", desk.hub.position), ("read models", desk.as_of()["position"])):
        lag = max(0, end - _seq(at))
        stuck = desk.moving.stuck(name, _seq(at), lag)
        yield _check(name, not stuck, f"{lag} events behind" + (f", and not moving for {STUCK:g} s" if stuck else ""))


def _caretaker(desk: Desk) -> Check:
    seen = overview.caretaker_seen(desk.site.workspace)
    return _check("caretaker", seen != "none" and not seen.startswith("STUCK"), seen)


def _reconciler(desk: Desk) -> Check:
    holder = lease_holder(desk, "reconciler")
    return _check("reconciler", holder is not None, f"process {holder}" if holder else "none: flightlog up")


def _check(name: str, ok: bool, found: str) -> Check:
    return {"check": name, "ok": ok, "found": found[:300]}


def _seq(position: str) -> int:
    return int(position.partition("-")[2])

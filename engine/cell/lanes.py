"""Lanes: what goes out to one target, in order; drained by one worker at a time, who owns the lane by a lease."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, cast

from events.store import Store, translated

MOST = 256  # messages of one step


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that waits in a lane, or whose send an owner before had begun.

    ``deadline`` is in ms by the record's clock; None where its work is closed.
    """

    id: str
    deadline: int | None
    attempts: int
    max: int
    reply: bool


@dataclass(frozen=True, slots=True)
class Step:
    """What a drain is to do next.

    ``word``: OK; HELD: another owns the lane; LEFT: nothing was left, and the lane is nobody's; HANDED: given up,
    somebody is to ring.
    """

    word: Literal["OK", "HELD", "LEFT", "HANDED"]
    waiting: int = 0
    flying: tuple[Waiting, ...] = ()
    ids: tuple[Waiting, ...] = ()
    now: int = 0


class Lanes:
    """A site's lanes.

    Args:
        store: the site's record.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._script = store.client.register_script((files("engine") / "cell" / "lane.lua").read_text("utf-8"))

    def step(
        self,
        lane: str,
        token: str,
        worker: str,
        lease: float,
        how: Literal["GO", "LEAVE", "HAND"] = "GO",
        through: Sequence[str] = (),
        most: int = MOST,
    ) -> Step:
        """Own the lane, or go on owning it, and look at what waits.

        Args:
            lane: which.
            token: of this drain.
            worker: who drains: host:pid:start ticks.
            lease: seconds until another may take it.
            how: LEAVE gives it up where nothing waits, in the same step; HAND gives it up anyway.
            through: messages whose send is through, whatever came of it.
            most: messages to look at.
        """
        keys = self.store.keys
        with translated():
            answer: list[Any] = self._script(
                keys=[keys.lane(lane), keys.outbox(lane), keys.flying(lane), keys.lanes, keys.open],
                args=[keys.prefix, lane, token, worker, int(lease * 1000), most, how, *through],
            )
        if answer[0] != "OK":
            return Step(answer[0], int(answer[1]) if len(answer) > 1 else 0)
        flying, rest = int(answer[2]), answer[3:-1]
        found = [_waiting(rest[i : i + 5]) for i in range(0, len(rest), 5)]
        return Step("OK", int(answer[1]), tuple(found[:flying]), tuple(found[flying:]), int(answer[-1]))

    def names(self) -> list[str]:
        """Lanes that may have something to send."""
        return sorted(cast("set[str]", self.store.command("SMEMBERS", self.store.keys.lanes)))

    def lonely(self, lane: str, now: int) -> str | None:
        """Whether a lane has something to do and nobody who does it; None where all is well.

        Returns:
            The worker whose lease has lapsed over it, or "" where it was nobody's.
        """
        keys = self.store.keys
        with translated():
            pipe = self.store.client.pipeline(transaction=False)
            pipe.hmget(keys.lane(lane), ["until", "worker"])
            pipe.llen(keys.outbox(lane))
            pipe.scard(keys.flying(lane))
            (until, worker), waiting, flying = pipe.execute()
        if not (waiting or flying) or (until and until.isdigit() and int(until) > now):
            return None
        return str(worker or "") if until else ""


def target_of(lane: str) -> str:
    """The address that a lane leads to."""
    return lane.partition(":")[2]


def _waiting(fields: Sequence[str]) -> Waiting:
    message, deadline, attempts, most, reply = fields
    return Waiting(
        message,
        int(float(deadline)) if deadline else None,
        int(attempts) if attempts.isdigit() else 0,
        int(most) if most.isdigit() else 0,
        reply == "1",
    )

"""Aux: drain a lane. Record that a send begins, put the message into its receiver's inbox, record what came of it.

It never waits for answers: the collector does.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence

from engine.cell.fabric import Fabric
from engine.cell.lanes import MOST, Lanes, Step, Waiting, target_of
from engine.cell.message import REFUSED, CellReturnCode
from engine.faults import passing
from engine.site import Site
from events.append import Ops
from events.bodies.base import Body
from events.bodies.messages import AuxFailed, AuxOutcomeUnknown, AuxSent, SendStarted
from events.errors import LogUnavailable
from workers.closing import close_all

RENEW_AFTER = 50  # sends one by one, until the lease on the lane is renewed
CUT_OFF = "its send was cut off"  # its worker died, stalled, or met a fabric that was away
SLICE = 0.003  # seconds of a wait during which other lanes are not looked at


def drain(site: Site, lane: str) -> None:
    """Send what waits in a lane, for one turn; ends at once where another drains it."""
    Drain(site, lane).run()


class Drain:
    """One turn at a lane.

    Args:
        site: opened.
        lane: which.
    """

    def __init__(self, site: Site, lane: str) -> None:
        self.site = site
        self.lane = lane
        self.target = target_of(lane)
        self.token = secrets.token_hex(8)
        self.process = site.process
        self.lanes, self.fabric = _tools(site)
        self._count = 0

    def run(self) -> None:
        """Until the turn is over, the lane is empty, or it is another's."""
        try:
            self._run()
        except LogUnavailable:
            # Not a stall: the lane is free for the next, who finds what was begun.
            with contextlib.suppress(LogUnavailable):
                self._step("HAND")
            raise

    def _run(self) -> None:
        turn_ends = time.monotonic() + self.site.settings.lane_turn
        step = self._step()
        while step.word == "OK":
            through = self._again(step) if step.flying else []
            if step.ids:
                through += self._send(step)
            if time.monotonic() >= turn_ends or self._count >= MOST * 4:
                step = self._step("HAND", through)
                if step.waiting:
                    self.site.bells.ring_lane(self.lane)
                return
            step = self._step(through=through)
            if step.word == "OK" and not step.ids and not step.flying:
                step = self._linger(self.site.settings.lane_linger)

    def _step(self, how: str = "GO", through: Sequence[str] = ()) -> Step:
        return self.lanes.step(self.lane, self.token, self.process, self.site.settings.lane_lease, how, through)  # type: ignore[arg-type]

    def _linger(self, seconds: float) -> Step:
        """Wait at an empty lane for a while, since a bell costs more; then leave it, if it is empty still.

        Between two slices it is looked whether another lane rings.
        """
        outbox = self.lanes.store.keys.outbox(self.lane)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self.site.bells.others_wait():
            # From the head to the head: it waits for a message and moves nothing.
            if self.lanes.store.command("BLMOVE", outbox, outbox, "LEFT", "LEFT", min(left, SLICE)) is not None:
                return self._step()
        return self._step("LEAVE")

    def _send(self, step: Step) -> list[str]:
        """Send what waits; gives the ids whose send is through."""
        ids = [w.id for w in step.ids if w.deadline is not None and w.deadline > step.now]
        self._begin(ids, len(step.ids), [w for w in step.ids if w.deadline is not None and w.deadline <= step.now])
        if not ids:
            return []
        passing("send-started")
        words = self.fabric.deliver(self.target, ids, self.site.settings.inbox_max)
        passing("send-delivered")
        self._count += len(ids)
        replies = {w.id: w.reply for w in step.ids}
        self._close(_outcomes(ids, words, replies))
        return ids

    def _begin(self, ids: Sequence[str], taken: int, late: Sequence[Waiting]) -> None:
        """Record that sends begin, and take them out of the outbox, if the lane is still ours."""
        ops = Ops().take(self.lane, self.token, taken)
        for message in ids:
            ops.sending(self.lane, message, self.token, self.process)
        started = SendStarted(lane=self.lane, token=self.token, worker=self.process, ids=list(ids))
        call = self.site.system_call(f"send:{self.token}:{self._count}:{taken}:{len(late)}", role="worker")
        if ids or late:
            self.site.jobs.note(call, [started], None, ops)
        self._close(
            [
                AuxFailed(id=w.id, code=CellReturnCode.TIMEOUT, why="its time was over before it was sent")
                for w in late
            ]
        )

    def _again(self, step: Step) -> list[str]:
        """Sends that an owner before had begun and did not end: nobody knows whether they arrived.

        They are sent again only where the receiver takes a message once, one by one, so that a message that
        ends its worker takes no other with it. A fabric that knows no such receiver is a new one, which has no
        message to deliver either, and says that.
        """
        once = self.fabric.deduplicates(self.target)
        through: list[str] = []
        for number, waiting in enumerate(step.flying, 1):
            if number % RENEW_AFTER == 0 and self._step(through=through).word != "OK":
                return through  # another has the lane by now
            outcome: Body | None = None
            if waiting.deadline is None:
                through.append(waiting.id)
                continue
            if once is False:
                outcome = _unknown(waiting, f"{CUT_OFF}, and the receiver cannot tell a second delivery")
            elif waiting.attempts >= waiting.max:
                outcome = _unknown(waiting, f"{waiting.attempts} sends were begun, and none came to its end")
            elif waiting.deadline <= step.now:
                outcome = _unknown(waiting, f"{CUT_OFF}, and its time is over")
            if outcome is None:
                self._begin([waiting.id], 0, [])
                passing("send-started")
                (word,) = self.fabric.deliver(self.target, [waiting.id], self.site.settings.inbox_max)
                passing("send-delivered")
                if word != "OK":
                    outcome = _unknown(waiting, f"{CUT_OFF}, and then {REFUSED[word][1]}")
                elif not waiting.reply:
                    outcome = AuxSent(id=waiting.id)
            if outcome is not None:
                self._close([outcome])
            through.append(waiting.id)
        return through

    def _close(self, outcomes: Sequence[Body]) -> None:
        close_all(self.site, outcomes, role="worker")
        lost = [o.id for o in outcomes if isinstance(o, AuxFailed | AuxOutcomeUnknown)]
        self.fabric.drop(lost)


def _outcomes(ids: Sequence[str], words: Sequence[str], replies: dict[str, bool]) -> list[Body]:
    """What is known of a send at once: that it failed, or that it left and nobody waits for an answer."""
    found: list[Body] = []
    for message, word in zip(ids, words, strict=True):
        if word != "OK":
            code, why = REFUSED[word]
            found.append(AuxFailed(id=message, code=code, why=why))
        elif not replies[message]:
            found.append(AuxSent(id=message))
    return found


def _unknown(waiting: Waiting, why: str) -> AuxOutcomeUnknown:
    return AuxOutcomeUnknown(id=waiting.id, why=why)


_kept: dict[str, tuple[Lanes, Fabric]] = {}


def _tools(site: Site) -> tuple[Lanes, Fabric]:
    """Scripts and connections, made once in a warm worker."""
    key = str(site.workspace.root)
    if key not in _kept:
        _kept[key] = (Lanes(site.jobs.store), Fabric(site.servers.fabric_url))
    return _kept[key]

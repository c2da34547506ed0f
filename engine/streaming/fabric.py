"""The fabric as streams use it: objects under their transfer, lanes of references to them, and answers.

Keys: ``ff:tx:<tx>`` a hash of the objects under way (``<seq>`` -> frame; ``open`` the stream's context, ``end`` a
notice that it is over), ``ff:tx:<tx>:a`` the answers, ``ff:tx:<tx>:up`` the producer's sign of life with its counts;
``ff:{<site>}:lane:<target>`` references that an io worker is to deliver, ``ff:{<fqcn>}:si`` those that were. An
object's bytes go in once and are read once by each target; only references move.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Literal, NamedTuple, cast

from redis.exceptions import NoScriptError, ResponseError

from engine.cell.fabric import CELLS, Fabric, reachable, up_of
from engine.ring import queue_name

log = logging.getLogger("flightlog.stream")

LANE = "stream:"
_REFERENCE = re.compile(rb"([0-9a-f]{32}) ([0-9a-z]{1,15}(?::[A-Za-z0-9_.-]{1,600})?) ([0-9]{1,15})")
#: ms that references, objects and answers are kept that nobody touches.
KEPT_MS = 3_600_000
RUNG_MS = 1000
#: ms after which a producer whose engine does not say that it lives is taken for gone.
ALIVE_MS = 6000
#: ms that a notice is kept for a target that does not read it.
END_MS = 60_000
ANSWERS = 64  # of one look
CONTEXT = "open"
END = "end"


class Step(NamedTuple):
    """What became of a drain's step."""

    word: Literal["OK", "HELD", "LEFT", "HANDED", "STUCK"]
    moved: int = 0
    left: int = 0
    others: int = 0


class Reference(NamedTuple):
    """An object that waits under its transfer.

    ``first`` is the number of the first that the target had not answered when this was put into its lane.
    """

    tx: str
    field: str
    first: int = 0

    def __bytes__(self) -> bytes:
        return f"{self.tx} {self.field} {self.first}".encode()

    @classmethod
    def of(cls, raw: bytes) -> Reference | None:
        """From what lies in an inbox; None: it is none of ours."""
        found = _REFERENCE.fullmatch(raw)
        return cls(found[1].decode(), found[2].decode(), int(found[3])) if found else None


def objects_of(tx: str) -> str:
    """Key of a transfer's objects."""
    return f"ff:tx:{tx}"


def answers_to(tx: str) -> str:
    """Key of the answers to a transfer's objects."""
    return f"ff:tx:{tx}:a"


def life_of(tx: str) -> str:
    """Key of the producer's sign of life."""
    return f"ff:tx:{tx}:up"


def inbox_for(fqcn: str) -> str:
    """Key of the references that a cell is to take in."""
    return f"ff:{{{fqcn}}}:si"


def outbox_for(site: str, target: str) -> str:
    """Key of a lane."""
    return f"ff:{{{site}}}:lane:{target}"


def lane_to(target: str) -> str:
    """Name of a lane, as a bell says it."""
    return f"{LANE}{target}"


class StreamFabric:
    """A connection to the fabric server, for streams.

    Args:
        url: of the server.
        site: whose lanes and queue.
    """

    def __init__(self, url: str, site: str) -> None:
        self.url = url
        self.site = site
        self._own = Fabric(url, blocking=True)
        self.client = self._own.client
        folder = files("engine") / "streaming"
        self._push = self.client.register_script((folder / "push.lua").read_text("utf-8"))
        self._answer = self.client.register_script((folder / "answer.lua").read_text("utf-8"))
        self._pump = self.client.register_script((folder / "pump.lua").read_text("utf-8"))

    def close(self) -> None:
        """Let go of the connections."""
        self._own.close()

    # -- the producer's side -----------------------------------------------------------------------

    def put(
        self,
        tx: str,
        frames: dict[str, bytes],
        references: Mapping[str, Sequence[Reference]],
        done: Sequence[str] = (),
    ) -> tuple[list[bytes], list[str]]:
        """Lay frames down and put references to them into lanes, in one round trip.

        Args:
            tx: the transfer.
            frames: field -> bytes.
            references: target -> what it is to be told of; none: only to see whether its lane has a bell.
            done: fields that every target has: they are removed.

        Returns:
            Answers that have come meanwhile, and lanes whose bell has to be rung.
        """
        with reachable():
            pipe = self.client.pipeline(transaction=False)
            if frames:
                pipe.hset(objects_of(tx), mapping=cast("Any", frames))
                pipe.pexpire(objects_of(tx), KEPT_MS)
            if done:
                pipe.hdel(objects_of(tx), *done)
            for target, told in references.items():
                self._told(pipe, target, told)
            pipe.lpop(answers_to(tx), ANSWERS)
            *before, answers = pipe.execute(raise_on_error=False)
            words = before[len(before) - len(references) :]
            if any(isinstance(word, NoScriptError) for word in words):  # the server is a new one
                self.client.script_load(self._push.script)
                for target, told in references.items():
                    self._told(pipe, target, told)
                words = pipe.execute(raise_on_error=False)
            for answer in (*before, *words, answers):
                if isinstance(answer, Exception) and not isinstance(answer, NoScriptError):
                    raise answer
        return answers or [], [target for target, word in zip(references, words, strict=True) if word]

    def _told(self, pipe: Any, target: str, told: Sequence[Reference]) -> None:
        outbox = outbox_for(self.site, target)
        keys = (outbox, f"{outbox}:lease", f"{outbox}:rung")
        pipe.evalsha(self._push.sha, len(keys), *keys, KEPT_MS, RUNG_MS, *map(bytes, told))

    def answers(self, tx: str, seconds: float) -> list[bytes]:
        """Answers; waits for the first."""
        with reachable():
            found = cast(
                "Any",
                self.client.execute_command(  # type: ignore[no-untyped-call]
                    "BLMPOP", seconds, 1, answers_to(tx), "LEFT", "COUNT", ANSWERS
                ),
            )
        return found[1] if found else []

    def lives(self, transfers: dict[str, str]) -> None:
        """Say that the producers of these transfers live: transfer -> its counts."""
        with reachable():
            pipe = self.client.pipeline(transaction=False)
            for tx, counts in transfers.items():
                pipe.set(life_of(tx), counts, px=ALIVE_MS)
            pipe.execute()

    def look(self, tx: str, field: str, target: str) -> tuple[bool, str]:
        """Whether an object is still there, and which cell has the target's address ("": none)."""
        with reachable():
            pipe = self.client.pipeline(transaction=False)
            pipe.hexists(objects_of(tx), field)
            pipe.get(up_of(target))
            there, holder = pipe.execute()
        return bool(there), (holder or b"").decode(errors="replace")

    def known(self, target: str) -> bool:
        """Whether a cell was ever at an address."""
        with reachable():
            return bool(self.client.hexists(CELLS, target))

    def forget(self, tx: str, targets: Sequence[str]) -> None:
        """Remove what is left of a transfer, references in lanes and inboxes included."""
        own = f"{tx} ".encode()
        with reachable():
            self.client.unlink(objects_of(tx), answers_to(tx), life_of(tx))
            for key in (key for target in targets for key in (outbox_for(self.site, target), inbox_for(target))):
                for raw in cast("list[bytes]", self.client.lrange(key, 0, -1)):
                    if raw.startswith(own):
                        self.client.lrem(key, 1, cast("Any", raw))

    def tell_end(self, tx: str, frames: Mapping[str, bytes | None]) -> None:
        """Put notices that a stream is over (field -> frame; None: only look) into inboxes, past the lanes.

        The field says whom: ``end:<target>``. Its reader removes it.
        """
        with reachable():
            pipe = self.client.pipeline(transaction=False)
            for field, frame in frames.items():
                if frame is not None:
                    pipe.hset(objects_of(tx), field, cast("Any", frame))
                    pipe.pexpire(objects_of(tx), END_MS)
                inbox = inbox_for(field.partition(":")[2])
                pipe.rpush(inbox, bytes(Reference(tx, field)))
                pipe.pexpire(inbox, KEPT_MS)
            pipe.execute()

    # -- the worker's ------------------------------------------------------------------------------

    def pump(self, target: str, token: str, lease: float, most: int, inbox_max: int, how: str = "GO") -> Step:
        """A step of whoever drains a lane; see ``pump.lua``."""
        outbox = outbox_for(self.site, target)
        keys = [outbox, f"{outbox}:lease", f"{outbox}:rung", up_of(target), inbox_for(target)]
        with reachable():
            word, *rest = self._pump(
                keys=[*keys, f"rq:queue:{queue_name(self.site, 'io')}"],
                args=[token, int(lease * 1000), most, inbox_max, KEPT_MS, how],
            )
        return Step(word.decode(), *rest)

    def linger(self, target: str, seconds: float) -> bool:
        """Wait at an empty lane; whether something came."""
        outbox = outbox_for(self.site, target)
        with reachable():
            # From the head to the head: it waits for a reference and moves nothing.
            return self.client.blmove(outbox, outbox, cast("Any", seconds), "LEFT", "LEFT") is not None

    # -- the consumer's ----------------------------------------------------------------------------

    def read(self, fqcn: str, seconds: float, most: int) -> list[Reference]:
        """References that came for a cell; waits for the first."""
        with reachable():
            found = cast(
                "Any",
                self.client.execute_command(  # type: ignore[no-untyped-call]
                    "BLMPOP", seconds, 1, inbox_for(fqcn), "LEFT", "COUNT", most
                ),
            )
        told = [Reference.of(raw) for raw in found[1]] if found else []
        if None in told:
            log.error("something in the inbox of %s is no reference", fqcn)
        return [reference for reference in told if reference is not None]

    def fetch(self, tx: str, field: str, answers: Sequence[bytes] = ()) -> bytes | None:
        """Give answers and read an object, in one round trip; None where it is gone."""
        with reachable():
            pipe = self.client.pipeline(transaction=False)
            pipe.hget(objects_of(tx), field)
            if answers:
                self._answered(pipe, tx, answers)
            found = pipe.execute(raise_on_error=False)
            if answers and isinstance(found[1], NoScriptError):
                self.client.script_load(self._answer.script)
                self._answered(pipe, tx, answers)
                found[1] = pipe.execute(raise_on_error=False)[0]
        for one in found:
            if isinstance(one, Exception):
                with reachable():
                    raise one
        return cast("bytes | None", found[0])

    def _answered(self, pipe: Any, tx: str, answers: Sequence[bytes]) -> None:
        pipe.evalsha(self._answer.sha, 2, objects_of(tx), answers_to(tx), KEPT_MS, *answers)

    def drop(self, tx: str, field: str) -> None:
        """Remove an object."""
        with reachable():
            self.client.hdel(objects_of(tx), field)

    def take_end(self, tx: str, field: str) -> bytes | None:
        """Take a notice away."""
        with reachable():
            pipe = self.client.pipeline(transaction=False)
            pipe.hget(objects_of(tx), field)
            pipe.hdel(objects_of(tx), field)
            return cast("bytes | None", pipe.execute()[0])

    def producer_lives(self, tx: str) -> bool:
        """Whether the producer's engine says that it lives."""
        with reachable():
            return bool(self.client.exists(life_of(tx)))

    def counts(self, tx: str) -> str:
        """What the producer's engine said last; "" where it is gone, or somebody else has written there."""
        with reachable():
            try:
                return (cast("bytes | None", self.client.get(life_of(tx))) or b"").decode(errors="replace")
            except ResponseError:
                return ""


def new_token() -> str:
    """Of a drain."""
    return secrets.token_hex(8)

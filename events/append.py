"""The Python face of ``append.lua``: what is to be appended, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from redis.commands.core import Script

from events.bodies.base import Body
from events.envelope import Actor, Call, encode
from events.errors import CallIdReused, Fenced, FlightlogError, RecordDamaged, RecordFull, RevisionConflict
from events.standin import escaped
from events.store import Store, translated

Closing = Literal["any", "open", "unclaimed", "lapsed", "token"]

#: Kinds of work that are refused where there is no room; ``append.lua`` has the same.
NEW = frozenset(("deploy", "launch", "aux", "transfer"))
#: Seconds for which a call that opened no work is remembered.
REMEMBERED = 600


class Ops:
    """What changes together with the events. Keys are given without the site's prefix."""

    def __init__(self) -> None:
        self.args: list[str | int] = []
        self.opens = False
        #: A new epoch begins with the events.
        self.epoch = False
        #: It must have room, where memory is short too: it ends something, or is about an end.
        self.urgent = False

    def set(self, key: str, values: Mapping[str, str]) -> Ops:
        """Set fields of a hash."""
        if values:
            self.args += ["S", key, len(values)]
            for name, value in values.items():
                self.args += [name, escaped(value)]
        return self

    def add(self, key: str, name: str, by: int = 1) -> Ops:
        """Add to a field of a hash."""
        self.args += ["I", key, name, by]
        return self

    def put(self, key: str, score: str, member: str) -> Ops:
        """Put a member into a sorted set."""
        self.args += ["Z", key, score, member]
        return self

    def drop(self, key: str, member: str) -> Ops:
        """Take a member out of a sorted set."""
        self.args += ["R", key, member]
        return self

    def open(self, work: str, deadline: str, values: Mapping[str, str]) -> Ops:
        """Open work; where it is open already, only its fields are set."""
        self.opens = True
        self.urgent |= work.partition("_")[0] not in NEW
        self.args += ["O", work, deadline, len(values)]
        for name, value in values.items():
            self.args += [name, escaped(value)]
        return self

    def close(self, work: str, how: Closing = "open", token: str = "") -> Ops:
        """Close work, under a condition on who holds it."""
        self.urgent = True
        self.args += ["C", work, how, token]
        return self

    def claim(self, work: str, *, token: str, worker: str, until: int, attempts: int) -> Ops:
        """Claim work, or hold on to it with the same token, until ``until`` (ms, record's clock)."""
        self.urgent = True
        self.args += ["K", work, token, worker, until, attempts]
        return self

    def begin_epoch(self) -> Ops:
        """Let a new epoch begin with the events; who writes in the one before is told by the next append."""
        self.epoch = self.urgent = True
        self.args += ["E"]
        return self

    def push(self, lane: str, message: str) -> Ops:
        """Put a message's id at the end of a lane's outbox."""
        self.args += ["P", lane, message]
        return self

    def take(self, lane: str, token: str, count: int) -> Ops:
        """Take the first ids out of a lane's outbox; refused (``FENCED``) where the lane is not the token's."""
        self.args += ["T", lane, token, count]
        return self

    def sending(self, lane: str, message: str, token: str, worker: str) -> Ops:
        """A send of a message begins; nothing happens where its work is closed."""
        self.args += ["M", lane, message, token, worker]
        return self


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A body and what it is about; cause, correlation and actor where they are not the call's."""

    subject: str
    body: Body
    cause: str | None = None
    correlation: str | None = None
    actor: Actor | None = None


class WorkRefused(Fenced):
    """The work is not ours to close or claim.

    ``why`` is CLOSED, CLAIMED, FENCED, EXHAUSTED or EXPIRED.
    """

    def __init__(self, why: str, work: str, until: int | None = None) -> None:
        super().__init__(f"work {work} is {why.lower()}", work=work, why=why)
        self.why = why
        self.until = until


class NeedsRebuild(FlightlogError):
    """What derives from the log does not match it and is written anew.

    Internal: the caller rebuilds under a lock and tries again.
    """

    code, http, retry = "REBUILD", 503, "yes"


@dataclass(frozen=True, slots=True)
class Appended:
    """The answer to an append.

    ``positions`` are those of the events in order, ``heads`` gives version and revision of each
    subject after them. ``repeated`` says that this call was known already, ``ring`` that a lane
    which got a message has no owner and wants a bell.
    """

    positions: tuple[str, ...]
    heads: dict[str, tuple[int, int]] = field(default_factory=dict)
    repeated: bool = False
    ring: bool = False


#: A call, its events, and what changes with them.
Request = tuple[Call, Sequence[NewEvent], Ops | None]


class Log:
    """Appends to one site's log.

    Args:
        store: the site's record.
        rebuild: called with the reason when the script finds that heads or projections do not
            match the log; returns when they do again.
    """

    def __init__(self, store: Store, rebuild: Callable[[str], None] | None = None) -> None:
        self.store = store
        self._rebuild = rebuild

    def append(
        self,
        call: Call,
        events: Sequence[NewEvent],
        ops: Ops | None = None,
        *,
        expected: tuple[str, int] | None = None,
    ) -> Appended:
        """Append events and change what derives from them, in one round trip.

        Args:
            call: which call and step this is; the same again gets the first answer.
            events: at least one, of any subjects.
            ops: projections and work that change with them.
            expected: (subject, revision) that must still hold; needed by whatever transitions.

        Raises:
            RevisionConflict: the subject has moved on; nothing was written.
            WorkRefused: the work is closed or held by someone else; nothing was written.
            CallIdReused: the call id is known with other arguments.
            LogUnavailable, RecordFull, RecordDamaged, ServerUnsafe: the server's side.
        """
        if not events or (expected is not None and all(e.subject != expected[0] for e in events)):
            raise ValueError("an append needs events, and among them one of the guarded subject")
        self.store.ensure_safe()
        for _ in range(4):
            answer = self._once(call, events, ops, expected)
            kind = answer[0]
            if kind in ("OK", "REPEAT"):
                return _appended(answer, len(events))
            if kind == "EPOCH":
                self.store.epoch = int(answer[1])
            elif kind == "REBUILD":
                if self._rebuild is None:
                    raise NeedsRebuild(str(answer[1]))
                self._rebuild(str(answer[1]))
            else:
                raise _error(answer, expected)
        raise NeedsRebuild(f"the record does not settle: {answer}")

    def append_each(self, requests: Sequence[Request]) -> list[Appended | Exception]:
        """Several appends of different calls in one round trip; each is whole by itself.

        Args:
            requests: (call, events, operations); none of them guarded.

        Returns:
            Per request what ``append`` gives, or the error that it raises.
        """
        if len(requests) == 1:
            return [self._or_error(requests[0])]
        self.store.ensure_safe()
        keys = (self.store.keys.log, self.store.keys.heads)
        with translated():
            pipe = self.store.client.pipeline(transaction=False)
            for call, events, ops in requests:
                pipe.evalsha(self._script(ops).sha, 2, *keys, *self._args(call, events, ops, None))
            answers = pipe.execute(raise_on_error=False)
        return [
            _appended(answer, len(request[1]))
            if isinstance(answer, list) and answer[0] in ("OK", "REPEAT")
            else self._or_error(request)  # the script is not loaded, the heads want a rebuild, ...: by itself, then
            for request, answer in zip(requests, answers, strict=True)
        ]

    def _or_error(self, request: Request) -> Appended | Exception:
        try:
            return self.append(*request)
        except Exception as error:  # noqa: BLE001 - it belongs to the one who asked
            return error

    def known(self, call: Call) -> Appended | None:
        """The first answer to a call that came before; None for a new one.

        Raises:
            CallIdReused: it came with other arguments.
        """
        self.store.ensure_safe()
        answer = self.store.command("GET", f"{self.store.keys.prefix}call:{call.call_id}:{call.step}")
        if answer is None:
            return None
        digest, _, told = str(answer).partition(" ")
        if digest != (call.arguments or "-"):
            raise _error(["REUSED"], None)
        return _appended(["REPEAT", told], 1)

    def _once(
        self,
        call: Call,
        events: Sequence[NewEvent],
        ops: Ops | None,
        expected: tuple[str, int] | None,
    ) -> list[Any]:
        with translated():
            answer: list[Any] = self._script(ops)(
                keys=[self.store.keys.log, self.store.keys.heads], args=self._args(call, events, ops, expected)
            )
        return answer

    def _script(self, ops: Ops | None) -> Script:
        return self.store.reserve_script if ops is not None and ops.urgent else self.store.append_script

    def _args(
        self,
        call: Call,
        events: Sequence[NewEvent],
        ops: Ops | None,
        expected: tuple[str, int] | None,
    ) -> list[str | int]:
        store = self.store
        actor = call.actor.model_dump_json(exclude_none=True)
        epoch = store.epoch + (ops is not None and ops.epoch)
        life = 0 if ops is not None and ops.opens else REMEMBERED
        args: list[str | int] = [
            store.keys.prefix,
            store.epoch,
            f"call:{call.call_id}:{call.step}",
            call.arguments or "-",
            life,
            expected[0] if expected else "",
            expected[1] if expected else "",
            len(events),
        ]
        for event in events:
            body = event.body
            args += [
                body.name(),
                event.subject,
                1 if body.lifecycle else 0,
                encode(
                    call,
                    event.actor.model_dump_json(exclude_none=True) if event.actor else actor,
                    body,
                    epoch,
                    event.cause,
                    event.correlation,
                ),
            ]
        if ops is not None:
            args += ops.args
        return args


def _appended(answer: list[Any], count: int) -> Appended:
    repeated = answer[0] == "REPEAT"
    parts = answer[1].split(" ") if repeated else answer[1:]
    ring = parts[-1] == "RING"
    if ring:
        parts = parts[:-1]
    try:
        ms, first = parts[0], int(parts[1])
        heads = {parts[i]: (int(parts[i + 1]), int(parts[i + 2])) for i in range(2, len(parts), 3)}
    except (ValueError, IndexError) as error:
        raise RecordDamaged(
            f"the answer that is remembered for this call cannot be read: {answer[1][:80]!r}",
            "somebody else writes to this server: give the site one of its own",
        ) from error
    return Appended(tuple(f"{ms}-{first + k}" for k in range(count)), heads, repeated, ring)


def _error(answer: list[Any], expected: tuple[str, int] | None) -> FlightlogError:
    kind = answer[0]
    if kind == "FULL":
        return RecordFull(str(answer[1]), "free some room, or give more: flightlog status says of what")
    if kind == "CONFLICT":
        subject = expected[0] if expected else "?"
        return RevisionConflict(f"{subject} is at revision {answer[1]}", revision=int(answer[1]))
    if kind == "REUSED":
        return CallIdReused("this call id came before, with other arguments", "use a new call id")
    if kind == "DAMAGED":
        return RecordDamaged(
            f"the key {answer[1]} is not what Flightlog keeps there; nothing was written",
            f"look at it, then remove it: DEL {answer[1]}",
            key=answer[1],
        )
    return WorkRefused(kind, answer[1], int(answer[2]) if len(answer) > 2 else None)

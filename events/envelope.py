"""An event as it stands in the log, and what every call says of itself.

In Redis an event is one stream entry with four fields: ``t`` type, ``s`` subject, ``v`` version
of the subject, and ``d``, everything else as one JSON object. Folds that need only the
type never parse JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json, to_json

from events.bodies import BODIES, parse_body
from events.bodies.base import Body, Personal
from events.bodies.upcast import upcast
from events.errors import RecordDamaged

if TYPE_CHECKING:
    from events.vault import Vault


class Actor(BaseModel):
    """Who acts, and how we know.

    ``id`` is what was established (by the kernel, a token, a certificate); what the caller only
    asserts about itself goes into ``claimed``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Personal
    kind: Literal["person", "service", "server", "job", "system"] = "person"
    auth: Literal["none", "os-uid", "token", "mtls", "signed"] = "none"
    via: Literal["python", "cli", "api", "cell"] = "python"
    claimed: Personal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What ties events to the call that brought them.

    An append is known by (``call_id``, ``step``): the same again gets the first answer.
    ``arguments`` is a keyed digest of what was asked, so that another call cannot pass as this one.
    """

    call_id: str
    actor: Actor
    step: str = "intent"
    arguments: str = ""
    cause: str | None = None
    correlation: str | None = None

    def at(self, step: str, *, cause: str | None = None) -> Call:
        """The same call, one step further."""
        return Call(
            call_id=self.call_id,
            actor=self.actor,
            step=step,
            arguments=self.arguments,
            cause=cause or self.cause,
            correlation=self.correlation,
        )


def iso(ms: str | int) -> str:
    """A time in ms since the epoch as RFC 3339, UTC."""
    moment = datetime.fromtimestamp(int(ms) / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def digest_of(*arguments: Any) -> str:
    """Digest of a call's arguments: 16 hex digits of SHA-256 over their JSON."""
    try:
        text = json.dumps(arguments, default=repr)
    except (TypeError, ValueError, RecursionError):  # circular, too deep, or a number too long to write down
        text = ",".join(type(argument).__name__ for argument in arguments)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(slots=True)
class Event:
    """One recorded event.

    ``position`` is ``<ms>-<seq>``: milliseconds by the record's clock, and the site's gapless
    sequence. ``body`` holds the facts; ``typed()`` gives them as their class.
    """

    position: str
    type: str
    subject: str
    version: int
    raw: str = field(repr=False)
    vault: Vault | None = field(default=None, repr=False, compare=False)

    @property
    def ms(self) -> str:
        """Milliseconds since the epoch, as text."""
        return self.position.partition("-")[0]

    @property
    def seq(self) -> int:
        """The site's sequence number, from 1."""
        return int(self.position.partition("-")[2])

    def rest(self) -> dict[str, Any]:
        """Everything in ``d``: epoch, schema, actor, call, step, arguments, cause, correlation, body.

        Personal fields are readable, as far as the vault that the event came with has their keys.
        """
        value = self.stored()
        if self.vault is not None and "~e1." in self.raw:
            value["actor"] = self.vault.reveal_json(value["actor"])
            value["body"] = self.vault.reveal_json(value["body"])
        return value

    def stored(self) -> dict[str, Any]:
        """``rest`` as it stands in the log: personal fields are tokens. Folds go by this.

        Facts of an older schema are told as today's.
        """
        value: dict[str, Any] = from_json(self.raw)
        body = BODIES.get(self.type)
        if body is not None and (value.get("schema") or 1) < body.schema_version:
            value["body"] = upcast(self.type, value["schema"], value["body"])
        return value

    def current(self) -> str:
        """``d``, with the facts of an older schema as today's."""
        body = BODIES.get(self.type)
        return self.raw if body is None or body.schema_version == 1 else to_json(self.stored()).decode()

    @property
    def body(self) -> dict[str, Any]:
        """The facts, to be read."""
        facts: dict[str, Any] = self.rest()["body"]
        return facts

    def typed(self) -> Body:
        """The facts as their class; raises ``pydantic.ValidationError`` where they do not fit."""
        return parse_body(self.type, self.body)

    def as_dict(self) -> dict[str, Any]:
        """The whole envelope by its names, as ``events --format jsonl`` prints it."""
        rest = self.rest()
        return {
            "position": self.position,
            "epoch": rest["epoch"],
            "subject": self.subject,
            "version": self.version,
            "type": self.type,
            "schema": rest["schema"],
            "time": iso(self.ms),
            "actor": rest["actor"],
            "call_id": rest["call"],
            "step": rest["step"],
            "arguments": rest["arguments"],
            "cause": rest["cause"],
            "correlation": rest["correlation"],
            "body": rest["body"],
        }


def from_entry(position: str, fields: Sequence[str], vault: Vault | None = None) -> Event:
    """An event from a stream entry as the server sends it: name, value, name, value, ...

    Raises:
        RecordDamaged: the entry is none of ours.
    """
    try:
        t, kind, s, subject, v, version, d, rest = fields
        if (t, s, v, d) == ("t", "s", "v", "d"):
            return Event(position, kind, subject, int(version), rest, vault)
    except ValueError:
        pass  # told below, for every shape that is not ours
    raise RecordDamaged(
        f"the log's entry {position} was not written by Flightlog", "give the site a server of its own"
    )


def encode(
    call: Call,
    actor_json: str,
    body: Body,
    epoch: int,
    cause: str | None = None,
    correlation: str | None = None,
) -> str:
    """The ``d`` field of a new event; cause and correlation are the call's where none are given."""
    head = to_json(
        {
            "epoch": epoch,
            "schema": body.schema_version,
            "call": call.call_id,
            "step": call.step,
            "arguments": call.arguments,
            "cause": cause or call.cause,
            "correlation": correlation or call.correlation or call.call_id,
        },
    ).decode()
    facts = body.__pydantic_serializer__.to_json(body, exclude={"type"}).decode()
    # Joined as text: the actor of a call is serialised once, however many events it brings.
    return f'{head[:-1]},"actor":{actor_json},"body":{facts}}}'

"""The fabric as cells use it: payloads under message ids, inboxes, answers, and who is there.

Keys: ``ff:<id>`` a message's bytes, ``ff:<id>:r`` its answer's; ``ff:{<fqcn>}:in`` an inbox, ``:re`` the answers
that a site's collector reads, ``:up`` a cell's sign of life, ``:seen:`` what it has taken; ``ff:cells`` every address
that was ever there. Nothing of it is durable: the record says what was meant, and what came of it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, cast

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from events.errors import LogUnavailable
from events.together import Together

CELLS = "ff:cells"
UP_MS = 6000  # a cell that does not renew its sign of life is gone after this
INBOX_LIFE_MS = 3_600_000  # an inbox that nobody reads
#: What is kept of answers that no collector reads.
ANSWERS_MAX = 100_000
#: Milliseconds that a payload outlives its message's deadline.
MARGIN_MS = 10_000


#: A cell goes on being there, unless a newer one of its address is.
_RENEW = """
local is = redis.call('GET', KEYS[2])
if is and is ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4])
return 1
"""


def inbox_of(fqcn: str) -> str:
    """Key of a cell's inbox."""
    return f"ff:{{{fqcn}}}:in"


def answers_of(fqcn: str, reply_to: str = "") -> str:
    """Key of the answers to a site's requests, or to one cell's own."""
    return f"ff:{{{fqcn}}}:re" + (f":{reply_to}" if reply_to else "")


def up_of(fqcn: str) -> str:
    """Key of a cell's sign of life."""
    return f"ff:{{{fqcn}}}:up"


class Fabric:
    """A connection to the fabric server, for messages.

    Args:
        url: of the server.
        blocking: for reads that wait; else waits are bounded by five seconds.
    """

    def __init__(self, url: str, *, blocking: bool = False) -> None:
        self.url = url
        self.client = redis.Redis.from_url(
            url,
            protocol=2,
            driver_info=None,
            socket_timeout=10 if blocking else 5,
            socket_connect_timeout=2,
            retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.1), 1),
        )
        self._renew = self.client.register_script(_RENEW)
        self._commands: Together[tuple[Any, ...], Any] = Together(self._each)
        self._deliver = self.client.register_script((files("engine") / "cell" / "deliver.lua").read_text("utf-8"))
        self._accept = self.client.register_script((files("engine") / "cell" / "accept.lua").read_text("utf-8"))

    # -- payloads ------------------------------------------------------------------------------

    def put(self, name: str, frame: bytes, life: float) -> None:
        """Keep bytes under a message's id (``<id>``, or ``<id>:r`` for its answer) for ``life`` seconds and a bit."""
        self._commands(("SET", f"ff:{name}", frame, "PX", int(life * 1000) + MARGIN_MS))

    def put_each(self, payloads: Sequence[tuple[str, bytes, float]]) -> None:
        """Keep several, as ``put`` does, in one round trip; raises ``LogUnavailable`` where one is refused."""
        answers = self._each(
            [("SET", f"ff:{name}", frame, "PX", int(life * 1000) + MARGIN_MS) for name, frame, life in payloads]
        )
        for answer in answers:
            if isinstance(answer, LogUnavailable):
                raise answer

    def fetch_each(self, names: Sequence[str]) -> list[bytes | None]:
        """Take several away, in one round trip; None for those that are gone, or are none."""
        answers = self._each([("GETDEL", f"ff:{name}") for name in names])
        return [answer if isinstance(answer, bytes) else None for answer in answers]

    def look(self, name: str) -> bytes | None:
        """Bytes that stay where they are; None where they are gone."""
        return cast("bytes | None", self._commands(("GET", f"ff:{name}")))

    def fetch(self, name: str) -> bytes | None:
        """Take bytes away; None where they are gone."""
        return cast("bytes | None", self._commands(("GETDEL", f"ff:{name}")))

    def _each(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Answers of several commands in one round trip: one that is refused is an error among them, and no other."""
        with reachable():
            pipe = self.client.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            answers = pipe.execute(raise_on_error=False)
        return [_refused(answer) if isinstance(answer, Exception) else answer for answer in answers]

    def drop(self, names: Sequence[str]) -> None:
        """Remove payloads."""
        if names:
            with reachable():
                self.client.delete(*(f"ff:{name}" for name in names))

    # -- delivery --------------------------------------------------------------------------------

    def deliver(self, target: str, ids: Sequence[str], inbox_max: int) -> list[str]:
        """Put messages into a cell's inbox; a word per id: OK, LOST, FULL, DOWN, UNKNOWN."""
        with reachable():
            words = self._deliver(
                keys=[CELLS, up_of(target), inbox_of(target)], args=[target, inbox_max, INBOX_LIFE_MS, *ids]
            )
        return [word.decode() for word in words]

    def accept(self, fqcn: str, entries: Sequence[tuple[bytes, bytes]]) -> list[bytes | None]:
        """Take messages out of our inbox: (entry, message id) -> payload, or None where it is gone or was taken."""
        args: list[Any] = [f"ff:{{{fqcn}}}:seen:", secrets.token_hex(8)]
        for entry in entries:
            args += entry
        with reachable():
            return cast("list[bytes | None]", self._accept(keys=[inbox_of(fqcn)], args=args))

    def answer(self, key: str, frame: bytes, life: float, entry: Mapping[str, str | int]) -> None:
        """Keep an answer's bytes and tell whoever reads ``key``."""
        fields: list[Any] = [part for pair in entry.items() for part in pair]
        with reachable():
            pipe = self.client.pipeline(transaction=False)
            pipe.set(f"ff:{entry['i']}:r", frame, px=int(life * 1000) + MARGIN_MS)
            pipe.execute_command("XADD", key, "MAXLEN", "~", ANSWERS_MAX, "*", *fields)  # type: ignore[no-untyped-call]
            pipe.pexpire(key, INBOX_LIFE_MS)  # nobody may ever read it
            pipe.execute()

    def read(self, keys: Sequence[str], count: int, block_ms: int) -> list[tuple[str, bytes, dict[bytes, bytes]]]:
        """(key, entry, fields) of what waits in these streams, oldest first; waits where there is nothing."""
        with reachable():
            found = cast(
                "list[Any]", self.client.xread(dict.fromkeys(keys, "0-0"), count=count, block=block_ms) or []
            )
        return [(key.decode(), entry, fields) for key, entries in found for entry, fields in entries]

    def remove(self, key: str, entries: Sequence[bytes], payloads: Sequence[str] = ()) -> None:
        """Take entries out of a stream, and remove payloads with them."""
        with reachable():
            pipe = self.client.pipeline(transaction=False)
            if entries:
                pipe.xdel(key, *entries)
            if payloads:
                pipe.delete(*(f"ff:{name}" for name in payloads))
            pipe.execute()

    # -- who is there ----------------------------------------------------------------------------

    def announce(self, fqcn: str, token: str, about: Mapping[str, Any]) -> None:
        """Say that a cell is there, for a few seconds; a newer one of the same address takes over."""
        with reachable():
            pipe = self.client.pipeline(transaction=False)
            pipe.hset(CELLS, fqcn, json.dumps(dict(about)))
            pipe.set(up_of(fqcn), token, px=UP_MS)
            pipe.execute()

    def about(self, fqcn: str) -> dict[str, Any]:
        """What the last cell of an address said of itself: pid, host, ...; empty where there was none."""
        with reachable():
            told = cast("bytes | None", self.client.hget(CELLS, fqcn))
        try:
            found = json.loads(told or b"{}")
        except ValueError:
            return {}  # something else has written there
        return found if isinstance(found, dict) else {}

    def renew(self, fqcn: str, token: str, about: Mapping[str, Any]) -> bool:
        """Go on being there; False where another cell has taken over the address."""
        with reachable():
            return bool(self._renew(keys=[CELLS, up_of(fqcn)], args=[fqcn, token, UP_MS, json.dumps(dict(about))]))

    def holder(self, fqcn: str) -> str | None:
        """Token of the cell that is there; None: none is."""
        with reachable():
            value = cast("bytes | None", self.client.get(up_of(fqcn)))
        return value.decode() if value else None

    def withdraw(self, fqcn: str, token: str) -> None:
        """Say that a cell is gone, with what was kept for it alone."""
        ours = self.holder(fqcn) == token
        with reachable():
            self.client.delete(answers_of(fqcn, token), *([up_of(fqcn)] if ours else []))

    def deduplicates(self, fqcn: str) -> bool | None:
        """Whether the cell at an address takes a message once, however often it is delivered.

        None where no cell of that address has ever said anything of itself.
        """
        about = self.about(fqcn)
        return bool(about.get("once")) if about else None

    def close(self) -> None:
        """Let go of the connection."""
        self.client.close()


@contextmanager
def reachable() -> Iterator[None]:
    """Turn the client's errors into the catalogue's."""
    try:
        yield
    except redis.ResponseError as error:
        raise _refused(error) from error
    except redis.RedisError as error:
        raise LogUnavailable(
            f"the fabric server does not answer ({str(error)[:200] or type(error).__name__})",
            "flightlog up starts an embedded one; with fabric_url set, start that server",
        ) from error


def _refused(error: Exception) -> LogUnavailable:
    return LogUnavailable(
        f"the fabric server refuses ({str(error)[:200]})",
        "flightlog doctor; it may be at its maxmemory, or somebody else writes to it",
    )

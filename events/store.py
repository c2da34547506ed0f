"""The connection to a site's record, its keys and its one script."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import MasterDownError, ReadOnlyError
from redis.retry import Retry

from events.errors import LogUnavailable, RecordDamaged, RecordFull
from events.safety import check_server
from events.segments import Archive
from events.vault import Vault

#: Blocking reads end by themselves after this many milliseconds; below every socket timeout.
BLOCK_MS = 4000

#: A server that is there and cannot write: its disk is full, or it has become a replica.
_TAKES_NO_WRITES = (ReadOnlyError, MasterDownError)
_REFUSES = re.compile("MISCONF|NOREPLICAS|READONLY|MASTERDOWN")

SafetyCheck = Callable[["redis.Redis"], None]


def connect(url: str, *, blocking: bool = False, attempts: int = 2) -> redis.Redis:
    """A client for ``url`` (``redis://``, ``unix://``): text in and out, bounded waits.

    Args:
        url: where the server is.
        blocking: for a follower, which waits on the server for up to ``BLOCK_MS``.
        attempts: tries of one command over a broken connection. Every append may be sent
            twice without harm: the script knows a call that it has seen.
    """
    client = redis.Redis.from_url(
        url,
        decode_responses=True,
        protocol=2,
        driver_info=None,  # two round trips less per connection, and a forked worker makes one for each task
        socket_timeout=BLOCK_MS / 1000 + 6 if blocking else 5,
        socket_connect_timeout=2,
        health_check_interval=0 if blocking else 30,
        retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.2), attempts),
    )
    return client


def blocking(client: redis.Redis) -> redis.Redis:
    """Another client to where one leads, for a follower."""
    pool = client.connection_pool
    more = {"socket_timeout": BLOCK_MS / 1000 + 6, "health_check_interval": 0}
    again = redis.ConnectionPool(connection_class=pool.connection_class, **{**pool.connection_kwargs, **more})
    return redis.Redis.from_pool(again)


class Keys:
    """The names of everything that a site keeps in Redis. One hash tag: one slot of a cluster."""

    def __init__(self, site: str) -> None:
        self.prefix = f"fl:{{{site}}}:"
        self.log = self.prefix + "log"
        self.heads = self.prefix + "heads"
        self.open = self.prefix + "open"
        #: String: why there is no room for new work; it is there only while there is none.
        self.full = self.prefix + "full"

    def job(self, job_id: str) -> str:
        """Hash: the job's projection."""
        return f"{self.prefix}job:{job_id}"

    def index(self, job_id: str) -> str:
        """List: positions of the job's events."""
        return f"{self.prefix}idx:{job_id}"

    def work(self, work_id: str) -> str:
        """Hash: one piece of open work."""
        return f"{self.prefix}work:{work_id}"

    def outbox(self, lane: str) -> str:
        """List: ids of messages that wait to be sent."""
        return f"{self.prefix}out:{lane}"

    def flying(self, lane: str) -> str:
        """Set: ids of messages whose send has begun, and of which nobody has said yet that it is through."""
        return f"{self.prefix}fly:{lane}"

    def lane(self, lane: str) -> str:
        """Hash: who drains a lane (token, until), and when it was last rung for."""
        return f"{self.prefix}lane:{lane}"

    @property
    def lanes(self) -> str:
        """Set: lanes that may have something to send."""
        return self.prefix + "lanes"

    def lease(self, name: str) -> str:
        """String: who owns a role of the site."""
        return f"{self.prefix}lease:{name}"

    def cursor(self, name: str) -> str:
        """String: how far a follower has come."""
        return f"{self.prefix}cursor:{name}"

    def state(self, state: str) -> str:
        """Sorted set: jobs in a state, by the time they entered it."""
        return f"{self.prefix}by:state:{state}"

    @property
    def by_time(self) -> str:
        """Sorted set: all jobs, by their last transition."""
        return self.prefix + "by:time"


def _script() -> str:
    return (files("events") / "append.lua").read_text("utf-8")


class Store:
    """One site's record: a connection, the keys and the append script.

    Args:
        client: an open connection with text replies.
        site: the site's name, already checked.
        check: looks at the server once and refuses an unsafe one (L1 needs a log that stays).
        vault: keys of personal fields; without one they are written as they are, and not made readable.
        archive: history on disk; without one the log is what is in Redis.
    """

    def __init__(
        self,
        client: redis.Redis,
        site: str,
        *,
        check: SafetyCheck = check_server,
        vault: Vault | None = None,
        archive: Archive | None = None,
    ) -> None:
        self.client = client
        self.site = site
        self.vault = vault
        self.archive = archive
        self.keys = Keys(site)
        for command in ("XRANGE", "XREVRANGE", "XREAD"):
            # As the server sends them: redis-py's own parsing is a third of a replay.
            client.set_response_callback(command, _as_sent)
        script = _script()
        self.append_script = client.register_script(script)
        #: The same, where memory is short: for ends, aborts and what else must have room.
        self.reserve_script = client.register_script(allowed_when_full(client, script))
        self._check = check
        self._checked = False
        self.epoch = 1

    def ensure_safe(self) -> None:
        """Check the server, once per connection; raises ``ServerUnsafe`` with the setting to change."""
        if not self._checked:
            with translated():
                self._check(self.client)
                known = str(self.client.hget(self.keys.heads, "@epoch") or "")
            self.epoch = int(known) if known.isdigit() else 1  # what cannot be read, a rebuild mends
            self._checked = True

    def now_ms(self) -> int:
        """Milliseconds by the record's clock."""
        with translated():
            seconds, micros = self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def command(self, *args: Any) -> Any:
        """One Redis command, with Flightlog's errors."""
        with translated():
            return self.client.execute_command(*args)  # type: ignore[no-untyped-call]


def allowed_when_full(client: redis.Redis, script: str) -> str:
    """A script that may write although the server is at its maxmemory."""
    # A stand-in for tests knows neither this line nor a maxmemory.
    return script if type(client).__module__.startswith("fakeredis") else f"#!lua flags=allow-oom\n{script}"


def _as_sent(answer: Any, **options: Any) -> Any:
    return answer


@contextmanager
def translated() -> Iterator[None]:
    """Turn the client's errors into the catalogue's."""
    try:
        yield
    except redis.exceptions.OutOfMemoryError as error:
        raise RecordFull("the record server is at its maxmemory", "raise maxmemory on the record server") from error
    except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.BusyLoadingError) as error:
        raise LogUnavailable(
            f"the record server does not answer ({_first_line(error)})",
            "flightlog up starts an embedded one; with record_url set, start that server",
        ) from error
    except redis.ResponseError as error:
        if re.match("OOM|command not allowed when used memory", str(error)):
            raise RecordFull(
                "the record server is at its maxmemory", "raise maxmemory on the record server"
            ) from error
        if isinstance(error, _TAKES_NO_WRITES) or _REFUSES.match(str(error)):
            raise LogUnavailable(
                f"the record server takes no writes ({_first_line(error)})", "look at that server, and its disk"
            ) from error
        if "WRONGTYPE" in str(error):
            raise RecordDamaged(
                "a key of the record has the wrong type", "give the site a server of its own"
            ) from error
        raise


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

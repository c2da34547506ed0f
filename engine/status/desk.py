"""What every route works with: the site, who looks, the live events, and an engine for commands."""

from __future__ import annotations

import threading
from typing import Any, cast

import redis
import redis.asyncio
from pydantic_core import from_json
from redis.backoff import NoBackoff
from redis.retry import Retry

from engine.actors import acting_as, os_actor
from engine.client_engine import ClientEngine
from engine.core import Core
from engine.ids import new_call_id
from engine.readmodels.feeder import Feeder
from engine.readmodels.moments import Moments
from engine.readmodels.names import Names
from engine.site import Site
from engine.status.hub import Hub
from engine.status.moving import Moving
from engine.status.tokens import Caller, Tokens
from events.envelope import Call
from events.errors import FlightlogError
from events.read import last_position
from events.vault import MARK

FOLDED = 60  # seconds of one caller's reads in one event: an open page looks often
PURPOSE = "flightlog api"


class Desk:
    """One API process's hold on a site.

    Args:
        site: opened.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.store = site.jobs.store
        self.names = Names(self.store)
        self.moments = Moments(self.store)
        self.tokens = Tokens(site.workspace)
        self.hub = Hub(site)
        self.feeder = Feeder(site)
        self.moving = Moving()
        #: For what is asked so often that a thread of its own would cost more than the answer.
        self.loop_client = redis.asyncio.Redis.from_url(
            # Whoever asks has one limit around all of it: a limit for each command would cost as much as the command.
            site.servers.record_url,
            decode_responses=True,
            protocol=2,
            socket_timeout=None,
            socket_connect_timeout=2,
        )
        #: Of this process itself: what is looked at, and what is refused before an engine is asked.
        self.own = Core(site, folded=FOLDED)
        self._engine: ClientEngine | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._feeding = threading.Thread(target=self.feeder.run, args=(self._stop,), name="feeder", daemon=True)

    def start(self) -> None:
        """Follow the log, and feed the read models."""
        self.hub.start()
        self._feeding.start()

    def close(self) -> None:
        """Let go of the site."""
        self._stop.set()
        self.hub.stop()
        if self._feeding.is_alive():
            self._feeding.join(5)
        self.own.close()
        if self._engine is not None:
            self._engine.close()
        self.site.close()

    @property
    def engine(self) -> ClientEngine:
        """A client engine of the site, opened for the first command; it never owns the site.

        Raises:
            FlightlogError: the site cannot be opened now.
        """
        with self._lock:
            if self._engine is None:
                settings = self.site.settings
                # By itself: a call id of whoever happens to be the first is for that call alone.
                with acting_as(os_actor("api")):
                    self._engine = ClientEngine.open(
                        site=self.site.name,
                        workspace=self.site.workspace.root,
                        record_url=self.site.servers.record_url,
                        fabric_url=self.site.servers.fabric_url,
                        workers=settings.workers,
                        purpose=PURPOSE,
                        goes_on=False,
                        may_own=False,
                    )
            return self._engine

    def saw(self, caller: Caller, method: str, result: str = "ok") -> None:
        """Count a read, or one that was refused."""
        self.own.observed.saw(method, caller.actor, result)

    def refuse(self, caller: Caller, method: str, error: FlightlogError) -> None:
        """Put on the record that a command was refused before an engine was asked."""
        self.own.refuse(Call(call_id=new_call_id(), actor=caller.actor), method, error)

    def record_answers(self) -> bool:
        """Whether the record answers at once; an abort does not wait for one that hangs."""
        client = redis.Redis.from_url(
            self.site.servers.record_url, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)
        )
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    def told(self, kept: str) -> dict[str, Any]:
        """A row of a read model, to be read."""
        row: dict[str, Any] = from_json(kept)
        vault = self.store.vault
        return row if vault is None or MARK not in kept else cast("dict[str, Any]", vault.reveal_json(row))

    def as_of(self) -> dict[str, Any]:
        """How far the read models are, and how many events behind the log."""
        fed = str(self.store.command("HGET", self.names.cursor, "position") or "0-0")
        end = last_position(self.store)
        return {"position": fed, "lag": max(0, _seq(end) - _seq(fed))}


def _seq(position: str) -> int:
    return int(position.partition("-")[2])

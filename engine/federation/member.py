"""A site's place in a federation: it registers with the server, and carries out what the server asks.

Everything goes through the engine's own calls, so it is decided, recorded and done as anybody's; the actor is the
server. Once the site trusts a key of the server's (``flightlog keys trust``), only sealed commands count.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from engine.actors import acting_as
from engine.cell.cell import FabricCell
from engine.cell.fabric import Fabric
from engine.cell.message import CellChannel, CellReturnCode, Message, MessageHeaderKey, failed
from engine.cell.outgoing import Outgoing
from engine.errors import ArgumentInvalid, NotAuthorised
from engine.federation.topics import REGISTER, AdminTopic
from engine.files import write_json
from engine.shareable import Shareable
from events.envelope import Actor
from events.errors import FlightlogError, LogUnavailable

if TYPE_CHECKING:
    from engine.client_engine import ClientEngine

log = logging.getLogger("flightlog.federation")

LOOK_EVERY = 1.0  # seconds between two looks for the server
REGISTER_TIMEOUT = 5.0


class Member:
    """A site in a federation.

    Args:
        engine: the site's.
        cell: its built-in one.
        server: address of the server.
    """

    def __init__(self, engine: ClientEngine, cell: FabricCell, server: str) -> None:
        self._engine = engine
        self._cell = cell
        self._server = server
        self._fabric = Fabric(cell.fabric.url)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="member", daemon=True)
        #: The server that we are registered with, by the token of its cell.
        self.registered: str | None = None
        self._commands: dict[str, Callable[[dict[str, Any]], Any]] = {
            AdminTopic.DEPLOY: self._deploy,
            AdminTopic.START: self._start,
            AdminTopic.ABORT: lambda said: engine.abort_app(said["job_id"]),
            AdminTopic.ABORT_TASK: lambda said: engine.abort_task(said["job_id"]),
            AdminTopic.DELETE: lambda said: engine.delete_run(said["job_id"]),
            AdminTopic.STATUS: lambda said: engine.get_engine_status(),
        }
        for topic in self._commands:
            cell.register_request_cb(CellChannel.CLIENT_MAIN, topic, self._handle)

    def start(self) -> None:
        """Look for the server, and register with it, now and whenever it is a new one."""
        self._thread.start()

    def stop(self) -> None:
        """End looking."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2)
        self._fabric.close()

    # -- registration --------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                there = self._fabric.holder(self._server)
                # Once our own cell is there: who registers is sent commands at once.
                reachable = there is not None and self._fabric.holder(self._cell.get_fqcn()) is not None
                if reachable and there != self.registered and self._register():
                    self.registered = there
            except LogUnavailable as error:
                log.debug("the fabric is away: %s", error)
            except FlightlogError as error:
                log.warning("registering with %s failed: %s", self._server, error)
            self._stop.wait(LOOK_EVERY if self.registered else LOOK_EVERY / 4)

    def _register(self) -> bool:
        core = self._engine.core
        said = Shareable({"site": core.site.name, "release": version("flightlog"), "keys": self._public_keys()})
        with acting_as(Actor(id="flightlog:member", kind="system")):
            out = Outgoing(
                channel=CellChannel.SERVER_MAIN,
                topic=REGISTER,
                target=self._server,
                message=Message(payload=said),
                timeout=REGISTER_TIMEOUT,
                secure=self._trusts(),
                optional=True,
            )
            sent = self._engine.aux_runner.found_sender().send(core.call("register"), out)
        answer = sent.answer.payload if sent.ok and sent.answer is not None else None
        if isinstance(answer, Shareable) and isinstance(answer.get("witness"), str):
            write_json(core.site.workspace.seal / "federation.json", {"witness": answer["witness"]})
        level = logging.INFO if sent.ok else logging.WARNING
        log.log(level, "registering with %s: %s %s", self._server, sent.code, sent.why)
        return sent.ok

    def _public_keys(self) -> dict[str, str]:
        ring = self._cell.ring
        return ring.public() if ring is not None else {}

    # -- commands ----------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> Message:
        topic = str(message.get_header(MessageHeaderKey.TOPIC))
        said = message.payload
        origin = str(message.get_header(MessageHeaderKey.ORIGIN))[:200] or "?"
        kind: Literal["server", "service"] = "server" if origin == self._server else "service"
        actor = Actor(id=origin, kind=kind, auth="signed" if self._sealed(message) else "none", via="cell")
        try:
            with acting_as(actor, reason=_reason(said)):
                self._check(message, topic, said)
                return Message(payload={"answer": self._commands[topic](said)})
        except NotAuthorised as error:
            return failed(CellReturnCode.UNAUTHENTICATED, str(error))
        except FlightlogError as error:
            return Message(payload={"error": str(error), "code": error.code})

    def _check(self, message: Message, topic: str, said: object) -> None:
        core = self._engine.core
        origin = str(message.get_header(MessageHeaderKey.ORIGIN))
        error: FlightlogError | None = None
        if origin != self._server:
            error = NotAuthorised(f"{origin[:100]} is not this site's server", f"commands come from {self._server}")
        elif not self._sealed(message) and self._trusts():
            error = NotAuthorised(
                f"{self._server} has a key here, and this command is not sealed with it", "have the server seal it"
            )
        elif not isinstance(said, dict):
            error = ArgumentInvalid(f"the command's payload is a {type(said).__name__}", "give named values")
        elif topic != AdminTopic.STATUS and "job_id" not in said:
            error = ArgumentInvalid("the command names no job", "give job_id", field="job_id")
        elif topic == AdminTopic.DEPLOY and "app" not in said:
            error = ArgumentInvalid("the command brings no app", "give app: the bytes of its zip", field="app")
        if error is not None:
            raise core.refuse(core.call(topic), topic, error)

    def _sealed(self, message: Message) -> bool:
        return bool(message.get_header(MessageHeaderKey.SECURE))

    def _trusts(self) -> bool:
        return self._cell.ring is not None and self._cell.ring.trusts(self._server)

    def _deploy(self, said: dict[str, Any]) -> str:
        return self._engine.deploy_app(
            said.get("app_name", "app"), said["job_id"], said.get("meta") or {}, self._engine.client_name, said["app"]
        )

    def _start(self, said: dict[str, Any]) -> str:
        requirement = said.get("resources") or {}
        if requirement:
            self._engine.start_with_resources(said["job_id"], said.get("meta") or {}, requirement)
            return "Start the client app..."
        return self._engine.start_app(said["job_id"], said.get("meta") or {})


def _reason(said: object) -> str | None:
    reason = said.get("reason") if isinstance(said, dict) else None
    return reason[:500] if isinstance(reason, str) else None

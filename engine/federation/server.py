"""The server peer: its own cell on the fabric, the sites that registered, and jobs on them.

What a federation without another server runs, and what demo and tests use. It keeps no record: the sites do.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine.aux.codes import reply_of
from engine.aux.dispatch import AuxHandler, dispatch
from engine.cell.cell import FabricCell
from engine.cell.keys import KeyRing
from engine.cell.message import CellChannel, CellReturnCode, Message, MessageHeaderKey, failed
from engine.constants import ReservedKey, ReturnCode
from engine.context import FLContext, FLContextManager
from engine.errors import ArgumentInvalid, CallTimeout
from engine.federation.job import ServerJob
from engine.federation.topics import REGISTER, AdminTopic
from engine.files import write_json
from engine.record.witness import Witness, WitnessServer
from engine.server import EmbeddedServer
from engine.shareable import Shareable, make_reply
from engine.streaming.fabric import StreamFabric
from engine.streaming.files import CHANNEL as FILES
from engine.streaming.files import TOPIC as FILE
from engine.streaming.files import FileFactory
from engine.streaming.incoming import Callback
from engine.streaming.intake import Intake
from engine.streaming.logs import CHANNEL as LOGS
from engine.streaming.logs import TOPIC as LOG
from engine.streaming.logs import LogFactory
from engine.streaming.session import Sessions
from engine.streaming.spec import ConsumerFactory
from engine.tasking import TASK_ID, TaskTopic
from engine.workspace import Workspace, known_site
from events.errors import FlightlogError, LogUnavailable

log = logging.getLogger("flightlog.federation")

COMMAND_TIMEOUT = 20.0
LOOK_EVERY = 0.1  # seconds


class FederationServer:
    """A server peer.

    Args:
        folder: for its keys, and the fabric it starts where none is named.
        name: its address.
        fabric_url: of a fabric server that runs already; sites are given the same.
        secure: seal commands and tasks for the sites, and take only what they seal; their keys have to be trusted
            here, and ours there.
        payload_max: bytes of one message, an app among them.
        witness: HOST:PORT under which sites reach the witness that comes with it; port 0: any free one.

    Raises:
        ArgumentInvalid: somebody else lives in the folder.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        name: str = "server",
        fabric_url: str = "",
        secure: bool = False,
        payload_max: int = 16 * 2**20,
        witness: str = "127.0.0.1:0",
    ) -> None:
        self.folder = Path(folder).resolve()
        self.name = name
        self.secure = secure
        self._embedded: EmbeddedServer | None = None
        home = _home(self.folder, name)
        if not fabric_url:
            self._embedded = EmbeddedServer(home, "fabric")
            self._embedded.ensure()
            fabric_url = self._embedded.url
        self.fabric_url = fabric_url
        self.ring = KeyRing(self.folder / "startup", name)
        self.cell = FabricCell(fabric_url, name, ring=self.ring, payload_max=payload_max)
        self.streams = Sessions(name, self.new_context)
        self._intake = Intake(
            StreamFabric(fabric_url, name), self.streams, self.ring, None, lambda: self.cell.listening
        )
        #: Who looks that each site's history stays one: it cosigns their checkpoints.
        host, _, port = witness.rpartition(":")
        if not host or not port.isdigit():
            raise ArgumentInvalid(f"witness is {witness!r}", "HOST:PORT, 127.0.0.1:0", field="witness")
        self.witness = WitnessServer(Witness(self.folder / "witness", name), host, int(port))
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._keep_fabric, name="fabric", daemon=True)
        #: Sites that have registered: name -> what they said.
        self.sites: dict[str, Shareable] = {}
        self._changed = threading.Condition()
        self._aux: dict[str, AuxHandler] = {}
        self._jobs: dict[str, ServerJob] = {}
        self._contexts = FLContextManager(engine=self, identity_name=name)
        self.cell.register_request_cb(CellChannel.SERVER_MAIN, REGISTER, self._register)
        self.cell.register_request_cb(CellChannel.SERVER_MAIN, TaskTopic.RESULT, self._result)
        self.cell.register_request_cb(CellChannel.AUX_COMMUNICATION, "*", self._aux_message)

    def start(self) -> Self:
        """Be there.

        Raises:
            AddressTaken: another server of this name lives.
        """
        try:
            self.cell.start()
        except BaseException:
            self.stop()  # with the fabric that we may have started
            raise
        self._intake.start()
        self._watch.start()
        self.witness.start()
        return self

    def stop(self) -> None:
        """Be gone, with the fabric that we started."""
        self._stop.set()
        if self._watch.is_alive():
            self._watch.join(5)
        self.witness.stop()
        self._intake.stop()
        self.cell.stop()
        if self._embedded is not None:
            self._embedded.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _keep_fabric(self) -> None:
        """Start our fabric again where it died; sites announce themselves when it is back."""
        while self._embedded is not None and not self._stop.wait(1.0):
            try:
                if self._embedded.ensure():
                    log.warning("the fabric had died; it is started again, and what it held is lost")
            except FlightlogError as error:
                log.warning("%s", error)

    # -- sites ---------------------------------------------------------------------------------------

    def wait_for_sites(self, count: int, timeout: float = 60.0) -> list[str]:
        """Wait until so many sites have registered; their names, sorted.

        Raises:
            CallTimeout: they have not, in time.
        """
        until = time.monotonic() + timeout
        while len(there := self.present()) < count:
            with self._changed:
                self._changed.wait(LOOK_EVERY)
            if time.monotonic() > until:
                raise CallTimeout(
                    f"{len(there)} of {count} sites are there after {timeout:g} s",
                    f"bring them up with FLIGHTLOG_FEDERATION={self.name} and FLIGHTLOG_FABRIC_URL={self.fabric_url}",
                )
        return there

    def present(self) -> list[str]:
        """Sites that have registered, and whose engines are there now; sorted."""
        with self._changed:
            known = sorted(self.sites)
        try:
            return [site for site in known if self.cell.fabric.holder(site) is not None]
        except LogUnavailable:
            return []  # it is being started again

    def _register(self, request: Message) -> Message:
        origin = str(request.get_header(MessageHeaderKey.ORIGIN))
        said = request.payload
        if self.secure and not request.get_header(MessageHeaderKey.SECURE):
            return failed(CellReturnCode.UNAUTHENTICATED, f"{self.name} takes only what is sealed for it")
        if not isinstance(said, Shareable) or said.get("site") != origin:
            return failed(CellReturnCode.INVALID_REQUEST, f"{origin} registers as {said!r}"[:200])
        with self._changed:
            self.sites[origin] = said
            self._changed.notify_all()
        log.info("%s has registered", origin)
        answer = make_reply(ReturnCode.OK)
        answer["witness"] = self.witness.url  # who looks that this site's history is one
        return Message(payload=answer)

    # -- commands --------------------------------------------------------------------------------------

    def deploy(
        self, job_id: str, app_name: str, meta: Mapping[str, Any], app: bytes, sites: Sequence[str] | None = None
    ) -> dict[str, str]:
        """Have sites deploy an app; site -> "" where it is in place, else what stood against it."""
        said = {"job_id": job_id, "app_name": app_name, "meta": dict(meta), "app": app}
        return self._command(AdminTopic.DEPLOY, said, sites)

    def run(
        self, job_id: str, meta: Mapping[str, Any], sites: Sequence[str] | None = None, timeout: float = 60.0
    ) -> ServerJob:
        """Have sites start a job, and wait until its processes are there.

        Raises:
            LaunchFailedError: a site did not start it; the message says which and why, and the others abort it.
            CallTimeout: a process did not come up in time.
        """
        chosen = list(sites or self.present())
        answers = self._command(AdminTopic.START, {"job_id": job_id, "meta": dict(meta)}, chosen)
        failed_sites = {site: answer for site, answer in answers.items() if not answer.startswith("Start")}
        if failed_sites:
            started = [site for site in chosen if site not in failed_sites]
            if started:
                self.abort(job_id, started, reason="another site did not start it")
            raise ArgumentInvalid(
                f"{job_id} was not started: {failed_sites}", "look at these sites: flightlog why JOB"
            )
        job = self._jobs[job_id] = ServerJob(self, job_id, chosen)
        job.wait_ready(timeout)
        return job

    def abort(self, job_id: str, sites: Sequence[str] | None = None, reason: str = "") -> dict[str, str]:
        """Have sites abort a job; site -> answer."""
        return self._command(AdminTopic.ABORT, {"job_id": job_id, "reason": reason or None}, sites)

    def abort_task(self, job_id: str, sites: Sequence[str] | None = None) -> dict[str, str]:
        """Have sites give up a job's current task; site -> answer."""
        return self._command(AdminTopic.ABORT_TASK, {"job_id": job_id}, sites)

    def delete(self, job_id: str, sites: Sequence[str] | None = None) -> dict[str, str]:
        """Have sites remove a job's run folder; site -> answer."""
        return self._command(AdminTopic.DELETE, {"job_id": job_id}, sites)

    def status(self, sites: Sequence[str] | None = None) -> dict[str, Any]:
        """What runs on the sites: site -> the engine's status."""
        return self._command(AdminTopic.STATUS, {}, sites)

    def _command(self, topic: str, said: dict[str, Any], sites: Sequence[str] | None) -> dict[str, Any]:
        targets = list(sites or self.present())
        answers = self.cell.broadcast_request(
            CellChannel.CLIENT_MAIN, topic, targets, Message(payload=said), COMMAND_TIMEOUT, secure=self.secure
        )
        found: dict[str, Any] = {}
        for site, answer in answers.items():
            payload = answer.payload if isinstance(answer.payload, dict) else {}
            if answer.return_code != CellReturnCode.OK:
                found[site] = f"{answer.return_code}: {answer.get_header('error', '')}"
            else:
                found[site] = payload.get("answer", payload.get("error", ""))
        return found

    # -- tasks and aux -----------------------------------------------------------------------------------

    def _result(self, request: Message) -> Message:
        origin = str(request.get_header(MessageHeaderKey.ORIGIN))
        site, _, job = origin.partition(".")
        known = self._jobs.get(job)
        if self.secure and not request.get_header(MessageHeaderKey.SECURE):
            return failed(CellReturnCode.UNAUTHENTICATED, f"{self.name} takes only what is sealed for it")
        if known is None:
            return failed(CellReturnCode.INVALID_REQUEST, f"no job {job[:100]!r} runs here")
        known.take_result(site, str(request.get_header(TASK_ID)), request.payload)
        return Message(payload=make_reply(ReturnCode.OK))

    def new_context(self) -> FLContext:
        """A context of the server's."""
        return self._contexts.new_context()

    def register_aux_message_handler(self, topic: str, message_handle_func: AuxHandler) -> None:
        """Have a function answer aux requests on a topic.

        Raises:
            ArgumentInvalid: the topic is empty or taken.
        """
        if not topic or topic in self._aux or not callable(message_handle_func):
            raise ArgumentInvalid(
                f"topic {topic!r} is empty or taken, or the handler cannot be called", field="topic"
            )
        self._aux[topic] = message_handle_func

    def register_stream_processing(
        self,
        channel: str,
        topic: str,
        factory: ConsumerFactory,
        stream_done_cb: Callback | None = None,
        consumed_cb: Callback | None = None,
        **cb_kwargs: Any,
    ) -> None:
        """Have a factory's consumers take in the streams of a channel and topic; see ``ClientEngine``.

        Raises:
            ArgumentTypeInvalid, ArgumentInvalid: bad input, or the channel and topic have a factory already.
        """
        self.streams.register(channel, topic, factory, stream_done_cb, consumed_cb, cb_kwargs)

    def receive_files(self, folder: Path | str) -> None:
        """Take in files that sites and jobs send, into a folder with a folder for each sender.

        Raises:
            ArgumentInvalid: it is no folder, or files are taken in already.
        """
        self.register_stream_processing(FILES, FILE, FileFactory(folder))

    def receive_logs(self, folder: Path | str) -> None:
        """Take in logs of jobs that sites send: ``<folder>/<site>/<job>/<attempt>-<name>``.

        Raises:
            ArgumentInvalid: logs are taken in already.
        """
        self.register_stream_processing(LOGS, LOG, LogFactory(folder))

    def send_aux_request(
        self, targets: Sequence[str], topic: str, request: Shareable, timeout: float, *, secure: bool = False
    ) -> dict[str, Shareable]:
        """Ask sites, or jobs on them; target -> reply."""
        request.set_peer_props({ReservedKey.IDENTITY_NAME: self.name})
        answers = self.cell.broadcast_request(
            CellChannel.AUX_COMMUNICATION, topic, targets, Message(payload=request), timeout, secure=secure
        )
        return {
            target: reply_of(answer.return_code, str(answer.get_header("error", "")), answer)
            for target, answer in answers.items()
        }

    def _aux_message(self, message: Message) -> Message:
        topic = str(message.get_header(MessageHeaderKey.TOPIC))
        reply = dispatch(self._aux, topic, message.payload, self.new_context())
        reply.set_peer_props({ReservedKey.IDENTITY_NAME: self.name})
        return Message(payload=reply)


def _home(folder: Path, name: str) -> Workspace:
    """The server's folder, in which the embedded fabric can live."""
    there = known_site(folder)
    if there and there != name:
        raise ArgumentInvalid(
            f"{folder} belongs to {there}", f"give {name} a folder of its own (-w)", field="workspace"
        )
    workspace = Workspace(folder, name)
    workspace.flight.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (workspace.flight / "site.json").exists():
        write_json(workspace.flight / "site.json", {"site": name, "id": secrets.token_hex(8)})
    return workspace

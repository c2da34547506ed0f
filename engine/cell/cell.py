"""The built-in cell: requests and answers over the fabric.

It sends by itself, unrecorded: what leaves a site on somebody's behalf goes through ``engine.cell.sender`` instead.
What comes in is recorded by a journal, where it has one, before a handler sees it.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engine.cell.fabric import UP_MS, Fabric, answers_of, inbox_of
from engine.cell.intake import Intake, Journal
from engine.cell.keys import KeyRing
from engine.cell.message import REFUSED, CellReturnCode, Message, cell_code, failed
from engine.cell.protocol import RequestHandler, check_fqcn, check_name
from engine.cell.wire import Envelope, envelope_of, new_key, pack, unpack, until_of
from engine.errors import AddressTaken, ArgumentTypeInvalid, KeyUnknown, SealBroken
from engine.ids import new_call_id
from engine.orders import is_gone, start_ticks
from engine.workspace import host_name
from events.errors import FlightlogError, LogUnavailable

log = logging.getLogger("flightlog.cell")

HANDLERS = 32  # requests that are handled at the same time
LOOK_MS = 200
FORGET_AFTER = 60.0  # seconds for a message that expects no answer


class FabricCell:
    """A cell at an address of the fabric.

    Args:
        url: of the fabric server.
        fqcn: the address.
        ring: keys, for sealed messages.
        journal: records what comes in.
        inbox_max: messages that an inbox we send to may hold.
        payload_max: bytes of one message.
    """

    def __init__(
        self,
        url: str,
        fqcn: str,
        *,
        ring: KeyRing | None = None,
        journal: Journal | None = None,
        inbox_max: int = 10_000,
        payload_max: int = 16 * 2**20,
    ) -> None:
        self._fqcn = check_fqcn(fqcn)
        self.ring = ring
        self.journal = journal
        self.fabric = Fabric(url)
        self._reading = Fabric(url, blocking=True)
        self._inbox_max = inbox_max
        self._payload_max = payload_max
        self._token = secrets.token_hex(8)
        self.intake = Intake(self.fabric, self._fqcn, ring, journal, payload_max)
        self._waiting: dict[str, _Wait] = {}
        self._pool = ThreadPoolExecutor(HANDLERS, thread_name_prefix="handler")
        self._busy = 0
        self._ours = True
        self._lock = threading.Lock()
        self._freed = threading.Condition(threading.Lock())
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._guard, args=(self._read_once,), name="cell-read", daemon=True),
            threading.Thread(target=self._guard, args=(self._renew_once,), name="cell-renew", daemon=True),
        ]
        self.late_answers = 0

    def start(self) -> FabricCell:
        """Be there: take in requests from now on; a fabric that is away is waited for.

        Raises:
            AddressTaken: another cell of this address lives.
        """
        try:
            self._claim()
        except LogUnavailable as error:
            log.warning("%s waits: %s", self._fqcn, error)
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Be gone. Handlers that run are not waited for."""
        if self._stop.is_set():
            return
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(2)
        try:
            self.fabric.withdraw(self._fqcn, self._token)
        except LogUnavailable as error:
            log.debug("the fabric is away: %s", error)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.fabric.close()
        self._reading.close()

    # -- the protocol ------------------------------------------------------------------------------

    def get_fqcn(self) -> str:
        """The address."""
        return self._fqcn

    def register_request_cb(self, channel: str, topic: str, cb: RequestHandler) -> None:
        """Have ``cb`` handle requests on a channel and topic; ``*`` is any topic. The last one counts.

        Raises:
            ArgumentTypeInvalid, ArgumentInvalid: a name is none, or ``cb`` cannot be called.
        """
        check_name("channel", channel)
        check_name("topic", topic)
        if not callable(cb):
            raise ArgumentTypeInvalid(f"cb must be callable, not {type(cb).__name__}", "give a function", field="cb")
        self.intake.handlers[(channel, topic)] = cb

    def send_request(
        self,
        channel: str,
        topic: str,
        target: str,
        request: Message,
        timeout: float,
        secure: bool = False,
        optional: bool = False,
    ) -> Message:
        """Send a request and wait for its answer, at most ``timeout`` seconds.

        Returns:
            The answer; where there is none, a message whose RETURN_CODE says what happened.

        Raises:
            PayloadInvalid, KeyUnknown, ArgumentInvalid: it cannot be sent at all.
        """
        return self.broadcast_request(channel, topic, [target], request, timeout, secure, optional)[target]

    def broadcast_request(
        self,
        channel: str,
        topic: str,
        targets: Sequence[str],
        request: Message,
        timeout: float,
        secure: bool = False,
        optional: bool = False,
    ) -> dict[str, Message]:
        """Send a request to several cells and wait for all answers; target -> answer, as above."""
        requests = dict.fromkeys(targets, request)
        return self.ask_each(channel, topic, requests, timeout, secure=secure, optional=optional)

    def ask_each(
        self,
        channel: str,
        topic: str,
        requests: Mapping[str, Message],
        timeout: float,
        *,
        secure: bool = False,
        optional: bool = False,
    ) -> dict[str, Message]:
        """Send each target its own request, and wait for all answers; target -> answer, as above.

        Nothing is sent to anybody where one of them cannot be sent at all.
        """
        until = time.monotonic() + timeout
        packed = {
            target: self._packed_request(channel, topic, target, request, timeout, secure=secure)
            for target, request in requests.items()
        }
        waits = {target: self._ask(*one, timeout) for target, one in packed.items()}
        answers: dict[str, Message] = {}
        for target, wait in waits.items():
            answers[target] = wait if isinstance(wait, Message) else self._await(wait, until)
            code = answers[target].return_code
            if code != CellReturnCode.OK:
                log.log(logging.DEBUG if optional else logging.WARNING, "%s to %s: %s", topic, target, code)
        return answers

    def fire_and_forget(
        self,
        channel: str,
        topic: str,
        targets: str | Sequence[str],
        message: Message,
        secure: bool = False,
        optional: bool = False,
    ) -> dict[str, str]:
        """Send without waiting for an answer; target -> what kept it from leaving, or ""."""
        chosen = [targets] if isinstance(targets, str) else list(dict.fromkeys(targets))
        packed = [
            self._packed_request(channel, topic, target, message, FORGET_AFTER, secure=secure, reply=False)
            for target in chosen
        ]
        found = {}
        for target, one in zip(chosen, packed, strict=True):
            sent = self._ask(*one, FORGET_AFTER)
            found[target] = sent.return_code if isinstance(sent, Message) else ""
        return found

    # -- sending -------------------------------------------------------------------------------------

    def _packed_request(
        self,
        channel: str,
        topic: str,
        target: str,
        request: Message,
        life: float,
        *,
        secure: bool,
        reply: bool = True,
    ) -> tuple[bytes, Envelope]:
        envelope = Envelope(
            id=new_call_id().replace("-", ""),
            kind="request",
            sender=self._fqcn,
            target=check_fqcn(target),
            channel=check_name("channel", channel),
            topic=check_name("topic", topic),
            reply=reply,
            reply_to=self._token,
            until=until_of(life),
            key=new_key(),
            sealed=bool(secure),
        )
        return pack(envelope, request, self.ring)

    def _ask(self, frame: bytes, envelope: Envelope, life: float) -> _Wait | Message:
        """Put a request into its target's inbox; what says why not, where that fails."""
        if len(frame) > self._payload_max:
            return failed(CellReturnCode.MSG_TOO_BIG, f"{len(frame)} bytes, {self._payload_max} are allowed")
        wait = _Wait(envelope)
        with self._lock:
            self._waiting[envelope.id] = wait
        try:
            self.fabric.put(envelope.id, frame, life)
            (word,) = self.fabric.deliver(envelope.target, [envelope.id], self._inbox_max)
            if word != "OK":
                self.fabric.drop([envelope.id])
        except LogUnavailable as error:
            self._forget(envelope.id)
            return failed(CellReturnCode.COMM_ERROR, error.what)
        if word != "OK":
            self._forget(envelope.id)
            code, why = REFUSED[word]
            return failed(cell_code(code), f"{envelope.target}: {why}")
        if not envelope.reply:
            self._forget(envelope.id)
        return wait

    def _await(self, wait: _Wait, until: float) -> Message:
        wait.done.wait(max(0.0, until - time.monotonic()))
        self._forget(wait.envelope.id)
        if not wait.done.is_set():
            return failed(CellReturnCode.TIMEOUT, "no answer came in time")
        try:
            self.fabric.drop([wait.envelope.id])
            frame = self.fabric.fetch(f"{wait.envelope.id}:r")
            return open_answer(frame, wait.envelope, self.ring)
        except LogUnavailable as error:
            return failed(CellReturnCode.COMM_ERROR, error.what)

    def _forget(self, message: str) -> None:
        with self._lock:
            self._waiting.pop(message, None)

    # -- taking in -------------------------------------------------------------------------------------

    @property
    def listening(self) -> bool:
        """Requests to the address come to us: no other cell has taken it over."""
        return self._ours and not self._stop.is_set()

    def _claim(self) -> None:
        """Take the address, once it is nobody's: a cell that died without a word is there for seconds more."""
        until = time.monotonic() + UP_MS / 1000 + 1
        while not self.fabric.renew(self._fqcn, self._token, self._about()):
            about = self.fabric.about(self._fqcn)
            if is_gone(about.get("host"), about.get("pid"), about.get("ticks")):
                self.fabric.announce(self._fqcn, self._token, self._about())
                return
            if time.monotonic() > until:
                where = f"process {about.get('pid', '?')} on host {about.get('host', '?')}"
                raise AddressTaken(
                    f"{self._fqcn} is there already: {str(where)[:200]}",
                    "give this one another name, or end that one",
                )
            time.sleep(0.1)

    def _about(self) -> dict[str, Any]:
        """What the fabric is to know of us."""
        return {"once": True, "host": host_name(), "pid": os.getpid(), "ticks": start_ticks(os.getpid())}

    def _renew_once(self) -> None:
        self._stop.wait(UP_MS / 4000)
        if not self._stop.is_set():
            self._renew()

    def _renew(self) -> None:
        """Say that we are there. Where another has the address, we take in nothing until it is free again."""
        was, self._ours = self._ours, self.fabric.renew(self._fqcn, self._token, self._about())
        if was != self._ours:
            word = (
                "has it back"
                if self._ours
                else "was taken over by another cell, and hears nothing until that is gone"
            )
            log.error("the address %s %s", self._fqcn, word)
            if self.journal is not None:
                self.journal.address(self._fqcn, ours=self._ours)

    def _read_once(self) -> None:
        own = answers_of(self._fqcn, self._token)
        with self._freed:
            # With all handlers busy, answers are still taken in: a handler may wait for one.
            self._freed.wait_for(lambda: self._busy < HANDLERS, 0.02)
            free = HANDLERS - self._busy
        keys = [own, inbox_of(self._fqcn)] if free > 0 and self._ours else [own]
        found = self._reading.read(keys, max(1, free), LOOK_MS if free > 0 else 1)
        answers = [(entry, fields) for key, entry, fields in found if key == own]
        for _, fields in answers:
            self._take_answer(fields)
        if answers:
            self.fabric.remove(own, [entry for entry, _ in answers])
        entries = [(entry, fields.get(b"i", b"")) for key, entry, fields in found if key != own]
        if not entries:
            return
        for (_, message), frame in zip(entries, self.fabric.accept(self._fqcn, entries), strict=True):
            if frame is None:
                log.info("message %s is gone, or was taken before", message.decode(errors="replace")[:64])
                continue
            with self._freed:
                self._busy += 1
            self._pool.submit(self._handle, message.decode(errors="replace"), frame)

    def _take_answer(self, fields: dict[bytes, bytes]) -> None:
        message = fields.get(b"i", b"").decode(errors="replace")
        with self._lock:
            wait = self._waiting.get(message)
        if wait is None:
            self.late_answers += 1
            self.fabric.drop([f"{message}:r"])
        elif fields.get(b"k", b"").decode(errors="replace") == wait.envelope.key:
            wait.done.set()
        else:
            log.error("a forged answer to %s was refused", message[:64])

    def _handle(self, message: str, frame: bytes) -> None:
        try:
            self.intake.take(message, frame)
        except LogUnavailable as error:
            log.warning("a message could not be handled: %s", error)
        except Exception:
            log.exception("a message could not be handled")
        finally:
            with self._freed:
                self._busy -= 1
                self._freed.notify()

    def _guard(self, once: Callable[[], None]) -> None:
        """Run a loop until the end; a fabric that is away is waited for."""
        away = False
        while not self._stop.is_set():
            try:
                once()
                away = False
            except LogUnavailable as error:
                if not away:
                    log.warning("%s waits: %s", self._fqcn, error)
                away = True
                self._stop.wait(0.1)
                self._try_again()
            except Exception:
                log.exception("the cell stumbled; it goes on")
                self._stop.wait(0.1)

    def _try_again(self) -> None:
        """A fabric that comes back has forgotten us: say at once that we are there."""
        try:
            if not self._stop.is_set():
                self._renew()
        except LogUnavailable as error:
            log.debug("the fabric is still away: %s", error)


class _Wait:
    """A request of ours that waits for its answer."""

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.done = threading.Event()


def open_answer(frame: bytes | None, request: Envelope, ring: KeyRing | None) -> Message:
    """The answer in a frame, if it is one to this request; else a message that says why not."""
    if frame is None:
        return failed(CellReturnCode.COMM_ERROR, "payload lost: the answer is gone from the fabric")
    try:
        answer = envelope_of(frame)
        if (answer.id, answer.kind, answer.sender, answer.key) != (request.id, "answer", request.target, request.key):
            return failed(CellReturnCode.AUTHENTICATION_ERROR, "a forged answer")
        if request.sealed and not answer.sealed:
            # Anybody can have written it, so its words are not passed on.
            code = answer.code if answer.code != CellReturnCode.OK else CellReturnCode.AUTHENTICATION_ERROR
            return failed(code, "the answer to a sealed request came unsealed")
        return unpack(frame, answer, ring)
    except (KeyUnknown, SealBroken) as error:
        return failed(CellReturnCode.AUTHENTICATION_ERROR, f"{error.code}: {error.what}")
    except FlightlogError as error:
        return failed(CellReturnCode.COMM_ERROR, f"{error.code}: {error.what}")

"""The tasks of a job's process: taken in from the server, run one after the other, results sent on the record."""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from engine import codec
from engine.actors import current_actor
from engine.cell.keys import KeyRing
from engine.cell.message import CellChannel, CellReturnCode, Message, MessageHeaderKey, failed
from engine.cell.outgoing import Outgoing, Sends
from engine.constants import EventType, FLContextKey, ReservedKey, ReturnCode
from engine.core import Core
from engine.job.engine import JobEngine
from engine.job.executor import Executor
from engine.job.grant import Grant
from engine.job.signal import Signal
from engine.shareable import Shareable, make_reply
from engine.tasking import TASK_ID, TASK_NAME, TaskTopic
from events.bodies.base import Body
from events.bodies.messages import RunEndRequested, TaskDone, TaskReceived, TaskStarted
from events.envelope import Call
from events.errors import FlightlogError

log = logging.getLogger("flightlog.job")

QUEUED = 16  # tasks that wait while one runs
ID_MAX = 100  # characters
ROOM = 4096  # bytes of a message that are not its payload
RESULT_TIMEOUT = 30.0
RESULT_TRIES = 5


@dataclass
class Task:
    """A task that was taken in."""

    id: str
    name: str
    data: Shareable
    abort: Signal = field(default_factory=Signal)
    began: float | None = None


class Tasks:
    """Takes tasks in on the cell's threads, and runs them on the one that calls ``run``.

    Args:
        grant: who we are.
        core: the process's.
        engine: what executors find in their context.
        executors: by task name.
        sender: for results.
        ring: the site's keys; where it trusts the server's, only sealed tasks count.
    """

    def __init__(
        self,
        grant: Grant,
        core: Core,
        engine: JobEngine,
        executors: dict[str, Executor],
        sender: Sends,
        ring: KeyRing,
    ) -> None:
        self._grant = grant
        self._core = core
        self._engine = engine
        self._executors = executors
        self._sender = sender
        self._ring = ring
        self._queue: queue.Queue[Task | None] = queue.Queue()
        self._seen: set[str] = set()
        self._open: dict[str, Task] = {}
        self._current: Task | None = None
        self._done = 0
        self._over = threading.Event()
        self._lock = threading.Lock()

    # -- from the server -------------------------------------------------------------------------------

    def handle(self, request: Message) -> Message:
        """What the server says on the channel ``task``."""
        server = self._grant.server
        if request.get_header(MessageHeaderKey.ORIGIN) != server:
            return failed(CellReturnCode.UNAUTHENTICATED, f"tasks come from {server} alone")
        if not request.get_header(MessageHeaderKey.SECURE) and self._ring.trusts(server):
            return failed(CellReturnCode.UNAUTHENTICATED, f"{server} has a key here: seal it with that")
        topic = request.get_header(MessageHeaderKey.TOPIC)
        if topic == TaskTopic.END_RUN:
            self._core.site.jobs.note(
                self._core.call("end_run").at("asked"), [RunEndRequested(sender=server)], self._grant.job
            )
            self.end()
            return Message(payload=make_reply(ReturnCode.OK))
        if topic == TaskTopic.ABORT:
            self.abort("server", request.get_header(TASK_ID))
            return Message(payload=make_reply(ReturnCode.OK))
        if topic != TaskTopic.ASSIGN:
            return failed(CellReturnCode.INVALID_REQUEST, f"there is no topic {topic!r} for tasks")
        return Message(payload=make_reply(self._take(request)))

    def _take(self, request: Message) -> str:
        """Take a task in; the return code."""
        task_id, name, data = request.get_header(TASK_ID), request.get_header(TASK_NAME), request.payload
        if not isinstance(task_id, str) or not 0 < len(task_id) <= ID_MAX:
            return ReturnCode.BAD_TASK_DATA
        if not isinstance(name, str) or not isinstance(data, Shareable):
            return ReturnCode.BAD_TASK_DATA
        if name not in self._executors:
            log.error("nobody executes task %r; the app has %s", name[:100], ", ".join(sorted(self._executors)))
            return ReturnCode.TASK_UNKNOWN
        with self._lock:
            if task_id in self._seen:
                return ReturnCode.OK  # the server did not see our first answer
            if self._over.is_set() or self._queue.qsize() >= QUEUED:
                return ReturnCode.SERVICE_UNAVAILABLE
            self._seen.add(task_id)
            task = self._open[task_id] = Task(task_id, name, data)
        size = len(codec.encode(data))
        received = TaskReceived(task_id=task.id, task=name, sender=self._grant.server, size=size)
        self._note(task, "received", received)
        self._queue.put(task)
        return ReturnCode.OK

    def abort(self, by: str, task_id: str | None = None) -> None:
        """Have the current task give up, or the one that is named, also where it waits for its turn."""
        with self._lock:
            task = self._current if task_id is None else self._open.get(task_id)
        if task is not None:
            log.warning("task %s is to be given up, says the %s", task.name, by)
            task.abort.trigger(by)

    def end(self) -> None:
        """Give up all tasks, and take no more; what ``run`` then returns from."""
        self._over.set()
        with self._lock:
            left = list(self._open.values())
        for task in left:
            task.abort.trigger("end of the run")
        self._queue.put(None)

    @property
    def over(self) -> bool:
        """The run was told to end."""
        return self._over.is_set()

    def stats(self) -> dict[str, Any]:
        """The current task, since when (ms since the epoch), and counters."""
        with self._lock:
            task = self._current
            return {
                "current_task_name": task.name if task else "",
                "start_time": int(task.began * 1000) if task and task.began else None,
                "tasks": len(self._seen),
                "tasks_done": self._done,
            }

    # -- running them ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Run tasks until the end of the run."""
        while (task := self._queue.get()) is not None:
            with self._lock:
                self._current, task.began = task, time.time()
            result = self._execute(task)
            with self._lock:
                self._current = None
                self._open.pop(task.id, None)
                self._done += 1
            self._send(task, result)

    def _execute(self, task: Task) -> Shareable:
        began = time.monotonic()
        # One that was given up while it waited is not begun.
        result = make_reply(ReturnCode.TASK_ABORTED) if task.abort.triggered else self._ran(task)
        try:
            size = len(codec.encode(result))
        except FlightlogError as error:
            log.error("the result of task %s cannot be sent: %s", task.name, error)
            result, size = make_reply(ReturnCode.EXECUTION_RESULT_ERROR), 0
        most = self._core.site.settings.payload_max - ROOM
        if size > most:
            log.error("the result of task %s has %d bytes, and %d are allowed", task.name, size, most)
            result, size = make_reply(ReturnCode.EXECUTION_RESULT_ERROR), 0
        done = TaskDone(
            task_id=task.id,
            task=task.name,
            code=result.get_return_code()[:64],
            size=size,
            ms=int((time.monotonic() - began) * 1000),
        )
        self._note(task, "done", done)
        return result

    def _ran(self, task: Task) -> Shareable:
        """What the executor made of it, as a result that has a return code."""
        fl_ctx = self._engine.new_context()
        fl_ctx.set_prop(FLContextKey.RUN_ABORT_SIGNAL, task.abort, private=True, sticky=False)
        self._note(task, "started", TaskStarted(task_id=task.id, task=task.name))
        try:
            self._engine.fire_event(EventType.BEFORE_TASK_EXECUTION, fl_ctx)
            result = self._executors[task.name].execute(task.name, task.data, fl_ctx, task.abort)
            self._engine.fire_event(EventType.AFTER_TASK_EXECUTION, fl_ctx)
        except (Exception, SystemExit):  # an executor does not end the job
            log.exception("task %s failed", task.name)
            result = make_reply(ReturnCode.EXECUTION_EXCEPTION)
        if not _is_result(result):
            log.error("task %s returned a %s without a return code", task.name, type(result).__name__)
            result = make_reply(ReturnCode.EXECUTION_RESULT_ERROR)
        if task.abort.triggered and result.get_return_code() == ReturnCode.OK:
            result = make_reply(ReturnCode.TASK_ABORTED)
        return result

    def _send(self, task: Task, result: Shareable) -> None:
        """To the server, on the record; again where it was not taken in, since the receiver takes a task once."""
        for attempt in range(RESULT_TRIES):
            out = Outgoing(
                channel=CellChannel.SERVER_MAIN,
                topic=TaskTopic.RESULT,
                target=self._grant.server,
                message=Message({TASK_ID: task.id, TASK_NAME: task.name}, result),
                timeout=RESULT_TIMEOUT,
                job=self._grant.job,
                secure=self._ring.trusts(self._grant.server),
            )
            try:
                sent = self._sender.send(self._core.call("task_result", task.id, attempt), out)
                if sent.ok:
                    return
                why = f"{sent.code} {sent.why}"
            except FlightlogError as error:
                why = str(error)
            log.warning("the result of task %s was not taken in: %s", task.name, why)
            if self._over.wait(min(2.0**attempt * 0.2, 3.0)):
                return
        log.error("the result of task %s is given up", task.name)

    def _note(self, task: Task, step: str, body: Body) -> None:
        # A task's id is the server's: it may come again in another job, or another run.
        call_id = f"task:{self._grant.job}:{self._grant.attempt}:{task.id}"
        call = Call(call_id=call_id, actor=current_actor(), step=step)
        try:
            self._core.site.jobs.note(call, [body], self._grant.job)
        except FlightlogError as error:
            log.warning("%s could not be recorded: %s", body.name(), error)


def _is_result(result: object) -> bool:
    """Whether a task's result can be sent: a Shareable with headers and a return code of text."""
    return (
        isinstance(result, Shareable)
        and isinstance(result.get(ReservedKey.HEADERS), dict)
        and isinstance(result.get_return_code(), str)
    )

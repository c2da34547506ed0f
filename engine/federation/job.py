"""A job as the server sees it: processes on sites that are given tasks and send results."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.aux.codes import WHY, code_of
from engine.cell.message import CellChannel, CellReturnCode, Message
from engine.constants import ReturnCode
from engine.errors import CallTimeout
from engine.shareable import Shareable, make_reply
from engine.tasking import TASK_ID, TASK_NAME, TaskTopic

if TYPE_CHECKING:
    from engine.federation.server import FederationServer

log = logging.getLogger("flightlog.federation")

ASSIGN_TIMEOUT = 5.0
AGAIN_AFTER = 0.3  # seconds until a task that was not taken in is offered again
#: Answers to an assignment that another try does not change.
FINAL = frozenset((ReturnCode.TASK_UNKNOWN, ReturnCode.BAD_TASK_DATA, ReturnCode.BAD_REQUEST_DATA))


class ServerJob:
    """One job on some sites.

    Args:
        server: the peer.
        job_id: of the job.
        sites: on which it runs.
    """

    def __init__(self, server: FederationServer, job_id: str, sites: Sequence[str]) -> None:
        self._server = server
        self.job_id = job_id
        self.sites = list(sites)
        self._results: dict[str, Shareable | None] = {}
        self._changed = threading.Condition()

    def wait_ready(self, timeout: float) -> None:
        """Wait until the job's processes are there; raises ``CallTimeout`` naming those that are not."""
        until = time.monotonic() + timeout
        while missing := [site for site in self.sites if self._server.cell.fabric.holder(self._at(site)) is None]:
            if time.monotonic() > until:
                raise CallTimeout(
                    f"{self.job_id} has no process yet on {', '.join(missing)}", "look there: flightlog why JOB"
                )
            time.sleep(0.05)

    def broadcast_task(
        self,
        name: str,
        data: Shareable | Mapping[str, Shareable],
        timeout: float,
        min_replies: int | None = None,
    ) -> dict[str, Shareable]:
        """Give every site a task, and wait for the results.

        Args:
            name: of the task; the app's config says who runs it.
            data: for all, or site -> its own.
            timeout: seconds for all of it; who has not answered then is told to give the task up.
            min_replies: go on as soon as so many have answered well; None: wait for all.

        Returns:
            site -> result; where there is none, a reply whose return code says why.
        """
        until = time.monotonic() + timeout
        tasks = {site: secrets.token_hex(16) for site in self.sites}
        with self._changed:
            self._results.update(dict.fromkeys(tasks.values()))
        for site, why in self._assign(name, data, tasks, until).items():
            self.take_result(site, tasks[site], why)

        def enough() -> bool:
            given = [result for task in tasks.values() if (result := self._results.get(task)) is not None]
            well = sum(result.get_return_code() == ReturnCode.OK for result in given)
            return len(given) == len(tasks) or (min_replies is not None and well >= min_replies)

        with self._changed:
            self._changed.wait_for(enough, max(0.0, until - time.monotonic()))
            found = {site: self._results.pop(task, None) for site, task in tasks.items()}
        late = [site for site, result in found.items() if result is None]
        if late:
            self._tell(late, TaskTopic.ABORT)
        return {
            site: result if result is not None else make_reply(ReturnCode.TIMEOUT) for site, result in found.items()
        }

    def _assign(
        self, name: str, data: Shareable | Mapping[str, Shareable], tasks: Mapping[str, str], until: float
    ) -> dict[str, Shareable]:
        """Offer the tasks until each is taken in or refused for good; who did not take it in, and why."""
        left = dict(tasks)
        why: dict[str, Shareable] = {}
        while left:
            messages = {
                self._at(site): Message({TASK_ID: task, TASK_NAME: name}, self._data(data, site))
                for site, task in left.items()
            }
            wait = max(0.1, min(ASSIGN_TIMEOUT, until - time.monotonic()))
            answers = self._server.cell.ask_each(
                CellChannel.SERVER_MAIN, TaskTopic.ASSIGN, messages, wait, secure=self._server.secure, optional=True
            )
            for site in list(left):
                said = _said(answers[self._at(site)])
                if said.get_return_code() == ReturnCode.OK:
                    del left[site]
                    why.pop(site, None)
                else:
                    why[site] = said
                    if said.get_return_code() in FINAL:
                        del left[site]
            if not left or time.monotonic() + AGAIN_AFTER > until:
                break
            time.sleep(AGAIN_AFTER)
        return why

    def take_result(self, site: str, task: str, result: Any) -> None:
        """A result came in; a second one for the same task, or one for none, is dropped."""
        with self._changed:
            if self._results.get(task, result) is not None and task in self._results:
                return
            if task not in self._results:
                log.info("%s sent a result that nobody waits for", site)
                return
            if not isinstance(result, Shareable):
                result = make_reply(ReturnCode.EXECUTION_RESULT_ERROR)
            self._results[task] = result
            self._changed.notify_all()

    def end(self) -> None:
        """Tell the job's processes that the run is over."""
        self._tell(self.sites, TaskTopic.END_RUN)

    def _tell(self, sites: Sequence[str], topic: str) -> None:
        targets = [self._at(site) for site in sites]
        self._server.cell.broadcast_request(
            CellChannel.SERVER_MAIN,
            topic,
            targets,
            Message(payload=Shareable()),
            ASSIGN_TIMEOUT,
            secure=self._server.secure,
            optional=True,
        )

    def _at(self, site: str) -> str:
        return f"{site}.{self.job_id}"

    @staticmethod
    def _data(data: Shareable | Mapping[str, Shareable], site: str) -> Shareable:
        if isinstance(data, Shareable):
            return data
        return data[site]


def _said(answer: Message) -> Shareable:
    if answer.return_code == CellReturnCode.OK and isinstance(answer.payload, Shareable):
        return answer.payload
    return make_reply(code_of(answer.return_code), {WHY: str(answer.get_header("error", ""))})

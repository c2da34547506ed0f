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
END_TIMEOUT = 2.0
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
        while missing := [site for site in self.sites if self._server.cell.fabric.holder(self.at(site)) is None]:
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
        offers = _Offers(self, name, data, tasks)
        with self._changed:
            self._results.update(dict.fromkeys(tasks.values()))

        def enough() -> bool:
            given = [result for task in tasks.values() if (result := self._results.get(task)) is not None]
            well = sum(result.get_return_code() == ReturnCode.OK for result in given)
            return len(given) == len(tasks) or (min_replies is not None and well >= min_replies)

        while True:
            offers.make(until)
            for site in offers.refused:
                self.take_result(site, tasks[site], offers.why[site])
            left = until - time.monotonic()
            with self._changed:
                if self._changed.wait_for(enough, max(0.0, left if offers.all_made else min(left, AGAIN_AFTER))):
                    break
            if left <= 0:
                break
        with self._changed:
            found = {site: self._results.pop(task, None) for site, task in tasks.items()}
        late = {site: tasks[site] for site, result in found.items() if result is None}
        if late:
            self._give_up(late)
        return {
            site: result if result is not None else offers.why.get(site) or make_reply(ReturnCode.TIMEOUT)
            for site, result in found.items()
        }

    def _give_up(self, late: Mapping[str, str]) -> None:
        """Tell jobs that nobody waits for these tasks any more; without waiting for their answers."""
        for site, task in late.items():
            self._server.cell.fire_and_forget(
                CellChannel.SERVER_MAIN,
                TaskTopic.ABORT,
                self.at(site),
                Message({TASK_ID: task}, Shareable()),
                secure=self._server.secure,
            )

    def offer(self, messages: Mapping[str, Message], wait: float) -> dict[str, Message]:
        """Offer tasks: address -> its message; address -> answer."""
        return self._server.cell.ask_each(
            CellChannel.SERVER_MAIN, TaskTopic.ASSIGN, messages, wait, secure=self._server.secure, optional=True
        )

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

    def end(self, timeout: float = 10.0) -> list[str]:
        """Tell the job's processes that the run is over, and wait until they are gone; sites where one is not yet."""
        self._server.cell.broadcast_request(
            CellChannel.SERVER_MAIN,
            TaskTopic.END_RUN,
            [self.at(site) for site in self.sites],
            Message(payload=Shareable()),
            END_TIMEOUT,
            secure=self._server.secure,
            optional=True,
        )
        until = time.monotonic() + timeout
        while left := [site for site in self.sites if self._server.cell.fabric.holder(self.at(site)) is not None]:
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        return left

    def at(self, site: str) -> str:
        """Address of the job's process on a site."""
        return f"{site}.{self.job_id}"


class _Offers:
    """A task on offer to several sites, until each has taken it in or refused it for good.

    Attributes:
        refused: sites that said no for good, since the last offer.
        why: of each site that has not taken it in: its last word.
    """

    def __init__(
        self, job: ServerJob, name: str, data: Shareable | Mapping[str, Shareable], tasks: Mapping[str, str]
    ) -> None:
        self._job = job
        self._name = name
        self._data = data
        self._left = dict(tasks)
        self.refused: list[str] = []
        self.why: dict[str, Shareable] = {}

    @property
    def all_made(self) -> bool:
        """Nobody is left to be asked."""
        return not self._left

    def make(self, until: float) -> None:
        """Offer it to whoever is left."""
        self.refused = []
        if not self._left:
            return
        messages = {
            self._job.at(site): Message({TASK_ID: task, TASK_NAME: self._name}, self._of(site))
            for site, task in self._left.items()
        }
        answers = self._job.offer(messages, max(0.1, min(ASSIGN_TIMEOUT, until - time.monotonic())))
        for site in list(self._left):
            said = _said(answers[self._job.at(site)])
            code = said.get_return_code()
            if code == ReturnCode.OK:
                self.why.pop(site, None)
            else:
                self.why[site] = said
            if code in FINAL:
                self.refused.append(site)
            if code == ReturnCode.OK or code in FINAL:
                del self._left[site]

    def _of(self, site: str) -> Shareable:
        return self._data if isinstance(self._data, Shareable) else self._data[site]


def _said(answer: Message) -> Shareable:
    if answer.return_code == CellReturnCode.OK and isinstance(answer.payload, Shareable):
        return answer.payload
    return make_reply(code_of(answer.return_code), {WHY: str(answer.get_header("error", ""))})

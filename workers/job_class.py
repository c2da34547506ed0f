"""The RQ job class that runs registered tasks and nothing else.

Whoever can write to the fabric can plant jobs there. RQ would import and run whatever they
name, call back whatever they name, and unpickle. This class resolves a name against the registry,
has no callbacks and no webhooks, and what it refuses is recorded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from rq.job import Job

from events.bodies.site import TaskRefused
from events.errors import FlightlogError
from workers.here import site
from workers.tasks import REGISTRY

_WORK = re.compile(r"[A-Za-z0-9_-]{1,200}")


class Refused(FlightlogError):
    """Something in the queue is no registered task.

    Somebody else writes to the fabric server. Give the site a server of its own.
    """

    code, http, retry = "TASK_REFUSED", 403, "no"


class RegisteredJob(Job):
    """An RQ job that can only be one of ours."""

    @property
    def func(self) -> Callable[[str], None]:
        """The registered task; anything else is refused and recorded."""
        why = self._objection()
        if why:
            self._record(why)
            raise Refused(why, "give the site a fabric server of its own", job=self.id)
        return REGISTRY[str(self.func_name)]

    def _objection(self) -> str | None:
        try:
            name, args, kwargs = self.func_name, self.args, self.kwargs
        except Exception as error:  # noqa: BLE001 - a planted payload fails in any way it likes
            return f"its data cannot be read: {type(error).__name__}"
        if name not in REGISTRY:
            return f"{name!r} is no registered task"
        if self.instance is not None or kwargs:
            return "it brings an instance or keyword arguments"
        if len(args) != 1 or not isinstance(args[0], str) or not _WORK.fullmatch(args[0]):
            return "its argument is no work id"
        return None

    def _record(self, why: str) -> None:
        here = site()
        here.jobs.note(
            here.system_call(f"refused:{self.id[:100]}", role="worker"),
            [TaskRefused(queue=str(self.origin)[:200], job=self.id[:200], why=why[:500])],
        )

    @property
    def success_callback(self) -> None:
        """None, whatever the job says."""
        return

    @property
    def failure_callback(self) -> None:
        """None, whatever the job says."""
        return

    @property
    def stopped_callback(self) -> None:
        """None, whatever the job says."""
        return

    def send_webhooks(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is sent, whatever the job says."""

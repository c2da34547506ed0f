"""The RQ job class that runs registered tasks and nothing else.

Whoever can write to the fabric can plant jobs there. RQ would import and run whatever they
name, call back whatever they name, and unpickle. This class judges a job as it is read: what is no
registered task is recorded, removed, and told to RQ as a job that does not exist. Callbacks and
webhooks are never looked at.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Any

import redis
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job

from engine.foreign import plain
from engine.ring import LANE_TASKS
from events.bodies.site import TaskRefused
from workers.here import queue, site
from workers.tasks import REGISTRY

#: What a task may be given: the id of work of its kind, or a lane.
_WORK = re.compile(r"[A-Za-z0-9_-]{1,200}")
_LANE = re.compile(r"(aux|stream):[A-Za-z0-9_.-]{1,600}")
CUT = 200  # characters of foreign text that are kept


class RegisteredJob(Job):
    """An RQ job that can only be one of ours."""

    def refresh(self) -> None:
        """Read the job from Redis; what is none of ours is refused.

        Raises:
            rq.exceptions.NoSuchJobError: there is no such job, or it was refused.
        """
        try:
            super().refresh()  # type: ignore[no-untyped-call]
        except (NoSuchJobError, redis.ConnectionError, redis.TimeoutError):
            raise
        except Exception as error:  # noqa: BLE001 - a planted job fails in any way it likes
            self._refuse(f"it cannot be read: {type(error).__name__}")
        why = self._objection()
        if why:
            self._refuse(why)

    @property
    def func(self) -> Callable[[str], None]:
        """The registered task."""
        return REGISTRY[str(self.func_name)]

    def _objection(self) -> str | None:
        try:
            name, args, kwargs = self.func_name, self.args, self.kwargs
        except Exception as error:  # noqa: BLE001 - as above
            return f"its data cannot be read: {type(error).__name__}"
        if not isinstance(name, str) or name not in REGISTRY:
            return f"{str(name)[:CUT]!r} is no registered task"
        if self.repeats_left is not None or self.retries_left is not None:
            return "it is to be repeated"
        if self.instance is not None or kwargs:
            return "it brings an instance or keyword arguments"
        if not isinstance(args, list | tuple) or len(args) != 1:
            return "its arguments are not one work id"
        if (name in LANE_TASKS.values()) != (queue() is site().bells.io):
            return "it is for the other queue"
        if name in LANE_TASKS.values():
            return None if isinstance(args[0], str) and _LANE.fullmatch(args[0]) else "its argument is no lane"
        if not isinstance(args[0], str) or not _WORK.fullmatch(args[0]):
            return "its argument is no work id"
        if args[0].partition("_")[0] != name.rpartition(".")[2]:
            return "its argument is the id of another kind of work"
        return None

    def _refuse(self, why: str) -> None:
        here = site()
        here.jobs.note(
            here.system_call(f"refused:{self.id[:CUT]}", role="worker"),
            [TaskRefused(queue=queue().name, job=self.id[:CUT], why=plain(why))],
        )
        self.connection.delete(self.key)
        self.connection.lrem(IntermediateQueue.get_intermediate_queue_key(queue().key), 0, self.id)
        raise NoSuchJobError(f"refused: {why}")

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


class SiteQueue(Queue):
    """A queue whose entries are job ids; RQ's worker would die of bytes that are no text."""

    job_class = RegisteredJob

    @classmethod
    def lmove(cls, connection: redis.Redis, queue_key: str, timeout: int | None) -> Any:
        """The next job id; what is none is recorded and passed over."""
        while True:
            found = super().lmove(connection, queue_key, timeout)
            if found is None or _is_text(found[1]):
                return found
            here = site()
            refused = TaskRefused(queue=queue().name, job=repr(found[1])[:CUT], why="its id is no text")
            here.jobs.note(here.system_call(f"refused:{secrets.token_hex(8)}", role="worker"), [refused])
            connection.lrem(IntermediateQueue.get_intermediate_queue_key(queue_key), 0, found[1])


def _is_text(value: bytes | str) -> bool:
    try:
        return isinstance(value, str) or bool(value.decode("utf-8"))
    except UnicodeDecodeError:
        return False

"""The bell: an RQ job that says which work is open. It holds ids only; the log has the facts.

A bell may be lost or rung twice without harm: the reconciler rings again, and a claim excludes a twin.
"""

from __future__ import annotations

import hashlib
import secrets

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue
from rq.serializers import JSONSerializer

from engine.lifecycle import EXECUTORS
from events.errors import LogUnavailable

#: kind of work -> path of the RQ task. The engine never imports it.
TASKS = {"deploy": "workers.tasks.deploy", "launch": "workers.tasks.launch"}
#: kind of a lane -> path of the RQ task that drains it.
LANE_TASKS = {"aux": "workers.tasks.aux", "stream": "workers.tasks.stream"}
assert set(TASKS) <= set(EXECUTORS)  # noqa: S101 - checked once, at import


def fabric_client(url: str) -> redis.Redis:
    """A bytes client for RQ, which cannot work with text replies."""
    return redis.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 1))


def queue_name(site: str, kind: str = "work") -> str:
    """A site's queue: ``work`` (deploys, launches), ``io`` (messages, streams) or ``launch`` (a launcher's)."""
    return f"{site}-{kind}"


class Bells:
    """Rings for open work.

    Args:
        url: of the fabric.
        site: whose queue.
        timeout: seconds after which RQ ends a task.
        launcher: launches have a queue of their own, which only the launcher serves.
    """

    def __init__(self, url: str, site: str, timeout: int, *, launcher: bool = False) -> None:
        self.client = fabric_client(url)
        self.queue = Queue(queue_name(site), connection=self.client, serializer=JSONSerializer)
        self.io = Queue(queue_name(site, "io"), connection=self.client, serializer=JSONSerializer)
        self.launches = self.queue
        if launcher:
            self.launches = Queue(queue_name(site, "launch"), connection=self.client, serializer=JSONSerializer)
        self.timeout = timeout

    def queues(self) -> dict[str, Queue]:
        """Kind of worker -> its queue."""
        apart = {"launch": self.launches} if self.launches is not self.queue else {}
        return {"work": self.queue, "io": self.io, **apart}

    def ring(self, kind: str, work_id: str) -> None:
        """Tell the workers that this work is open; raises ``LogUnavailable`` where the fabric is away."""
        self._enqueue(self.launches if kind == "launch" else self.queue, TASKS[kind], work_id, work_id)

    def ring_lane(self, lane: str) -> None:
        """Tell the workers that a lane has something to send; raises ``LogUnavailable`` as above."""
        name = hashlib.sha256(lane.encode()).hexdigest()[:16]  # RQ's ids take no dots
        self._enqueue(self.io, LANE_TASKS[lane.partition(":")[0]], lane, f"lane_{name}")

    def _enqueue(self, queue: Queue, task: str, argument: str, name: str) -> None:
        try:
            queue.enqueue_call(
                func=task,
                args=[argument],
                job_id=f"{name}-{secrets.token_hex(4)}",
                timeout=self.timeout,
                result_ttl=0,
                failure_ttl=600,
                description=argument,
            )
        except redis.RedisError as error:
            raise LogUnavailable(f"the fabric server does not answer ({error})", "flightlog up") from error

    def others_wait(self) -> bool:
        """Whether another lane's bell waits to be heard."""
        try:
            return bool(self.client.llen(self.io.key))
        except redis.RedisError as error:
            raise LogUnavailable(f"the fabric server does not answer ({error})", "flightlog up") from error

    def waiting(self) -> int:
        """How many bells nobody has heard yet."""
        try:
            return sum(int(self.client.llen(key)) for key in {self.queue.key, self.launches.key})
        except redis.RedisError as error:
            raise LogUnavailable(f"the fabric server does not answer ({error})", "flightlog up") from error

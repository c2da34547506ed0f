"""The bell: an RQ job that says which work is open. It holds ids only; the log has the facts.

A bell may be lost or rung twice without harm: the reconciler rings again, and a claim excludes a twin.
"""

from __future__ import annotations

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
assert set(TASKS) <= set(EXECUTORS)  # noqa: S101 - checked once, at import


def fabric_client(url: str) -> redis.Redis:
    """A bytes client for RQ, which cannot work with text replies."""
    return redis.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 1))


def queue_name(site: str) -> str:
    """The queue of deploys and launches."""
    return f"{site}-work"


class Bells:
    """Rings for open work.

    Args:
        url: of the fabric.
        site: whose queue.
        timeout: seconds after which RQ ends a task.
    """

    def __init__(self, url: str, site: str, timeout: int) -> None:
        self.client = fabric_client(url)
        self.queue = Queue(queue_name(site), connection=self.client, serializer=JSONSerializer)
        self.timeout = timeout

    def ring(self, kind: str, work_id: str) -> None:
        """Tell the workers that this work is open; raises ``LogUnavailable`` where the fabric is away."""
        try:
            self.queue.enqueue_call(
                func=TASKS[kind],
                args=[work_id],
                job_id=f"{work_id}-{secrets.token_hex(4)}",
                timeout=self.timeout,
                result_ttl=0,
                failure_ttl=600,
                description=work_id,
            )
        except redis.RedisError as error:
            raise LogUnavailable(f"the fabric server does not answer ({error})", "flightlog up") from error

    def waiting(self) -> int:
        """How many bells nobody has heard yet."""
        try:
            return int(self.client.llen(self.queue.key))
        except redis.RedisError as error:
            raise LogUnavailable(f"the fabric server does not answer ({error})", "flightlog up") from error

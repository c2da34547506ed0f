"""One RQ worker: one queue, JSON only, registered tasks only."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import Any, Literal

import redis
from rq import SimpleWorker, Worker
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker

from engine.ring import queue_name
from engine.site import Site
from events.errors import FlightlogError
from workers.here import set_site
from workers.job_class import RegisteredJob, SiteQueue

PARENT_EVERY = 0.5  # seconds


class _Noticed(BaseWorker):
    """An RQ worker with a heartbeat short enough to notice a dead one."""

    #: Seconds between two tries to reach a fabric that is away, at most.
    max_connection_wait_time = 1.0
    #: Somebody told it to end.
    told_to_end = False

    def request_stop(self, signum: Any, frame: Any) -> None:
        """Remember that it was told, since an idle worker just ends."""
        self.told_to_end = True
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def subscribe(self) -> None:
        """Nothing: RQ would take orders there from whoever can publish, to end for instance."""

    def unsubscribe(self) -> None:
        """Nothing was subscribed to."""

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Say that we are there; after the fabric has lost its memory, who we are too."""
        if pipeline is None and not self.connection.hexists(self.key, "queues"):
            self.connection.delete(self.key)  # a state or a time may have been written there since
            self.register_birth()  # type: ignore[no-untyped-call]
        super().heartbeat(timeout, pipeline)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Seconds until RQ counts this worker as gone."""
        return int(self.job_monitoring_interval) * 3


class SiteWorker(_Noticed, Worker):
    """For deploys and launches: a fork for each task."""

    def work_horse_setup(self) -> None:
        """Nothing beside the fork: the site's connections reset themselves in the child."""


class WarmWorker(_Noticed, SimpleWorker):
    """For messages: no fork, since a lane's turn is shorter than one."""


def run_worker(
    site: Site, kind: Literal["work", "io", "launch"] = "work", *, burst: bool = False, parent: int | None = None
) -> int:
    """Work on one of the site's queues until told to end, or ``parent`` is our parent no more; the exit code.

    A fabric that is away is waited for: work waits on the record meanwhile.
    """
    set_site(site, kind)
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()
    import workers.tasks  # noqa: F401 - loaded once, before any fork

    with contextlib.suppress(FlightlogError):
        site.jobs.store.ensure_safe()  # asked once here rather than in each fork; appends ask again where it failed

    client = redis.Redis.from_url(site.servers.fabric_url, protocol=2)
    queue = SiteQueue(
        queue_name(site.name, kind), connection=client, serializer=JSONSerializer, job_class=RegisteredJob
    )
    options: dict[str, Any] = {
        "connection": client,
        "serializer": JSONSerializer,
        "job_class": RegisteredJob,
        "queue_class": SiteQueue,
        "worker_ttl": site.settings.worker_ttl,
        "maintenance_interval": 30,
        "job_monitoring_interval": 5,
        "log_job_description": False,
    }
    while True:
        worker = None
        try:
            worker = (WarmWorker if kind == "io" else SiteWorker)([queue], **options)
            worker.work(burst=burst, logging_level="WARNING")
        except redis.RedisError:
            if worker is None or not worker.told_to_end:
                time.sleep(0.2)
                continue
        if burst or worker.told_to_end:
            return 0
        time.sleep(0.2)  # it gave up over something it found in Redis; the next one is wiser by its loss


def _end_with(parent: int) -> None:
    """End in order once our parent is gone: a pool that was killed has a successor with workers of its own."""
    while os.getppid() == parent:
        time.sleep(PARENT_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)

"""The registered tasks: all that RQ may ever run here. Each takes the id of open work, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable

from engine.site import Site
from events.errors import Fenced, LogUnavailable
from workers import aux as sending
from workers import deploy as deploying
from workers import launch as launching
from workers import stream as streaming
from workers.here import site

log = logging.getLogger("flightlog.worker")


def deploy(work_id: str) -> None:
    """Put a job's app in place."""
    _carry_out(deploying.deploy, work_id)


def launch(work_id: str) -> None:
    """Launch a job's app."""
    _carry_out(launching.launch, work_id)


def aux(lane: str) -> None:
    """Send what waits in a lane."""
    _carry_out(sending.drain, lane)


def stream(lane: str) -> None:
    """Deliver what waits in a lane of streams."""
    _carry_out(streaming.drain, lane)


def _carry_out(task: Callable[[Site, str], None], work_id: str) -> None:
    try:
        task(site(), work_id)
    except Fenced as error:
        log.info("left alone: %s", error)
    except LogUnavailable as error:
        # The claim lapses, the reconciler rings again, and whoever comes next finds what is on disk.
        log.warning("%s could not be recorded: %s", work_id, error)


#: path -> task
REGISTRY: dict[str, Callable[[str], None]] = {
    "workers.tasks.deploy": deploy,
    "workers.tasks.launch": launch,
    "workers.tasks.aux": aux,
    "workers.tasks.stream": stream,
}

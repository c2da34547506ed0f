"""The site that this process works for; set once when the process starts, inherited over a fork."""

from __future__ import annotations

from rq import Queue

from engine.site import Site

_site: Site | None = None
_kind = "work"


def set_site(site: Site, kind: str = "work") -> None:
    """From now on, tasks work for this site, and come from its queue of that kind."""
    global _site, _kind
    _site, _kind = site, kind


def queue() -> Queue:
    """The queue that this process works for."""
    return site().bells.queues()[_kind]


def site() -> Site:
    """The site; raises RuntimeError in a process that is no worker."""
    if _site is None:
        raise RuntimeError("tasks run in a worker that `python -P -m workers` started")
    return _site

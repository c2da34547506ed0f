"""The site that this process works for; set once when the process starts, inherited over a fork."""

from __future__ import annotations

from rq import Queue

from engine.site import Site

_site: Site | None = None
_io = False


def set_site(site: Site, *, io: bool = False) -> None:
    """From now on, tasks work for this site, and come from its queue of messages or of work."""
    global _site, _io
    _site, _io = site, io


def queue() -> Queue:
    """The queue that this process works for."""
    return site().bells.io if _io else site().bells.queue


def site() -> Site:
    """The site; raises RuntimeError in a process that is no worker."""
    if _site is None:
        raise RuntimeError("tasks run in a worker that `python -P -m workers` started")
    return _site

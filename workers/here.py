"""The site that this process works for; set once when the process starts, inherited over a fork."""

from __future__ import annotations

from engine.site import Site

_site: Site | None = None


def set_site(site: Site) -> None:
    """From now on, tasks work for this site."""
    global _site
    _site = site


def site() -> Site:
    """The site; raises RuntimeError in a process that is no worker."""
    if _site is None:
        raise RuntimeError("tasks run in a worker that `python -P -m workers` started")
    return _site

"""Lists of jobs: by state, time, app, actor and name, in pages that hold while jobs change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from engine import present
from engine.errors import ArgumentInvalid
from engine.jobs import Loaded
from engine.readmodels.names import Names
from engine.status.desk import Desk
from engine.status.paging import by_score, sizes
from engine.status.params import encoded
from events.store import translated

SORTS = ("-since", "since", "-created", "created", "id", "-id")
LOOKED = 5_000  # jobs that are looked at for one page; a page may be short, and `next` goes on


@dataclass(frozen=True)
class JobFilter:
    """Which jobs, in which order. ``since`` and ``until`` bound the last change of state, in ms."""

    states: Sequence[str] = ()
    app: str | None = None
    actor: str | None = None
    prefix: str | None = None
    since: int | None = None
    until: int | None = None
    sort: str = ""
    limit: int = 50
    after: list[Any] | None = field(default=None)

    @property
    def order(self) -> str:
        """The sort that was asked for, or the one that the filter is quickest with."""
        if self.sort:
            return self.sort
        if self.prefix:
            return "id"
        return "-created" if self.app or self.actor else "-since"


def jobs_page(desk: Desk, asked: JobFilter) -> dict[str, Any]:
    """A page of jobs.

    Raises:
        ArgumentInvalid: the cursor is of another order.
    """
    order = asked.order
    if asked.after is not None and asked.after[0] != order:
        raise ArgumentInvalid(f"cursor is of sort {asked.after[0]}", f"give sort={asked.after[0]}", field="cursor")
    items: list[dict[str, Any]] = []
    looked, last, more = 0, asked.after, False
    for chunk in _chunks(desk, asked, order):
        for (job, loaded), place in _loaded(desk, chunk):
            if len(items) == asked.limit:
                more = True
                break
            last = [order, *place]
            if loaded is not None and _fits(asked, job, loaded):
                items.append(present.job(job, loaded, desk.site.workspace))
        looked += len(chunk)
        if more or looked >= LOOKED:
            more = True
            break
    return {"items": items, "next": encoded(last) if more and last else None, "sort": order}


def _loaded(desk: Desk, chunk: list[tuple[str, float]]) -> Iterator[tuple[tuple[str, Loaded | None], list[Any]]]:
    found = dict(desk.site.jobs.load_many([job for job, _ in chunk]))
    for job, score in chunk:
        yield (job, found.get(job)), [score, job]


def _fits(asked: JobFilter, job: str, loaded: Loaded) -> bool:
    state = loaded.state
    since = int(state.get("since") or 0)
    return (
        (not asked.states or state.state.value in asked.states)
        and (asked.app is None or asked.app in (state.get("app"), state.get("next_app")))
        and (asked.prefix is None or job.startswith(asked.prefix))
        and (asked.since is None or since >= asked.since)
        and (asked.until is None or since <= asked.until)
    )


def _chunks(desk: Desk, asked: JobFilter, order: str) -> Iterator[list[tuple[str, float]]]:
    """Jobs that may fit, in order, from the smallest set that has them all; (job, score)."""
    by, down = order.lstrip("-"), order.startswith("-")
    names, keys = desk.names, desk.store.keys
    if by == "id":
        yield from _by_id(desk, asked, down)
        return
    if by == "since":
        low, high = asked.since, asked.until
        key = keys.state(asked.states[0]) if len(asked.states) == 1 else keys.by_time
    else:
        low, high = None, None
        key = names.actor(asked.actor) if asked.actor else names.app(asked.app) if asked.app else names.created
    member = _members(desk, names, asked) if by == "since" else None
    after = None if asked.after is None else (float(asked.after[1]), str(asked.after[2]))
    for chunk in by_score(desk.store, key, limit=asked.limit, down=down, after=after, low=low, high=high):
        yield [(job, score) for job, score in chunk if member is None or job in member]


def _members(desk: Desk, names: Names, asked: JobFilter) -> set[str] | None:
    """Jobs of the actor or the app that are asked for, where the order does not come from their own set."""
    if not (asked.actor or asked.app):
        return None
    key = names.actor(asked.actor) if asked.actor else names.app(asked.app or "")
    return set(cast("list[str]", desk.store.command("ZRANGE", key, 0, -1)))


def _by_id(desk: Desk, asked: JobFilter, down: bool) -> Iterator[list[tuple[str, float]]]:
    prefix = asked.prefix or ""
    low, high = (f"[{prefix}" if prefix else "-"), (f"[{prefix}\x7f" if prefix else "+")
    if asked.after is not None:
        low, high = (low, f"({asked.after[2]}") if down else (f"({asked.after[2]}", high)
    offset = 0
    for size in sizes(asked.limit):
        with translated():
            if down:
                got = desk.store.client.zrevrangebylex(desk.names.ids, high, low, offset, size)
            else:
                got = desk.store.client.zrangebylex(desk.names.ids, low, high, offset, size)
        chunk = cast("list[str]", got)
        offset += len(chunk)
        if chunk:
            actor = _members(desk, desk.names, asked)
            yield [(job, 0.0) for job in chunk if actor is None or job in actor]
        if len(chunk) < size:
            return

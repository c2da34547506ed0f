"""Rows of read models in pages: messages, transfers, egress; and the sums of what left."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from engine.status.desk import Desk
from engine.status.paging import by_score
from engine.status.params import encoded
from engine.status.reads import known_job
from engine.transfers import timed
from events.store import translated

SCANNED = 20_000  # rows that are looked at for one page
MOST_ROWS = 500  # of a page


def rows_page(
    desk: Desk,
    what: str,
    *,
    job: str | None,
    after: list[Any] | None,
    limit: int,
    fits: Callable[[dict[str, Any]], bool] = lambda row: True,
) -> dict[str, Any]:
    """A page of messages, transfers or egress, the newest first."""
    if job is not None:
        known_job(desk, job)
    place = None if after is None else (float(after[0]), str(after[1]))
    items: list[dict[str, Any]] = []
    last, looked, more = None, 0, False
    for chunk in by_score(desk.store, desk.names.order(what, job or ""), limit=limit, down=True, after=place):
        with translated():
            values = desk.store.client.hmget(desk.names.rows(what), [key for key, _ in chunk])
        for (key, score), value in zip(chunk, cast("list[str | None]", values), strict=True):
            if len(items) == limit:
                more = True
                break
            last = [score, key]
            row = desk.told(value) if value is not None else None
            if row is not None and fits(row):
                items.append(row)
        looked += len(chunk)
        if more or looked >= SCANNED:
            more = True
            break
    if what == "transfers":
        now = desk.store.now_ms()
        items = [timed(row, now) for row in items]
    return {"items": items, "next": encoded(last) if more and last else None, "as_of": desk.as_of()}


def egress_totals(desk: Desk, *, job: str | None = None, since: str | None = None) -> dict[str, Any]:
    """Bytes and messages that left, by day, target, topic and job; and which apps ran with the network open."""
    with translated():
        sizes, counts, networks = (
            cast("dict[str, str]", desk.store.client.hgetall(key))
            for key in (desk.names.days_bytes, desk.names.days_count, desk.names.networks)
        )
    totals = []
    for field, size in sizes.items():
        day, target, topic, of = json.loads(field)
        if (job is None or of == job) and (since is None or day >= since):
            row = {"day": day, "target": target, "topic": topic, "job": of or None}
            totals.append({**row, "bytes": int(size), "messages": int(counts.get(field, 0))})
    totals.sort(key=lambda row: (row["day"], row["bytes"]), reverse=True)
    runs = []
    for field, count in networks.items():
        app, network = json.loads(field)
        runs.append({"app": app, "network": network, "runs": int(count)})
    runs.sort(key=lambda row: (row["network"] != "open", -row["runs"]))
    return {"totals": totals, "networks": runs}

"""Members of a sorted set, page by page: by score and, where that is the same, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from events.store import Store, translated

MOST = 1000  # members that are fetched at once, at most

Place = tuple[float, str]


def sizes(limit: int) -> Iterator[int]:
    """How much to look at: what a page takes, then more and more, for a filter that little passes."""
    size = min(limit + 1, MOST)
    while True:
        yield size
        size = min(size * 2, MOST)


def by_score(
    store: Store,
    key: str,
    *,
    limit: int,
    down: bool,
    after: Place | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Iterator[list[tuple[str, float]]]:
    """Chunks of (member, score), in order.

    Args:
        store: the site's record.
        key: of the set.
        limit: of the page, for how much to fetch at first.
        down: the highest first.
        after: the place of the last that was shown.
        low: the least score.
        high: the highest score.
    """
    least, most = -float("inf") if low is None else low, float("inf") if high is None else high
    if after is not None:
        least, most = (least, min(after[0], most)) if down else (max(after[0], least), most)
    offset = 0
    for size in sizes(limit):
        with translated():
            if down:
                got = store.client.zrevrangebyscore(key, most, least, offset, size, withscores=True)
            else:
                got = store.client.zrangebyscore(key, least, most, offset, size, withscores=True)
        chunk = cast("list[tuple[str, float]]", got)
        offset += len(chunk)
        fresh = [
            (member, score)
            for member, score in chunk
            if after is None or ((score, member) < after if down else (score, member) > after)
        ]
        if fresh:
            yield fresh
        if len(chunk) < size:
            return

"""JSON values in hashes: read through a small cache, written together with the batch that changed them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from typing import Any, cast

import redis
from pydantic_core import from_json, to_json

from events.store import Store, translated

CACHED = 20_000  # values; the rows of what is under way are few

Value = dict[str, Any]


class Docs:
    """All hashes of JSON values of a site's read models.

    Args:
        store: the site's record.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cache: OrderedDict[tuple[str, str], Value | None] = OrderedDict()
        self._changed: dict[tuple[str, str], Value | None] = {}

    def get(self, key: str, field: str) -> Value | None:
        """A value, or None; it is not to be changed in place."""
        at = (key, field)
        if at in self._cache:
            self._cache.move_to_end(at)
            return self._cache[at]
        found = self._store.command("HGET", key, field)
        return self._remember(at, None if found is None else from_json(found))

    def put(self, key: str, field: str, value: Value | None) -> None:
        """Set a value, or take it away."""
        self._changed[key, field] = self._remember((key, field), value)

    def write(self, pipe: redis.client.Pipeline) -> None:
        """Put what was changed into a transaction."""
        for (key, field), value in self._changed.items():
            if value is None:
                pipe.hdel(key, field)
            else:
                pipe.hset(key, field, to_json(value).decode())

    def written(self) -> None:
        """The transaction went through."""
        self._changed.clear()
        while len(self._cache) > CACHED:
            self._cache.popitem(last=False)

    def forget(self) -> None:
        """The transaction did not go through: nothing of it is to be believed."""
        self._changed.clear()
        self._cache.clear()

    def _remember(self, at: tuple[str, str], value: Value | None) -> Value | None:
        self._cache[at] = value
        self._cache.move_to_end(at)
        return value


class Table(MutableMapping[str, Value]):
    """One hash of values, as a mapping.

    Args:
        docs: of the site.
        key: of the hash.
    """

    def __init__(self, docs: Docs, key: str) -> None:
        self.docs = docs
        self.key = key

    def __getitem__(self, field: str) -> Value:
        value = self.docs.get(self.key, field)
        if value is None:
            raise KeyError(field)
        return value

    def __setitem__(self, field: str, value: Value) -> None:
        self.docs.put(self.key, field, value)

    def __delitem__(self, field: str) -> None:
        self.docs.put(self.key, field, None)

    def __iter__(self) -> Iterator[str]:
        raise TypeError("the rows of a read model are paged through, not listed")

    def __len__(self) -> int:
        raise TypeError("the rows of a read model are paged through, not counted")


class Rows(Table):
    """Rows in the order in which they came, the newest ``cap`` of them; by job, too.

    Args:
        docs: of the site.
        key: of the hash that holds them.
        order: sorted set of their keys.
        cap: how many are kept.
    """

    def __init__(self, docs: Docs, key: str, order: str, cap: int) -> None:
        super().__init__(docs, key)
        self.order = order
        self.cap = cap
        self._new: dict[str, tuple[int, str]] = {}

    def __setitem__(self, field: str, value: Value) -> None:
        if self.docs.get(self.key, field) is None:
            self._new[field] = (int(value["position"].partition("-")[2]), value.get("job") or "")
        super().__setitem__(field, value)

    def write(self, pipe: redis.client.Pipeline, store: Store) -> None:
        """Put new rows into their place, and drop the oldest."""
        for field, (seq, job) in self._new.items():
            pipe.zadd(self.order, {field: seq})
            if job:
                pipe.zadd(f"{self.order}:{job}", {field: seq})
        if not self._new:
            return
        with translated():
            over = int(store.client.zcard(self.order)) + len(self._new) - self.cap
            gone = cast("list[str]", store.client.zrange(self.order, 0, over - 1)) if over > 0 else []
        for field in gone:
            row = self.docs.get(self.key, field)
            pipe.zrem(self.order, field)
            if row is not None and row.get("job"):
                pipe.zrem(f"{self.order}:{row['job']}", field)
            self.docs.put(self.key, field, None)

    def written(self) -> None:
        """The transaction is over, one way or the other."""
        self._new.clear()

"""Anything that can be listed by name: GPUs, ports, licences (reference 9.3)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from engine.errors import ArgumentTypeInvalid
from engine.resources.reserving import ReservingResourceManager, checked_count
from engine.resources.spec import Requirement, ResourceConsumerSpec, Resources


class ListResourceManager(ReservingResourceManager):
    """Gives each job items of its own.

    A job asks with ``{key: how many}`` and gets ``{key: [items]}``, the first that are free.
    A key that the site does not have is not enough of it.

    Args:
        resources: key -> the items that the site has of it; each an int or a str.
        expiration_period: seconds that a reservation lasts.
        clock: seconds that never go backwards.

    Raises:
        ArgumentTypeInvalid: the resources are not a dict of lists of ints and strings.
    """

    def __init__(
        self,
        resources: Mapping[str, Sequence[int | str]],
        expiration_period: float = 30,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(expiration_period, clock=clock)
        if not isinstance(resources, Mapping):
            raise ArgumentTypeInvalid(f"resources must be a dict, not {type(resources).__name__}")
        self._items = {key: _checked_items(key, items) for key, items in resources.items()}

    def choose(self, requirement: Requirement, held: Collection[Resources]) -> Resources | None:
        """The first items that are free, of every key that is asked for."""
        left = self.left(held)
        chosen: Resources = {}
        for key, wanted in requirement.items():
            number, items = checked_count(key, wanted), left.get(key, [])
            if len(items) < number:
                return None
            if number:
                chosen[key] = items[:number]
        return chosen

    def left(self, held: Collection[Resources]) -> Resources:
        """The items that are free, by key, in the site's order."""
        return {
            key: _without(items, [item for each in held for item in _checked_items(key, each.get(key, []))])
            for key, items in self._items.items()
        }


class ListResourceConsumer(ResourceConsumerSpec):
    """Shows an app the GPUs among its items and no others.

    Args:
        gpu_key: under which key the GPUs are.
    """

    def __init__(self, gpu_key: str = "gpu") -> None:
        self._gpu_key = gpu_key

    def consume(self, resources: Resources) -> dict[str, str]:
        """``{"CUDA_VISIBLE_DEVICES": "0,1"}``, or ``{}`` for a job without GPUs."""
        gpus = resources.get(self._gpu_key)
        return {"CUDA_VISIBLE_DEVICES": ",".join(str(gpu) for gpu in gpus)} if gpus else {}


def _checked_items(key: str, items: object) -> list[int | str]:
    if not isinstance(items, list | tuple) or not all(isinstance(item, int | str) for item in items):
        raise ArgumentTypeInvalid(f"resources[{key!r}] must be a list of ints and strings")
    return list(items)


def _without(items: list[int | str], taken: list[int | str]) -> list[int | str]:
    """``items`` in order, less as many of each as are taken (a list may name one twice)."""
    missing = Counter(taken)
    left = []
    for item in items:
        if missing[item] > 0:
            missing[item] -= 1
        else:
            left.append(item)
    return left

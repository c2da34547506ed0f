"""The server's side: federated averaging (McMahan et al., 2017). It knows no model, only named arrays."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import numpy as np

from engine.constants import ReturnCode
from engine.shareable import Shareable

Weights = dict[str, Any]


class Job(Protocol):
    """What a controller gets to work with."""

    sites: list[str]

    def broadcast_task(
        self, name: str, data: Shareable | dict[str, Shareable], timeout: float, min_replies: int | None = None
    ) -> dict[str, Shareable]:
        """Give a task to all sites, or to each its own data, and wait for the replies."""


class Round(NamedTuple):
    """What came of a round.

    Attributes:
        number: from 1.
        loss: of the sites' new weights on rows of their own, averaged by samples; ``accuracy`` likewise.
        answered: the sites whose weights are in the average.
        failed: the other sites, and the return code of each.
        seconds: how long the round took.
    """

    number: int
    loss: float
    accuracy: float
    answered: list[str]
    failed: dict[str, str]
    seconds: float


class Result(NamedTuple):
    """The final weights, the rounds, and how well the weights do at each site that could be asked."""

    weights: Weights
    history: list[Round]
    accuracy: dict[str, float]


class TooFewReplies(RuntimeError):
    """A round had too few usable replies to go on."""


class FedAvg:
    """Averages what the sites learn, weighted by their samples, round after round.

    Args:
        rounds: how many.
        on_round: called after each round with its ``Round`` and the new weights.
        min_replies: how many sites must answer a round. By default half of them: with fewer, the model could become
            that of a single site while all others are away.
        timeout: seconds that a round waits for its sites.
        weights: what to begin with; by default the sites begin with their model's own start.
    """

    def __init__(
        self,
        rounds: int,
        on_round: Callable[[Round, Weights], Any] | None = None,
        *,
        min_replies: int | None = None,
        timeout: float = 60.0,
        weights: Weights | None = None,
    ) -> None:
        if rounds < 1:
            raise ValueError(f"rounds is {rounds}, at least 1 is needed")
        self._rounds, self._on_round = rounds, on_round
        self._min_replies, self._timeout = min_replies, timeout
        self._weights: Weights = dict(weights or {})

    def run(self, job: Job) -> Result:
        """Train.

        Raises:
            TooFewReplies: in a round; says how each site failed.
        """
        sites = list(job.sites)  # a site keeps its number, whoever else comes or goes
        least = max(1, (len(sites) + 1) // 2 if self._min_replies is None else self._min_replies)
        weights, history = self._weights, []
        for number in range(1, self._rounds + 1):
            began = time.monotonic()
            updates, failed = _sorted_out(self._ask(job, sites, "train", number, weights), sites, weights)
            if len(updates) < least:
                told = ", ".join(f"{site}: {code}" for site, code in failed.items()) or "there are none"
                raise TooFewReplies(f"round {number}: {len(updates)} sites answered, {least} must; {told}")
            weights, loss, accuracy = _average(list(updates.values()))
            row = Round(number, loss, accuracy, list(updates), failed, time.monotonic() - began)
            history.append(row)
            if self._on_round is not None:
                self._on_round(row, weights)
        replies = self._ask(job, sites, "validate", self._rounds, weights)
        return Result(weights, history, _accuracies(replies, sites))

    def _ask(self, job: Job, sites: list[str], task: str, number: int, weights: Weights) -> dict[str, Shareable]:
        data = {
            site: Shareable({"round": number, "weights": weights, "site_index": index, "sites": len(sites)})
            for index, site in enumerate(sites)
        }
        return job.broadcast_task(task, data, self._timeout)


class _Update(NamedTuple):
    weights: Weights
    samples: int
    loss: float
    accuracy: float


def _average(updates: list[_Update]) -> tuple[Weights, float, float]:
    """Weights, loss and accuracy; each site counts as often as it has samples."""
    total = sum(each.samples for each in updates)
    parts = [each.samples / total for each in updates]
    weights = {
        name: sum(part * each.weights[name] for part, each in zip(parts, updates, strict=True))
        for name in updates[0].weights
    }
    loss = sum(part * each.loss for part, each in zip(parts, updates, strict=True))
    accuracy = sum(part * each.accuracy for part, each in zip(parts, updates, strict=True))
    return weights, loss, accuracy


def _sorted_out(
    replies: Mapping[str, Shareable], sites: list[str], weights: Weights
) -> tuple[dict[str, _Update], dict[str, str]]:
    """What can be averaged, and the return codes of the sites that sent nothing of use.

    In the order of the sites, not in that of their arrival: sums of floats depend on it.
    """
    updates: dict[str, _Update] = {}
    failed: dict[str, str] = {}
    shapes = _shapes(weights)
    for site in sites:
        code = _code(replies.get(site))
        if code == ReturnCode.OK:
            try:
                updates[site] = _update(replies[site], shapes)
                shapes = _shapes(updates[site].weights)
                continue
            except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
                code = ReturnCode.EXECUTION_RESULT_ERROR
        failed[site] = str(code)
    return updates, failed


def _update(reply: Shareable, shapes: dict[str, tuple[int, ...]]) -> _Update:
    """A reply's content; raises if it is not fit to be averaged, since it would spoil everybody's weights."""
    weights = {name: np.asarray(array, dtype=float) for name, array in reply["weights"].items()}
    update = _Update(weights, int(reply["samples"]), float(reply["loss"]), float(reply["accuracy"]))
    numbers: list[Any] = [*weights.values(), update.loss, update.accuracy]
    finite = all(np.isfinite(each).all() for each in numbers)
    if update.samples < 1 or not finite or not weights or (shapes and _shapes(weights) != shapes):
        raise ValueError("not fit to be averaged")
    return update


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(array) for name, array in weights.items()}


def _code(reply: Shareable | None) -> str:
    return ReturnCode.TIMEOUT if reply is None else reply.get_return_code()


def _accuracies(replies: Mapping[str, Shareable], sites: list[str]) -> dict[str, float]:
    found = {}
    for site in sites:
        if _code(replies.get(site)) == ReturnCode.OK:
            with suppress(KeyError, TypeError, ValueError):  # the training is done, a bad answer costs only itself
                found[site] = float(replies[site]["accuracy"])
    return found

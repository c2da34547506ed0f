"""Logistic regression in plain numpy. Nothing is drawn by chance: the same rows give the same weights.

The weights are a dict of arrays, which is what goes over the wire and what the server averages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]

L2 = 1e-3


def start(features: int) -> Weights:
    """The weights that every site begins with."""
    return {"coef": np.zeros(features), "intercept": np.zeros(1)}


def checked(weights: Any, features: int) -> Weights:
    """Weights that came from elsewhere, if they fit.

    Raises:
        ValueError: names, shapes or values are not those of this model.
    """
    model = start(features)
    if not isinstance(weights, Mapping) or weights.keys() != model.keys():
        raise ValueError(f"weights must be a dict of {', '.join(model)}")
    arrays = {name: np.asarray(weights[name], dtype=float) for name in model}
    for name, array in arrays.items():
        if array.shape != model[name].shape:
            raise ValueError(f"{name} has the shape {array.shape}, not {model[name].shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has values that are no finite numbers")
    return arrays


def step(weights: Weights, x: Array, y: Array, lr: float) -> Weights:
    """The weights after one step of gradient descent over all rows."""
    error = (1 + np.tanh(_logit(weights, x) / 2)) / 2 - y  # the logistic function, without its overflow
    return {
        "coef": weights["coef"] - lr * (x.T @ error / len(y) + L2 * weights["coef"]),
        "intercept": weights["intercept"] - lr * error.mean(),
    }


def loss(weights: Weights, x: Array, y: Array) -> float:
    """The mean log loss."""
    logit = _logit(weights, x)
    return float(np.mean(np.logaddexp(0, logit) - y * logit))


def accuracy(weights: Weights, x: Array, y: Array) -> float:
    """The part of the rows that is told right."""
    return float(np.mean((_logit(weights, x) > 0) == (y == 1)))


def _logit(weights: Weights, x: Array) -> Array:
    return np.asarray(x @ weights["coef"] + weights["intercept"])

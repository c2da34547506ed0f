"""A site's own share of the Wisconsin breast-cancer data (569 rows, 30 features), which ships inside scikit-learn.

In a real federation each hospital has its own rows. Here they are dealt out: the same rows to the same site each
time, in unequal shares of unequal kinds, since that is what makes federated learning hard and worth while.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

from engine.component import FLComponent

Array = NDArray[np.float64]

SEED = 20240
LEAST = 20  # rows of the smallest site
MOST_SITES = 10

# Every site must scale its rows in the same way, or one set of weights would mean something else at each of them.
# With statistics from the server, each site would first have to send its own, one more thing that leaves it. So it
# is the range of each feature as the data's description has it (`load_breast_cancer().DESCR`): known to all
# beforehand, and telling of no one site. It is that of all rows, the held-out ones too; all that are compared have
# it alike. In the order of the features: ten means, ten standard errors, ten worst values.
LOW = np.array(
    [
        [6.981, 9.71, 43.79, 143.5, 0.053, 0.019, 0.0, 0.0, 0.106, 0.05],
        [0.112, 0.36, 0.757, 6.802, 0.002, 0.002, 0.0, 0.0, 0.008, 0.001],
        [7.93, 12.02, 50.41, 185.2, 0.071, 0.027, 0.0, 0.0, 0.156, 0.055],
    ]
).ravel()
HIGH = np.array(
    [
        [28.11, 39.28, 188.5, 2501.0, 0.163, 0.345, 0.427, 0.201, 0.304, 0.097],
        [2.873, 4.885, 21.98, 542.2, 0.031, 0.135, 0.396, 0.053, 0.079, 0.03],
        [36.04, 49.54, 251.2, 4254.0, 0.223, 1.058, 1.252, 0.291, 0.664, 0.208],
    ]
).ravel()
REACH = 5.0  # a range is laid on -5 to 5, so that gradient descent with its 0.1 gets somewhere in fifty steps


class Share(NamedTuple):
    """Rows to train on and rows to validate with. A label of 1 is malignant, 0 benign."""

    x: Array
    y: Array
    x_valid: Array
    y_valid: Array

    @property
    def samples(self) -> int:
        """How many rows there are to train on."""
        return len(self.y)

    @property
    def malignant(self) -> float:
        """The malignant part of them."""
        return float(self.y.mean())


class SiteData(FLComponent):
    """The component ``data`` of the app: put your own data in its place."""

    def share(self, site_index: int, sites: int) -> Share:
        """The rows of this site, which is number ``site_index`` (from 0) of ``sites``; as ``share`` below."""
        return share(site_index, sites)


@cache
def share(site_index: int, sites: int) -> Share:
    """The rows of one site; together the sites have every row but the held-out ones, each once.

    The first site is the largest and has the most malignant rows in proportion, the last is small and nearly all
    benign.

    Raises:
        ValueError: there can be no such site.
    """
    if not (isinstance(sites, int) and 1 <= sites <= MOST_SITES):
        raise ValueError(f"the data is enough for 1 to {MOST_SITES} sites, not {sites!r}")
    if not (isinstance(site_index, int) and 0 <= site_index < sites):
        raise ValueError(f"site_index is {site_index!r}, with {sites} sites it is 0 to {sites - 1}")
    x, y = _scaled()
    benign, malignant = (rows[len(rows) // 4 :] for rows in _by_label())
    sizes, ills = _counts(sites, len(benign) + len(malignant), len(malignant))
    train, valid = [], []
    for rows, counts in ((benign, sizes - ills), (malignant, ills)):
        own = np.split(rows, np.cumsum(counts)[:-1])[site_index]
        held = np.arange(len(own)) % 5 == 2  # a fifth of either label
        train.append(own[~held])
        valid.append(own[held])
    here, there = np.concatenate(train), np.concatenate(valid)
    return Share(x[here], y[here], x[there], y[there])


@cache
def held_out() -> tuple[Array, Array]:
    """A quarter of all rows, which no site has: to compare models with."""
    x, y = _scaled()
    rows = np.concatenate([rows[: len(rows) // 4] for rows in _by_label()])
    return x[rows], y[rows]


def _counts(sites: int, rows: int, malignant: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many rows each site has, and how many of them are malignant."""
    pull = np.arange(sites, 0, -1) ** 1.5
    sizes = LEAST + np.floor((rows - LEAST * sites) * pull / pull.sum()).astype(int)
    sizes[0] += rows - sizes.sum()
    odds = sizes * np.linspace(1.0, 0.1, sites)
    ills = np.maximum(1, np.floor(malignant * odds / odds.sum()).astype(int))
    ills[0] += malignant - ills.sum()
    return sizes, ills


@cache
def _scaled() -> tuple[Array, Array]:
    raw = load_breast_cancer()
    part = np.clip((raw.data - LOW) / (HIGH - LOW), 0, 1)  # the description rounds its ranges
    x = (np.sqrt(part) * 2 - 1) * REACH  # the root brings long tails in: most values are far below the highest
    return x, (raw.target == 0).astype(float)  # scikit-learn says 0 for malignant


@cache
def _by_label() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the benign and of the malignant rows, shuffled in the same way each time."""
    _, y = _scaled()
    draw = np.random.default_rng(SEED)
    return draw.permutation(np.flatnonzero(y == 0)), draw.permutation(np.flatnonzero(y == 1))

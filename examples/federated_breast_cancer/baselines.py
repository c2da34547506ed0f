"""What the federation must be compared with: each site alone, and all rows in one place.

Both are trained with the app's own model, data and settings, for as many epochs as the federation has in all, and
are measured on the same rows, which nobody has trained on.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

APP = Path(__file__).resolve().parent / "app"


def _app_module(name: str) -> ModuleType:
    """A module of the app by its file: ``custom/`` is on the path of the app's own process alone."""
    spec = importlib.util.spec_from_file_location(f"federated_breast_cancer_{name}", APP / "custom" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"the app has no {name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


data = _app_module("data")
model = _app_module("model")


class Alone(NamedTuple):
    """A site that trained by itself: its rows to train on, the malignant part of them, and how well it did."""

    site: str
    samples: int
    malignant: float
    accuracy: float


class Baselines(NamedTuple):
    """Each site alone, all rows in one place, and on how many rows these were measured."""

    alone: list[Alone]
    centralised: float
    held_out: int


def baselines(sites: Sequence[str], rounds: int) -> Baselines:
    """Train them.

    Args:
        sites: the names in the job's order, which decides who has which rows.
        rounds: as many as the federation has.
    """
    shares = [data.share(index, len(sites)) for index in range(len(sites))]
    alone = [
        Alone(site, share.samples, share.malignant, accuracy(_trained(share.x, share.y, rounds)))
        for site, share in zip(sites, shares, strict=True)
    ]
    everything = np.concatenate([share.x for share in shares]), np.concatenate([share.y for share in shares])
    return Baselines(alone, accuracy(_trained(*everything, rounds)), len(data.held_out()[1]))


def accuracy(weights: dict[str, Any]) -> float:
    """How well any weights do on the held-out rows."""
    return float(model.accuracy(weights, *data.held_out()))


def _trained(x: Any, y: Any, rounds: int) -> dict[str, Any]:
    config = json.loads((APP / "config" / "config_fed_client.json").read_text("utf-8"))
    args = config["executors"][0]["executor"]["args"]
    weights = model.start(x.shape[1])
    for _ in range(rounds * args["epochs"]):
        weights = model.step(weights, x, y, args["lr"])
    return dict(weights)

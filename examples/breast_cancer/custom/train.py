"""Train a classifier on the Wisconsin breast-cancer data, one printed line per epoch.

The data ships inside scikit-learn, so nothing is downloaded. Logistic regression is fitted
by stochastic gradient descent; the result goes to ``model.npz`` in the run folder.

SIGTERM is left alone on purpose: it ends the process as it ends any other, and no half
trained model is left behind that could be taken for a finished one.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

# Before numpy loads, or it is too late: a BLAS reads these once. The problem is tiny, and a
# site's other jobs want the cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

SEED = 20240
HELD_OUT = 0.25


def score(model: SGDClassifier, x: NDArray[np.float64], y: NDArray[np.int64]) -> tuple[float, float]:
    """The mean log loss and the accuracy of ``model`` on ``x``, ``y``."""
    probability = model.predict_proba(x)
    return float(log_loss(y, probability)), float(np.mean(probability.argmax(axis=1) == y))


def save(path: Path, **arrays: NDArray[np.float64]) -> None:
    """Write ``path`` whole or not at all, however the process ends in between."""
    # Beside the target, because a rename is atomic only within one file system.
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def setting(name: str, default: float, least: float) -> float:
    """The number in the environment variable ``name``; a bad one ends the run with a reason."""
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        sys.exit(f"{name} must be a number, not {text!r}")
    if not least <= value < float("inf"):
        sys.exit(f"{name} must be a finite number of at least {least:g}, not {text!r}")
    return value


def main() -> None:
    """Load, train, report every epoch, save."""
    epochs = int(setting("BREAST_CANCER_EPOCHS", 20, 1))
    pause = setting("BREAST_CANCER_PAUSE", 0.25, 0)
    run_dir = Path(os.environ.get("FLIGHTLOG_RUN_DIR") or ".")
    job = os.environ.get("FLIGHTLOG_JOB_ID", "-")
    site = os.environ.get("FLIGHTLOG_SITE", "-")
    attempt = os.environ.get("FLIGHTLOG_ATTEMPT", "-")

    data = load_breast_cancer()
    x_train, x_held, y_train, y_held = train_test_split(
        data.data, data.target, test_size=HELD_OUT, random_state=SEED, stratify=data.target
    )
    scaler = StandardScaler().fit(x_train)
    x_train, x_held = scaler.transform(x_train), scaler.transform(x_held)
    print(f"breast_cancer job={job} site={site} attempt={attempt}", flush=True)
    print(f"{len(y_train)} rows to train on, {len(y_held)} held out, {x_train.shape[1]} features", flush=True)

    # A small constant step: the default schedule converges within the first epoch, and there
    # would be nothing to watch.
    model = SGDClassifier(loss="log_loss", alpha=1e-3, learning_rate="constant", eta0=5e-4, random_state=SEED)
    rng = np.random.default_rng(SEED)
    accuracy = 0.0
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(y_train))
        model.partial_fit(x_train[order], y_train[order], classes=np.array([0, 1]))
        train_loss, train_accuracy = score(model, x_train, y_train)
        loss, accuracy = score(model, x_held, y_held)
        print(
            f"epoch {epoch:>{len(str(epochs))}}/{epochs}"
            f"  train loss {train_loss:.4f} accuracy {train_accuracy:.4f}"
            f"  held-out loss {loss:.4f} accuracy {accuracy:.4f}",
            flush=True,
        )
        if epoch < epochs:
            time.sleep(pause)

    target = run_dir / "model.npz"
    save(
        target,
        weights=np.concatenate([model.coef_[0], model.intercept_]),
        mean=scaler.mean_,
        scale=scaler.scale_,
    )
    print(f"saved {target}", flush=True)
    print(f"final held-out accuracy {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()

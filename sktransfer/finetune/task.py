"""What is learnt: labels or values of images, which of them are held out, and a linear model on top of embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit, StratifiedShuffleSplit

from sktransfer.ranking.inputs import is_regression, read_groups, read_labels, read_targets

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Task:
    """Rows with what is to be told from them.

    Attributes
    ----------
    y : ndarray of shape (n,)
        Numbers of classes, int64; or values with mean 0 and deviation 1 over the rows learnt from, float32.
    n_classes : int
        0 for a regression.
    learnt, held_out : ndarray of int
        Rows.
    """

    y: Array
    n_classes: int
    learnt: Array
    held_out: Array

    @property
    def metric(self) -> str:
        """What `score` is."""
        return "accuracy" if self.n_classes else "R²"

    def score(self, outputs: Array, rows: Array) -> float:
        """Accuracy, or R², of a linear model's outputs (len(rows), k)."""
        truth = self.y[rows]
        if self.n_classes:
            return float((outputs.argmax(1) == truth).mean())
        spread = ((truth - truth.mean()) ** 2).sum()
        return float(1 - ((outputs[:, 0] - truth) ** 2).sum() / spread) if spread else 0.0


def read_task(y: Any, groups: Any, rows: Array, n_rows: int, fraction: float, random_state: int) -> Task:
    """The labels of images, `rows` being the row of each image; a share of the rows, or of the groups, is held out.

    Raises
    ------
    ValueError
        If labels do not fit the rows, are all the same, or leave nothing to learn from.
    """
    regression = is_regression(y, "auto")
    if regression:
        read_targets(y, n_rows)
        values, n_classes = np.asarray(y, dtype=np.float64), 0
        if values.ndim > 1:
            raise ValueError(f"y must be one label or value an image. Got an array of shape {values.shape} instead.")
    else:
        found = read_labels(y, n_rows)
        values, n_classes = np.asarray(found.codes), len(found.classes)
    values = values[rows]
    members = read_groups(groups, n_rows)[rows] if groups is not None else rows
    learnt, held_out = _split(values, members, n_classes, fraction, random_state)
    if regression:
        mean, deviation = values[learnt].mean(), values[learnt].std() or 1.0
        return Task(((values - mean) / deviation).astype(np.float32), 0, learnt, held_out)
    if len(np.unique(values[learnt])) < n_classes:
        raise ValueError(
            "validation_fraction must leave images of every class to learn from. Got "
            f"{fraction}, which leaves {len(np.unique(values[learnt]))} of {n_classes} classes."
        )
    return Task(values.astype(np.int64), n_classes, learnt, held_out)


def _split(y: Array, members: Array, n_classes: int, fraction: float, random_state: int) -> tuple[Array, Array]:
    """Rows to learn from, and held out: whole groups, all classes where there are enough of them."""
    everything = np.arange(len(y))
    if not fraction:
        return everything, everything[:0]
    options: dict[str, Any] = {"n_splits": 1, "test_size": fraction, "random_state": random_state}
    splitter: Any = ShuffleSplit(**options)
    n_held_out = int(np.ceil(fraction * len(y)))
    if len(np.unique(members)) < len(members):
        splitter = GroupShuffleSplit(**options)
    elif n_classes and np.bincount(y).min() > 1 and n_classes <= min(n_held_out, len(y) - n_held_out):
        splitter = StratifiedShuffleSplit(**options)
    grouped = members if isinstance(splitter, GroupShuffleSplit) else None
    learnt, held_out = next(splitter.split(y[:, None], y, grouped))
    return np.sort(learnt), np.sort(held_out)


@dataclass(frozen=True)
class Head:
    """A linear model on embeddings, shifted to mean 0 and scaled to a root mean square of 1, all features alike."""

    mean: Array
    scale: float
    coefficients: Array  # (k, d)
    intercepts: Array  # (k,)

    def predict(self, X: Array) -> Array:
        """Its outputs: (n, k)."""
        return np.asarray((X - self.mean) * self.scale @ self.coefficients.T + self.intercepts)


def fit_head(X: Array, task: Task, C: float) -> Head:
    """Logistic regression, or ridge, of the rows learnt from: `C` as in LogisticRegression."""
    mean = X[task.learnt].mean(axis=0, dtype=np.float64)
    centred = X[task.learnt] - mean
    scale = 1 / max(float(np.sqrt((centred**2).mean())), 1e-12)
    y = task.y[task.learnt]
    if not task.n_classes:
        model: Any = Ridge(1 / C).fit(centred * scale, y)
        return Head(mean, scale, model.coef_[None], np.atleast_1d(model.intercept_))
    model = LogisticRegression(C=C, max_iter=1000, tol=1e-3).fit(centred * scale, y)
    coefficients, intercepts = model.coef_, model.intercept_
    if task.n_classes == 2:  # which scikit-learn tells apart by one row of weights
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    return Head(mean, scale, coefficients, intercepts)

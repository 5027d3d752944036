"""Self-training on the target rows whose labels are most certain."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors

from sktransfer.adaptation.adapters import Adapter, Array, Learn, find_known, train_on_known


class SelfTraining(Adapter):
    r"""The estimator learns its own most certain labels of target rows, more of them in every round.

    Labels come from the estimator's probabilities and those of the row's neighbours among the target rows,

    .. math:: q_i = (1 - a) \, p_i + \frac{a}{k} \sum_{j \in N_k(i)} p_j

    since a domain's own clusters hold where the source's boundaries do not. In round r of R the share r/R · `fraction`
    of the rows of each predicted class, those of largest q, is added to the labelled rows under that class.

    Parameters
    ----------
    rounds : int, default=5
        R; the estimator is fitted R + 1 times.
    fraction : float in (0, 1], default=0.8
        Share of the target rows that the last fit learns from; the rest are too uncertain.
    n_neighbors : int, default=10
        k, nearest by cosine distance; at most a tenth of the target rows.
    smoothing : float in [0, 1], default=0.5
        a; 0 leaves the neighbours out.

    Attributes
    ----------
    labels_ : ndarray of int, shape (n_target,)
        Numbers of the classes that target rows were given last, known ones included.
    selected_ : ndarray of bool, shape (n_target,)
        Which of them the last fit learned from.

    References
    ----------
    .. [1] Q. Wang and T. P. Breckon, "Unsupervised domain adaptation via structured prediction based selective
       pseudo-labeling", AAAI 2020, arXiv:1911.07982, section 3.4: the growing share of each class.
    .. [2] D. Zhou et al., "Learning with local and global consistency", NeurIPS 2003: labels agree with those of the
       neighbours; here one step of its iteration (eq. 2).
    """

    def __init__(self, rounds: int = 5, fraction: float = 0.8, n_neighbors: int = 10, smoothing: float = 0.5) -> None:
        self.rounds = rounds
        self.fraction = fraction
        self.n_neighbors = n_neighbors
        self.smoothing = smoothing

    def train(self, learn: Learn, X: Array, y: Array, sample_domain: Array, sample_weight: Array | None) -> Any:
        """Fit, label, choose, and fit again."""
        self._check_parameters(y)
        target, known = np.flatnonzero(sample_domain < 0), find_known(y)
        model = train_on_known(learn, X, y, sample_weight)
        self.labels_, self.selected_ = y[target], known[target]
        if known[target].all():
            return model
        neighbours = self._find_neighbours(X[target])
        for share in self.fraction * np.arange(1, self.rounds + 1) / self.rounds:
            certainty = self._smooth(_fix(model.scores(X[target]), y[target]), neighbours)
            labels = np.where(known[target], y[target], certainty.argmax(axis=1))
            selected = known[target] | _choose(labels, certainty.max(axis=1), ~known[target], share)
            taught, rows = y.copy(), known.copy()
            taught[target], rows[target] = labels, selected
            model = learn(X[rows], taught[rows], None if sample_weight is None else sample_weight[rows])
            self.labels_, self.selected_ = labels, selected
        return model

    def _check_parameters(self, y: Array) -> None:
        if not np.issubdtype(y.dtype, np.integer):
            raise ValueError(
                'Self-training ("pseudo") needs classes: values have no certainty to choose rows by. Use '
                '"standardize", "coral" or "subspace" for a regression.'
            )
        for name, least in (("rounds", 1), ("n_neighbors", 1)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}. Got {value!r} instead.")
        if not (isinstance(self.fraction, (int, float, np.number)) and 0 < self.fraction <= 1):
            raise ValueError(f"fraction must be above 0 and up to 1. Got {self.fraction!r} instead.")
        if not (isinstance(self.smoothing, (int, float, np.number)) and 0 <= self.smoothing <= 1):
            raise ValueError(f"smoothing must be in 0..1. Got {self.smoothing!r} instead.")

    def _find_neighbours(self, X: Array) -> Array | None:
        """Numbers of the nearest target rows of every one: (n_target, k), without itself."""
        k = min(self.n_neighbors, max(1, len(X) // 10), len(X) - 1)
        if k < 1 or not self.smoothing:
            return None
        nearest: Array = NearestNeighbors(n_neighbors=k, metric="cosine").fit(X).kneighbors(return_distance=False)
        return nearest

    def _smooth(self, scores: Array, neighbours: Array | None) -> Array:
        if neighbours is None:
            return scores
        smooth: Array = (1 - self.smoothing) * scores + self.smoothing * scores[neighbours].mean(axis=1)
        return smooth


def _fix(scores: Array, y: Array) -> Array:
    """Scores that are certain where the label is known."""
    known = y >= 0
    scores = scores.copy()
    scores[known] = np.eye(scores.shape[1])[y[known]]
    return scores


def _choose(labels: Array, certainty: Array, free: Array, share: float) -> Array:
    """Mask of the most certain `share` of the free rows of every label, at least one."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels[free]):
        rows = np.flatnonzero(free & (labels == label))
        best = rows[np.argsort(-certainty[rows], kind="stable")]
        chosen[best[: max(1, int(np.ceil(share * len(rows))))]] = True
    return chosen

"""What every method of adaptation has: the interface that a user's own implements too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

Array = NDArray[Any]
Learn = Callable[[Array, Array, Array | None], Any]


class Adapter(BaseEstimator):
    """One step between the rows of several domains and the estimator; this one changes nothing.

    A method overrides what it needs: `transform` moves rows, `source_weight` weighs them, `train` decides what the
    estimator is fitted on. Parameters are stored in ``__init__`` under their names, as in any estimator of
    scikit-learn, so that a method can be cloned and searched over. Without labels `y` holds -1 (NaN in regression).
    """

    def fit(self, X: Array, y: Array, sample_domain: Array) -> Adapter:
        """Learn from the rows of all domains.

        Parameters
        ----------
        X : ndarray of shape (n, d), finite floats
            What the step before made of the rows.
        y : ndarray of shape (n,) or (n, n_outputs)
            Numbers of classes, -1 for an unknown one; values in a regression, NaN for an unknown one.
        sample_domain : ndarray of int, shape (n,)
            Source rows have their domain's number, 0 or more; target rows -1.
        """
        return self

    def transform(self, X: Array, sample_domain: Array) -> Array:
        """Return the rows in the coordinates in which domains are alike; at `predict` all are target rows."""
        return X

    def source_weight(self, X: Array, sample_domain: Array) -> Array | None:
        """Return a weight >= 0 for each of the rows fitted on (1 on target rows), or None."""
        return None

    def train(self, learn: Learn, X: Array, y: Array, sample_domain: Array, sample_weight: Array | None) -> Any:
        """Fit the estimator; the last step's is called, on the rows that all steps have transformed.

        Parameters
        ----------
        learn : callable (X, y, sample_weight) -> model
            Fits a copy of the user's estimator. The model has `scores(X)` -> (n, n_classes), rows sum to 1, columns in
            the order of the classes' numbers (not in regression).

        Returns
        -------
        model
            What `learn` returned last.
        """
        return train_on_known(learn, X, y, sample_weight)


def find_known(y: Array) -> Array:
    """Rows that have a label: mask of shape (n,)."""
    if np.issubdtype(y.dtype, np.floating):
        return np.logical_not(np.isnan(y.reshape(len(y), -1)).any(axis=1))
    return y >= 0


def train_on_known(learn: Learn, X: Array, y: Array, sample_weight: Array | None) -> Any:
    """Fit on the rows that have a label."""
    known = find_known(y)
    return learn(X[known], y[known], None if sample_weight is None else sample_weight[known])


def find_domains(sample_domain: Array) -> list[int]:
    """Numbers of the source domains, then -1 for the target."""
    return [*(int(number) for number in np.unique(sample_domain[sample_domain >= 0])), -1]

"""The user's estimator on numbers of classes, with scores for each."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special
from sklearn import config_context
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from sktransfer.adaptation.adapters import Array


@dataclass(frozen=True)
class Model:
    """A fitted estimator, and the classes that numbers stand for."""

    estimator: Any
    classes: Array | None

    def predict(self, X: Array) -> Array:
        """Numbers of classes, or values."""
        labels = np.asarray(self.estimator.predict(X))
        return labels if self.classes is None else np.searchsorted(self.classes, labels)

    def scores(self, X: Array) -> Array:
        """How likely each class is: (n, n_classes), rows sum to 1; an estimator that only predicts is certain."""
        assert self.classes is not None
        scores = self._score_known(X)
        out = np.zeros((len(X), len(self.classes)))
        if scores is None:
            out[np.arange(len(X)), self.predict(X)] = 1
        else:
            out[:, np.searchsorted(self.classes, self.estimator.classes_)] = scores
        return out

    def _score_known(self, X: Array) -> Array | None:
        """Return a column for each of the estimator's own classes, None if it has none."""
        if hasattr(self.estimator, "predict_proba"):
            return np.asarray(self.estimator.predict_proba(X))
        if not hasattr(self.estimator, "decision_function"):
            return None
        margins = np.asarray(self.estimator.decision_function(X))
        if margins.ndim == 1:
            margins = np.column_stack([-margins, margins]) / 2
        pairs = getattr(self.estimator, "decision_function_shape", "ovr") == "ovo" and margins.shape[1] > 2
        return None if pairs else scipy.special.softmax(margins, axis=1)


def fit_model(estimator: Any, classes: Array | None, X: Array, y: Array, sample_weight: Array | None) -> Model:
    """Fit a copy of the estimator on labels (classes[y]) or values y."""
    labels = y if classes is None else classes[y]
    return Model(fit_weighted(clone(estimator), X, labels, sample_weight), classes)


def fit_weighted(estimator: Any, X: Any, y: Any, sample_weight: Any) -> Any:
    """Fit the estimator itself, with or without weights of the rows."""
    if sample_weight is None:
        return estimator.fit(X, y)
    name = find_weight_parameter(estimator)
    with config_context(enable_metadata_routing=False) if "__" in name else nullcontext():  # takes no step's name
        return estimator.fit(X, y, **{name: sample_weight})


def find_weight_parameter(estimator: Any) -> str:
    """Return the name of `fit`'s parameter that weighs the rows, through Pipelines."""
    prefix, last = "", estimator
    while isinstance(last, Pipeline):
        name, last = last.steps[-1]
        prefix += f"{name}__"
    if not has_fit_parameter(last, "sample_weight"):
        raise ValueError(
            f"estimator must take sample_weight for rows to be weighed. Got {last!r} instead; take another "
            "estimator or another method."
        )
    return f"{prefix}sample_weight"

"""The user's estimator on numbers of classes, with scores for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special
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
        out = np.zeros((len(X), len(self.classes)))
        known = np.searchsorted(self.classes, self.estimator.classes_)
        if hasattr(self.estimator, "predict_proba"):
            out[:, known] = self.estimator.predict_proba(X)
        elif hasattr(self.estimator, "decision_function"):
            margins = np.asarray(self.estimator.decision_function(X))
            if margins.ndim == 1:
                margins = np.column_stack([-margins, margins]) / 2
            out[:, known] = scipy.special.softmax(margins, axis=1)
        else:
            out[np.arange(len(X)), self.predict(X)] = 1
        return out


def fit_model(estimator: Any, classes: Array | None, X: Array, y: Array, sample_weight: Array | None) -> Model:
    """Fit a copy of the estimator on labels (classes[y]) or values y."""
    copy = clone(estimator)
    labels = y if classes is None else classes[y]
    parameters = {} if sample_weight is None else {find_weight_parameter(copy): sample_weight}
    return Model(copy.fit(X, labels, **parameters), classes)


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

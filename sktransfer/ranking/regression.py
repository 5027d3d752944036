"""Ridge regression whose penalty the evidence chooses: nothing to tune, one decomposition of XᵀX."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import Ridge

from sktransfer.ranking.blocks import Array, Features
from sktransfer.ranking.evidence import maximise
from sktransfer.ranking.spectra import square_spectrum

SMALLEST = 100  # roundings of X's dtype: a smaller penalty would be lost beside the largest eigenvalue


def scale_targets(targets: Array) -> tuple[Array, Array]:
    """Return columns with a mean square of 1 (or of zeros), and the logarithms of what they were divided by."""
    largest = np.abs(targets).max(axis=0)
    largest[largest == 0] = 1.0
    scaled = targets / largest
    root = np.sqrt((scaled**2).mean(axis=0))
    root[root == 0] = 1.0
    return scaled / root, np.log(largest) + np.log(root)


class EvidenceRidge(RegressorMixin, BaseEstimator):
    """Ridge regression with the penalty α/β at which the evidence is largest, for each column of y.

    For features around zero, as ``StandardScaler`` leaves them. MacKay, "Bayesian interpolation", Neural Computation 4
    (1992); scikit-learn's ``BayesianRidge`` is the same model, by way of a singular value decomposition of X.

    Attributes
    ----------
    alpha_ : ndarray of shape (n_outputs,)
    """

    def fit(self, X: npt.NDArray[Any], y: Array) -> EvidenceRidge:
        """Fit to X of shape (n_samples, n_features) and y of shape (n_samples, n_outputs)."""
        targets, _ = scale_targets(y - y.mean(axis=0))
        spectrum = square_spectrum(Features(X), targets)
        ratios = np.maximum(maximise(spectrum).ratios, SMALLEST * np.finfo(X.dtype).eps)
        self.alpha_ = ratios * spectrum.largest
        self.model_ = Ridge(self.alpha_).fit(X, y)
        return self

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the predictions."""
        return np.asarray(self.model_.predict(X))

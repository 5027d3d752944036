"""Principal components, exact whatever the shape of the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

WIDTH = 50  # components by which domains are told apart


def fit_components(X: NDArray[Any], width: int) -> PCA:
    """Return the first `width` principal components of rows, without any randomness."""
    return PCA(width, svd_solver="covariance_eigh" if len(X) > X.shape[1] else "full").fit(X)


def reduce_rows(X: NDArray[Any], length: float) -> NDArray[Any]:
    """Return at most 50 principal components of standardised features, of this root mean square length."""
    X = StandardScaler().fit_transform(X)
    X = fit_components(X, min(WIDTH, len(X) - 1, X.shape[1])).transform(X)
    square = float((X**2).sum(axis=1).mean())
    return X * (length / np.sqrt(square)) if square > 0 else X

"""The coordinates a head is fitted in: the features themselves, or what its own scaler makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
import scipy.sparse
from sklearn.base import clone
from threadpoolctl import threadpool_limits

from sktransfer.transfer.affine import Array, as_function, fold

STANDARDISED = 1e-4  # how near to mean 0 and standard deviation 1 a scaler leaves the rows it was fitted on


@dataclass(frozen=True)
class Coordinates:
    """A fitted scaler, or None, through which coefficients enter and leave."""

    scaler: Any = None

    def enter(self, coef: Array, intercept: Array, n_scaled: int) -> tuple[Array, Array]:
        """Return coefficients for scaled features from those for raw ones."""
        if self.scaler is None:
            return coef, intercept
        return self._fold("inverse_transform", coef, intercept, n_scaled)

    def leave(self, coef: Array, intercept: Array, n_features: int) -> tuple[Array, Array]:
        """Return coefficients for raw features from those for scaled ones."""
        if self.scaler is None:
            return coef, intercept
        return self._fold("transform", coef, intercept, n_features)

    def _fold(self, method: str, coef: Array, intercept: Array, width: int) -> tuple[Array, Array]:
        try:
            return fold(as_function(self.scaler, method), coef, intercept, width)
        except ValueError as error:
            raise ValueError(
                f"scaler must be affine, as StandardScaler() is. Got {self.scaler!r} instead; put other steps in front "
                "of this estimator in a Pipeline."
            ) from error


def choose_coordinates(scaler: Any, X: Any, names: Any = None) -> tuple[Coordinates, Any]:
    """Fit a copy of the scaler and return it with the scaled rows.

    Parameters
    ----------
    scaler : transformer or None
    X : array or sparse matrix of shape (n, d)
    names : ndarray of str or None
        X's columns; a scaler that selects by name needs them.
    """
    if scaler is None:
        return Coordinates(), X
    for method in ("fit", "transform", "inverse_transform"):
        if isinstance(scaler, type) or not hasattr(scaler, method):
            raise TypeError(
                "scaler must be None or a transformer with inverse_transform, as StandardScaler(). Got "
                f"{scaler!r} instead."
            )
    fitted = clone(scaler)
    if names is not None and not scipy.sparse.issparse(X):
        import pandas as pd

        X = pd.DataFrame(X, columns=names)
    scaled = fitted.fit_transform(X) if hasattr(fitted, "fit_transform") else fitted.fit(X, None).transform(X)
    return Coordinates(fitted), scaled.tocsr() if scipy.sparse.issparse(scaled) else np.asarray(scaled)


def warn_if_standardised(X: Any, stacklevel: int = 4) -> None:
    """Warn, that many frames up, where X left a scaler and meets a source that was folded into raw features."""
    if scipy.sparse.issparse(X) or len(X) < 3:
        return
    mean, std = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    varies = std > 0
    if varies.any() and np.all(np.abs(mean) < STANDARDISED) and np.all(np.abs(std[varies] - 1) < STANDARDISED):
        warnings.warn(
            "X looks standardised, and the source was folded, its own scaler included, into the features in front of "
            "that scaler. Give this estimator those features and scaler=StandardScaler() instead; or, if X comes from "
            "the source's own frozen scaler, only what comes after it: source=pipeline[-1].",
            UserWarning,
            stacklevel=stacklevel,
        )


@contextmanager
def few_labels() -> Iterator[None]:
    """Keep scikit-learn from taking labels for a regression's values where most classes have one or two of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        yield


def check_sample_weight(sample_weight: Any, n_rows: int, name: str = "sample_weight") -> Array:
    """Return the weights of n rows as float64, ones where there are none."""
    if sample_weight is None:
        return np.ones(n_rows)
    weights: Array = np.asarray(sample_weight, dtype=np.float64)
    if weights.ndim == 0:
        weights = np.full(n_rows, float(weights))
    if weights.shape != (n_rows,):
        raise ValueError(f"{name} must have shape ({n_rows},). Got shape {weights.shape} instead.")
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        raise ValueError(f"{name} must be finite and >= 0. Got {weights[wrong[0]]} in row {wrong[0]} instead.")
    if not weights.any():
        raise ValueError(f"{name} must be above zero for some row. Got zero for all {n_rows} instead.")
    return weights


def check_jobs(n_jobs: Any) -> None:
    """Raise unless n_jobs is None or a whole number but 0, as joblib counts."""
    right = isinstance(n_jobs, int | np.integer) and not isinstance(n_jobs, bool) and n_jobs != 0
    if n_jobs is not None and not right:
        raise ValueError(f"n_jobs must be None, an integer >= 1, or -1 for all cores. Got {n_jobs!r} instead.")


def limit_threads(n_jobs: int | None) -> AbstractContextManager[Any]:
    """Keep the BLAS library to n_jobs threads for a while."""
    limits: AbstractContextManager[Any] = (
        nullcontext() if n_jobs is None else threadpool_limits(joblib.effective_n_jobs(n_jobs))
    )
    return limits


def check_number(name: str, value: Any, *, low: float, whole: bool = False, infinite: bool = False) -> None:
    """Raise unless a parameter is a number above low (at least low, if it must be whole)."""
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    right = isinstance(value, kinds) and not isinstance(value, bool)
    tiny = right and not whole and 0 < value < np.finfo(float).tiny  # whose inverse is infinite
    if not right or tiny or not (value >= low if whole else value > low) or (np.isinf(value) and not infinite):
        rule = f"an integer >= {low}" if whole else f"{'' if infinite else 'finite and '}> {low}"
        raise ValueError(f"{name} must be {rule}. Got {value!r} instead.")

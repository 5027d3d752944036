"""Linear functions behind affine steps, expressed in the features in front of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]  # rows (n, d) -> rows (n, m)

STEP = 2.0**20  # large, so that an offset of a million leaves no rounding error in the slope
CHUNK = 512  # rows probed at once
TOLERANCE = 1e-6  # relative; what is not affine misses by far more


def as_function(estimator: Any, method: str) -> Function:
    """Return a method of a fitted estimator as a function of dense float64 rows, with the names it was fitted with."""
    call = getattr(estimator, method)
    # what inverse_transform takes is what transform gives, which has no names here
    names = None if method == "inverse_transform" else getattr(estimator, "feature_names_in_", None)

    def function(rows: Any) -> Array:
        if names is not None:
            import pandas as pd

            rows = pd.DataFrame(rows, columns=names)
        with np.errstate(all="ignore"):  # of functions that overflow on probes, which are no affine ones
            result = call(rows)
        result = result.toarray() if hasattr(result, "toarray") else np.asarray(result)
        return np.asarray(result.reshape(len(rows), -1), dtype=np.float64)

    return function


def fold(
    function: Function, weights: Array | None, offset: Array | None, n_features: int, guess: Array | None = None
) -> tuple[Array, Array]:
    """Fold an affine function into the linear one behind it.

    With f(x) = xA + c, the values f(x)Wᵀ + b equal x(WAᵀ)ᵀ + (b + Wc). A and c are read off f's values, so that every
    affine step can be folded: scalers, projections, selections of columns, and chains of them.

    Parameters
    ----------
    function : callable
        f, rows (n, d) -> rows (n, m). Rows must not depend on each other.
    weights : ndarray of shape (k, m) or None
        W. None is the identity: the function itself is wanted.
    offset : ndarray of shape (k,) or None
        b. None is zero.
    n_features : int
        d.
    guess : ndarray of shape (k, d) or None
        What WAᵀ probably is: it is only checked then, which takes a few rows instead of d.

    Returns
    -------
    weights : ndarray of shape (k, d)
    offset : ndarray of shape (k,)

    Raises
    ------
    ValueError
        If the function is not affine.
    """
    probes = np.random.default_rng(0).standard_normal((4, n_features)) * [[1.0], [1.0], [1e3], [1e3]]
    values = function(np.vstack([np.zeros((1, n_features)), np.full((1, n_features), STEP), probes]))
    if not np.isfinite(values).all():
        raise ValueError("the function is not affine")
    constant, width = values[0], values.shape[1]
    apply = np.eye(width) if weights is None else weights
    folded_offset = apply @ constant + (0.0 if offset is None else offset)

    def agrees(folded: Array) -> bool:
        expected = (values[2:] - constant) @ apply.T
        size = np.abs(probes) @ np.abs(folded).T + np.abs(apply) @ np.abs(constant) + np.finfo(float).tiny
        return bool(np.all(np.abs(probes @ folded.T - expected) <= TOLERANCE * size))

    if guess is not None and guess.shape == (len(apply), n_features) and agrees(guess):
        return guess, folded_offset
    if width == n_features:  # columns that do not mix, as in a scaler, need one row instead of d
        folded = apply * ((values[1] - constant) / STEP)
        if agrees(folded):
            return folded, folded_offset
    folded = np.empty((len(apply), n_features))
    for start in range(0, n_features, CHUNK):
        stop = min(start + CHUNK, n_features)
        rows = np.zeros((stop - start, n_features))
        rows[np.arange(stop - start), np.arange(start, stop)] = STEP
        folded[:, start:stop] = apply @ ((function(rows) - constant) / STEP).T
    if not agrees(folded):
        raise ValueError("the function is not affine")
    return folded, folded_offset

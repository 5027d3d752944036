"""Singular values of features and the projections of targets, by way of inner products or with all digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse

from sktransfer.ranking.blocks import Array, Features
from sktransfer.ranking.evidence import Spectrum

LEAST = 1024  # rows that are rotated at once


def square_spectrum(features: Features, targets: Any) -> Spectrum:
    """Decompose XᵀX or XXᵀ: fast and in little memory, squared singular values to 1e-15 of the largest.

    Parameters
    ----------
    features : Features of shape (n, d)
    targets : ndarray or CSR array of shape (n, m)
        With mean squares of 1.
    """
    n, d = features.X.shape
    squares, vectors = decompose(features.gram())
    largest = float(squares[-1]) or 1.0
    squares = np.maximum(squares / largest, 0.0)
    if d > n:
        return Spectrum(n, squares, (targets.T @ vectors).T ** 2, np.zeros(targets.shape[1]), largest)
    projected = vectors.T @ features.inner(targets)
    kept = squares > d * np.finfo(float).eps
    projections = projected[kept] ** 2 / (largest * squares[kept, None])
    return Spectrum(n, squares[kept], projections, np.maximum(n - projections.sum(axis=0), 0.0), largest)


def decompose(gram: Array) -> tuple[Array, Array]:
    """Return the eigenvalues, ascending, and vectors of a symmetric matrix's upper triangle, which is overwritten."""
    found: tuple[Array, Array] = scipy.linalg.eigh(
        gram.T, lower=True, overwrite_a=True, check_finite=False, driver="evr"
    )
    return found


def exact_spectrum(features: Features, targets: Any) -> Spectrum:
    """Decompose X by rotations alone: slower, singular values to 1e-15 of the largest without their squares.

    Parameters
    ----------
    features : Features of shape (n, d)
    targets : ndarray or CSR array of shape (n, m)
        With mean squares of 1.
    """
    n, d = features.X.shape
    if d > n:
        factor = np.zeros((0, n))
        for start in range(0, d, max(n, LEAST)):
            factor = _triangle(factor, features.columns(slice(start, start + max(n, LEAST))).T)
        vectors, values, _ = np.linalg.svd(factor.T)
        return _complete(n, values, (targets.T @ vectors).T, np.zeros(targets.shape[1]))
    width = max(d, 64)
    parts = [_rotate(features, targets[:, start : start + width]) for start in range(0, targets.shape[1], width)]
    vectors, values, _ = np.linalg.svd(parts[0][:d, :d])
    projected = np.hstack([vectors.T @ part[:d, d:] for part in parts])
    rest = np.concatenate([(part[d:, d:] ** 2).sum(axis=0) for part in parts])
    return _complete(n, values, projected, rest)


def _complete(n: int, values: Array, projected: Array, rest: Array) -> Spectrum:
    largest = float(values[0]) or 1.0
    return Spectrum(n, (values / largest) ** 2, projected**2, rest, largest**2)


def _rotate(features: Features, targets: Any) -> Array:
    """Return the triangle that rotations make of (X, targets), a few rows at a time."""
    n, d = features.X.shape
    factor = np.zeros((0, d + targets.shape[1]))
    step = max(d + targets.shape[1], LEAST)
    for start in range(0, n, step):
        part = slice(start, start + step)
        right = targets[part].toarray() if scipy.sparse.issparse(targets) else targets[part]
        factor = _triangle(factor, np.hstack([features.rows(part), right]))
    return factor


def _triangle(factor: Array, rows: Array) -> Array:
    """Return the triangle that rotations make of another one and further rows."""
    found: Any = np.linalg.qr(np.vstack([factor, rows]), mode="r")
    return np.asarray(found, dtype=np.float64)

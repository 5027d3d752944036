"""Rows or columns of an array in float64, a block at a time, and their inner products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

VALUES = 2**20  # of a block: 8 MiB
PANEL = 512  # columns of a product at once, so that its lower half is mostly left out


def row_slices(n_rows: int, width: int) -> Iterator[slice]:
    """Yield slices of rows that hold a block's number of values."""
    step = max(1, VALUES // max(width, 1))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


@dataclass(frozen=True)
class Features:
    """Checked features: X · 2^−exponent − mean in float64, made where it is needed.

    Divided by a power of two no digit changes, and squares neither overflow nor vanish.
    """

    X: npt.NDArray[Any]  # (n, d) real numbers, all finite
    exponent: int = 0
    mean: Array | None = None  # (d,), None for zeros

    def rows(self, part: slice) -> Array:
        """Return a few rows."""
        block = self._scale(self.X[part])
        if self.mean is not None:
            block -= self.mean
        return block

    def columns(self, part: slice) -> Array:
        """Return a few columns."""
        block = self._scale(self.X[:, part])
        if self.mean is not None:
            block -= self.mean[part]
        return block

    def centre(self) -> Features:
        """Return the features around their means; those that do not vary are exactly zero."""
        n, d = self.X.shape
        first = self._scale(self.X[:1])[0]
        total = sum(((self._scale(self.X[part]) - first).sum(axis=0) for part in row_slices(n, d)), np.zeros(d))
        return Features(self.X, self.exponent, first + total / n)

    def _scale(self, block: npt.NDArray[Any]) -> Array:
        block = block.astype(np.float64)
        return np.ldexp(block, -self.exponent) if self.exponent else block

    def gram(self) -> Array:
        """Return the upper triangle of XᵀX (d <= n) or XXᵀ, whichever is smaller; what is below it has no meaning."""
        n, d = self.X.shape
        product = np.zeros((min(n, d),) * 2)
        for part in row_slices(max(n, d), min(n, d)):
            block = self.rows(part) if d <= n else self.columns(part).T
            for start in range(0, len(product), PANEL):
                product[start : start + PANEL, start:] += block[:, start : start + PANEL].T @ block[:, start:]
        return product

    def inner(self, targets: Any) -> Array:
        """Return Xᵀtargets of shape (d, m) for an array or CSR matrix of shape (n, m)."""
        n, d = self.X.shape
        total = np.zeros((targets.shape[1], d))
        for part in row_slices(n, d):
            total += targets[part].T @ self.rows(part)
        return total.T

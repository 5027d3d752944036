"""Domains of equal moments: means and variances, or the whole covariance."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np
from sklearn.covariance import ledoit_wolf_shrinkage

from sktransfer.adaptation.adapters import Adapter, Array, find_domains

FLAT = 1e-7  # of a feature's mean: a standard deviation below it is rounding in float32


class Standardize(Adapter):
    r"""Mean 0 and variance 1 in each domain by itself.

    .. math:: x \mapsto (x - \mu_d) / \sigma_d

    with the moments of the row's own domain d: first-order shifts, such as another light or another drawing style, go.
    Features that are constant within a domain become 0 there.

    Parameters
    ----------
    onto : {"unit", "source"}, default="unit"
        "source" then gives all rows the moments that the source rows have together, :math:`x \mapsto \mu_S + \sigma_S
        (x - \mu_d) / \sigma_d`: a single source stays as it is, and an estimator's penalty means what it meant.

    Attributes
    ----------
    moments_ : dict of domain -> (mean, standard deviation), each of shape (n_features,)
    shift_, scale_ : ndarray of shape (n_features,), or 0 and 1
        What standardised rows are given.

    References
    ----------
    .. [1] Y. Li et al., "Revisiting batch normalization for practical domain adaptation" (AdaBN), ICLR workshop 2017,
       arXiv:1603.04779, eq. 1-2, on the features in place of every layer.
    """

    def __init__(self, onto: str = "unit") -> None:
        self.onto = onto

    def fit(self, X, y, sample_domain):
        """Take the moments of every domain."""
        if not (isinstance(self.onto, str) and self.onto in {"unit", "source"}):
            raise ValueError(f'onto must be "unit" or "source". Got {self.onto!r} instead.')
        source = X[sample_domain >= 0]
        self.shift_, self.scale_ = 0.0, 1.0
        if self.onto == "source":
            self.shift_, self.scale_ = source.mean(axis=0, dtype=np.float64), source.std(axis=0, dtype=np.float64)
        self.moments_ = {}
        for domain in find_domains(sample_domain):
            rows = X[_rows_of(sample_domain, domain)]
            mean, deviation = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
            noise = 10 * np.finfo(X.dtype).eps * deviation.max()  # of features computed from larger ones, as by a PCA
            deviation[deviation <= np.maximum(FLAT * np.abs(mean), noise)] = np.inf
            self.moments_[domain] = mean, deviation
        return self

    def transform(self, X, sample_domain):
        """Standardise every row with its own domain's moments."""
        out = np.empty_like(X)
        for domain in np.unique(np.maximum(sample_domain, -1)):
            rows = _rows_of(sample_domain, domain)
            mean, deviation = self.moments_[int(domain)]
            out[rows] = (X[rows] - mean) / deviation * self.scale_ + self.shift_
        return out


class Coral(Adapter):
    r"""Correlation alignment: source rows get the target's covariance.

    .. math:: x_S \mapsto (x_S - \mu_S) C_S^{-1/2} C_T^{1/2}, \qquad x_T \mapsto x_T - \mu_T

    The means are taken off as well (the paper assumes standardised features). Several source domains are aligned each
    by itself.

    Parameters
    ----------
    shrinkage : "ledoit-wolf" or float in (0, 1], default="ledoit-wolf"
        s in :math:`C = (1 - s) \hat C + s \, \mathrm{tr}(\hat C)/d \, I`, for each domain: embeddings have more
        features than most domains have rows, and their covariance no inverse.

    Attributes
    ----------
    colours_ : dict of domain -> its mean and covariance

    References
    ----------
    .. [1] B. Sun, J. Feng and K. Saenko, "Return of frustratingly easy domain adaptation", AAAI 2016,
       arXiv:1511.05547, algorithm 1.
    """

    def __init__(self, shrinkage="ledoit-wolf"):
        self.shrinkage = shrinkage

    def fit(self, X, y, sample_domain):
        """Take the covariance of every domain."""
        shrinkage = self.shrinkage
        if shrinkage != "ledoit-wolf" and not (isinstance(shrinkage, Real) and 0 < shrinkage <= 1):
            raise ValueError(
                f'shrinkage must be "ledoit-wolf" or a number above 0 and up to 1. Got {shrinkage!r} instead.'
            )
        self.colours_ = {
            domain: Colour.of(X[_rows_of(sample_domain, domain)], shrinkage) for domain in find_domains(sample_domain)
        }
        return self

    def transform(self, X, sample_domain):
        """Centre all rows, and recolour those of the sources."""
        out = np.empty_like(X)
        for domain in np.unique(np.maximum(sample_domain, -1)):
            rows = _rows_of(sample_domain, domain)
            colour = self.colours_[int(domain)]
            centred = X[rows] - colour.mean
            out[rows] = centred if domain < 0 else self.colours_[-1].multiply(colour.multiply(centred, -0.5), 0.5)
        return out


@dataclass(frozen=True)
class Colour:
    """A mean, and a covariance V diag(variances) Vᵀ + floor (I - V Vᵀ) that is never written out."""

    mean: Array  # (d,)
    axes: Array  # V, (d, rank)
    variances: Array  # (rank,)
    floor: float  # of all other directions

    @classmethod
    def of(cls, X: Array, shrinkage: str | float) -> Colour:
        """Return the shrunk covariance of rows X, from their SVD."""
        mean = X.mean(axis=0, dtype=np.float64)
        centred = X - mean
        s = float(ledoit_wolf_shrinkage(centred, assume_centered=True)) if isinstance(shrinkage, str) else shrinkage
        values, axes = _principal_axes(centred)
        floor = s * values.sum() / X.shape[1]
        variances = (1 - s) * values + floor
        if not (variances.min() > 0 and (floor > 0 or len(values) == X.shape[1])):
            raise ValueError(
                "Covariances must be positive to be aligned. Got a domain of too few different rows instead; give "
                "more, or a number as shrinkage."
            )
        return cls(mean, axes, variances, floor)

    def multiply(self, X: Array, power: float) -> Array:
        """Return X C^power."""
        rest = 0.0 if self.axes.shape[1] == len(self.axes) else self.floor**power
        product: Array = ((X @ self.axes) * (self.variances**power - rest)) @ self.axes.T + X * rest
        return product


def _principal_axes(centred: Array) -> tuple[Array, Array]:
    """Variances and axes of centred rows, as many as there are rows or features."""
    n, d = centred.shape
    if n >= d:
        values, axes = np.linalg.eigh(centred.T @ centred / n)
        return np.maximum(values, 0), axes
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    return singular**2 / n, axes.T


def _rows_of(sample_domain: Array, domain: int) -> Array:
    return sample_domain < 0 if domain < 0 else sample_domain == domain

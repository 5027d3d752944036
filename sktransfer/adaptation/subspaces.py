"""Domains in one subspace."""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np

from sktransfer.adaptation.adapters import Adapter, Array, find_domains
from sktransfer.adaptation.components import fit_components

WIDTH = 100  # components for a few classes, and
WIDTH_A_CLASS = 4  # for each of many


class SubspaceAlignment(Adapter):
    r"""The source's principal components, turned onto the target's.

    .. math:: x_S \mapsto (x_S - \mu_S) P_S P_S^T P_T, \qquad x_T \mapsto (x_T - \mu_T) P_T

    with the first k principal components P of each domain, of shape (n_features, k). Several source domains are aligned
    each by itself.

    Parameters
    ----------
    n_components : int, default=None
        k. None takes 100, or 4 for each class if that is more, and at most half as many as there are target rows, and
        fewer than the rows of each domain.
    length : float, default=√3
        All rows are multiplied with one number that makes this the root mean square length of the source rows, so that
        an estimator's penalty means the same whatever the features: ``LogisticRegression(C=1)`` is right then. None
        leaves the lengths.

    Attributes
    ----------
    components_ : dict of domain -> ndarray of shape (n_features, k)
        What centred rows are multiplied with.
    means_ : dict of domain -> ndarray of shape (n_features,)
    scale_ : float

    References
    ----------
    .. [1] B. Fernando, A. Habrard, M. Sebban and T. Tuytelaars, "Unsupervised visual domain adaptation using subspace
       alignment", ICCV 2013, eq. 1-3.
    """

    def __init__(self, n_components=None, length=3**0.5):
        self.n_components = n_components
        self.length = length

    def fit(self, X, y, sample_domain):
        """Find every domain's components, and what turns them."""
        if self.length is not None and not (isinstance(self.length, Real) and 0 < self.length < np.inf):
            raise ValueError(f"length must be above 0, or None. Got {self.length!r} instead.")
        width = self._choose_width(X, y, sample_domain)
        target = fit_components(X[sample_domain < 0], width)
        self.means_, self.components_ = {-1: target.mean_}, {-1: target.components_.T}
        for domain in find_domains(sample_domain)[:-1]:
            axes = fit_components(X[sample_domain == domain], width)
            turn = axes.components_ @ target.components_.T
            self.means_[domain], self.components_[domain] = axes.mean_, axes.components_.T @ turn
        self.scale_ = 1.0
        if self.length is not None:
            source = sample_domain >= 0
            square = (self.transform(X[source], sample_domain[source]) ** 2).sum(axis=1).mean()
            self.scale_ = float(self.length / np.sqrt(square)) if square > 0 else 1.0
        return self

    def transform(self, X, sample_domain):
        """Return rows of the target's subspace, of shape (n, k)."""
        out = np.empty((len(X), self.components_[-1].shape[1]), dtype=X.dtype)
        for domain in np.unique(np.maximum(sample_domain, -1)):
            rows = sample_domain < 0 if domain < 0 else sample_domain == domain
            out[rows] = (X[rows] - self.means_[int(domain)]) @ self.components_[int(domain)] * self.scale_
        return out

    def _choose_width(self, X: Array, y: Array, sample_domain: Array) -> int:
        sizes = {d: int((np.maximum(sample_domain, -1) == d).sum()) for d in find_domains(sample_domain)}
        most = min(min(sizes.values()) - 1, X.shape[1])
        wanted = self.n_components
        if wanted is None:
            n_classes = int(y.max()) + 1 if np.issubdtype(y.dtype, np.integer) else 0
            return max(1, min(int(most), sizes[-1] // 2, max(WIDTH, WIDTH_A_CLASS * n_classes)))
        if not isinstance(wanted, Integral) or isinstance(wanted, bool) or wanted < 1:
            raise ValueError(f"n_components must be an integer >= 1, or None. Got {wanted!r} instead.")
        if wanted > max(most, 1):
            raise ValueError(
                f"n_components must be at most {most} here: fewer than the rows of each domain, and not more than the "
                f"features. Got {wanted} instead."
            )
        return int(wanted)

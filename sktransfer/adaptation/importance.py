"""Source rows weighed by how much they look like the target's."""

from __future__ import annotations

from numbers import Real

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from sktransfer.adaptation.adapters import Adapter
from sktransfer.adaptation.components import reduce_rows


class ImportanceWeighting(Adapter):
    r"""Weights that make the source look like the target: the ratio of their densities.

    .. math:: w(x) = \frac{p_T(x)}{p_S(x)} = \frac{n_S}{n_T} \, \frac{P(T \mid x)}{P(S \mid x)}

    with P of a logistic regression between the domains, on standardised principal components, for each row from a fold
    that it is not in. Right where the target is a part of the source under other proportions; where domains lie apart,
    few rows get all the weight, which `max_weight` limits. The estimator must take `sample_weight`.

    Parameters
    ----------
    exponent : float in [0, 1], default=0.5
        Weights are raised to it: 0 leaves all equal, 1 is the ratio itself. In between bias is traded for variance.
    max_weight : float, default=10.0
        In units of the mean weight.

    Attributes
    ----------
    weights_ : ndarray of shape (n_source,)
        Of mean 1 before `max_weight` is applied, in the order of the source rows.

    References
    ----------
    .. [1] S. Bickel, M. Brückner and T. Scheffer, "Discriminative learning under covariate shift", JMLR 10 (2009),
       eq. 4-6.
    .. [2] H. Shimodaira, "Improving predictive inference under covariate shift by weighting the log-likelihood
       function", Journal of Statistical Planning and Inference 90 (2000): the exponent.
    """

    def __init__(self, exponent=0.5, max_weight=10.0):
        self.exponent = exponent
        self.max_weight = max_weight

    def fit(self, X, y, sample_domain):
        """Weigh the source rows."""
        if not (isinstance(self.exponent, Real) and 0 <= self.exponent <= 1):
            raise ValueError(f"exponent must be in 0..1. Got {self.exponent!r} instead.")
        if not (isinstance(self.max_weight, Real) and self.max_weight >= 1):
            raise ValueError(f"max_weight must be at least 1. Got {self.max_weight!r} instead.")
        source = sample_domain >= 0
        scaled = reduce_rows(X, 1.0)
        cv = StratifiedKFold(int(min(5, source.sum(), (~source).sum())), shuffle=True, random_state=0)
        told = cross_val_predict(LogisticRegression(max_iter=200), scaled, ~source, cv=cv, method="decision_function")
        ratio = np.exp(self.exponent * (told[source] - told[source].max()))  # n_S / n_T goes with the mean
        self.weights_ = np.minimum(ratio / ratio.mean(), self.max_weight)
        return self

    def source_weight(self, X, sample_domain):
        """Return the weights, and 1 for target rows."""
        weights = np.ones(len(X))
        weights[sample_domain >= 0] = self.weights_
        return weights

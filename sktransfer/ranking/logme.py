"""LogME: how probable labels are under a Bayesian linear model of embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from sktransfer.ranking.blocks import Array
from sktransfer.ranking.evidence import Evidence, maximise
from sktransfer.ranking.inputs import Labels, is_regression, read_features, read_labels, read_targets
from sktransfer.ranking.regression import scale_targets
from sktransfer.ranking.spectra import exact_spectrum, square_spectrum

ROUNDING = 10 * np.finfo(float).eps  # of squared singular values that were found by way of inner products
ACCURACY = 1e-7  # of a score


def logme_score(X: Any, y: Any, *, task: str = "auto") -> float:
    r"""Logarithm of the maximum evidence of y given embeddings, per sample.

    The evidence is that of y = Xw + noise with w ~ N(0, 1/α) and noise ~ N(0, 1/β), weights integrated out, at the α
    and β where it is largest:

    .. math:: \frac{1}{n} \max_{\alpha, \beta} \log p(y \mid X, \alpha, \beta)
              = \frac{1}{n} \max_{\alpha, \beta} \log N(y \mid 0, \beta^{-1} I + \alpha^{-1} X X^\top)

    For classes y is 1 in the rows of a class and 0 in the others, and the score is the mean over the classes; for a
    regression the mean over the columns of y. There is no intercept, as in the papers.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Embeddings, of any real dtype; computed with in float64, a block of rows at a time.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Labels, or values of a regression.
    task : {"auto", "classification", "regression"}, default="auto"
        What y holds. "auto" goes by its dtype alone: floats are values of a regression, whatever they are, and all
        else (integers, booleans, strings, objects, categories of pandas) are labels. Say "regression" for integer
        counts, "classification" for labels such as 0.0 and 1.0.

    Returns
    -------
    score : float
        Higher is better. Any finite number: densities can exceed 1. Scores compare embeddings of the same y, and
        depend in a regression on its unit (y · c scores lower by log c).

    Raises
    ------
    ValueError, TypeError
        If X is not 2-D, finite and real, has fewer than 2 rows, or y does not fit to it or does not vary.

    Notes
    -----
    The same for X · c, rotated X, reordered rows, renamed classes and further columns of zeros. Not for further columns
    of another constant: they are the model's only intercept.

    The variance of the noise is taken to be at least 1e-12 of y's mean square, so that the evidence of values which X
    reproduces without error is finite.

    α and β are found by a search over α/β in which β is known, so the score is the largest evidence and not where a
    fixed-point iteration stopped. Takes O(n d min(n, d)) operations, and memory for three square matrices of min(n, d)
    in float64; up to four times as long, and ten matrices, where y is reproduced so well that squared singular values
    are too coarse.

    References
    ----------
    .. [1] K. You, Y. Liu, J. Wang and M. Long, "LogME: Practical assessment of pre-trained models for transfer
       learning", ICML 2021: the log evidence and its maximum.
    .. [2] K. You, Y. Liu, Z. Zhang, J. Wang, M. Jordan and M. Long, "Ranking and tuning pre-trained models: a new
       paradigm for exploiting model hubs", JMLR 23 (2022), arXiv:2110.10545.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktransfer import logme_score
    >>> X, y = load_digits(return_X_y=True)
    >>> pixels, halves = logme_score(X, y), logme_score(X[:, :32], y)
    >>> print(f"{pixels:.2f}, the upper half alone {halves:.2f}")
    0.27, the upper half alone 0.05
    """
    regression = is_regression(y, task)
    features = read_features(X)
    n = features.X.shape[0]
    targets, scales = scale_targets(read_targets(y, n)) if regression else _mark_classes(read_labels(y, n))
    found = maximise(square_spectrum(features, targets))
    if estimate_error(found) > ACCURACY:
        found = maximise(exact_spectrum(features, targets))
    return float(np.mean(found.values - scales))


def _mark_classes(labels: Labels) -> tuple[Any, Array]:
    """Return a CSR array of one column a class with a mean square of 1, and the logarithms of their divisors."""
    n = len(labels.codes)
    root = np.sqrt(np.bincount(labels.codes) / n)
    marks = scipy.sparse.csr_array((1 / root[labels.codes], labels.codes, np.arange(n + 1)), (n, len(labels.classes)))
    return marks, np.log(root)


def estimate_error(found: Evidence) -> float:
    """Return what rounding errors of squared singular values can make of the values."""
    return float(np.max(ROUNDING / found.ratios + ROUNDING / found.noises))

"""The H-score: how far class means are apart, measured in the spread of the embeddings."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import scipy.sparse

from sktransfer.ranking.blocks import PANEL, Array, Features, row_slices
from sktransfer.ranking.inputs import Labels, is_regression, read_features, read_labels
from sktransfer.ranking.spectra import decompose


def h_score(X: Any, y: Any, *, shrinkage: float | Literal["ledoit-wolf"] = "ledoit-wolf") -> float:
    r"""H-score of embeddings: the share of their variance that lies between classes, summed over directions.

    .. math:: H_\lambda = \operatorname{tr}\left(S_\lambda^{-1} (1 - \lambda) B\right), \qquad
              S_\lambda = (1 - \lambda) S + \lambda \frac{\operatorname{tr} S}{d} I

    with the covariance S of the embeddings, the covariance B of the embeddings' class means (each row replaced by the
    mean of its class), both with 1/n, and the shrinkage λ.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Embeddings, of any real dtype; computed with in float64, a block of rows at a time.
    y : array-like of shape (n_samples,)
        Labels.
    shrinkage : "ledoit-wolf" or float, default="ledoit-wolf"
        λ: Ledoit and Wolf's estimate [2]_, or a number from 0 to 1. 0 gives the original score [1]_, with the
        pseudo-inverse of S; it is the number of classes minus 1 for any X that separates its samples (d >= n), and so
        says nothing there.

    Returns
    -------
    score : float
        Higher is better; from 0 to the smallest of n_classes − 1, n_samples − 1 and n_features.

    Raises
    ------
    ValueError, TypeError
        If X is not 2-D, finite and real, has fewer than 2 rows, y does not fit to it, has one class only or holds
        floats. (For values of a regression see :func:`logme_score`, or bin them.)

    Notes
    -----
    The same for X · c, X + c, rotated X, reordered rows and renamed classes. With shrinkage 0 it is the same for every
    invertible linear map of X and for further columns of constants as well; these change λ and tr(S)/d otherwise.
    Embeddings that do not vary score 0.

    References
    ----------
    .. [1] Y. Bao et al., "An information-theoretic approach to transferability in task transfer learning", ICIP 2019:
       the definition of the H-score.
    .. [2] S. Ibrahim, N. Ponomareva and R. Mazumder, "Newer is not always better: rethinking transferability metrics,
       their peculiarities, stability and performance", arXiv:2110.06893: the shrinkage-based H-score.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktransfer import h_score
    >>> X, y = load_digits(return_X_y=True)
    >>> print(f"{h_score(X, y):.2f} of 9, the upper half alone {h_score(X[:, :32], y):.2f}")
    5.85 of 9, the upper half alone 4.04
    """
    _check_shrinkage(shrinkage)
    if is_regression(y, "auto"):
        raise ValueError(
            "y must be labels: integers, booleans or strings. Got floats instead; cast labels to int, bin values "
            "of a regression, or take logme_score."
        )
    features = read_features(X)
    labels = read_labels(y, features.X.shape[0])
    features = features.centre()
    gram = features.gram()
    if np.trace(gram) == 0:
        return 0.0
    share = estimate_shrinkage(features, gram) if isinstance(shrinkage, str) else float(shrinkage)
    return _measure(features, gram, labels, share)


def _check_shrinkage(shrinkage: Any) -> None:
    number = isinstance(shrinkage, int | float | np.number) and not isinstance(shrinkage, bool) and 0 <= shrinkage <= 1
    if not number and not (isinstance(shrinkage, str) and shrinkage == "ledoit-wolf"):
        raise ValueError(f'shrinkage must be "ledoit-wolf" or a number from 0 to 1. Got {shrinkage!r} instead.')


def estimate_shrinkage(features: Features, gram: Array) -> float:
    """Return Ledoit and Wolf's λ, as ``sklearn.covariance.ledoit_wolf`` does, from XᵀX or XXᵀ (its upper triangle).

    O. Ledoit and M. Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of
    Multivariate Analysis 88 (2004), equation 14 and lemmas 3.2 to 3.4.
    """
    n, d = features.X.shape
    if d == 1:
        return 0.0
    mean = np.trace(gram) / n / d
    squared = 2 * sum((np.triu(gram[at : at + PANEL, at:], 1) ** 2).sum() for at in range(0, len(gram), PANEL))
    squared += (np.diagonal(gram) ** 2).sum()
    blocks = (features.rows(part) for part in row_slices(n, d))
    fourth = sum((np.einsum("ij,ij->i", block, block) ** 2).sum() for block in blocks)
    distance = squared / n**2 / d - mean**2
    error = min((fourth / n - squared / n**2) / n / d, distance)
    return float(min(max(error / distance, 0.0), 1.0)) if distance > 0 else 0.0


def _measure(features: Features, gram: Array, labels: Labels, share: float) -> float:
    """Return H_λ from the eigenvectors of XᵀX or XXᵀ."""
    n, d = features.X.shape
    ridge = share * np.trace(gram) / n / d
    sizes = np.bincount(labels.codes)
    marks = scipy.sparse.csr_array((1 / np.sqrt(sizes)[labels.codes], labels.codes, np.arange(n + 1)), (n, len(sizes)))
    squares, vectors = decompose(gram)
    along = features.inner(marks).T @ vectors if d <= n else marks.T @ vectors
    kept = squares > max(n, d) * np.finfo(float).eps * squares[-1]
    squares, lengths = squares[kept], (along[:, kept] ** 2).sum(axis=0)
    lengths = lengths / squares if d <= n else lengths
    shrunk = (1 - share) * squares / n
    return float((shrunk / (shrunk + ridge)) @ lengths) if share < 1 else 0.0

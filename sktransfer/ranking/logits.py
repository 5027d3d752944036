"""LEEP and NCE: how well the classes of the source tell those of the target."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import scipy.special

from sktransfer.ranking.blocks import Array, Features, row_slices
from sktransfer.ranking.inputs import Labels, is_regression, read_features, read_labels

SUM = 1e-3  # how far from 1 probabilities of float16 may sum


def leep_score(logits: Any, y: Any, *, probabilities: bool = False) -> float:
    r"""Log expected empirical prediction: the log-likelihood of y by way of the source's classes.

    .. math:: \frac{1}{n} \sum_i \log \sum_z \hat{P}(y_i \mid z) \, \theta(x_i)_z, \qquad
              \hat{P}(y, z) = \frac{1}{n} \sum_{i: y_i = y} \theta(x_i)_z

    with the softmax θ(x) of the source's logits over its classes z.

    Parameters
    ----------
    logits : array-like of shape (n_samples, n_source_classes)
        What the source's classifier says of the target's samples, in front of its softmax; at least 2 classes.
    y : array-like of shape (n_samples,)
        Labels of the target.
    probabilities : bool, default=False
        Whether `logits` are probabilities already. Rows that sum to 1 without a negative value are refused otherwise,
        since a second softmax would level them.

    Returns
    -------
    score : float
        Higher is better; from minus the entropy of y, where the source tells nothing, up to 0. Equal to
        :func:`nce_score` where the source is certain of its classes.

    Raises
    ------
    ValueError, TypeError
        If logits are not 2-D, finite and real, have fewer than 2 rows or columns, or are (or are not) probabilities
        against what was said; if y does not fit to them, has one class only or holds floats.

    Notes
    -----
    The same for reordered rows and source classes, renamed classes, and a number added to all logits of a row.

    References
    ----------
    .. [1] C. V. Nguyen, T. Hassner, M. Seeger and C. Archambeau, "LEEP: A new measure to evaluate transferability of
       learned representations", ICML 2020.

    Examples
    --------
    >>> from sktransfer import leep_score
    >>> logits = [[9.0, 0.0, 0.0], [8.0, 1.0, 0.0], [0.0, 7.0, 1.0], [0.0, 1.0, 9.0]]
    >>> print(f"{leep_score(logits, ['cat', 'cat', 'dog', 'dog']):.3f}")
    -0.001
    """
    features, labels = _read(logits, y)
    _check_probabilities(features, probabilities)
    n, width = features.X.shape
    joint = np.zeros((len(labels.classes), width))
    for part in row_slices(n, width):
        joint += _mark(labels, part) @ _find_probabilities(features, part, probabilities)
    total = joint.sum(axis=0)
    given = joint / np.where(total > 0, total, 1.0)
    likelihoods = [
        np.einsum("ij,ij->i", given[labels.codes[part]], _find_probabilities(features, part, probabilities))
        for part in row_slices(n, width)
    ]
    return float(np.log(np.concatenate(likelihoods)).mean())


def nce_score(logits: Any, y: Any) -> float:
    r"""Negative conditional entropy of y given the source's most probable class.

    .. math:: \sum_{y, z} \hat{P}(y, z) \log \hat{P}(y \mid z), \qquad z_i = \operatorname{argmax}_z \theta(x_i)_z

    Parameters
    ----------
    logits : array-like of shape (n_samples, n_source_classes)
        What the source's classifier says of the target's samples: logits or probabilities, of which only the largest
        of a row counts (the first of several).
    y : array-like of shape (n_samples,)
        Labels of the target.

    Returns
    -------
    score : float
        Higher is better; from minus the entropy of y, where the source tells nothing, up to 0, where each of its
        classes has samples of one label.

    Raises
    ------
    ValueError, TypeError
        If logits are not 2-D, finite and real, have fewer than 2 rows or columns; if y does not fit to them, has one
        class only or holds floats.

    Notes
    -----
    The same for reordered rows and renamed classes, and for whatever keeps the largest of each row.

    References
    ----------
    .. [1] A. T. Tran, C. V. Nguyen and T. Hassner, "Transferability and hardness of supervised classification tasks",
       ICCV 2019: the conditional entropy of the target's labels given the source's, negated.

    Examples
    --------
    >>> from sktransfer import nce_score
    >>> logits = [[9.0, 0.0, 0.0], [8.0, 1.0, 0.0], [0.0, 7.0, 1.0], [5.0, 1.0, 2.0]]
    >>> print(f"{nce_score(logits, ['cat', 'cat', 'dog', 'dog']):.3f}")
    -0.477
    """
    features, labels = _read(logits, y)
    n, width = features.X.shape
    joint = np.zeros((len(labels.classes), width))
    np.add.at(joint, (labels.codes, features.X.argmax(axis=1)), 1 / n)
    entropy = scipy.special.xlogy(joint, joint).sum() - scipy.special.xlogy(total := joint.sum(axis=0), total).sum()
    return min(float(entropy), 0.0)


def _read(logits: Any, y: Any) -> tuple[Features, Labels]:
    if is_regression(y, "auto"):
        raise ValueError(
            "y must be labels: integers, booleans or strings. Got floats instead; cast labels to int, or bin values "
            "of a regression."
        )
    features = read_features(logits, "logits")
    if features.X.shape[1] < 2:
        raise ValueError("logits must have a column for each class of the source, at least 2. Got 1 instead.")
    return Features(features.X), read_labels(y, features.X.shape[0])


def _check_probabilities(features: Features, probabilities: bool) -> None:
    """Raise unless each row is one of probabilities (True), or some row is not (False)."""
    wrong = None
    for part in row_slices(*features.X.shape):
        block = features.rows(part)
        with np.errstate(over="ignore"):
            bad = (block.min(axis=1) < 0) | (np.abs(block.sum(axis=1) - 1) > SUM)
        if bad.any():
            wrong = part.start + int(bad.argmax())
            break
    if probabilities and wrong is not None:
        raise ValueError(
            "logits must be at least 0 and sum to 1 in each row for probabilities=True. Got a minimum of "
            f"{features.X[wrong].min():.3g} and a sum of {features.X[wrong].sum():.3g} in row {wrong} instead."
        )
    if wrong is None and not probabilities:
        raise ValueError(
            "logits must be what the softmax is still to be taken of. Got probabilities instead: no value is negative "
            "and each row sums to 1. Pass probabilities=True for these."
        )


def _find_probabilities(features: Features, part: slice, probabilities: bool) -> Array:
    block = features.rows(part)
    with np.errstate(over="ignore"):  # of differences beyond the largest float, whose exponential is 0 all the same
        found: Array = (
            block / block.sum(axis=1, keepdims=True) if probabilities else scipy.special.softmax(block, axis=1)
        )
    return found


def _mark(labels: Labels, part: slice) -> Any:
    """Return a CSR array of shape (n_classes, rows): 1/n where a row is of a class."""
    codes = labels.codes[part]
    share = np.full(len(codes), 1 / len(labels.codes))
    return scipy.sparse.csr_array((share, (codes, np.arange(len(codes)))), (len(labels.classes), len(codes)))

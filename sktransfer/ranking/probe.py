"""The linear probe: what a cross-validated linear model makes of embeddings."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold, check_cv
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer.ranking.blocks import Array, Features
from sktransfer.ranking.inputs import (
    LARGE,
    Labels,
    is_regression,
    read_features,
    read_groups,
    read_labels,
    read_targets,
)
from sktransfer.ranking.regression import EvidenceRidge

FOLDS = 5
STRENGTH = 0.01  # C of the logistic regression


def linear_probe_score(
    X: Any, y: Any, *, cv: Any = None, groups: Any = None, estimator: Any = None, task: str = "auto"
) -> float:
    """Accuracy (R² for a regression) of a linear model on rows that it was not fitted to.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Embeddings, of any real dtype.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Labels, or values of a regression.
    cv : int, splitter, iterable or None, default=None
        None is 5 folds, fewer where no class has 5 samples (or there are fewer than 5 groups or values). Numbers of
        folds are stratified by class and shuffled with seed 0.
    groups : array-like of shape (n_samples,), default=None
        Rows of one group are never on both sides of a fold.
    estimator : estimator, default=None
        What is fitted. None is ``StandardScaler`` with ``LogisticRegression(C=0.01)`` for labels, and with a ridge
        regression for values whose penalty the evidence chooses (as in :func:`logme_score`) from the training rows.
    task : {"auto", "classification", "regression"}, default="auto"
        What y holds, as for :func:`logme_score`: "auto" takes floats for values and all else for labels.

    Returns
    -------
    score : float
        Higher is better. The accuracy, from 0 to 1, or R², at most 1 (the mean over the columns of y), of the
        predictions of all folds taken together.

    Raises
    ------
    ValueError, TypeError
        If X is not 2-D, finite and real, has fewer than 2 rows, y does not fit to it or does not vary; if each class
        has one sample only or there are fewer than 2 groups, so that nothing can be held out.

    Notes
    -----
    A sample whose class has no other sample in training counts as an error: so do classes of one sample always, and
    they lower the score of all embeddings alike. A fold with one class in training predicts that class.

    A model that has not converged counts as it is. For 10,000 rows, 2,048 columns and 100 classes the logistic
    regressions take longer than :func:`logme_score` takes altogether; ``RidgeClassifier`` as estimator is faster, and
    further from what a head will reach where columns are correlated.

    The same for renamed classes and for X · c + e with a vector e, to rounding; reordered rows fall into other folds.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktransfer import linear_probe_score
    >>> X, y = load_digits(return_X_y=True)
    >>> print(f"{linear_probe_score(X[:500], y[:500]):.2f}, half of X {linear_probe_score(X[:500, ::2], y[:500]):.2f}")
    0.94, half of X 0.87
    """
    regression = is_regression(y, task)
    features = read_features(X)
    n = features.X.shape[0]
    known = _scale(read_targets(y, n)) if regression else _name_labels(read_labels(y, n))
    if estimator is None:
        head = EvidenceRidge() if regression else LogisticRegression(C=STRENGTH)
        estimator = make_pipeline(StandardScaler(), head)
    elif regression and known.shape[1] == 1:
        known = known[:, 0]
    array, found, expected = prepare(features), [], []
    for train, test in split_rows(array, known, cv, groups, regression):
        found.append(_predict(estimator, array, known, train, test))
        expected.append(known[test])
    measure = r2_score if regression else accuracy_score
    return float(measure(np.concatenate(expected), np.concatenate(found)))


def _scale(targets: Array) -> Array:
    """Return columns divided by powers of two where their squares would overflow or vanish; R² is the same."""
    exponents = np.frexp(np.abs(targets).max(axis=0))[1]
    return np.ldexp(targets, -np.where(np.abs(exponents) > LARGE, exponents, 0))


def _name_labels(labels: Labels) -> npt.NDArray[Any]:
    """Return labels as they were given, or as numbers where scikit-learn takes them for something else."""
    plain = labels.classes.dtype.kind in "biu" or all(isinstance(label, str) for label in labels.classes.tolist())
    return labels.classes[labels.codes] if plain else labels.codes


def prepare(features: Features) -> npt.NDArray[Any]:
    """Return features in float32 or float64, of a size whose squares are finite; they themselves, if they are."""
    if features.exponent:
        return features.rows(slice(None))
    single = features.X.dtype in {np.dtype(np.float16), np.dtype(np.float32)}
    return features.X.astype(np.float32 if single else np.float64, copy=False)


def split_rows(X: Any, y: npt.NDArray[Any], cv: Any, groups: Any, regression: bool) -> list[tuple[Any, Any]]:
    """Return the rows of each fold, for training and for testing."""
    if groups is not None:
        groups = read_groups(groups, len(y))
    if cv is not None and not isinstance(cv, int | np.integer):
        folds = list(check_cv(cv, y, classifier=not regression).split(X, y, groups))
        if not folds:
            raise ValueError("cv must have at least one fold. Got none instead.")
        return folds
    splitter = choose_splitter(y, cv, groups, regression)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        return [(train, test) for train, test in splitter.split(X, y, groups) if len(train) and len(test)]


def _count_folds(y: npt.NDArray[Any], groups: Any, regression: bool) -> int:
    """Return how many folds there can be."""
    most = len(y) if regression else int(np.unique(y, return_counts=True)[1].max())
    if most < 2:
        raise ValueError(
            "y must have a class with at least 2 samples, so that one can be held out. Got "
            f"{len(y)} classes of 1 sample instead."
        )
    if groups is None:
        return most
    n_groups = len(np.unique(groups))
    if n_groups < 2:
        raise ValueError(f"groups must have at least 2 values, so that one can be held out. Got {n_groups} instead.")
    return min(most, n_groups)


def choose_splitter(y: npt.NDArray[Any], cv: Any, groups: Any, regression: bool) -> Any:
    """Return what makes `cv` folds, or as many as there can be; raises where y or groups do not allow them."""
    most, grouped = _count_folds(y, groups, regression), groups is not None
    folds = min(FOLDS, most) if cv is None else cv
    if isinstance(cv, bool) or not 2 <= folds <= most:
        raise ValueError(f"cv must be None, a splitter, or an integer from 2 to {most} for this y. Got {cv!r} instead.")
    kinds = {
        (True, True): GroupKFold,
        (True, False): KFold,
        (False, True): StratifiedGroupKFold,
        (False, False): StratifiedKFold,
    }
    return kinds[regression, grouped](folds, shuffle=True, random_state=0)


def _predict(estimator: Any, X: Any, y: Any, train: Any, test: Any) -> npt.NDArray[Any]:
    if y.ndim == 1 and len(np.unique(y[train])) == 1:
        return np.repeat(y[train][:1], len(test))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = clone(estimator).fit(X[train], y[train]).predict(X[test])
    return np.asarray(found).reshape(y[test].shape)

"""The linear probe: what a cross-validated linear model makes of embeddings."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold, check_cv
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer.ranking.inputs import is_regression, read_features, read_labels, read_targets

FOLDS = 5


def linear_probe_score(
    X: Any, y: Any, *, cv: Any = None, groups: Any = None, estimator: Any = None, task: str = "auto"
) -> float:
    """Accuracy (R² for a regression) of a linear model on rows that it was not fitted to."""
    regression = is_regression(y, task)
    array = read_features(X).X
    n = len(array)
    known = read_targets(y, n) if regression else read_labels(y, n).codes
    if estimator is None:
        estimator = make_pipeline(StandardScaler(), Ridge() if regression else LogisticRegression(C=0.01))
    found, expected = [], []
    for train, test in split_rows(array, known, cv, groups, regression):
        found.append(_predict(estimator, array, known, train, test))
        expected.append(known[test])
    measure = r2_score if regression else accuracy_score
    return float(measure(np.concatenate(expected), np.concatenate(found)))


def split_rows(X: Any, y: npt.NDArray[Any], cv: Any, groups: Any, regression: bool) -> list[tuple[Any, Any]]:
    """Return the rows of each fold, for training and for testing."""
    if cv is not None and not isinstance(cv, int):
        return list(check_cv(cv, y, classifier=not regression).split(X, y, groups))
    folds = FOLDS if cv is None else cv
    most = len(y) if regression else int(np.bincount(y).max())
    if groups is not None:
        most = min(most, len(np.unique(groups)))
    folds = min(folds, most)
    if groups is not None:
        splitter = GroupKFold(folds) if regression else StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    else:
        kind = KFold if regression else StratifiedKFold
        splitter = kind(folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        return list(splitter.split(X, y, groups))


def _predict(estimator: Any, X: Any, y: Any, train: Any, test: Any) -> npt.NDArray[Any]:
    if y.ndim == 1 and len(np.unique(y[train])) == 1:
        return np.full(len(test), y[train][0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(clone(estimator).fit(X[train], y[train]).predict(X[test])).reshape(y[test].shape)

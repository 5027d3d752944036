"""Fitted estimators -> what the converter knows: wrappers are opened, and heads with a source become plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import VotingClassifier, VotingRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection._search import BaseSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.utils.validation import check_is_fitted

from sktransfer.adaptation import AdaptedClassifier, AdaptedRegressor
from sktransfer.export.inverses import InverseTarget, find_inverse
from sktransfer.transfer import (
    TransferLogisticRegression,
    TransferMLPClassifier,
    TransferMLPRegressor,
    TransferRidge,
)
from sktransfer.transfer.affine import fold

Plain = Callable[[Any], Any]


class Affine(TransformerMixin, BaseEstimator):
    """x ↦ x Aᵀ + b, for the converter alone; `weights` of shape (d,) stand for a diagonal A."""

    def __init__(self, weights: Any, offset: Any) -> None:
        self.weights = weights
        self.offset = offset

    def transform(self, X: Any) -> Any:
        """Apply it to rows (n, d)."""
        return (X * self.weights if self.weights.ndim == 1 else X @ self.weights.T) + self.offset


def make_plain(estimator: Any) -> Any:
    """An estimator that predicts the same as a fitted one, made of scikit-learn's own; the given one stays as it is.

    Raises
    ------
    NotFittedError
        If an estimator in it is not fitted.
    ValueError
        If a part of it has no such counterpart.
    """
    if estimator is None or isinstance(estimator, str):
        return estimator
    for kind, make in _MAKERS.items():
        if isinstance(estimator, kind):
            check_is_fitted(estimator)
            return make(estimator)
    return estimator


def _open_pipeline(pipeline: Any) -> Any:
    steps = [(name, make_plain(step)) for name, step in pipeline.steps if step is not None and step != "passthrough"]
    if not steps:
        return "passthrough"
    return Pipeline(steps)


def _open_columns(transformer: Any) -> Any:
    """A copy of a ColumnTransformer whose columns are integers and whose parts are plain."""
    opened = copy.copy(transformer)
    indices = transformer._transformer_to_input_indices  # names, slices, masks and callables, resolved by scikit-learn
    opened.transformers_ = [
        (name, make_plain(part), list(map(int, indices[name]))) for name, part, _ in transformer.transformers_
    ]
    return opened


def _open_union(union: Any) -> Any:
    opened = copy.copy(union)
    opened.transformer_list = [(name, make_plain(part)) for name, part in union.transformer_list if part != "drop"]
    return opened


def _open_search(search: Any) -> Any:
    if not hasattr(search, "best_estimator_"):
        raise ValueError(f"A {type(search).__name__} must have refit its best estimator. Got refit=False instead.")
    return make_plain(search.best_estimator_)


def _open_calibrated(classifier: Any) -> Any:
    opened = copy.copy(classifier)
    opened.calibrated_classifiers_ = [copy.copy(one) for one in classifier.calibrated_classifiers_]
    for one in opened.calibrated_classifiers_:
        one.estimator = make_plain(one.estimator)
    return opened


def _open_voting(voting: Any) -> Any:
    opened = copy.copy(voting)
    opened.estimators_ = [make_plain(one) for one in voting.estimators_]
    return opened


def _open_target(regressor: Any) -> Any:
    return InverseTarget(make_plain(regressor.regressor_), find_inverse(regressor.transformer_))


def _open_adapted(estimator: Any) -> Any:
    """The estimator behind the affine map that the adapters make of target rows."""
    inner = make_plain(estimator.estimator_)
    if not estimator.adapters_:
        return inner

    def adapt(rows: Any) -> Any:
        for adapter in estimator.adapters_:
            rows = adapter.transform(rows, np.full(len(rows), -1))
        return rows

    try:
        weights, offset = fold(adapt, None, None, estimator.n_features_in_)
    except ValueError as error:
        names = ", ".join(type(adapter).__name__ for adapter in estimator.adapters_)
        raise ValueError(
            f"What adapters do to target rows must be affine. Got {names} instead, which is not."
        ) from error
    if weights.shape[0] == weights.shape[1] and np.count_nonzero(weights) == np.count_nonzero(np.diag(weights)):
        weights = np.diag(weights).copy()
    return Pipeline([("adapt", Affine(weights, offset)), ("estimator", inner)])


def _copy_fitted(target: Any, source: Any, *names: str) -> Any:
    for name in names:
        setattr(target, name, getattr(source, name))
    return target


def _make_logistic(estimator: Any) -> Any:
    return _copy_fitted(LogisticRegression(), estimator, "classes_", "coef_", "intercept_", "n_features_in_")


def _make_linear(estimator: Any) -> Any:
    linear = _copy_fitted(LinearRegression(), estimator, "coef_", "n_features_in_")
    linear.intercept_ = np.asarray(estimator.intercept_)
    return linear


def _make_perceptron(kind: type, *names: str) -> Plain:
    def make(estimator: Any) -> Any:
        network = kind(activation=estimator.activation_)
        fitted = ("coefs_", "intercepts_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_")
        return _copy_fitted(network, estimator, *fitted, *names)

    return make


_MAKERS: dict[type | tuple[type, ...], Plain] = {
    Pipeline: _open_pipeline,
    ColumnTransformer: _open_columns,
    FeatureUnion: _open_union,
    BaseSearchCV: _open_search,
    FrozenEstimator: lambda frozen: make_plain(frozen.estimator),
    CalibratedClassifierCV: _open_calibrated,
    (VotingClassifier, VotingRegressor): _open_voting,
    TransformedTargetRegressor: _open_target,
    (AdaptedClassifier, AdaptedRegressor): _open_adapted,
    TransferLogisticRegression: _make_logistic,
    TransferRidge: _make_linear,
    TransferMLPClassifier: _make_perceptron(MLPClassifier, "classes_", "_label_binarizer"),
    TransferMLPRegressor: _make_perceptron(MLPRegressor),
}

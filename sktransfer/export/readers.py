"""Fitted estimators -> our own operators, where skl2onnx has none or not an exact one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    RidgeClassifier,
    RidgeClassifierCV,
    SGDClassifier,
)
from sklearn.svm import SVC, SVR, LinearSVC, NuSVC, NuSVR

from sktransfer.export.kernels import read_kernel_machine
from sktransfer.export.operators import AffineMap, Calibration, Imputation, LinearHead, Link, Operator, Trees
from sktransfer.export.plain import Affine

_LINEAR: dict[type, Link] = {
    LogisticRegression: "softmax",
    LogisticRegressionCV: "softmax",
    LinearDiscriminantAnalysis: "softmax",
    SGDClassifier: "sigmoid",  # with a logistic loss
    LinearSVC: "identity",
    RidgeClassifier: "identity",
    RidgeClassifierCV: "identity",
    Perceptron: "identity",
}
_LINKS: dict[str, Link] = {"IdentityLink": "identity", "LogLink": "exp", "LogitLink": "sigmoid"}


def find_operator(estimator: Any) -> Operator | None:
    """Our own operator for a fitted estimator; None leaves it to skl2onnx."""
    for kinds, read in _READERS.items():
        if isinstance(estimator, kinds):
            operator: Operator = read(estimator)
            return operator
    return None


def _read_affine(affine: Any) -> AffineMap:
    return AffineMap(affine.weights, affine.offset)


def _read_linear(estimator: Any) -> LinearHead:
    link: Link = _LINEAR[type(estimator)] if hasattr(estimator, "predict_proba") else "identity"
    coef = np.atleast_2d(estimator.coef_)
    if link == "softmax" and len(coef) == 1:
        link = "sigmoid"
    return LinearHead(coef, np.atleast_1d(estimator.intercept_), estimator.classes_, link)


def _read_imputer(imputer: Any) -> Imputation:
    fill = np.asarray(imputer.statistics_)
    missing = imputer.missing_values
    if fill.dtype.kind in "OU":
        if isinstance(missing, str) and missing:
            raise ValueError(f"missing_values of texts must be NaN, None or an empty text. Got {missing!r} instead.")
        return Imputation(fill.astype(object), float("nan"), np.arange(len(fill)))
    fill = fill.astype(np.float64)
    kept = np.arange(len(fill)) if imputer.keep_empty_features else np.flatnonzero(~np.isnan(fill))
    return Imputation(fill, float(missing), kept)


def _read_boosting(estimator: Any) -> Trees:
    trees = [(target, tree.nodes) for stage in estimator._predictors for target, tree in enumerate(stage)]
    if any(nodes["is_categorical"].any() for _, nodes in trees):
        raise ValueError(
            "Histogram gradient boosting must split on numbers. Got a split on categories instead: encode them first, "
            "with categorical_features=None."
        )
    tables = [
        (
            target,
            np.where(nodes["is_leaf"], -1, nodes["feature_idx"]),
            nodes["num_threshold"],
            nodes["left"],
            nodes["right"],
            nodes["missing_go_to_left"],
            nodes["value"][:, None],
        )
        for target, nodes in trees
    ]
    baseline = np.asarray(estimator._baseline_prediction).ravel()
    link = _LINKS.get(type(estimator._loss.link).__name__, "softmax")
    classes = getattr(estimator, "classes_", None)
    return Trees(_list_trees(tables, len(baseline)), baseline, link, classes, float32=False)


def _read_forest(forest: Any) -> Trees:
    if forest.n_outputs_ > 1:
        raise ValueError(f"A {type(forest).__name__} must have one output. Got {forest.n_outputs_} instead.")
    tables = []
    for one in forest.estimators_:
        tree = one.tree_
        values = tree.value[:, 0, :]
        shares = values / values.sum(axis=1, keepdims=True)
        goes_left = getattr(tree, "missing_go_to_left", np.zeros(tree.node_count))
        features = np.where(tree.children_left < 0, -1, tree.feature)
        tables.append((0, features, tree.threshold, tree.children_left, tree.children_right, goes_left, shares))
    n_classes = len(forest.classes_)
    return Trees(_list_trees(tables, n_classes), np.zeros(n_classes), "shares", forest.classes_, float32=True)


def _list_trees(tables: Sequence[Any], n_targets: int) -> dict[str, Any]:
    """The attributes of a TreeEnsembleRegressor.

    Parameters
    ----------
    tables : sequence of (target, features, thresholds, left, right, goes_left, values)
        Arrays with an entry a node; the feature of a leaf is -1; values are (nodes, 1) for one target, or for all.
    """
    import onnx

    lists: dict[str, list[Any]] = defaultdict(list)
    for number, (target, features, thresholds, left, right, goes_left, values) in enumerate(tables):
        leaf = features < 0
        columns = {
            "treeids": np.full(len(leaf), number),
            "nodeids": np.arange(len(leaf)),
            "featureids": np.where(leaf, 0, features),
            "values": np.where(leaf, 0.0, thresholds),
            "truenodeids": np.where(leaf, 0, left),
            "falsenodeids": np.where(leaf, 0, right),
            "missing_value_tracks_true": np.where(leaf, 0, goes_left),
        }
        for name, column in columns.items():
            lists[f"nodes_{name}"] += column.tolist()
        lists["nodes_modes"] += ["LEAF" if one else "BRANCH_LEQ" for one in leaf]
        for node in np.flatnonzero(leaf).tolist():
            for position, value in enumerate(values[node].tolist()):
                lists["target_treeids"].append(number)
                lists["target_nodeids"].append(node)
                lists["target_ids"].append(target + position)
                lists["target_weights"].append(value)
    attributes: dict[str, Any] = {**lists, "n_targets": n_targets, "post_transform": "NONE"}
    for name in ("nodes_values", "target_weights"):
        values = np.array(attributes.pop(name), np.float64)
        attributes[f"{name}_as_tensor"] = onnx.numpy_helper.from_array(values, name)
    return attributes


def read_calibration(calibrated: Any, n_classes: int, *, from_probabilities: bool) -> Calibration:
    """The calibrators of one classifier of a CalibratedClassifierCV.

    Raises
    ------
    ValueError
        If it was calibrated by an isotonic regression, whose steps round another way in float32, or has not seen all
        classes.
    """
    if len(calibrated.estimator.classes_) != n_classes:
        raise ValueError(
            f"Every part of a CalibratedClassifierCV must have seen all {n_classes} classes. Got one with "
            f"{len(calibrated.estimator.classes_)} instead; use fewer folds or ensemble=False."
        )
    calibrators = calibrated.calibrators
    if calibrated.method == "temperature":
        return Calibration(np.array([calibrators[0].beta_]), None, from_probabilities, n_classes)
    if calibrated.method != "sigmoid":
        raise ValueError(
            f'The method of a CalibratedClassifierCV must be "sigmoid" or "temperature". Got {calibrated.method!r} '
            "instead, whose steps turn a difference in the last bit into another probability."
        )
    slope = np.array([one.a_ for one in calibrators])
    return Calibration(slope, np.array([one.b_ for one in calibrators]), from_probabilities, n_classes)


_READERS: dict[tuple[type, ...], Callable[[Any], Any]] = {
    (Affine,): _read_affine,
    (SimpleImputer,): _read_imputer,
    (SVC, NuSVC, SVR, NuSVR): read_kernel_machine,
    (HistGradientBoostingClassifier, HistGradientBoostingRegressor): _read_boosting,
    (RandomForestClassifier, ExtraTreesClassifier): _read_forest,
    tuple(_LINEAR): _read_linear,
}
READ = tuple(kind for kinds in _READERS for kind in kinds)  # what `find_operator` reads

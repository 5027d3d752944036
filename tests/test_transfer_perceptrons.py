"""Multilayer perceptrons that start from fitted ones: scikit-learn's without a source, pulled to it with one."""

import pickle
import re

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, PolynomialFeatures, QuantileTransformer, StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.estimator_checks import check_estimator

from sktransfer import TransferMLPClassifier, TransferMLPRegressor
from sktransfer.transfer.networks import Objective, Pull, compute_outputs, draw_parameters
from sktransfer.transfer.training import Rows

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RANDOM = np.random.RandomState(0)
X = RANDOM.normal(size=(90, 5))
SIGNAL = X[:, 0] + X[:, 1] ** 2
WEIGHTS = RANDOM.uniform(0.1, 2, len(X))
LABELS = {
    "binary": (SIGNAL > 0.7).astype(int),
    "multiclass": np.digitize(SIGNAL, [0, 1.5]) + 7,
    "multilabel": np.stack([SIGNAL > 0.7, X[:, 2] > 0], axis=1).astype(int),
}
SOLVERS = {
    "adam": {},
    "adam in batches": {"batch_size": 16, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-4},
    "unshuffled": {"batch_size": 16, "shuffle": False},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.1},
    "without nesterov": {"solver": "sgd", "learning_rate_init": 0.1, "nesterovs_momentum": False},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.5, "power_t": 0.3},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.2, "tol": 0.01},
    "lbfgs": {"solver": "lbfgs", "alpha": 0.1},
    "early stopping": {"early_stopping": True, "learning_rate_init": 0.05},
    "early stopping of sgd": {"solver": "sgd", "early_stopping": True, "validation_fraction": 0.3},
    "logistic": {"activation": "logistic", "hidden_layer_sizes": (5, 4)},
    "tanh": {"activation": "tanh", "alpha": 1.0},
    "identity": {"activation": "identity", "n_iter_no_change": 2, "tol": 0.01},
    "no hidden layer": {"hidden_layer_sizes": ()},
}


def settings(**changed):
    return {"hidden_layer_sizes": (6,), "max_iter": 25, "random_state": 3} | changed


def flatten(network):
    return np.concatenate([array.ravel() for array in [*network.coefs_, *network.intercepts_]])


def assert_same_training(ours, theirs, tolerance=1e-10):
    np.testing.assert_allclose(flatten(ours), flatten(theirs), rtol=tolerance, atol=tolerance)
    assert (ours.n_iter_, ours.t_, ours.n_layers_) == (theirs.n_iter_, theirs.t_, theirs.n_layers_)
    assert (ours.n_outputs_, ours.out_activation_) == (theirs.n_outputs_, theirs.out_activation_)
    assert ours.loss_ == pytest.approx(theirs.loss_, rel=tolerance)
    for name in ("loss_curve_", "best_loss_", "validation_scores_", "best_validation_score_"):
        expected = getattr(theirs, name, None)
        assert expected is None or getattr(ours, name) == pytest.approx(expected, rel=tolerance), name


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    order = np.random.RandomState(0).permutation(len(X))
    return X[order], np.array(["setosa", "versicolor", "virginica"])[y[order]]


@pytest.fixture(scope="module")
def source(iris):
    return MLPClassifier((6,), activation="tanh", solver="lbfgs", alpha=1, max_iter=500, random_state=0).fit(*iris)


@pytest.fixture(scope="module")
def regressor():
    y = np.sin(X[:, 0]) + X[:, 1]
    return MLPRegressor(hidden_layer_sizes=(6,), solver="lbfgs", activation="tanh", random_state=0).fit(X, y)


# Without a source


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_without_a_source_the_classifier_is_that_of_scikit_learn(solver, kind):
    kwargs = settings(**SOLVERS[solver])
    ours, theirs = TransferMLPClassifier(**kwargs), MLPClassifier(**kwargs)
    weights = WEIGHTS if solver in {"adam", "lbfgs", "early stopping"} else None
    assert_same_training(ours.fit(X, LABELS[kind], weights), theirs.fit(X, LABELS[kind], weights))
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    np.testing.assert_allclose(ours.predict_log_proba(X), theirs.predict_log_proba(X))


@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_without_a_source_the_regressor_is_that_of_scikit_learn(solver, loss):
    kwargs = settings(loss=loss, **{**SOLVERS[solver], "learning_rate_init": 0.01})
    y = SIGNAL if loss == "squared_error" else np.exp(SIGNAL / 3).round()
    ours, theirs = TransferMLPRegressor(**kwargs).fit(X, y), MLPRegressor(**kwargs).fit(X, y)
    assert_same_training(ours, theirs)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X))


@pytest.mark.parametrize("container", [scipy.sparse.csr_matrix, scipy.sparse.csc_array])
def test_without_a_source_sparse_rows_train_as_in_scikit_learn(container):
    rows, y = container(np.where(np.abs(X) > 0.5, X, 0)), LABELS["multiclass"]
    ours, theirs = TransferMLPClassifier(**settings()), MLPClassifier(**settings())
    assert_same_training(ours.fit(rows, y), theirs.fit(rows, y))


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_float32_is_trained_in_float32(solver):
    rows, y, kwargs = X.astype(np.float32), LABELS["binary"], settings(solver=solver, max_iter=10)
    ours = TransferMLPClassifier(**kwargs).fit(rows, y)
    assert_same_training(ours, MLPClassifier(**kwargs).fit(rows, y), tolerance=1e-4)
    assert {array.dtype for array in [*ours.coefs_, *ours.intercepts_]} == {np.dtype(np.float32)}
    assert ours.predict_proba(rows).dtype == np.float32


def test_parts_train_as_in_scikit_learn():
    ours, theirs = TransferMLPClassifier(**settings()), MLPClassifier(**settings())
    y = LABELS["multiclass"]
    for rows in (slice(0, 30), slice(30, 60), slice(60, 90)):
        ours.partial_fit(X[rows], y[rows], classes=[7, 8, 9])
        theirs.partial_fit(X[rows], y[rows], classes=[7, 8, 9])
    assert_same_training(ours, theirs)


def test_a_warm_start_goes_on_as_in_scikit_learn():
    ours, theirs = (Kind(**settings(warm_start=True)) for Kind in (TransferMLPRegressor, MLPRegressor))
    for y in (SIGNAL, -SIGNAL):
        assert_same_training(ours.fit(X, y), theirs.fit(X, y))


def test_several_outputs_take_the_steps_of_scikit_learn_and_state_the_sum_of_their_losses():
    y = np.stack([SIGNAL, X[:, 2]], axis=1)
    kwargs = settings(tol=0, alpha=0)
    ours, theirs = TransferMLPRegressor(**kwargs).fit(X, y), MLPRegressor(**kwargs).fit(X, y)
    np.testing.assert_allclose(flatten(ours), flatten(theirs))
    np.testing.assert_allclose(ours.loss_curve_, 2 * np.array(theirs.loss_curve_))  # scikit-learn's issue 8349
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X))


def test_several_outputs_converge_under_lbfgs():
    y = np.stack([SIGNAL, X[:, 2], X[:, 3]], axis=1)
    head = TransferMLPRegressor(**settings(solver="lbfgs", hidden_layer_sizes=(), alpha=5, tol=1e-10)).fit(X, y)
    centred = X - X.mean(axis=0)
    expected = np.linalg.solve(centred.T @ centred + 5 * np.eye(5), centred.T @ (y - y.mean(axis=0)))
    np.testing.assert_allclose(head.coefs_[0], expected, atol=1e-4)


# The objective


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("activation", ["identity", "logistic", "relu", "tanh"])
@pytest.mark.parametrize("out_activation", ["identity", "exp", "softmax", "logistic"])
def test_gradients_are_those_of_the_objective(activation, out_activation, weighted):
    random = np.random.RandomState(1)
    parameters, anchors = (draw_parameters(random, [5, 4, 3, 2], activation, float) for _ in range(2))
    pull = Pull(anchors, [np.full(size, weight) for size, weight in ((4, 0.5), (3, 0.0), (2, 7.0))] * 2)
    y = np.abs(X[:, :2]).round() if out_activation in {"identity", "exp"} else np.eye(2)[LABELS["binary"]]
    objective, weights = Objective(activation, out_activation, 0.3, pull), WEIGHTS if weighted else None
    n = WEIGHTS.sum() if weighted else len(X)
    gradients = objective.evaluate(parameters, X, y, weights)[1]
    for array, gradient, force in zip(parameters, gradients, pull.gradients(parameters), strict=True):
        array.flat[1] += 1e-6
        above = objective.evaluate(parameters, X, y, weights)[0]
        array.flat[1] -= 2e-6
        below = objective.evaluate(parameters, X, y, weights)[0]
        array.flat[1] += 1e-6
        assert (gradient + force / n).flat[1] == pytest.approx((above - below) / 2e-6, rel=1e-5, abs=1e-7)


def objective_of(head, source, X, y, weights, alpha, source_weight):
    """The objective of the documentation for two layers and log loss, written out."""
    probabilities = head.predict_proba(X)[np.arange(len(X)), np.searchsorted(head.classes_, y)]
    loss = -(weights * np.log(probabilities)).sum()
    loss += alpha / 2 * sum((array**2).sum() for array in head.coefs_)
    for weight, layer in zip(source_weight, range(2), strict=True):
        loss += weight / 2 * ((head.coefs_[layer] - source.coefs_[layer]) ** 2).sum()
        loss += weight / 2 * ((head.intercepts_[layer] - source.intercepts_[layer]) ** 2).sum()
    return loss / weights.sum()


def test_the_stated_loss_is_the_objective(iris, source):
    X, y = iris[0][:40], np.roll(iris[1][:40], 1)
    weights = WEIGHTS[:40]
    head = TransferMLPClassifier(source, source_weight=[2, 0.5], alpha=0.3, tol=1e-6).fit(X, y, weights)
    assert head.loss_ == pytest.approx(objective_of(head, source, X, y, weights, 0.3, [2, 0.5]))
    assert head.loss_curve_[-1] == head.best_loss_ == head.loss_


def test_class_weights_multiply_sample_weights(iris, source):
    X, y = iris[0][:60], iris[1][:60]
    class_weight = {"setosa": 3.0, "virginica": 0.5}
    head = TransferMLPClassifier(source, class_weight=class_weight).fit(X, y, WEIGHTS[:60])
    weights = WEIGHTS[:60] * compute_sample_weight(class_weight, y)
    np.testing.assert_array_equal(flatten(head), flatten(TransferMLPClassifier(source).fit(X, y, weights)))


def test_balanced_weights_count_a_row_of_weight_two_twice(iris, source):
    X, y = iris[0][:60], iris[1][:60]
    twice = np.r_[np.arange(60), np.arange(20)]
    kwargs = {"class_weight": "balanced", "solver": "lbfgs"}
    weighted = TransferMLPClassifier(source, **kwargs).fit(X, y, np.bincount(twice))
    repeated = TransferMLPClassifier(source, **kwargs).fit(X[twice], y[twice])
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-6)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_balanced_weights_ignore_a_class_whose_rows_weigh_nothing(iris, source):
    X, y = iris
    weights = (y != "setosa").astype(float)
    head = TransferMLPClassifier(source, class_weight="balanced").fit(X, y, weights)
    weights[y != "setosa"] = compute_sample_weight("balanced", y[y != "setosa"]) * 2 / 3  # of three classes
    np.testing.assert_allclose(flatten(head), flatten(TransferMLPClassifier(source).fit(X, y, weights)))


def test_the_loss_is_stated_where_the_training_starts_at_the_minimum(iris, source):
    head = TransferMLPClassifier(source, tol=1e6).fit(*iris)
    assert (head.n_iter_, head.loss_curve_) == (0, [])
    assert head.best_loss_ == head.loss_ == pytest.approx(source.loss_)


# The pull


@pytest.mark.parametrize("source_weight", [1e8, 1e15])
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_a_large_source_weight_gives_the_predictions_of_the_source(iris, source, solver, source_weight):
    X, y = iris[0][:50], np.roll(iris[1][:50], 1)
    head = TransferMLPClassifier(source, source_weight=source_weight, solver=solver, learning_rate_init=0.5).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X), source.predict_proba(X), atol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_no_source_weight_is_too_large(iris, source, solver, dtype):
    X, y = iris[0][:50].astype(dtype), np.roll(iris[1][:50], 1)
    head = TransferMLPClassifier(source, source_weight=1e300, solver=solver, momentum=1).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X), source.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_a_layer_of_large_weight_stays_and_the_others_move(iris, source, solver):
    X, y = iris[0][:50], np.roll(iris[1][:50], 1)
    head = TransferMLPClassifier(source, source_weight=[1e12, 0], solver=solver, learning_rate_init=0.1).fit(X, y)
    np.testing.assert_allclose(head.coefs_[0], source.coefs_[0], atol=1e-7)
    assert np.abs(head.coefs_[1] - source.coefs_[1]).max() > 0.1


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_source_weight_of_zero_starts_at_the_source_and_then_trains_as_a_warm_start(iris, source, solver):
    X, y = iris[0][:50], iris[1][:50]
    kwargs = {"solver": solver, "random_state": 0, "max_iter": 5}
    head = TransferMLPClassifier(source, source_weight=0, **kwargs).fit(X, y)
    copied = pickle.loads(pickle.dumps(source)).set_params(warm_start=True, **kwargs)
    copied.loss_curve_, copied._no_improvement_count, copied.best_loss_ = [], 0, np.inf
    copied.validation_scores_ = copied.best_validation_score_ = None
    np.testing.assert_allclose(flatten(head), flatten(copied.fit(X, y)))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"solver": "lbfgs", "tol": 1e-12},
        {"solver": "sgd", "learning_rate_init": 0.1},
        {"solver": "sgd", "learning_rate_init": 0.1, "momentum": 0, "nesterovs_momentum": False},
        {"solver": "adam", "learning_rate_init": 0.02},
    ],
)
def test_all_solvers_find_the_minimum_of_a_linear_problem_in_closed_form(kwargs):
    y, source_weight, alpha = SIGNAL, 20.0, 3.0
    base = MLPRegressor(hidden_layer_sizes=(), solver="lbfgs").fit(X, X[:, 3] - 2)
    head = TransferMLPRegressor(
        base, source_weight=source_weight, alpha=alpha, **{"tol": 0, "max_iter": 2000} | kwargs
    ).fit(X, y)
    rows, before = np.c_[X, np.ones(len(X))], np.r_[base.coefs_[0][:, 0], base.intercepts_[0]]
    penalty = np.diag([alpha] * 5 + [0]) + source_weight * np.eye(6)
    expected = np.linalg.solve(rows.T @ rows + penalty, rows.T @ y + source_weight * before)
    np.testing.assert_allclose(np.r_[head.coefs_[0][:, 0], head.intercepts_[0]], expected, atol=1e-5)


@pytest.mark.parametrize("kwargs", [{"solver": "sgd", "learning_rate_init": 0.1}, {"learning_rate_init": 0.05}])
def test_stochastic_solvers_end_where_objective_and_pull_balance(iris, source, kwargs):
    X, y = iris[0][:60], np.roll(iris[1][:60], 1)
    head = TransferMLPClassifier(source, source_weight=[0.5, 5], alpha=0.1, tol=0, max_iter=3000)
    head.set_params(**{"solver": "adam"} | kwargs).fit(X, y)
    pull = Pull(source.coefs_ + source.intercepts_, [np.full(6, 0.5), np.full(3, 5.0)] * 2)
    parameters = head.coefs_ + head.intercepts_
    gradients = Objective("tanh", "softmax", 0.1).evaluate(parameters, X, np.equal.outer(y, head.classes_), None)[1]
    for gradient, force in zip(gradients, pull.gradients(parameters), strict=True):
        np.testing.assert_allclose(gradient + force / 60, 0, atol=1e-5)


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0, 1e300), st.floats(1e-8, 1e3), st.floats(0.1, 1e6))
def test_a_proximal_step_ends_between_the_weight_and_that_of_the_source(weight, before, strength, step, n):
    moved = np.array([weight])
    Pull([np.array([before])], [np.array([strength])]).shrink(0, moved, step, n)
    low, high = sorted([weight, before])
    assert low - 1e-14 <= moved[0] <= high + 1e-14


# Classes


def frozen_at(source, X, y, **kwargs):
    return TransferMLPClassifier(source, source_weight=1e12, max_iter=3, random_state=0, **kwargs).fit(X, y)


def test_classes_are_matched_by_label_and_new_units_are_free(iris, source):
    X, y = iris[0], np.where(iris[1] == "setosa", "alba", iris[1])
    head = frozen_at(source, X, y, solver="adam", learning_rate_init=1e-12)
    assert head.unused_source_classes_.tolist() == ["setosa"]
    np.testing.assert_allclose(head.coefs_[1][:, 1:], source.coefs_[1][:, 1:], atol=1e-7)
    fresh = draw_parameters(np.random.RandomState(0), [6, 3], "tanh", float)
    np.testing.assert_allclose(head.coefs_[1][:, 0], fresh[0][:, 0], atol=1e-7)


def test_a_source_of_two_classes_gives_its_odds_to_more(iris):
    X, y = iris
    two = y != "virginica"
    binary = MLPClassifier((6,), solver="lbfgs", alpha=1, random_state=0).fit(X[two], y[two])
    shares = frozen_at(binary, X, y).predict_proba(X)
    np.testing.assert_allclose(shares[:, 1] / shares[:, :2].sum(axis=1), binary.predict_proba(X)[:, 1], atol=1e-6)


def test_a_source_of_more_classes_gives_its_odds_to_two(iris, source):
    X, y = iris
    two = y != "versicolor"
    head = frozen_at(source, X[two], y[two])
    expected = source.predict_proba(X)[:, [0, 2]]
    np.testing.assert_allclose(head.predict_proba(X), expected / expected.sum(axis=1, keepdims=True), atol=1e-6)
    assert head.unused_source_classes_.tolist() == ["versicolor"]


def test_the_unit_of_two_classes_is_new_if_the_source_lacks_one(iris, source):
    X, y = iris
    head = frozen_at(source, X, np.where(y == "setosa", "setosa", "rosa"), learning_rate_init=1e-12, solver="adam")
    fresh = draw_parameters(np.random.RandomState(0), [6, 1], "tanh", float)
    np.testing.assert_allclose(head.coefs_[1], fresh[0], atol=1e-7)
    np.testing.assert_allclose(head.coefs_[0], source.coefs_[0], atol=1e-7)


@pytest.mark.parametrize(("kind", "kept"), [("multilabel", True), ("multiclass", False), ("binary", False)])
def test_labels_of_a_multilabel_source_are_kept_under_multilabel_y_alone(kind, kept):
    labels = MLPClassifier((6,), solver="lbfgs", random_state=0).fit(X, LABELS["multilabel"])
    head = frozen_at(labels, X, LABELS[kind])
    np.testing.assert_allclose(head.coefs_[0], labels.coefs_[0], atol=1e-7)
    same = head.coefs_[1].shape == labels.coefs_[1].shape and np.allclose(head.coefs_[1], labels.coefs_[1])
    assert same == kept


def test_a_single_class_is_learnt(iris, source):
    head = TransferMLPClassifier(source).fit(iris[0][:9], ["setosa"] * 9)
    assert set(head.predict(iris[0])) == {"setosa"}
    np.testing.assert_array_equal(head.predict_proba(iris[0]), np.ones((150, 1)))


# Regression


def test_a_regressor_of_the_same_outputs_keeps_all_layers(regressor):
    head = TransferMLPRegressor(regressor, source_weight=1e12, max_iter=3).fit(X, -SIGNAL)
    np.testing.assert_allclose(head.predict(X), regressor.predict(X), atol=1e-6)


@pytest.mark.parametrize(("loss", "n_outputs"), [("squared_error", 2), ("poisson", 1)])
def test_a_regressor_of_other_outputs_keeps_the_hidden_layers(regressor, loss, n_outputs):
    y = np.abs(X[:, :2] if n_outputs == 2 else X[:, 0])
    head = TransferMLPRegressor(regressor, loss=loss, source_weight=1e12, max_iter=50).fit(X, y)
    np.testing.assert_allclose(head.coefs_[0], regressor.coefs_[0], atol=1e-7)
    assert head.out_activation_ == {"squared_error": "identity", "poisson": "exp"}[loss]
    assert head.predict(X).shape == ((90, 2) if n_outputs == 2 else (90,))


def test_hidden_layers_go_from_classification_to_regression_and_back(iris, source):
    X, y = iris
    middle = TransferMLPRegressor(source, source_weight=1e12, max_iter=3).fit(X, X[:, 0])
    head = TransferMLPClassifier(middle, source_weight=1e12, max_iter=3).fit(X, y)
    np.testing.assert_allclose(middle.coefs_[0], source.coefs_[0], atol=1e-7)
    np.testing.assert_allclose(head.coefs_[0], source.coefs_[0], atol=1e-7)
    assert head.unused_source_classes_.tolist() == []


# Structure and features


def test_structure_takes_layers_and_parameters_and_draws_new_weights(source):
    y = LABELS["binary"]
    head = TransferMLPClassifier(source, transfer="structure", random_state=4).fit(X, y)
    kwargs = {name: value for name, value in source.get_params().items() if name != "random_state"}
    assert_same_training(head, MLPClassifier(**kwargs, random_state=4).fit(X, y))


def test_structure_may_be_changed(source):
    head = TransferMLPClassifier(source, transfer="structure", hidden_layer_sizes=[3, 2], activation="relu")
    assert [array.shape for array in head.fit(X, LABELS["binary"]).coefs_] == [(5, 3), (3, 2), (2, 1)]
    assert head.activation_ == "relu"


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_features_are_frozen_and_a_linear_model_is_trained_on_them(iris, source, solver):
    X, y = iris[0], np.unique(iris[1], return_inverse=True)[1]
    kwargs = {"solver": solver, "random_state": 1, "early_stopping": solver == "adam"}
    head = TransferMLPClassifier(source, transfer="features", **kwargs).fit(X, y)
    np.testing.assert_array_equal(head.coefs_[0], source.coefs_[0])
    np.testing.assert_array_equal(head.intercepts_[0], source.intercepts_[0])
    hidden = np.tanh(X @ source.coefs_[0] + source.intercepts_[0])
    linear = MLPClassifier((), alpha=1, max_iter=500, **kwargs).fit(hidden, y)
    np.testing.assert_allclose(head.predict_proba(X), linear.predict_proba(hidden), rtol=1e-10)


def test_a_warm_start_may_thaw_frozen_features(iris, source):
    X, y = iris[0][:60], np.roll(iris[1][:60], 1)
    head = TransferMLPClassifier(source, transfer="features", warm_start=True).fit(X, y)
    frozen = head.loss_
    head.set_params(transfer="parameters", source_weight=[0.1, 0]).fit(X, y)
    assert head.loss_ < frozen
    assert not np.array_equal(head.coefs_[0], source.coefs_[0])


# Pipelines and other sources


@pytest.mark.parametrize("scalers", [[StandardScaler()], [MaxAbsScaler(), StandardScaler()]])
def test_scalers_in_front_of_a_source_are_folded_into_its_first_layer(iris, scalers):
    X, y = iris[0] * [1, 10, 100, 1000] + 5, iris[1]
    pipeline = make_pipeline(*scalers, MLPClassifier((6,), solver="lbfgs", alpha=1, random_state=0)).fit(X, y)
    head = TransferMLPClassifier(pipeline, source_weight=1e12, max_iter=3).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X), pipeline.predict_proba(X), atol=1e-5)


def test_the_source_s_scaler_may_stay_in_front_frozen(iris):
    X, y = iris[0] * [1, 10, 100, 1000] + 5, iris[1]
    pipeline = make_pipeline(StandardScaler(), MLPClassifier((6,), solver="lbfgs", alpha=1, random_state=0)).fit(X, y)
    head = TransferMLPClassifier(pipeline[-1], source_weight=1e12, max_iter=3)
    both = make_pipeline(FrozenEstimator(pipeline[:-1]), head).fit(X[:60], y[:60])
    np.testing.assert_allclose(both.predict_proba(X), pipeline.predict_proba(X), atol=1e-5)


def test_another_scaler_in_front_of_a_folded_source_is_noticed(iris):
    X, y = iris[0] * 10 + 5, iris[1]
    pipeline = make_pipeline(StandardScaler(), MLPClassifier((6,), max_iter=5)).fit(X, y)
    with pytest.warns(UserWarning, match=r"X looks standardised, .* scaler=StandardScaler\(\) instead"):
        make_pipeline(StandardScaler(), TransferMLPClassifier(pipeline)).fit(X[:60], y[:60])


def test_a_step_that_is_not_affine_is_refused_in_a_sentence(iris):
    pipeline = make_pipeline(PolynomialFeatures(), MLPClassifier((6,), max_iter=2)).fit(*iris)
    with pytest.raises(ValueError, match="must be affine .* Got step 'polynomialfeatures'"):
        TransferMLPClassifier(pipeline).fit(*iris)


def test_a_search_may_be_the_source(iris):
    search = GridSearchCV(MLPClassifier((6,), max_iter=5, random_state=0), {"alpha": [1, 2]}, cv=2).fit(*iris)
    head = TransferMLPClassifier(search, source_weight=1e12).fit(*iris)
    np.testing.assert_allclose(head.predict_proba(iris[0]), search.predict_proba(iris[0]), atol=1e-5)


def test_a_clone_keeps_the_source_by_reference(source):
    head = TransferMLPClassifier(source)
    assert clone(head).source.estimator is source
    assert clone(head).set_params(source=source).source.estimator is source


def test_the_source_is_never_changed(iris, source):
    before = pickle.dumps(source)
    for transfer in ("parameters", "features", "structure"):
        TransferMLPClassifier(source, transfer=transfer, solver="adam").fit(*iris).partial_fit(*iris)
    assert pickle.dumps(source) == before


def test_an_estimator_is_no_source_of_its_own(iris, source):
    head = TransferMLPClassifier(source, solver="adam", max_iter=2).fit(*iris)
    later = TransferMLPClassifier(head).fit(*iris)
    head.set_params(source=later)  # which has head as its source
    assert hasattr(head, "partial_fit")
    assert head.fit(*iris).score(*iris) > 0.9
    with pytest.raises(ValueError, match="source must be another estimator. Got the estimator itself"):
        head.set_params(source=head).fit(*iris)


def test_a_search_chooses_source_weight_and_source(iris, source):
    X, y = iris[0][:60], iris[1][:60]
    other = FrozenEstimator(MLPClassifier((3,), max_iter=5, random_state=0).fit(X, y))
    grid = {"source_weight": [0.01, 1, 100], "source": [FrozenEstimator(source), other]}
    search = GridSearchCV(TransferMLPClassifier(max_iter=20), grid, cv=2).fit(X, y)
    assert search.best_params_["source"].estimator is source
    assert search.best_score_ > 0.9


def test_a_chain_of_tasks_inherits_weights_and_parameters(iris, source):
    X, y = iris
    first = TransferMLPClassifier(source, alpha=0.25).fit(X[:60], y[:60])
    second = TransferMLPClassifier(first, source_weight=1e12).fit(X[60:], y[60:])
    np.testing.assert_allclose(second.predict_proba(X), first.predict_proba(X), atol=1e-5)
    fresh = TransferMLPClassifier(first, transfer="structure", random_state=0).fit(X, y)
    same = MLPClassifier((6,), activation="tanh", solver="lbfgs", alpha=0.25, max_iter=500, random_state=0)
    assert_same_training(fresh, same.fit(X, y))


def test_pickling_keeps_head_and_source(iris, source):
    X, y = iris
    head = TransferMLPClassifier(source, solver="adam", max_iter=5, random_state=0).fit(X[:60], y[:60])
    loaded = pickle.loads(pickle.dumps(head))
    np.testing.assert_array_equal(loaded.predict_proba(X), head.predict_proba(X))
    assert_same_training(loaded.fit(X[60:], y[60:]), head.fit(X[60:], y[60:]))


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_skops_carries_a_head_without_a_pickle(pipeline, solver):
    skops = pytest.importorskip("skops.io")
    y = LABELS["multiclass"]
    head = TransferMLPClassifier(pipeline, scaler=StandardScaler(), solver=solver, max_iter=3).fit(RAW, y)
    data = skops.dumps(head)
    trusted = skops.get_untrusted_types(data=data)
    assert [name for name in trusted if not name.startswith("sktransfer.")] == []
    loaded = skops.loads(data, trusted=trusted)
    np.testing.assert_array_equal(loaded.predict_proba(RAW), head.predict_proba(RAW))
    assert_same_training(loaded.partial_fit(RAW, y), head.partial_fit(RAW, y))


def test_fitting_a_loaded_network_forgets_what_it_had_learnt_and_a_transfer_does_not(iris, source):
    X, y = iris[0][:5], iris[1][:5]
    loaded = pickle.loads(pickle.dumps(source))
    anew = clone(source).fit(X, y)
    np.testing.assert_array_equal(flatten(loaded.fit(X, y)), flatten(anew))
    head = TransferMLPClassifier(source).fit(X, y)
    assert head.score(*iris) > loaded.score(*iris) + 0.05


# Scaled features


RAW = X * [1, 10, 100, 1000, 1e-3] + [5, 0, 1000, 1, 0]
THREE = {"adam": {}, "sgd": {"solver": "sgd", "learning_rate_init": 0.1}, "lbfgs": {"solver": "lbfgs", "alpha": 0.1}}


@pytest.fixture(scope="module")
def pipeline():
    network = MLPClassifier((6,), activation="tanh", solver="lbfgs", alpha=1, random_state=0)
    return make_pipeline(StandardScaler(), network).fit(RAW, LABELS["multiclass"])


@pytest.mark.parametrize("solver", [*THREE, "early stopping", "no hidden layer"])
@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_without_a_source_the_scaler_does_what_a_pipeline_s_does(solver, kind):
    Ours, Theirs, y = {
        "classifier": (TransferMLPClassifier, MLPClassifier, LABELS["multiclass"]),
        "regressor": (TransferMLPRegressor, MLPRegressor, SIGNAL),
    }[kind]
    kwargs = settings(**SOLVERS[solver])
    ours = Ours(scaler=StandardScaler(), **kwargs).fit(RAW, y)
    theirs = make_pipeline(StandardScaler(), Theirs(**kwargs)).fit(RAW, y)
    np.testing.assert_allclose(ours.predict(RAW), theirs.predict(RAW), rtol=1e-9, atol=1e-9)
    assert ours.loss_ == pytest.approx(theirs[-1].loss_)
    if solver == "early stopping":
        np.testing.assert_allclose(ours.validation_scores_, theirs[-1].validation_scores_)


@pytest.mark.parametrize("solver", THREE)
def test_under_a_scaler_a_large_source_weight_gives_the_predictions_of_the_source(pipeline, solver):
    rows, y = RAW[:30] * 3 + 1, np.roll(LABELS["multiclass"][:30], 1)
    head = TransferMLPClassifier(pipeline, source_weight=1e8, scaler=StandardScaler(), **THREE[solver]).fit(rows, y)
    np.testing.assert_allclose(head.predict_proba(RAW), pipeline.predict_proba(RAW), atol=1e-5)


def test_pull_and_penalty_hold_for_weights_of_scaled_features():
    base = MLPRegressor(hidden_layer_sizes=(), solver="lbfgs", tol=1e-3).fit(X, X[:, 3] - 2)
    target = X * [1, 2, 3, 4, 5] + 6
    kwargs = {"source_weight": 20, "alpha": 3, "solver": "lbfgs", "tol": 1e-10, "max_iter": 2000}
    head = TransferMLPRegressor(base, scaler=StandardScaler(), **kwargs).fit(target, SIGNAL)
    scale, mean = target.std(axis=0), target.mean(axis=0)
    rows = np.c_[(target - mean) / scale, np.ones(len(X))]
    before = np.r_[base.coefs_[0][:, 0] * scale, base.intercepts_[0] + mean @ base.coefs_[0]]
    penalty = np.diag([3] * 5 + [0]) + 20 * np.eye(6)
    expected = np.linalg.solve(rows.T @ rows + penalty, rows.T @ SIGNAL + 20 * before)
    np.testing.assert_allclose(head.predict(target), rows @ expected, atol=1e-5)


def test_features_stay_those_of_the_source_under_a_scaler(iris, source):
    X, y = iris[0] * 3 + 1, iris[1]
    scaled, plain = (
        TransferMLPClassifier(source, transfer="features", scaler=scaler, random_state=0).fit(X, y)
        for scaler in (StandardScaler(), None)
    )
    np.testing.assert_array_equal(scaled.coefs_[0], source.coefs_[0])
    np.testing.assert_array_equal(scaled.intercepts_[0], source.intercepts_[0])
    np.testing.assert_array_equal(flatten(scaled), flatten(plain))


@pytest.mark.parametrize("solver", THREE)
def test_a_warm_start_goes_on_in_scaled_features(solver):
    kwargs = settings(warm_start=True, **THREE[solver])
    ours, scaler = TransferMLPRegressor(scaler=StandardScaler(), **kwargs), StandardScaler().fit(RAW)
    theirs = MLPRegressor(**kwargs)
    for y in (SIGNAL, -SIGNAL):
        ours.fit(RAW, y)
        theirs.fit(scaler.transform(RAW), y)
    np.testing.assert_allclose(ours.predict(RAW), theirs.predict(scaler.transform(RAW)), rtol=1e-6, atol=1e-8)


def test_a_warm_start_on_rows_of_another_scale_begins_where_it_was():
    head = TransferMLPRegressor(scaler=StandardScaler(), warm_start=True, **settings()).fit(RAW, SIGNAL)
    before = head.predict(RAW)
    head.set_params(learning_rate_init=1e-12, max_iter=1).fit(RAW[:20] * 3 + 1, SIGNAL[:20])
    np.testing.assert_allclose(head.predict(RAW), before, atol=1e-8)
    np.testing.assert_allclose(head.scaler_.mean_, (RAW[:20] * 3 + 1).mean(axis=0))


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("frozen", [False, True])
def test_parts_keep_the_scaler_of_the_first_or_the_frozen_one(solver, frozen):
    scaler = StandardScaler().fit(RAW if frozen else RAW[:30])
    kwargs = settings(**THREE[solver])
    ours = TransferMLPRegressor(scaler=FrozenEstimator(scaler) if frozen else StandardScaler(), **kwargs)
    theirs = MLPRegressor(**kwargs)
    for rows in (slice(0, 30), slice(30, 60), slice(60, 90), slice(0, 30)):
        ours.partial_fit(RAW[rows], SIGNAL[rows])
        theirs.partial_fit(scaler.transform(RAW[rows]), SIGNAL[rows])
    np.testing.assert_allclose(ours.predict(RAW), theirs.predict(scaler.transform(RAW)), rtol=1e-9)


def test_parts_after_a_fit_keep_its_scaler_and_its_optimizer():
    ours = TransferMLPRegressor(scaler=StandardScaler(), **settings()).fit(RAW, SIGNAL)
    scaler, theirs = StandardScaler().fit(RAW), MLPRegressor(**settings())
    theirs.fit(scaler.transform(RAW), SIGNAL)
    ours.partial_fit(RAW[:20], SIGNAL[:20])
    theirs.partial_fit(scaler.transform(RAW[:20]), SIGNAL[:20])
    np.testing.assert_allclose(ours.predict(RAW), theirs.predict(scaler.transform(RAW)), rtol=1e-9)


def test_the_source_s_own_scaler_may_be_the_scaler_frozen(pipeline):
    y, kwargs = LABELS["multiclass"][:30], {"source_weight": 0.1, "alpha": 1}
    inside = TransferMLPClassifier(pipeline, scaler=FrozenEstimator(pipeline[:-1]), **kwargs).fit(RAW[:30], y)
    outside = make_pipeline(FrozenEstimator(pipeline[:-1]), TransferMLPClassifier(pipeline[-1], **kwargs))
    outside.fit(RAW[:30], y)
    np.testing.assert_allclose(inside.predict_proba(RAW), outside.predict_proba(RAW), atol=1e-6)


def test_a_head_with_a_scaler_is_a_source_for_raw_features(pipeline):
    y = LABELS["multiclass"]
    first = TransferMLPClassifier(pipeline, scaler=StandardScaler(), source_weight=0.1).fit(RAW[:40], y[:40])
    second = TransferMLPClassifier(first, scaler=MaxAbsScaler(), source_weight=1e12, max_iter=3).fit(RAW, y)
    np.testing.assert_allclose(second.predict_proba(RAW), first.predict_proba(RAW), atol=1e-5)


@pytest.mark.parametrize("solver", THREE)
def test_sparse_rows_are_scaled(solver):
    rows, y = np.where(np.abs(X) > 0.5, RAW, 0), LABELS["multiclass"]
    base = make_pipeline(MaxAbsScaler(), MLPClassifier((6,), max_iter=20, random_state=0)).fit(rows, y)
    dense, sparse = (
        TransferMLPClassifier(base, scaler=MaxAbsScaler(), max_iter=20, random_state=0, **THREE[solver]).fit(part, y)
        for part in (rows, scipy.sparse.csr_matrix(rows))
    )
    np.testing.assert_allclose(sparse.predict_proba(scipy.sparse.csr_array(rows)), dense.predict_proba(rows), rtol=1e-6)


def test_scaled_float32_stays_float32(pipeline):
    head = TransferMLPClassifier(pipeline, scaler=StandardScaler(), solver="adam", max_iter=5)
    head.fit(RAW.astype(np.float32), LABELS["multiclass"])
    assert {array.dtype for array in [*head.coefs_, *head.intercepts_]} == {np.dtype(np.float32)}


def test_a_scaler_gets_the_names_of_a_frame(pipeline):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(RAW, columns=list("abcde"))
    head = TransferMLPRegressor(scaler=StandardScaler(), max_iter=5)
    assert head.fit(frame, SIGNAL).partial_fit(frame, SIGNAL).scaler_.feature_names_in_.tolist() == list("abcde")


def test_callbacks_see_the_network_for_raw_features(pipeline):
    callback = pytest.importorskip("sklearn.callback", reason="scikit-learn 1.8 has no callbacks")
    monitor = callback.ScoringMonitor(scoring="neg_log_loss")
    head = TransferMLPClassifier(pipeline, scaler=StandardScaler(), solver="sgd", max_iter=5).set_callbacks(monitor)
    head.fit(RAW, np.roll(LABELS["multiclass"], 1))
    scores = [entry["neg_log_loss"] for entry in monitor.get_logs().data if entry["task_name"] == "epoch"]
    shares = head.predict_proba(RAW)[np.arange(90), np.roll(LABELS["multiclass"], 1) - 7]
    assert scores[-1] == pytest.approx(np.log(shares).mean())


@pytest.mark.parametrize(
    ("scaler", "error", "sentence"),
    [
        (StandardScaler, TypeError, "scaler must be None or a transformer with inverse_transform"),
        (PolynomialFeatures(), TypeError, "scaler must be None or a transformer with inverse_transform"),
        (QuantileTransformer(n_quantiles=9), ValueError, "scaler must be affine"),
        (FrozenEstimator(StandardScaler()), NotFittedError, "not fitted"),
    ],
)
@pytest.mark.parametrize("with_source", [False, True])
def test_a_scaler_that_is_none_is_refused(pipeline, scaler, error, sentence, with_source):
    with pytest.raises(error, match=sentence):
        TransferMLPClassifier(pipeline if with_source else None, scaler=scaler).fit(RAW, LABELS["multiclass"])


# Training by parts, early stopping, warm start, callbacks


def test_parts_start_from_the_source_and_are_pulled_to_it(iris, source):
    X, y = iris[0], np.roll(iris[1], 1)
    head = TransferMLPClassifier(source, source_weight=[1e12, 0], solver="sgd", learning_rate_init=0.1)
    for rows in (slice(0, 50), slice(50, 100)):
        head.partial_fit(X[rows], y[rows], classes=["setosa", "versicolor", "virginica", "alba"])
    np.testing.assert_allclose(head.coefs_[0], source.coefs_[0], atol=1e-7)
    assert 0 < np.abs(head.coefs_[1][:, 1:] - source.coefs_[1]).max() < 0.5
    assert (head.n_iter_, head.t_, len(head.loss_curve_)) == (1, 100, 2)


def test_parts_need_a_solver_of_batches_the_source_s_too(source):
    assert not hasattr(TransferMLPClassifier(source), "partial_fit")
    assert hasattr(TransferMLPClassifier(source, solver="sgd"), "partial_fit")
    with pytest.raises(AttributeError, match="no attribute 'partial_fit'") as error:
        TransferMLPRegressor(solver="lbfgs").partial_fit(X, SIGNAL)
    assert "partial_fit needs a solver that takes batches" in str(error.value.__cause__)


def test_early_stopping_keeps_the_best_weights(iris, source):
    X, y = iris
    head = TransferMLPClassifier(source, solver="sgd", learning_rate_init=2.0, early_stopping=True, random_state=0)
    head.fit(X, np.roll(y, 1))
    assert head.best_validation_score_ == max(head.validation_scores_)
    assert head.best_loss_ is None
    assert head.n_iter_ == len(head.validation_scores_) == len(head.loss_curve_)


def test_a_warm_start_is_still_pulled_to_the_source(iris, source):
    X, y = iris[0][:60], np.roll(iris[1][:60], 1)
    head = TransferMLPClassifier(source, source_weight=0, warm_start=True).fit(X, y)
    head.set_params(source_weight=1e10).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X), source.predict_proba(X), atol=1e-4)


def test_a_batch_of_weight_zero_teaches_nothing(iris, source):
    X, y = iris[0][:40], iris[1][:40]
    weights = np.r_[np.ones(20), np.zeros(20)]
    kwargs = {"solver": "sgd", "batch_size": 20, "shuffle": False, "max_iter": 5}
    weighted = TransferMLPClassifier(source, **kwargs).fit(X, y, weights)
    alone = TransferMLPClassifier(source, **kwargs).fit(X[:20], y[:20])
    np.testing.assert_allclose(weighted.coefs_[0], alone.coefs_[0])
    np.testing.assert_allclose(weighted.loss_curve_, alone.loss_curve_)


@pytest.mark.parametrize("row", [1, 50])  # in the validation set, and not in it
def test_early_stopping_needs_weight_in_both_of_its_parts(iris, source, row):
    weights = np.zeros(150)
    weights[row] = 1
    head = TransferMLPClassifier(source, solver="adam", early_stopping=True, random_state=0)
    with pytest.raises(ValueError, match="sample_weight must be above zero for rows of the validation set"):
        head.fit(*iris, weights)


def test_early_stopping_names_the_label_that_it_cannot_share_out():
    with pytest.raises(ValueError, match=r"too few members are: \['rare'\]"):
        TransferMLPClassifier(early_stopping=True).fit(X, ["rare"] + ["usual"] * 89)


@pytest.mark.parametrize(("fraction", "n_rows"), [(0, 0), (0.99, 90)])
def test_early_stopping_needs_rows_in_both_of_its_parts(fraction, n_rows):
    with pytest.raises(ValueError, match=f"Got {n_rows} of 90 instead: change validation_fraction"):
        TransferMLPRegressor(early_stopping=True, validation_fraction=fraction).fit(X, SIGNAL)


def test_an_interrupted_training_keeps_the_weights_of_that_moment(iris, source, monkeypatch):
    steps = iter([1.0] * 3)

    def take_or_interrupt(rows):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return float(len(rows.y))

    monkeypatch.setattr(Rows, "weigh", take_or_interrupt)
    head = TransferMLPClassifier(source, solver="adam", random_state=0)
    with pytest.warns(UserWarning, match="The training was interrupted"):
        head.fit(*iris)
    monkeypatch.undo()
    assert_same_training(head, TransferMLPClassifier(source, solver="adam", random_state=0, max_iter=3).fit(*iris))


@pytest.mark.parametrize(("solver", "epochs"), [("adam", 7), ("sgd", 7), ("lbfgs", 7)])
def test_callbacks_see_every_epoch_and_the_network_so_far(iris, source, solver, epochs):
    callback = pytest.importorskip("sklearn.callback", reason="scikit-learn 1.8 has no callbacks")
    monitor = callback.ScoringMonitor(scoring="accuracy")
    head = TransferMLPClassifier(source, solver=solver, max_iter=epochs, tol=0, alpha=0.1).set_callbacks(monitor)
    head.fit(iris[0], np.roll(iris[1], 1))
    scores = [entry["accuracy"] for entry in monitor.get_logs().data if entry["task_name"] == "epoch"]
    assert len(scores) == head.n_iter_ == epochs
    assert scores[-1] == head.score(iris[0], np.roll(iris[1], 1))


class StopAtOnce:
    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        return True


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_a_callback_may_stop_the_training(iris, source, solver):
    pytest.importorskip("sklearn.callback", reason="scikit-learn 1.8 has no callbacks")
    head = TransferMLPClassifier(source, solver=solver, alpha=0.1).set_callbacks(StopAtOnce())
    assert head.fit(iris[0], np.roll(iris[1], 1)).n_iter_ == 1


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_progress_is_printed_if_verbose(iris, source, solver, capsys):
    TransferMLPClassifier(source, solver=solver, verbose=True, max_iter=2).fit(iris[0], np.roll(iris[1], 1))
    assert re.search(r"Iteration 1, loss = \d\.\d{8}\n", capsys.readouterr().out)


# Warnings and errors


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_a_training_that_is_cut_short_warns(iris, source, solver):
    with pytest.warns(ConvergenceWarning, match="ended before it converged, after 2 "):
        TransferMLPClassifier(source, solver=solver, alpha=0.1, max_iter=2).fit(*iris)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_a_warning_points_to_who_called(iris, source, solver):
    with pytest.warns(ConvergenceWarning) as warned:
        TransferMLPClassifier(source, solver=solver, alpha=0.1, max_iter=1).fit(*iris)
    with pytest.warns(UserWarning, match="batch_size") as clipped:
        TransferMLPClassifier(source, solver="sgd", batch_size=999).partial_fit(*iris, classes=source.classes_)
    assert {warning.filename for warning in [*warned, *clipped]} == {__file__}


def test_a_batch_size_of_one_s_own_is_clipped_aloud_and_that_of_the_source_in_silence(iris):
    source = MLPClassifier((6,), batch_size=100, max_iter=2).fit(*iris)
    TransferMLPClassifier(source).fit(iris[0][:50], iris[1][:50])
    with pytest.warns(UserWarning, match="batch_size must be 50 at most, the number of rows. Got 100"):
        TransferMLPClassifier(source, batch_size=100).fit(iris[0][:50], iris[1][:50])


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"transfer": "everything"}, 'transfer must be "parameters", "structure" or "features". Got \'everything\''),
        ({"source_weight": -1}, "source_weight must be a finite number >= 0"),
        ({"source_weight": "strong"}, "source_weight must be a finite number >= 0"),
        ({"source_weight": np.inf}, "source_weight must be a finite number >= 0"),
        ({"source_weight": [1, 2, 3]}, "layers of weights, 2. Got 3 instead"),
        ({"hidden_layer_sizes": (5,)}, r"that of the source, \(6,\), unless transfer=\"structure\". Got \(5,\)"),
        ({"hidden_layer_sizes": 0}, "hidden_layer_sizes must be an integer >= 1 or a sequence of them. Got 0"),
        ({"activation": "relu"}, "activation must be None or that of the source, 'tanh'.* Got 'relu'"),
        ({"activation": "gelu"}, 'activation must be "identity", "logistic", "relu" or "tanh"'),
        ({"solver": "newton"}, 'solver must be "adam", "sgd" or "lbfgs". Got \'newton\' instead'),
        ({"alpha": -0.1}, "alpha must be a finite number >= 0. Got -0.1"),
        ({"alpha": np.inf}, "alpha must be a finite number >= 0. Got inf"),
        ({"batch_size": np.arange(2)}, r'batch_size must be "auto" or an integer >= 1. Got array\(\[0, 1\]\)'),
        ({"n_iter_no_change": np.ones(2)}, "n_iter_no_change must be an integer >= 1 or infinity. Got array"),
        ({"batch_size": 0}, 'batch_size must be "auto" or an integer >= 1. Got 0'),
        ({"momentum": 2}, "momentum must be a number from 0 to 1. Got 2"),
        ({"beta_1": 1.0}, "beta_1 must be a number >= 0 and < 1. Got 1.0"),
        ({"epsilon": 0}, "epsilon must be a finite number > 0. Got 0"),
        ({"max_iter": 1.5}, "max_iter must be an integer >= 1. Got 1.5"),
        ({"warm_start": "yes"}, "warm_start must be True or False. Got 'yes'"),
        ({"class_weight": "heavy"}, "class_weight must be None, \"balanced\" or a dict .*. Got 'heavy'"),
        ({"class_weight": {"setosa": -1}}, r"or a dict of finite numbers >= 0. Got \{'setosa': -1\}"),
        ({"class_weight": dict.fromkeys(["setosa", "versicolor", "virginica"], 0)}, "Got zero for all 150"),
    ],
)
def test_a_parameter_out_of_range_is_named_in_a_sentence(iris, source, kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        TransferMLPClassifier(source, **kwargs).fit(*iris)


@pytest.mark.parametrize("bad", ["resnet", MLPClassifier, LogisticRegression(solver="saga").fit(X, LABELS["binary"])])
@pytest.mark.parametrize("transfer", ["parameters", "structure", "features"])
def test_a_source_that_is_no_network_is_refused(bad, transfer):
    with pytest.raises(ValueError, match="source must be a fitted MLPClassifier, .* Got .* instead"):
        TransferMLPClassifier(bad, transfer=transfer).fit(X, LABELS["binary"])


@pytest.mark.parametrize("transfer", ["parameters", "structure", "features"])
def test_a_source_that_is_not_fitted_is_refused(transfer):
    with pytest.raises(NotFittedError, match="source must be fitted. Got MLPClassifier"):
        TransferMLPClassifier(MLPClassifier(), transfer=transfer).fit(X, LABELS["binary"])


@pytest.mark.parametrize("transfer", ["parameters", "features"])
def test_a_source_of_other_features_is_refused(source, transfer):
    with pytest.raises(ValueError, match="as many features as X has, 5. Got 4 instead"):
        TransferMLPClassifier(source, transfer=transfer).fit(X, LABELS["binary"])


def test_a_source_of_features_in_another_order_is_refused(iris):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(iris[0], columns=list("abcd"))
    source = MLPClassifier((6,), max_iter=2).fit(frame, iris[1])
    with pytest.raises(ValueError, match="Column 0 is 'd' in X and was 'a' there"):
        TransferMLPClassifier(source).fit(frame[list("dcba")], iris[1])


def test_labels_that_parts_did_not_announce_are_refused(iris):
    head = TransferMLPClassifier(max_iter=2)
    with pytest.raises(ValueError, match="classes must be all labels that will come"):
        head.partial_fit(*iris)
    head.partial_fit(*iris, classes=["setosa", "versicolor", "virginica"])
    with pytest.raises(ValueError, match=r"y must hold labels of classes_ alone, .* Got \['alba'\] as well"):
        head.partial_fit(iris[0], ["alba"] * 150)
    with pytest.raises(ValueError, match="classes must be .*, those of the first call"):
        head.partial_fit(*iris, classes=["setosa", "alba"])


def test_parts_keep_to_labels_or_to_a_multilabel_indicator():
    head = TransferMLPClassifier()
    with pytest.raises(ValueError, match=r"of multilabel y the numbers of its columns. Got \[0\] instead"):
        head.partial_fit(X, LABELS["multilabel"], classes=[0])
    head.partial_fit(X, LABELS["multilabel"], classes=[0, 1])
    with pytest.raises(ValueError, match="y must be a multilabel indicator, .* Got one label for each row instead"):
        head.partial_fit(X, LABELS["binary"])


def test_a_warm_start_of_other_classes_or_layers_is_refused(iris):
    head = TransferMLPClassifier(max_iter=2, warm_start=True).fit(*iris)
    with pytest.raises(ValueError, match="y must hold the classes of the fit that warm_start goes on with"):
        head.fit(iris[0], np.where(iris[1] == "setosa", "virginica", iris[1]))
    with pytest.raises(ValueError, match=r"go on with layers of \[4, 100, 3\] units. Got \[4, 7, 3\]"):
        head.set_params(hidden_layer_sizes=7).fit(*iris)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (np.zeros(90), "sample_weight must be above zero for some row. Got zero for all 90"),
        (-np.ones(90), "sample_weight must be finite and >= 0. Got -1.0 in row 0"),
        (np.ones(3), r"sample_weight must have shape \(90,\). Got shape \(3,\)"),
    ],
)
def test_bad_sample_weights_are_refused(weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        TransferMLPRegressor().fit(X, SIGNAL, weights)


def test_what_cannot_be_done_is_said_in_sentences(iris):
    with pytest.raises(ValueError, match='y must be >= 0 for loss="poisson". Got -'):
        TransferMLPRegressor(loss="poisson").fit(X, SIGNAL)
    with pytest.raises(ValueError, match="early_stopping must be False for partial_fit"):
        TransferMLPRegressor(early_stopping=True).partial_fit(X, SIGNAL)
    with pytest.raises(ValueError, match="validation set of early stopping must have 2 rows or more, .* Got 1 of 9"):
        TransferMLPRegressor(early_stopping=True).fit(X[:9], SIGNAL[:9])
    with pytest.raises(ValueError, match="class_weight must be None or a dict for partial_fit"):
        TransferMLPClassifier(class_weight="balanced").partial_fit(X, LABELS["binary"], classes=[0, 1])
    with pytest.raises(ValueError, match="class_weight must be None for multilabel y"):
        TransferMLPClassifier(class_weight="balanced").fit(X, LABELS["multilabel"])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_training_that_diverges_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="weights must stay finite"):
        TransferMLPRegressor(solver="sgd", learning_rate_init=1e6, activation="identity").fit(X, SIGNAL)


# Conformance


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("Estimator", [TransferMLPClassifier, TransferMLPRegressor])
def test_more_than_forty_checks_of_scikit_learn_ran_and_none_failed(Estimator):
    outcomes = check_estimator(Estimator(max_iter=20), on_fail=None, on_skip=None)
    failed = [(outcome["check_name"], outcome["exception"]) for outcome in outcomes if outcome["status"] == "failed"]
    assert failed == []
    assert sum(outcome["status"] == "passed" for outcome in outcomes) > 40


def test_outputs_are_those_of_a_network_written_out():
    head = TransferMLPClassifier(**settings(hidden_layer_sizes=(4, 3))).fit(X, LABELS["binary"])
    values = X
    for weights, biases in zip(head.coefs_[:-1], head.intercepts_[:-1], strict=True):
        values = np.maximum(values @ weights + biases, 0)
    scores = (values @ head.coefs_[-1] + head.intercepts_[-1])[:, 0]
    np.testing.assert_allclose(head.predict_proba(X)[:, 1], 1 / (1 + np.exp(-scores)))
    parameters = head.coefs_ + head.intercepts_
    np.testing.assert_array_equal(compute_outputs(X, parameters, "relu", "logistic")[:, 0], head.predict_proba(X)[:, 1])

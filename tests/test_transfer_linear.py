"""Linear heads that are pulled to sources: scikit-learn's without one, the stated objective's optimum with them."""

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone, is_classifier
from sklearn.compose import make_column_transformer
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine, make_classification
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.feature_selection import SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, SVR, LinearSVC
from sklearn.utils.estimator_checks import check_estimator
from threadpoolctl import threadpool_info

from sktransfer import TransferLogisticRegression, TransferMLPClassifier, TransferRidge
from sktransfer.transfer import softmax
from sktransfer.transfer.affine import fold
from sktransfer.transfer.coordinates import limit_threads


def make_task(n, d, n_classes, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * rng.uniform(0.5, 2, d) + rng.standard_normal(d)
    y = (X @ rng.standard_normal((d, n_classes)) + rng.standard_normal((n, n_classes))).argmax(axis=1)
    y[:n_classes] = np.arange(n_classes)  # all classes, always
    return X, y


def random_source(rng, classes, d):
    return {label: (rng.standard_normal(d), rng.standard_normal()) for label in classes}


def slow_loss(theta, X, y, weights, n_classes):
    """Cross-entropy, one sample and class at a time."""
    total = 0.0
    for row, label, weight in zip(X, y, weights, strict=True):
        logits = theta[:, :-1] @ row + theta[:, -1]
        logits = np.array([0.0, logits[0]]) if n_classes == 2 else logits
        total += weight * (np.log(np.sum(np.exp(logits - logits.max()))) + logits.max() - logits[label])
    return total


def slow_objective(theta, X, y, weights, n_classes, C, sources):
    """As the docstring states it; sources are (weights and intercepts like theta, λ)."""
    value = slow_loss(theta, X, y, weights, n_classes) + 0.5 / C * np.sum(theta[:, :-1] ** 2)
    return value + sum(0.5 * weight * np.sum((theta - source) ** 2) for source, weight in sources)


def align(source, n_classes):
    """A dict of class -> (coef, intercept) as rows of (coef, intercept), zeros for unknown classes."""
    width = len(next(iter(source.values()))[0]) + 1
    rows = np.array([np.append(*source[label]) if label in source else np.zeros(width) for label in range(n_classes)])
    return rows[1:] - rows[:1] if n_classes == 2 else rows


def minimise_slowly(n_rows, d, *args):
    start = np.zeros((n_rows, d + 1))
    return scipy.optimize.minimize(
        lambda flat: slow_objective(flat.reshape(start.shape), *args), start.ravel(), method="BFGS",
        options={"gtol": 1e-7, "maxiter": 5000},
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of scipy's differences near the optimum
@pytest.mark.parametrize("n_sources", [1, 2, 3])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_optimum_is_that_of_a_general_purpose_optimiser(n_sources, n_classes, seed):
    rng = np.random.default_rng(seed)
    X, y = make_task(25, 3, n_classes, seed)
    sources = [random_source(rng, range(max(1, n_classes - index)), 3) for index in range(n_sources)]
    factors = list(rng.uniform(0.1, 3, n_sources))
    sample_weight, class_weight = rng.uniform(0, 2, len(y)), {0: 2.0, 1: 0.5}
    head = TransferLogisticRegression(sources, C=0.7, source_weight=factors, class_weight=class_weight, tol=1e-8)
    head.fit(X, y, sample_weight)
    weights = sample_weight * np.array([class_weight.get(label, 1.0) for label in y])
    pulls = [(align(source, n_classes), factor) for source, factor in zip(sources, factors, strict=True)]
    args = (X, y, weights, n_classes, 0.7, pulls)
    theta = np.column_stack([head.coef_, head.intercept_])
    slow = minimise_slowly(len(theta), 3, *args)
    assert slow_objective(theta, *args) <= slow.fun * (1 + 1e-8)
    np.testing.assert_allclose(theta.ravel(), slow.x, atol=1e-4 * np.abs(slow.x).max())


def fast_objective(flat, X, y, C, sources):
    """As slow_objective, with its gradient, for many columns and more than two classes."""
    theta = flat.reshape(-1, X.shape[1] + 1)
    logits = X @ theta[:, :-1].T + theta[:, -1]
    log_p = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
    residual = np.exp(log_p) - np.eye(logits.shape[1])[y]
    value = -log_p[np.arange(len(y)), y].sum() + 0.5 / C * np.sum(theta[:, :-1] ** 2)
    gradient = np.column_stack([residual.T @ X + theta[:, :-1] / C, residual.sum(axis=0)])
    for source, weight in sources:
        value += 0.5 * weight * np.sum((theta - source) ** 2)
        gradient += weight * (theta - source)
    return value, gradient.ravel()


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("n", "d"), [(200, 40), (40, 200)], ids=["tall", "wide"])
def test_the_optimum_is_that_of_scipy_with_many_columns(n, d, C):
    X, y = make_task(n, d, 5)
    sources = [random_source(np.random.default_rng(seed), range(4), d) for seed in range(2)]
    head = TransferLogisticRegression(sources, C=C, source_weight=[0.3, 0.02], tol=1e-7).fit(X, y)
    pulls = [(align(sources[0], 5), 0.3), (align(sources[1], 5), 0.02)]
    options = {"ftol": 0, "gtol": 1e-10, "maxiter": 20_000, "maxfun": 40_000, "maxcor": 50}
    start, args = np.zeros(5 * (d + 1)), (X, y, C, pulls)
    slow = scipy.optimize.minimize(fast_objective, start, args, jac=True, method="L-BFGS-B", options=options)
    theta = np.column_stack([head.coef_, head.intercept_]).ravel()
    assert fast_objective(theta, *args)[0] <= slow.fun * (1 + 1e-8)
    np.testing.assert_allclose(theta, slow.x, atol=1e-4 * np.abs(slow.x).max())


DATASETS = {
    "iris": lambda: load_iris(return_X_y=True),
    "wine": lambda: load_wine(return_X_y=True),
    "breast_cancer": lambda: load_breast_cancer(return_X_y=True),
    "digits": lambda: load_digits(return_X_y=True),
    "wide": lambda: make_classification(80, 300, n_informative=20, n_classes=4, random_state=0),
}


@pytest.mark.parametrize("C", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("name", DATASETS)
def test_without_a_source_it_is_logistic_regression(name, C):
    X, y = (part[:500] for part in DATASETS[name]())
    X = StandardScaler().fit_transform(X)
    solver = "lbfgs" if name == "wide" else "newton-cholesky"
    plain = LogisticRegression(C=C, tol=1e-10, max_iter=100_000, solver=solver).fit(X, y)
    head = TransferLogisticRegression(C=C).fit(X, y)
    np.testing.assert_allclose(head.coef_, plain.coef_, atol=1e-4 * np.abs(plain.coef_).max())
    np.testing.assert_allclose(head.intercept_, plain.intercept_, atol=1e-4 * np.abs(plain.coef_).max())
    np.testing.assert_allclose(head.predict_proba(X), plain.predict_proba(X), atol=1e-4)


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer"])
def test_columns_of_any_scale_converge(name):
    X, y = DATASETS[name]()
    plain = LogisticRegression(tol=1e-10, max_iter=1000, solver="newton-cholesky").fit(X, y)
    head = TransferLogisticRegression().fit(X, y)
    assert head.n_iter_ < 200
    np.testing.assert_allclose(head.coef_, plain.coef_, atol=1e-4 * np.abs(plain.coef_).max())


@pytest.mark.filterwarnings("ignore:Setting penalty=None")  # of scikit-learn 1.8
@pytest.mark.parametrize("options", [{"fit_intercept": False}, {"class_weight": "balanced"}, {"C": np.inf}])
def test_its_parameters_mean_what_logistic_regressions_mean(options):
    X, y = make_task(300, 4, 3)
    weights = np.random.default_rng(0).uniform(0, 2, len(y))
    plain = LogisticRegression(**options, tol=1e-12, max_iter=10_000).fit(X, y, weights)
    head = TransferLogisticRegression(**options).fit(X, y, weights)
    np.testing.assert_allclose(head.coef_, plain.coef_, atol=1e-4 * np.abs(plain.coef_).max())
    np.testing.assert_allclose(head.predict_proba(X), plain.predict_proba(X), atol=1e-5)


def test_a_gradient_equals_finite_differences():
    X, y = make_task(12, 3, 3)
    problem = softmax.Problem(X, y, np.ones(12), np.ones((3, 3)), np.ones(3), 0.5, 0.2, True)
    descent = softmax._Descent(problem, X @ problem.coef.T + problem.intercept)
    descent._precondition(None)
    u = np.random.default_rng(0).standard_normal((3, 4))
    point = descent._evaluate(u)
    for index in np.ndindex(u.shape):
        step = np.zeros_like(u)
        step[index] = 1e-6
        difference = (descent._evaluate(u + step).value - descent._evaluate(u - step).value) / 2e-6
        assert point.slope[index] == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize(("n", "d"), [(100, 6), (8, 30)], ids=["tall", "wide"])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_an_endless_source_weight_gives_the_sources_predictions(n, d, n_classes):
    X, y = make_task(200, d, n_classes, seed=1)
    source = LogisticRegression(max_iter=1000).fit(X, y)
    target, labels = make_task(n, d, n_classes, seed=2)
    head = TransferLogisticRegression(source, source_weight=1e8).fit(target, labels)
    np.testing.assert_allclose(head.predict_proba(X), source.predict_proba(X), atol=1e-3)
    assert (head.predict(X) == source.predict(X)).all()


def test_no_source_weight_gives_the_plain_fit():
    X, y = make_task(100, 5, 3)
    source = random_source(np.random.default_rng(0), range(3), 5)
    plain = LogisticRegression(tol=1e-10, max_iter=1000).fit(X, y)
    for weight in (0, 1e-8):
        head = TransferLogisticRegression(source, source_weight=weight).fit(X, y)
        np.testing.assert_allclose(head.predict_proba(X), plain.predict_proba(X), atol=1e-3)


SCALERS = [StandardScaler(), RobustScaler(), MinMaxScaler(), MaxAbsScaler(), PCA(), PCA(whiten=True)]


@pytest.mark.parametrize("n_classes", [2, 4])
def test_without_an_intercept_the_sources_is_left_out(n_classes):
    X, y = make_task(60, 3, n_classes)
    source = random_source(np.random.default_rng(0), range(n_classes), 3)
    bare = {label: (coef, 0.0) for label, (coef, _) in source.items()}
    heads = [TransferLogisticRegression(given, fit_intercept=False).fit(X, y) for given in (source, bare)]
    np.testing.assert_allclose(heads[0].coef_, heads[1].coef_, atol=1e-6)
    assert not heads[0].intercept_.any()
    ridge = [TransferRidge((source[1][0], b), fit_intercept=False).fit(X, y) for b in (5.0, 0.0)]
    np.testing.assert_allclose(ridge[0].coef_, ridge[1].coef_)
    assert ridge[0].intercept_ == 0


@pytest.mark.parametrize("own", [None, *SCALERS], ids=repr)
@pytest.mark.parametrize("scaler", SCALERS, ids=repr)
def test_a_pipeline_comes_back_through_any_scaler(scaler, own):
    X, y = make_task(200, 5, 3, seed=1)
    source = make_pipeline(scaler, LogisticRegression(max_iter=1000)).fit(X * 10 + 3, y)
    target, labels = make_task(30, 5, 3, seed=2)
    head = TransferLogisticRegression(source, source_weight=1e9, scaler=own).fit(target * 10 + 5, labels)
    np.testing.assert_allclose(head.predict_proba(X * 10 + 3), source.predict_proba(X * 10 + 3), atol=1e-3)


def test_a_selection_of_columns_and_a_pipeline_in_a_pipeline_are_folded():
    X, y = make_task(200, 8, 3)
    inner = make_pipeline(SelectKBest(k=5), "passthrough", LogisticRegression(max_iter=1000))
    source = make_pipeline(StandardScaler(), inner).fit(X, y)
    head = TransferLogisticRegression(FrozenEstimator(source), source_weight=1e9).fit(X[:20], y[:20])
    np.testing.assert_allclose(head.predict_proba(X), source.predict_proba(X), atol=1e-3)


def test_a_pipeline_fitted_on_a_frame_is_folded_by_its_names():
    X, y = make_task(200, 4, 3)
    frame = pd.DataFrame(X, columns=list("abcd"))
    source = make_pipeline(StandardScaler().set_output(transform="pandas"), LogisticRegression()).fit(frame, y)
    head = TransferLogisticRegression(source, source_weight=1e9, scaler=StandardScaler()).fit(frame[:20], y[:20])
    np.testing.assert_allclose(head.predict_proba(frame), source.predict_proba(frame), atol=1e-3)
    with pytest.raises(ValueError, match=r"Column 0 is 'z' in X and was 'a' there"):
        clone(head).fit(frame.rename(columns={"a": "z"}), y)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_folding_an_affine_function_changes_no_value(d, m, seed):
    rng = np.random.default_rng(seed)
    A, c, W, b = (rng.standard_normal(size) for size in ((d, m), m, (3, m), 3))
    weights, offset = fold(lambda rows: rows @ A + c, W, b, d)
    X = rng.standard_normal((5, d))
    np.testing.assert_allclose(X @ weights.T + offset, (X @ A + c) @ W.T + b, atol=1e-9)


@pytest.mark.parametrize(
    "step", [KBinsDiscretizer(quantile_method="averaged_inverted_cdf"), FunctionTransformer(np.tanh)], ids=repr
)
def test_a_step_that_is_not_affine_is_named_with_the_way_out(step):
    X, y = make_task(60, 3, 2)
    source = make_pipeline(StandardScaler(), step, LogisticRegression()).fit(X, y)
    message = rf"must be affine.*\({type(step).__name__}\), which is not.*source=pipeline\[2:\]"
    with pytest.raises(ValueError, match=message):
        TransferLogisticRegression(source).fit(X, y)
    TransferLogisticRegression(source[2:]).fit(source[:2].transform(X), y)


def test_a_standardised_target_of_a_folded_source_is_warned_of():
    X, y = make_task(100, 3, 3)
    source = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    with pytest.warns(UserWarning, match="X looks standardised"):
        TransferLogisticRegression(source).fit(StandardScaler().fit_transform(X[:50]), y[:50])
    with pytest.warns(UserWarning, match="X looks standardised"):
        TransferRidge(make_pipeline(StandardScaler(), Ridge()).fit(X, y)).fit(StandardScaler().fit_transform(X), y)


LINEAR = [
    LogisticRegression(max_iter=1000),
    RidgeClassifier(),
    LinearSVC(),
    SGDClassifier(random_state=0),
    LinearDiscriminantAnalysis(),
    OneVsRestClassifier(LogisticRegression()),
    GridSearchCV(LogisticRegression(max_iter=1000), {"C": [0.1, 1]}, cv=2),
    TransferLogisticRegression(),
]


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("source", LINEAR, ids=lambda source: type(source).__name__)
def test_any_linear_classifier_is_a_source(source, n_classes):
    X, y = make_task(150, 4, n_classes)
    source = clone(source).fit(X, y)
    head = TransferLogisticRegression(source, source_weight=1e9).fit(X[:20], y[:20])
    assert (head.predict(X) == source.predict(X)).all()
    np.testing.assert_allclose(head.decision_function(X), source.decision_function(X), atol=1e-3)


def test_a_sparse_source_is_read():
    X, y = make_task(100, 4, 3)
    source = LogisticRegression(max_iter=1000).fit(X, y).sparsify()
    head = TransferLogisticRegression(source, source_weight=1e9).fit(X[:20], y[:20])
    np.testing.assert_allclose(head.coef_, source.coef_.toarray(), atol=1e-3)


def test_classes_are_matched_by_their_labels():
    X, y = make_task(100, 3, 3)
    names = np.array(["cat", "dog", "eel"])
    source = {"eel": (np.ones(3), 1.0), "cat": (np.full(3, 2.0), 2.0), "fox": (np.full(3, 9.0), 9.0)}
    head = TransferLogisticRegression(source, source_weight=1e10).fit(X, names[y])
    np.testing.assert_allclose(head.coef_, [[2.0] * 3, [0.0] * 3, [1.0] * 3], atol=1e-6)
    np.testing.assert_allclose(head.intercept_, [2.0, 0.0, 1.0], atol=1e-6)
    assert head.unused_source_classes_.tolist() == ["fox"]


@pytest.mark.parametrize("known", [(0, 1), (1, 0), (0, 2), (0, 1, 2)])
def test_two_classes_take_the_difference_of_a_sources_rows(known):
    X, y = make_task(50, 3, 2)
    source = random_source(np.random.default_rng(0), known, 3)
    head = TransferLogisticRegression(source, source_weight=1e10).fit(X, y)
    zero = (np.zeros(3), 0.0)
    expected = np.append(*source.get(1, zero)) - np.append(*source.get(0, zero))
    np.testing.assert_allclose(np.append(head.coef_[0], head.intercept_), expected, atol=1e-5)


def test_a_source_with_two_classes_enters_three_as_half_its_row_each():
    X, y = make_task(100, 4, 3)
    two = y < 2
    source = LogisticRegression().fit(X[two], y[two])
    head = TransferLogisticRegression(source, source_weight=1e10).fit(X, y)
    np.testing.assert_allclose(head.coef_, np.vstack([-source.coef_, source.coef_, 0 * source.coef_]) / 2, atol=1e-5)
    odds = head.predict_log_proba(X)
    np.testing.assert_allclose(odds[:, 1] - odds[:, 0], source.decision_function(X), atol=1e-4)


def test_a_source_of_other_labels_is_warned_of():
    X, y = make_task(50, 3, 3)
    with pytest.warns(UserWarning, match=r"No class of source is.*has 'a', 'b', y has 0, 1, 2.*of the same type"):
        head = TransferLogisticRegression(random_source(np.random.default_rng(0), "ab", 3)).fit(X, y)
    assert head.unused_source_classes_.tolist() == ["a", "b"]


def test_sources_collapse_into_their_weighted_mean():
    X, y = make_task(60, 3, 3)
    first, second = (random_source(np.random.default_rng(seed), range(3), 3) for seed in range(2))
    mean = {c: (0.25 * first[c][0] + 0.75 * second[c][0], 0.25 * first[c][1] + 0.75 * second[c][1]) for c in range(3)}
    both = TransferLogisticRegression([first, second], source_weight=[0.5, 1.5]).fit(X, y)
    one = TransferLogisticRegression(mean, source_weight=2.0).fit(X, y)
    np.testing.assert_allclose(both.coef_, one.coef_, atol=1e-4)
    np.testing.assert_allclose(
        TransferLogisticRegression([first, second], source_weight=[2.0, 0.0]).fit(X, y).coef_,
        TransferLogisticRegression(first, source_weight=2.0).fit(X, y).coef_, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("head", [TransferLogisticRegression, TransferRidge])
def test_clone_and_set_params_keep_the_source_by_reference(head):
    X, y = make_task(50, 3, 2)
    source = (LogisticRegression() if head is TransferLogisticRegression else Ridge()).fit(X, y)
    original = head(source)
    again = clone(clone(original))
    assert again.source.estimator is source
    assert clone(head().set_params(source=source)).source.estimator is source
    for pair in ([source, source], (source, source)):
        several = clone(head(pair, source_weight=[1, 2]))
        assert several.source[1].estimator is source
        assert several.fit(X, y).score(X, y) > 0
    assert again.fit(X, y).score(X, y) == original.fit(X, y).score(X, y)


def test_a_search_over_the_source_weight_keeps_the_source():
    X, y = make_task(300, 5, 3)
    source = LogisticRegression().fit(X[:200], y[:200])
    grid = {"source_weight": [0, 0.1, 1, 10, 100], "C": [0.1, 10]}
    search = GridSearchCV(TransferLogisticRegression(source), grid, cv=3).fit(X[200:240], y[200:240])
    assert search.best_params_["source_weight"] > 0
    assert search.best_estimator_.source.estimator is source
    frozen = {"source": [None, FrozenEstimator(source)]}
    search = GridSearchCV(TransferLogisticRegression(), frozen, cv=3).fit(X[200:240], y[200:240])
    assert search.best_params_["source"] is not None


def test_a_search_over_bare_sources_says_how_to_hold_them():
    X, y = make_task(60, 3, 2)
    search = GridSearchCV(
        TransferLogisticRegression(), {"source": [LogisticRegression().fit(X, y)]}, cv=2, error_score="raise"
    )
    with pytest.raises(NotFittedError, match=r"hold it as FrozenEstimator\(source\)"):
        search.fit(X, y)


def test_a_chain_of_tasks_carries_the_source_on():
    X, y = make_task(400, 5, 3)
    source = LogisticRegression().fit(X[:300], y[:300])
    first = TransferLogisticRegression(source, source_weight=5.0).fit(X[300:320], y[300:320])
    second = TransferLogisticRegression(first, source_weight=5.0).fit(X[320:340], y[320:340])
    direct = {c: (first.coef_[c], first.intercept_[c]) for c in range(3)}
    np.testing.assert_allclose(
        second.coef_, TransferLogisticRegression(direct, source_weight=5.0).fit(X[320:340], y[320:340]).coef_, atol=1e-4
    )
    scratch = LogisticRegression().fit(X[320:340], y[320:340])
    assert second.score(X, y) > scratch.score(X, y)


@pytest.mark.parametrize("dump", [pickle, joblib], ids=["pickle", "joblib"])
def test_a_saved_head_predicts_the_same(dump, tmp_path):
    X, y = make_task(60, 3, 3)
    head = TransferLogisticRegression(LogisticRegression().fit(X, y)).fit(X, y)
    with open(tmp_path / "head", "wb") as file:
        dump.dump(head, file)
    with open(tmp_path / "head", "rb") as file:
        loaded = dump.load(file)
    assert (loaded.predict_proba(X) == head.predict_proba(X)).all()
    assert (clone(loaded).fit(X, y).predict(X) == head.predict(X)).all()


def test_skops_carries_a_head_without_a_pickle():
    skops = pytest.importorskip("skops.io")
    X, y = make_task(60, 3, 3)
    head = TransferLogisticRegression(LogisticRegression().fit(X, y)).fit(X, y)
    data = skops.dumps(head)
    loaded = skops.loads(data, trusted=skops.get_untrusted_types(data=data))
    assert (loaded.predict_proba(X) == head.predict_proba(X)).all()
    assert (clone(loaded).fit(X, y).predict(X) == head.predict(X)).all()


@pytest.mark.parametrize("kind", [scipy.sparse.csr_matrix, scipy.sparse.csr_array], ids=["matrix", "array"])
def test_sparse_rows_give_the_same_head(kind):
    X, y = make_task(80, 6, 3)
    X[np.abs(X) < 1] = 0
    source = random_source(np.random.default_rng(0), range(3), 6)
    dense, sparse = (TransferLogisticRegression(source, scaler=MaxAbsScaler()).fit(A, y) for A in (X, kind(X)))
    np.testing.assert_allclose(sparse.coef_, dense.coef_, atol=1e-5)
    np.testing.assert_allclose(sparse.predict_proba(kind(X)), dense.predict_proba(X), atol=1e-5)


def test_float32_rows_are_computed_in_float64():
    X, y = make_task(700, 6, 3)
    X = X.astype(np.float32)
    single, double = (TransferLogisticRegression().fit(A, y) for A in (X, X.astype(np.float64)))
    np.testing.assert_allclose(single.coef_, double.coef_, rtol=1e-12)


def test_so_many_columns_that_only_the_diagonal_is_kept_converge(monkeypatch):
    X, y = make_task(150, 20, 3)
    dense = TransferLogisticRegression().fit(X, y)
    monkeypatch.setattr(softmax, "LARGEST", 10)
    for A in (X, scipy.sparse.csr_array(X)):
        np.testing.assert_allclose(TransferLogisticRegression().fit(A, y).coef_, dense.coef_, atol=1e-4)


def test_too_few_iterations_are_warned_of():
    X, y = make_task(100, 5, 3)
    with pytest.warns(ConvergenceWarning, match=r"within tol=1e-05 of the optimum after 2 iterations.*Raise max_iter"):
        head = TransferLogisticRegression(max_iter=2).fit(X, y)
    assert head.n_iter_ == 2


def test_separable_data_without_any_penalty_stop():
    X, y = np.array([[-1.0], [1.0]] * 5), np.array([0, 1] * 5)
    head = TransferLogisticRegression(C=np.inf).fit(X, y)
    assert head.score(X, y) == 1


@pytest.mark.parametrize(("n", "d"), [(100, 5), (20, 90)], ids=["tall", "wide"])
def test_a_gradient_norm_proves_the_optimum(n, d):
    X, y = make_task(n, d, 3)
    source = random_source(np.random.default_rng(0), range(3), d)
    head = TransferLogisticRegression(source, source_weight=0.5, tol=1e-6).fit(X, y)
    theta = np.column_stack([head.coef_, head.intercept_])
    gradient = fast_objective(theta.ravel(), X, y, 1.0, [(align(source, 3), 0.5)])[1]
    assert head.gradient_norm_ == pytest.approx(np.linalg.norm(gradient), rel=1e-3)
    assert head.gradient_norm_ <= 1e-6 * 1.5 * np.linalg.norm(theta)


def test_few_rows_of_many_columns_are_solved_in_the_space_of_the_rows(monkeypatch):
    X, y = make_task(20, 90, 3)
    source = random_source(np.random.default_rng(0), range(3), 90)
    small = TransferLogisticRegression(source, tol=1e-8).fit(X, y)
    shapes = []
    monkeypatch.setattr(softmax, "_reduce", lambda problem: shapes.append(problem.X.shape) or (problem, None))
    whole = TransferLogisticRegression(source, tol=1e-8).fit(X, y)
    assert shapes == [(20, 90)]
    np.testing.assert_allclose(small.coef_, whole.coef_, atol=1e-6)


@pytest.mark.parametrize("C", [1e-8, 1e-5, 1e-2])
def test_a_free_intercept_converges_however_strong_the_penalty(C):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1000, 20))
    y = (X[:, 0] + 0.5 * rng.standard_normal(1000) > 1.6).astype(int)
    plain = LogisticRegression(C=C, tol=1e-12, solver="newton-cholesky").fit(X, y)
    head = TransferLogisticRegression(C=C).fit(X, y)
    np.testing.assert_allclose(head.intercept_, plain.intercept_, atol=1e-5)
    np.testing.assert_allclose(head.coef_, plain.coef_, atol=1e-4 * np.abs(plain.coef_).max())


def test_features_that_nobody_scaled_converge():
    X, y = (part[:1000] for part in load_digits(return_X_y=True))
    head = TransferLogisticRegression(C=10).fit(X, y)  # classes become certain: curvature is measured anew
    assert head.n_iter_ < 1000


@pytest.mark.parametrize("head", [TransferLogisticRegression, TransferMLPClassifier])
def test_one_label_a_class_is_no_regression(head):
    X, y = make_task(25, 5, 25)
    options = {"solver": "lbfgs", "max_iter": 1000} if head is TransferMLPClassifier else {}
    assert len(head(**options).fit(X, y).classes_) == 25  # warnings are errors here


def test_threads_can_be_limited():
    X, y = make_task(100, 5, 3)
    with limit_threads(2), limit_threads(1):
        assert {library["num_threads"] for library in threadpool_info()} == {1}
    assert TransferLogisticRegression(n_jobs=-1).fit(X, y).n_iter_ > 0
    np.testing.assert_allclose(
        TransferLogisticRegression(n_jobs=1).fit(X, y).coef_, TransferLogisticRegression().fit(X, y).coef_, rtol=1e-9
    )
    assert TransferRidge(n_jobs=1).fit(X, y).coef_.shape == (5,)


# --- ridge


def slow_ridge(X, y, weights, C, sources):
    """Normal equations of the stated objective, column by column; sources are ((d + 1,) vectors, λ)."""
    ones = np.column_stack([X, np.ones(len(X))])
    system = ones.T @ (weights[:, None] * ones) + np.diag([1 / C] * X.shape[1] + [0.0])
    right = ones.T @ (weights * y)
    for source, factor in sources:
        system, right = system + factor * np.eye(len(right)), right + factor * source
    return np.linalg.solve(system, right)


@pytest.mark.parametrize(("n", "d"), [(40, 5), (12, 30)], ids=["tall", "wide"])
@pytest.mark.parametrize("n_sources", [1, 2, 3])
def test_ridge_solves_the_stated_objective(n, d, n_sources):
    rng = np.random.default_rng(n_sources)
    X, y, weights = rng.standard_normal((n, d)) + 2, rng.standard_normal((n, 2)), rng.uniform(0, 2, n)
    sources = [(rng.standard_normal((2, d)), rng.standard_normal(2)) for _ in range(n_sources)]
    factors = list(rng.uniform(0.1, 3, n_sources))
    head = TransferRidge(sources, C=0.5, source_weight=factors).fit(X, y, weights)
    for output in range(2):
        pulls = [(np.append(w[output], b[output]), f) for (w, b), f in zip(sources, factors, strict=True)]
        expected = slow_ridge(X, y[:, output], weights, 0.5, pulls)
        np.testing.assert_allclose(np.append(head.coef_[output], head.intercept_[output]), expected, atol=1e-9)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("C", [0.01, 1.0, 1e6])
@pytest.mark.parametrize(("n", "d"), [(40, 5), (12, 30)], ids=["tall", "wide"])
def test_ridge_without_a_source_is_ridge(n, d, C, fit_intercept):
    rng = np.random.default_rng(0)
    X, y, weights = rng.standard_normal((n, d)) + 2, rng.standard_normal((n, 3)), rng.integers(0, 3, n)
    plain = Ridge(alpha=1 / C, fit_intercept=fit_intercept).fit(X, y, weights)
    for A in (X, scipy.sparse.csr_array(X)):
        head = TransferRidge(C=C, fit_intercept=fit_intercept).fit(A, y, weights)
        np.testing.assert_allclose(head.coef_, plain.coef_, atol=1e-8)
        np.testing.assert_allclose(head.intercept_, plain.intercept_, atol=1e-8)


@pytest.mark.parametrize("C", [1.0, 1e6, np.inf])
@pytest.mark.parametrize(("n", "d"), [(60, 5), (12, 30)], ids=["tall", "wide"])
@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array], ids=["dense", "sparse"])
def test_ridge_keeps_its_digits_far_from_zero(kind, n, d, C):
    rng = np.random.default_rng(0)
    X, y, far = rng.standard_normal((n, d)), rng.standard_normal(n), 1e4 if kind is not np.asarray else 1e6
    near, shifted = (TransferRidge(C=C).fit(kind(A), y).predict(kind(A)) for A in (X, X + far))
    np.testing.assert_allclose(shifted, near, atol=1e-5)


def test_ridge_without_any_penalty_is_least_squares():
    X, y = load_diabetes(return_X_y=True)
    head = TransferRidge(C=np.inf).fit(X, y)
    np.testing.assert_allclose(head.predict(X), LinearRegression().fit(X, y).predict(X), atol=1e-6)
    twice = np.hstack([X, X])
    np.testing.assert_allclose(TransferRidge(C=np.inf).fit(twice, y).predict(twice), head.predict(X), atol=1e-6)


@pytest.mark.parametrize(
    "source",
    [Ridge(), PLSRegression(3), make_pipeline(StandardScaler(), PCA(4), Ridge()), TransferRidge(scaler=RobustScaler())],
    ids=["Ridge", "PLS", "Pipeline", "TransferRidge"],
)
@pytest.mark.parametrize("scaler", [None, StandardScaler()], ids=["raw", "scaled"])
def test_ridge_returns_to_any_linear_source(source, scaler):
    X, y = load_diabetes(return_X_y=True)
    source = clone(source).fit(X[:300] + 4, y[:300])
    head = TransferRidge(source, source_weight=1e10, scaler=scaler).fit(X[300:] + 4, y[300:])
    np.testing.assert_allclose(head.predict(X + 4), np.ravel(source.predict(X + 4)), atol=1e-3)


def test_ridge_gains_from_a_source_where_labels_are_few():
    X, y = load_diabetes(return_X_y=True)
    source = Ridge(alpha=0.1).fit(X[:200], y[:200])
    search = GridSearchCV(TransferRidge(source), {"source_weight": [0.01, 1.0, 100.0]}, cv=3).fit(
        X[200:215], y[200:215]
    )
    scratch = GridSearchCV(TransferRidge(), {"C": [0.1, 1.0, 10.0, 100.0]}, cv=3).fit(X[200:215], y[200:215])
    assert search.score(X[215:], y[215:]) > scratch.score(X[215:], y[215:]) + 0.1


# --- bad input

BAD = [
    ({"C": 0}, r"C must be > 0\. Got 0 instead"),
    ({"C": "1"}, r"C must be > 0\. Got '1' instead"),
    ({"source_weight": -1}, r"source_weight must be finite and >= 0\. Got -1 instead"),
    ({"source_weight": np.inf}, r"source_weight must be finite and >= 0\. Got inf instead"),
    ({"source_weight": None}, r"source_weight must be finite and >= 0\. Got None instead"),
    ({"source": [], "source_weight": [None]}, r"Got 1 numbers for 0 sources"),
    ({"source_weight": [1, 2]}, r"one number for each source\. Got 2 numbers for 0 sources"),
    ({"scaler": StandardScaler}, r"scaler must be None or a transformer with inverse_transform"),
    ({"scaler": SelectKBest}, r"scaler must be None or a transformer"),
    ({"n_jobs": 0}, r"n_jobs must be None, an integer >= 1, or -1 for all cores\. Got 0 instead"),
    ({"source": RandomForestClassifier}, r"source must be a fitted linear .*Got ABCMeta instead"),
    ({"source": "resnet50"}, r"source must be a fitted linear .*Got str instead"),
]


@pytest.mark.parametrize("head", [TransferLogisticRegression, TransferRidge])
@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_parameter_is_named_with_what_it_must_be(head, options, message):
    X, y = make_task(20, 3, 2)
    with pytest.raises((ValueError, TypeError), match=message):
        head(**options).fit(X, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tol": 0}, r"tol must be finite and > 0\. Got 0"),
        ({"max_iter": 1.5}, r"max_iter must be an integer >= 1\. Got 1\.5"),
        ({"C": 5e-324}, r"C must be > 0\. Got 5e-324"),
        ({"class_weight": {0: -1.0}}, r"sample_weight times class_weight must be finite and >= 0\. Got -1\.0"),
        ({"solver": "saga"}, r'solver must be "lbfgs"\. Got \'saga\''),
        ({"source": {}}, r"at least one class\. Got an empty dict"),
        ({"source": {0: 3.0}}, r"\(coefficients, intercept\)\. Got float for 0"),
        ({"source": {0: ([1, 2, 3], 0), 1: ([1, 2], 0)}}, r"of one length, 3\. Got shape \(2,\) for 1"),
        ({"source": {0: ([1, 2, np.nan], 0)}}, r"must have finite coefficients and intercepts\. Got others for 0"),
        ({"source": {0: ([1, 2], 0)}}, r"source must take as many features as X has, 3\. Got 2 instead"),
        ({"source": [{0: ([1] * 3, 0)}, {0: ([1, 2], 0)}]}, r"source\[1\] must take as many features"),
        ({"source": LogisticRegression()}, r"source must be fitted\. Got LogisticRegression, which is not"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_source_of_a_classifier_is_named(options, message):
    X, y = make_task(20, 3, 2)
    with pytest.raises((ValueError, TypeError, NotFittedError), match=message):
        TransferLogisticRegression(**options).fit(X, y)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (RandomForestClassifier(2), r"must be a linear classifier.*Got RandomForestClassifier"),
        (SVC(), r"must be linear: its decision_function.*Got SVC"),
        (SVC(kernel="linear"), r"must be linear: its decision_function.*Got SVC"),
        (SVC(kernel="linear", decision_function_shape="ovo"), r"must be linear|one row of coefficients"),
        (Ridge(), r"must be a linear classifier.*Got Ridge"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_source_that_is_no_linear_classifier_is_refused(source, message):
    X, y = make_task(80, 3, 4)
    with pytest.raises((ValueError, TypeError), match=message):
        TransferLogisticRegression(source.fit(X, y)).fit(X, y)


@pytest.mark.parametrize(
    "source",
    [SVC(gamma=1.0), SVR(gamma=1.0), KNeighborsRegressor(), RandomForestRegressor(5), HistGradientBoostingClassifier()],
    ids=lambda source: type(source).__name__,
)
def test_what_is_flat_far_from_the_data_is_not_taken_for_linear(source):
    X, y = make_task(200, 3, 2)
    X, y = 1.6e9 + 1e7 * X, y + 10**6 * (not is_classifier(source))  # seconds since 1970
    head = TransferLogisticRegression if is_classifier(source) else TransferRidge
    with pytest.raises(ValueError, match="must be linear"):
        head(source.fit(X, y)).fit(X, y)


def test_one_hot_codes_among_a_sources_steps_are_refused():
    X, y = make_task(200, 3, 3)
    codes = np.column_stack([X, np.arange(200) % 4 + 1.0])
    columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), [3]), remainder=StandardScaler())
    source = make_pipeline(columns, LogisticRegression(C=100.0)).fit(codes, (y + codes[:, 3]) % 3)
    with pytest.raises(ValueError, match=r"source must be linear.*one-hot codes"):
        TransferLogisticRegression(source).fit(codes, y)


def test_a_dict_of_many_weights_has_a_short_repr_and_one_copy():
    source = random_source(np.random.default_rng(0), range(100), 50)
    head = TransferLogisticRegression(source)
    assert "<coefficients of 100 classes>" in repr(head)
    assert clone(head).source is head.source
    assert head.source == source


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (PoissonRegressor(), r"its predict must be X @ coef\.T \+ intercept\. Got PoissonRegressor"),
        (LogisticRegression(), r"must be a linear regressor\. Got LogisticRegression"),
        (([1.0, np.nan], 0.0), r"all of them finite numbers"),
        (([[1.0] * 3] * 2, 0.0), r"as many outputs as y has columns, 1\. Got 2"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_source_that_is_no_linear_regressor_is_refused(source, message):
    X, y = make_task(80, 3, 3)
    source = source if isinstance(source, tuple) else source.fit(X, y)
    with pytest.raises((ValueError, TypeError), match=message):
        TransferRidge(source).fit(X, y)


def test_a_class_without_any_weight_does_not_unbalance_the_others():
    X, y = make_task(60, 3, 3)
    weights = (y != 2).astype(float)
    head = TransferLogisticRegression(class_weight="balanced").fit(X, y, weights)
    two = TransferLogisticRegression(class_weight="balanced").fit(X[y != 2], y[y != 2])
    assert np.isfinite(head.coef_).all()
    assert (head.predict(X[y != 2]) == two.predict(X[y != 2])).mean() > 0.95


def test_one_class_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"y must have at least 2 classes\. Got 1 class instead, 'cat', in 3 samples"):
        TransferLogisticRegression().fit(np.eye(3), ["cat"] * 3)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, -1, 1], r"Got -1\.0 in row 1"),
        ([1, 1], r"must have shape \(3,\)\. Got shape \(2,\)"),
        ([0] * 3, "above zero"),
    ],
)
def test_bad_sample_weights_are_named_by_row(weights, message):
    for head in (TransferLogisticRegression(), TransferRidge()):
        with pytest.raises(ValueError, match=message):
            head.fit(np.eye(3), [0, 1, 1], weights)


# --- the contract


@pytest.mark.parametrize("head", [TransferLogisticRegression(), TransferRidge()], ids=["logistic", "ridge"])
def test_more_than_forty_conformance_checks_run_and_none_fails(head):
    outcomes = check_estimator(head, on_fail=None, on_skip=None)
    failed = [(o["check_name"], repr(o["exception"])) for o in outcomes if o["status"] == "failed"]
    assert failed == []
    assert sum(o["status"] == "passed" for o in outcomes) > 40
    assert {o["check_name"] for o in outcomes if o["status"] == "skipped"} <= {"check_array_api_input"}


def test_heads_work_in_a_pipeline_and_in_cross_validation():
    X, y = load_digits(return_X_y=True)
    source = LogisticRegression(max_iter=2000).fit(X[:500], y[:500])
    pipeline = make_pipeline("passthrough", TransferLogisticRegression(source, source_weight=10.0))
    assert cross_val_score(pipeline, X[500:800], y[500:800], cv=3).mean() > 0.9

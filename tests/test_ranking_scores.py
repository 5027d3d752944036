"""Transferability scores of arrays: the papers' equations, written down slowly, and the laws that follow from them."""

import pickle
import tracemalloc
from decimal import Decimal
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import BayesianRidge, LogisticRegression, Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneOut,
    StratifiedKFold,
    cross_val_predict,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from sktransfer import h_score, leep_score, linear_probe_score, logme_score, nce_score
from sktransfer.ranking import blocks, embedding_scorer, logme, spectra
from sktransfer.ranking.evidence import NOISE, maximise
from sktransfer.ranking.inputs import read_features
from sktransfer.ranking.logme import ACCURACY, estimate_error
from sktransfer.ranking.regression import EvidenceRidge, scale_targets
from sktransfer.ranking.spectra import exact_spectrum, square_spectrum


def original_h_score(X, y):
    return h_score(X, y, shrinkage=0)


ARRAY_SCORES = [logme_score, h_score, original_h_score]
ALL_SCORES = [logme_score, h_score, leep_score, nce_score, linear_probe_score]


def make_task(n, d, n_classes, seed=0):
    """Embeddings that tell something of the labels, all of which occur."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * rng.uniform(0.5, 2, d) + rng.standard_normal(d)
    y = (X @ rng.standard_normal((d, n_classes)) / np.sqrt(d) + rng.standard_normal((n, n_classes))).argmax(axis=1)
    y[:n_classes] = np.arange(n_classes)
    return X, y


def spoil(X, y, kind):
    """A variant of a task that is hard to compute with."""
    X, y = X.copy(), y.copy()
    if kind == "one-sample classes":
        y[-2:] = y.max() + 1, y.max() + 2
    elif kind == "constant columns":
        X[:, 0], X[:, -1] = 7.0, 0.0
    elif kind == "duplicated columns":
        X[:, 1:3] = X[:, :1]
    return X, y


SHAPES = [(40, 6, 3), (20, 3, 2), (20, 50, 4), (30, 30, 3), (18, 6, 6)]
KINDS = ["plain", "one-sample classes", "constant columns", "duplicated columns"]


@pytest.fixture(
    params=[(shape, kind) for shape in SHAPES for kind in KINDS if kind == "plain" or shape[0] == 20], ids=str
)
def task(request):
    shape, kind = request.param
    return spoil(*make_task(*shape), kind)


def log_evidence(inner, y, alpha, beta):
    """log N(y | 0, I/β + XXᵀ/α): equation 1 of LogME with the weights integrated out."""
    covariance = np.eye(len(y)) / beta + inner / alpha
    determinant = np.linalg.slogdet(covariance)[1]
    return -0.5 * (len(y) * np.log(2 * np.pi) + determinant + y @ np.linalg.solve(covariance, y))


def slow_evidence(X, y):
    """The largest evidence of one column of values, a sample, by a general-purpose optimiser."""
    inner, size = X @ X.T, np.sqrt(np.mean(y**2))

    def miss(at):
        alpha, beta = np.exp(at)
        hopeless = beta * np.trace(inner) > 1e14 * alpha  # nothing but rounding
        return np.inf if hopeless else -log_evidence(inner, y / size, alpha, beta) / len(y)

    points = [(alpha, beta) for alpha in range(-3, 22, 3) for beta in range(-2, 28, 3)]
    ends = [
        scipy.optimize.minimize(miss, start, method="Nelder-Mead", options={
            "xatol": 1e-4, "fatol": 1e-9, "initial_simplex": np.add(start, [[0, 0], [1.5, 0], [0, 1.5]])}).fun
        for start in sorted(points, key=miss)[:2]
    ]  # fmt: skip
    return -min(ends) - np.log(size)


def test_logme_is_the_evidence_that_an_optimiser_finds(task):
    X, y = task
    slow = np.mean([slow_evidence(X, (y == label).astype(float)) for label in np.unique(y)])
    assert logme_score(X, y) == pytest.approx(slow, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
@pytest.mark.parametrize("noise", [0.1, 3.0])
def test_logme_of_a_regression_is_the_mean_evidence_of_its_columns(shape, noise):
    rng = np.random.default_rng(1)
    X, _ = make_task(*shape)
    y = 5 * (X @ rng.standard_normal((shape[1], 2)) + noise * rng.standard_normal((len(X), 2))) + [0, 40]
    slow = np.mean([slow_evidence(X, column) for column in y.T])
    assert logme_score(X, y) == pytest.approx(slow, rel=1e-6)


def precise_evidence(X, y, alpha, beta):
    """log_evidence by Cholesky's decomposition in extended precision."""
    X, y = X.astype(np.longdouble), y.astype(np.longdouble)
    left = np.eye(len(y), dtype=np.longdouble) / beta + X @ X.T / alpha
    determinant = square = np.longdouble(0)
    for _ in range(len(y)):
        pivot, column, first = left[0, 0], left[1:, 0] / left[0, 0], y[0]
        determinant, square = determinant + np.log(pivot), square + first**2 / pivot
        left, y = left[1:, 1:] - pivot * column[:, None] * column, y[1:] - column * first
    return -0.5 * (len(X) * np.log(2 * np.longdouble(np.pi)) + determinant + square)


def make_ill_conditioned(n, d, condition, noise, seed=0):
    rng = np.random.default_rng(seed)
    k = min(n, d)
    left, right = (np.linalg.qr(rng.standard_normal((size, k)))[0] for size in (n, d))
    X = left * np.geomspace(1, 1 / condition, k) @ right.T
    y = X @ right @ rng.standard_normal(k)
    return X, scale_targets((y + noise * y.std() * rng.standard_normal(n))[:, None])[0][:, 0]


@pytest.mark.parametrize("shape", [(24, 6), (20, 40)], ids=str)
@pytest.mark.parametrize("condition", [10, 1e6])
@pytest.mark.parametrize("noise", [1, 1e-2, 1e-4])
def test_logme_of_ill_conditioned_embeddings_is_that_of_extended_precision(shape, condition, noise):
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("there is no extended precision here")
    X, y = make_ill_conditioned(*shape, condition, noise)
    grid = [(ratio, beta) for ratio in np.geomspace(1e-14, 1e4, 10) for beta in np.geomspace(0.1, 1 / NOISE, 7)]
    found = maximise(exact_spectrum(read_features(X), y[:, None]))
    beta = 1 / found.noises[0]
    alpha = found.ratios[0] * beta * np.linalg.norm(X, 2) ** 2
    slow = float(precise_evidence(X, y, alpha, beta)) / len(y)
    others = max(precise_evidence(X, y, t * b * np.linalg.norm(X, 2) ** 2, b) for t, b in grid) / len(y)
    assert logme_score(X, y) == pytest.approx(slow, rel=1e-6)
    assert others < slow + 1e-6


@pytest.mark.parametrize("shape", [(60, 8), (150, 100), (80, 200), (1500, 5)], ids=str)
@pytest.mark.parametrize("condition", [10, 1e6, 1e12])
@pytest.mark.parametrize("noise", [1, 1e-2, 1e-4, 0])
def test_squared_singular_values_are_accurate_wherever_they_are_believed(shape, condition, noise):
    X, y = make_ill_conditioned(*shape, condition, noise)
    features = read_features(X)
    fast, exact = (maximise(find(features, y[:, None])) for find in (square_spectrum, exact_spectrum))
    believed = estimate_error(fast) <= ACCURACY
    assert believed or noise <= 1e-2
    assert not believed or fast.values == pytest.approx(exact.values, abs=ACCURACY)


def test_values_without_noise_are_decomposed_with_all_digits(monkeypatch):
    calls = []
    monkeypatch.setattr(logme, "exact_spectrum", lambda *args: calls.append(args) or exact_spectrum(*args))
    X, y = make_ill_conditioned(40, 5, 100, 0)
    assert np.isfinite(logme_score(X, y))
    assert len(calls) == 1
    logme_score(*make_task(40, 5, 3))
    assert len(calls) == 1


def test_many_blocks_give_what_one_block_gives(monkeypatch):
    tasks = [
        make_task(40, 7, 3),
        make_task(15, 40, 3),
        make_ill_conditioned(40, 5, 100, 0),
        make_ill_conditioned(12, 60, 100, 0),
    ]
    scores = [score(X, y) for X, y in tasks for score in ARRAY_SCORES if y.dtype != float or score is logme_score]
    monkeypatch.setattr(blocks, "VALUES", 50)
    monkeypatch.setattr(blocks, "PANEL", 2)
    monkeypatch.setattr(spectra, "LEAST", 9)
    again = [score(X, y) for X, y in tasks for score in ARRAY_SCORES if y.dtype != float or score is logme_score]
    assert again == pytest.approx(scores, rel=1e-9)


def test_embeddings_without_information_score_what_noise_alone_does():
    y = np.array([0, 0, 0, 1] * 5)
    alone = np.mean([-0.5 * (np.log(2 * np.pi * share) + 1) for share in (0.75, 0.25)])
    assert logme_score(np.zeros((20, 3)), y) == pytest.approx(alone, rel=1e-9)
    assert h_score(np.ones((20, 3)), y) == 0.0
    assert h_score(np.ones((20, 3)), y, shrinkage=0) == 0.0


@pytest.mark.parametrize(("n", "d"), [(30, 4), (10, 30), (4, 3)])
def test_labels_that_embeddings_state_exactly_score_high_and_finitely(n, d):
    y = np.arange(n) % 2
    X = np.column_stack([y == 0, y == 1, np.zeros((n, d - 2))])
    bound = -0.5 * (np.log(2 * np.pi) + np.log(NOISE / 2))
    assert 1 < logme_score(X, y) < bound
    assert logme_score(X, y, task="regression") < bound


def test_the_memory_of_logme_stays_below_that_of_the_array(monkeypatch):
    monkeypatch.setattr(blocks, "VALUES", 2**15)
    X, y = make_task(4000, 300, 20)
    X = X.astype(np.float32)
    tracemalloc.start()
    logme_score(X, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < X.nbytes


def mean_rows(X, y):
    """Each row replaced by the mean of its class."""
    return np.array([X[y == label].mean(axis=0) for label in y])


def test_the_h_score_is_that_of_explicit_covariances(task):
    X, y = task
    shrunk, share = ledoit_wolf(X)
    between = np.cov(mean_rows(X, y), rowvar=False, bias=True)
    slow = np.trace(np.linalg.solve(shrunk, (1 - share) * between))
    assert h_score(X, y) == pytest.approx(slow, rel=1e-6)


def test_the_original_h_score_is_that_of_a_pseudo_inverse(task):
    X, y = task
    slow = np.trace(np.linalg.pinv(np.cov(X, rowvar=False, bias=True)) @ np.cov(mean_rows(X, y).T, bias=True))
    assert original_h_score(X, y) == pytest.approx(slow, rel=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.9, 1])
def test_the_h_score_takes_any_shrinkage(share):
    X, y = make_task(50, 6, 3)
    covariance = np.cov(X.T, bias=True)
    shrunk = (1 - share) * covariance + share * np.trace(covariance) / 6 * np.eye(6)
    slow = np.trace(np.linalg.solve(shrunk, (1 - share) * np.cov(mean_rows(X, y).T, bias=True)))
    assert h_score(X, y, shrinkage=share) == pytest.approx(slow, rel=1e-6, abs=1e-12)


def test_the_h_score_of_one_feature_is_its_share_of_variance_between_classes():
    X, y = make_task(30, 1, 3)
    assert h_score(X, y) == pytest.approx(mean_rows(X, y).var() / X.var(), rel=1e-9)


def make_logits(n, n_source, n_classes, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    logits = scale * rng.standard_normal((n, n_source))
    y = (logits[:, : min(n_classes, n_source)] + rng.standard_normal((n, min(n_classes, n_source)))).argmax(axis=1)
    y[:n_classes] = np.arange(n_classes)
    return logits, y


def slow_leep(theta, y):
    """Equations 1 and 2 of LEEP, one sample and class at a time."""
    n, total = len(y), 0.0
    for i in range(n):
        expected = 0.0
        for z in range(theta.shape[1]):
            joint = sum(theta[j, z] for j in range(n) if y[j] == y[i]) / n
            expected += joint / (theta[:, z].sum() / n) * theta[i, z]
        total += np.log(expected)
    return total / n


def slow_nce(logits, y):
    """−H(Y | Z), one pair of classes at a time."""
    z, n, total = [max(range(len(row)), key=list(row).__getitem__) for row in logits], len(y), 0.0
    for a in set(y):
        for b in set(z):
            both = sum(y[i] == a and z[i] == b for i in range(n))
            total += both / n * np.log(both / z.count(b)) if both else 0.0
    return total


LOGITS = [(20, 5, 3), (40, 3, 8), (15, 40, 2), (30, 2, 30)]


@pytest.mark.parametrize("shape", LOGITS, ids=str)
@pytest.mark.parametrize("scale", [0.1, 5.0, 50.0])
def test_leep_is_that_of_loops_over_samples_and_classes(shape, scale):
    logits, y = make_logits(*shape, scale=scale)
    theta = np.exp(logits - logits.max(axis=1, keepdims=True))
    theta /= theta.sum(axis=1, keepdims=True)
    assert leep_score(logits, y) == pytest.approx(slow_leep(theta, y), rel=1e-6, abs=1e-12)
    assert leep_score(theta, y, probabilities=True) == pytest.approx(slow_leep(theta, y), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("shape", LOGITS, ids=str)
def test_nce_is_that_of_loops_over_classes(shape):
    logits, y = make_logits(*shape)
    assert nce_score(logits, y) == pytest.approx(slow_nce(logits, y), rel=1e-6)


def test_leep_of_a_certain_source_is_nce_and_huge_logits_are_certain():
    logits, y = make_logits(30, 4, 3)
    assert leep_score(np.clip(logits, -1, 1) * 1e308, y) <= 0
    assert leep_score(logits * 1e300, y) == pytest.approx(nce_score(logits, y), rel=1e-9)
    assert leep_score(logits * 1e-300, y) == pytest.approx(-sum(p * -np.log(p) for p in np.bincount(y) / 30), rel=1e-9)


def test_a_source_class_that_no_sample_has_changes_nothing():
    logits, y = make_logits(30, 4, 3)
    wider = np.column_stack([logits, np.full(30, -1e4)])
    assert leep_score(wider, y) == pytest.approx(leep_score(logits, y), rel=1e-12)
    assert nce_score(wider, y) == nce_score(logits, y)


def test_the_probe_is_the_share_of_right_predictions_in_stratified_folds():
    X, y = make_task(90, 5, 3)
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
    predicted = cross_val_predict(head, X, y, cv=StratifiedKFold(5, shuffle=True, random_state=0))
    assert linear_probe_score(X, y) == pytest.approx(np.mean(predicted == y))


def test_the_probe_of_values_is_bayesian_ridge():
    X, _ = make_task(15, 5, 2)
    y = X @ np.arange(5) + 3 * np.random.default_rng(0).standard_normal(15)
    head = make_pipeline(StandardScaler(), BayesianRidge(max_iter=10_000, tol=1e-10, alpha_1=0, alpha_2=0, lambda_1=0,
                                                         lambda_2=0))  # fmt: skip
    predicted = cross_val_predict(head, X, y, cv=LeaveOneOut())
    slow = 1 - np.sum((y - predicted) ** 2) / np.sum((y - y.mean()) ** 2)
    assert linear_probe_score(X, y, cv=LeaveOneOut()) == pytest.approx(slow, rel=1e-3)
    assert linear_probe_score(X, np.column_stack([y, -y]), cv=15) == pytest.approx(slow, rel=1e-3)


def test_the_penalty_of_a_column_that_is_constant_in_training_is_finite():
    X, _ = make_task(20, 3, 2)
    y = np.zeros((20, 2))
    y[:, 1] = X[:, 0]
    head = EvidenceRidge().fit(X - X.mean(axis=0), y)
    assert np.isfinite(head.alpha_).all()
    assert np.abs(head.predict(X)[:, 0]).max() < 1e-9


def test_values_without_noise_are_probed_in_single_precision_without_a_warning():
    X, _ = make_task(40, 6, 2)
    X = np.column_stack([X, X[:, 0]]).astype(np.float32)
    assert linear_probe_score(X, X[:, 0].astype(float)) == pytest.approx(1, abs=1e-4)


class Recorder(LogisticRegression):
    """A head that notes the labels of each fit."""

    seen: ClassVar = []

    def fit(self, X, y):
        self.seen.append(y)
        return super().fit(X, y)


def test_groups_are_never_on_both_sides_of_a_fold():
    X, y = make_task(40, 3, 2)
    groups = np.arange(40) // 10
    names = np.array([f"{label}-{group}" for label, group in zip(y, groups, strict=True)])
    Recorder.seen.clear()
    linear_probe_score(X, names, groups=groups, estimator=Recorder())
    assert len(Recorder.seen) == 4
    assert all(len({name[2:] for name in fold}) == 3 for fold in Recorder.seen)


def test_values_are_held_out_by_group_too():
    X, _ = make_task(40, 3, 2)
    y, groups = X[:, 0] * 2 + 1, np.arange(40) // 8
    assert linear_probe_score(X, y, groups=groups) == pytest.approx(1, abs=1e-6)
    assert linear_probe_score(X, y, groups=groups, cv=GroupKFold(2), estimator=Ridge(1e-6)) == pytest.approx(1)


def test_groups_may_be_of_several_types():
    X, y = make_task(40, 3, 2)
    groups = np.arange(40) // 10
    mixed = np.array([3, "a", 1.5, ("b", 2)], dtype=object)[groups]
    assert linear_probe_score(X, y, groups=mixed) == linear_probe_score(X, y, groups=groups)


def test_a_regressor_is_fitted_to_a_column_as_scikit_learn_wants_it():
    X, _ = make_task(40, 3, 2)
    assert linear_probe_score(X, X[:, 0] + 1, estimator=SVR(kernel="linear", C=100)) > 0.9


def test_the_probe_survives_few_samples_and_classes_of_one():
    X, y = make_task(20, 4, 2)
    y[:3] = 7, 8, 9
    assert 0 <= linear_probe_score(X, y) <= 17 / 20
    assert linear_probe_score(X[:4], ["a", "b", "b", "c"], estimator=LogisticRegression()) <= 0.5
    assert linear_probe_score(X[:3], ["a", "b", "b"]) in {0.0, 1 / 3}
    assert np.isfinite(linear_probe_score(X[:2], [0.5, 1.0]))


def is_close(score, X, y, other_X, other_y):
    return score(other_X, other_y) == pytest.approx(score(X, y), rel=1e-6, abs=1e-8)


small_tasks = st.builds(
    make_task, st.integers(10, 24), st.integers(1, 30), st.integers(2, 4), seed=st.integers(0, 10_000)
)  # fmt: skip
seeds = st.integers(0, 10_000)
laws = settings(max_examples=8, deadline=None)


@laws
@given(small_tasks, seeds)
def test_the_order_of_rows_does_not_matter(task, seed):
    X, y = task
    order = np.random.default_rng(seed).permutation(len(y))
    assert all(is_close(score, X, y, X[order], y[order]) for score in ARRAY_SCORES)
    logits = np.column_stack([X, -X])
    assert all(is_close(score, logits, y, logits[order], y[order]) for score in (leep_score, nce_score))


@laws
@given(small_tasks, st.permutations(["ox", "cat", "Zebra", "7"]))
def test_the_names_of_labels_do_not_matter(task, names):
    X, y = task
    renamed = np.array(names)[y]
    assert all(is_close(score, X, y, X, renamed) for score in ARRAY_SCORES)
    logits = np.column_stack([X, -X])
    assert all(is_close(score, logits, y, logits, renamed) for score in (leep_score, nce_score))


@laws
@given(small_tasks, seeds)
def test_rotating_embeddings_does_not_matter(task, seed):
    X, y = task
    turned = X @ np.linalg.qr(np.random.default_rng(seed).standard_normal((X.shape[1], X.shape[1])))[0]
    assert all(is_close(score, X, y, turned, y) for score in ARRAY_SCORES)


@laws
@given(small_tasks, st.floats(-900, 900))
def test_the_scale_of_embeddings_does_not_matter(task, exponent):
    X, y = task
    scaled = X * 2.0**exponent
    assert all(is_close(score, X, y, scaled, y) for score in ARRAY_SCORES)


@laws
@given(small_tasks, st.integers(1, 5), st.floats(-1e3, 1e3))
def test_further_constant_columns_do_not_matter_where_it_is_said(task, width, value):
    X, y = task
    assert is_close(logme_score, X, y, np.column_stack([X, np.zeros((len(X), width))]), y)
    assert is_close(original_h_score, X, y, np.column_stack([X, np.full((len(X), width), value)]), y)


@laws
@given(small_tasks, st.floats(-1e3, 1e3))
def test_moving_embeddings_does_not_matter_to_the_h_score(task, step):
    X, y = task
    assert is_close(h_score, X, y, X + step, y)
    assert is_close(original_h_score, X, y, X + step, y)


@laws
@given(small_tasks, seeds)
def test_linear_maps_do_not_matter_to_the_original_h_score(task, seed):
    X, y = task
    rng = np.random.default_rng(seed)
    d = X.shape[1]
    skew = np.linalg.qr(rng.standard_normal((d, d)))[0] * rng.uniform(0.5, 2, d)
    assert is_close(original_h_score, X, y, X @ skew, y)


@laws
@given(small_tasks, st.floats(1e-3, 1e3))
def test_the_unit_of_values_moves_logme_by_its_logarithm(task, unit):
    X, _ = task
    y = X[:, 0] + np.random.default_rng(0).standard_normal(len(X))
    assert logme_score(X, y * unit) == pytest.approx(logme_score(X, y) - np.log(unit), abs=1e-6)


@laws
@given(st.integers(5, 30), st.integers(2, 6), st.integers(2, 5), seeds, st.floats(-1e3, 1e3))
def test_leep_and_nce_lie_between_minus_the_entropy_and_zero(n, width, n_classes, seed, step):
    logits, y = make_logits(n, width, n_classes, seed)
    shares = np.bincount(y) / n
    for score in (leep_score, nce_score):
        assert (shares * np.log(shares)).sum() - 1e-9 <= score(logits, y) <= 0
        assert score(logits + step, y) == pytest.approx(score(logits, y), abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.longdouble, np.int8, object, bool])
@pytest.mark.parametrize("score", ALL_SCORES)
def test_any_real_dtype_is_computed_with_in_float64(score, dtype):
    X, y = make_task(30, 4, 3)
    X = (X > 0) if dtype is bool else np.rint(8 * X)
    assert score(X.astype(dtype), y) == pytest.approx(score(X.astype(np.float64), y), rel=1e-6)


@pytest.mark.parametrize("score", ALL_SCORES)
def test_frames_and_series_are_taken_as_arrays_and_results_are_floats(score):
    X, y = make_task(30, 4, 3)
    names = pd.Series(y).map({0: "a", 1: "b", 2: "c"}).astype("category")
    assert type(score(X, y)) is float
    assert score(pd.DataFrame(X), names) == pytest.approx(score(X, y), rel=1e-9)
    assert score(X.tolist(), y[:, None]) == score(X, y)


@pytest.mark.parametrize("score", [logme_score, h_score, original_h_score, linear_probe_score])
@pytest.mark.parametrize("factor", [1e300, 1e-300])
def test_huge_and_tiny_embeddings_score_as_others_do(score, factor):
    X, y = make_task(30, 5, 3)
    assert score(X * factor, y) == pytest.approx(score(X, y), rel=1e-6)


def test_huge_and_tiny_values_of_a_regression_are_scored():
    X, _ = make_task(30, 5, 3)
    y = X[:, 0] + np.random.default_rng(0).standard_normal(30)
    for factor in (1e300, 1e-300):
        assert logme_score(X, y * factor) == pytest.approx(logme_score(X, y) - np.log(factor), rel=1e-6)
        columns = np.column_stack([y, y * factor])
        assert linear_probe_score(X, columns) == pytest.approx(linear_probe_score(X, y), rel=1e-6)


@pytest.mark.parametrize("score", [logme_score, linear_probe_score])
def test_the_dtype_of_y_tells_labels_from_values_unless_task_does(score):
    X, y = make_task(40, 4, 2)
    as_labels, as_values = score(X, y), score(X, y.astype(float))
    assert as_labels != as_values
    assert score(X, y.astype(float), task="classification") == as_labels
    assert score(X, y, task="regression") == as_values
    assert score(X, y == 1) == as_labels


@pytest.mark.parametrize("convert", [
    lambda y: y.astype(object), lambda y: y.astype("S"), lambda y: np.array(list(map(Decimal, y.tolist()))),
    lambda y: y.astype("datetime64[D]"), lambda y: pd.Categorical(y / 2)], ids=["int", "S", "Decimal", "date", "half"],
)  # fmt: skip
@pytest.mark.parametrize("score", [logme_score, linear_probe_score])
def test_labels_may_be_whatever_can_be_sorted(score, convert):
    X, y = make_task(30, 4, 3)
    assert score(X, convert(y)) == pytest.approx(score(X, y), rel=1e-9)


def test_halves_are_probed_as_labels_if_that_is_said():
    X, y = make_task(30, 4, 3)
    assert linear_probe_score(X, y / 2, task="classification") == linear_probe_score(X, y)


BAD_X = [
    (np.zeros(6), "must have shape .n_samples, n_features.. Got shape .6,. instead"),
    (np.zeros((1, 3)), "must have at least 2 rows and 1 column. Got shape .1, 3. instead"),
    (np.zeros((6, 0)), "must have at least 2 rows and 1 column. Got shape .6, 0. instead"),
    (np.full((6, 3), "a"), "must hold real numbers. Got dtype <U1 instead"),
    (np.full((6, 3), "a", dtype=object), "must hold real numbers. Got other objects instead"),
    (np.full((6, 3), 1j), "must hold real numbers. Got dtype complex128 instead"),
    (np.where(np.arange(18).reshape(6, 3) == 13, np.nan, 1.0), "must be finite. Got nan in row 4, column 1 instead"),
    (np.where(np.arange(18).reshape(6, 3) == 5, -np.inf, 1.0), "must be finite. Got -inf in row 1, column 2 instead"),
]


@pytest.mark.parametrize("score", ALL_SCORES)
@pytest.mark.parametrize(("X", "message"), BAD_X)
def test_embeddings_that_cannot_be_scored_are_refused_by_row_and_column(score, X, message):
    with pytest.raises(ValueError, match=message):
        score(X, [0, 1, 0, 1, 0, 1])


def test_numbers_beyond_float64_are_refused():
    X = np.ones((4, 2), dtype=np.longdouble) * 2
    if np.finfo(np.longdouble).maxexp == 1024:
        pytest.skip("there are none here")
    X[3, 1] = np.longdouble(2) ** 2000
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="must be finite. Got inf in row 3, column 1"):
        logme_score(X, [0, 1, 0, 1])


@pytest.mark.parametrize("score", ALL_SCORES)
def test_sparse_embeddings_are_refused_with_the_way_out(score):
    with pytest.raises(TypeError, match=r"must be a dense array. Got a sparse csr_array instead; see its toarray"):
        score(scipy.sparse.csr_array(np.eye(6)), [0, 1, 0, 1, 0, 1])


BAD_LABELS = [
    ([0, 1, 0], "y must have one entry for each of the 6 rows. Got 3 instead"),
    (["a"] * 6, "y must have at least 2 classes. Got 'a' in all 6 rows instead"),
    (np.eye(6, dtype=int), "y must have shape .n_samples,. for class labels. Got shape .6, 6. instead"),
    (["a", "b", None, "a", "b", "a"], "y must have a label in each row. Got None in row 2 instead"),
    (
        pd.Series(["a", "b", "a", pd.NA, "b", "a"], dtype=object),
        "y must have a label in each row. Got <NA> in row 3 instead",
    ),
    (np.array([1, "b", 1, 1, 1, 1], dtype=object), "y must have labels of one type. Got int and str instead"),
]


@pytest.mark.parametrize("score", ALL_SCORES)
@pytest.mark.parametrize(("y", "message"), BAD_LABELS)
def test_labels_that_cannot_be_scored_are_refused_by_row(score, y, message):
    with pytest.raises(ValueError, match=message):
        score(np.random.default_rng(0).standard_normal((6, 3)), y)


BAD_VALUES = [
    ([0.5, 1.0], "y must have one entry for each of the 6 rows. Got 2 instead"),
    ([2.5] * 6, "y must have at least 2 values. Got 2.5 in all 6 rows of column 0 instead"),
    ([1, 2, np.nan, 4, 5, 6], "y must be finite. Got nan in row 2 instead"),
    (np.zeros((6, 2, 2)), "y must have shape .n_samples,. or .n_samples, n_outputs.. Got shape .6, 2, 2. instead"),
]


@pytest.mark.parametrize("score", [logme_score, linear_probe_score])
@pytest.mark.parametrize(("y", "message"), BAD_VALUES)
def test_values_that_cannot_be_scored_are_refused_by_row(score, y, message):
    with pytest.raises(ValueError, match=message):
        score(np.random.default_rng(0).standard_normal((6, 3)), y)


@pytest.mark.parametrize("y", [list("abcabc"), np.array(list("abcabc"), dtype=object)], ids=["str", "object"])
def test_text_is_no_value_of_a_regression(y):
    with pytest.raises(ValueError, match=r"y must hold real numbers for a regression. Got (dtype|other)"):
        logme_score(np.eye(6), y, task="regression")


@pytest.mark.parametrize("score", [h_score, leep_score, nce_score])
def test_scores_of_labels_refuse_values(score):
    with pytest.raises(ValueError, match=r"y must be labels: integers, booleans or strings. Got floats instead"):
        score(np.random.default_rng(0).standard_normal((6, 3)), [0.0, 1.0] * 3)


@pytest.mark.parametrize(("call", "message"), [
    (lambda X, y: logme_score(X, y, task="both"), 'task must be "auto", "classification" or "regression". Got'),
    (lambda X, y: h_score(X, y, shrinkage=2), 'shrinkage must be "ledoit-wolf" or a number from 0 to 1. Got 2 instead'),
    (lambda X, y: h_score(X, y, shrinkage="oas"), "shrinkage must be .* Got 'oas' instead"),
    (lambda X, y: linear_probe_score(X, y, cv=1), "cv must be .* integer from 2 to 3 for this y. Got 1 instead"),
    (lambda X, y: linear_probe_score(X, y, cv=4), "cv must be .* integer from 2 to 3 for this y. Got 4 instead"),
    (lambda X, y: linear_probe_score(X, y, groups=[1] * 6), "groups must have at least 2 values.* Got 1 instead"),
    (lambda X, y: linear_probe_score(X, y, groups=[1, 2]), r"entry for each of the 6 rows. Got shape \(2,\) instead"),
    (lambda X, y: linear_probe_score(X, y, groups=[1, np.nan] * 3), "must have an entry in each row. Got nan in row 1"),
    (lambda X, y: linear_probe_score(X, y, cv=[]), "cv must have at least one fold. Got none instead"),
    (lambda X, y: linear_probe_score(X, list("abcdef")), "y must have a class with at least 2 samples.* Got 6 classes"),
    (lambda X, y: leep_score(X[:, :1], y), "logits must have a column for each class of the source.* Got 1 instead"),
])  # fmt: skip
def test_parameters_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0).standard_normal((6, 3)), [0, 1] * 3)


def test_probabilities_are_not_taken_for_logits_nor_logits_for_probabilities():
    y = [0, 1, 0, 1]
    shares = np.random.default_rng(0).dirichlet([1, 1, 1], 4)
    with pytest.raises(ValueError, match=r"Got probabilities instead: no value is negative and each row sums to 1"):
        leep_score(shares.astype(np.float16), y)
    shares[2] *= 3
    with pytest.raises(ValueError, match=r"Got a minimum of .* and a sum of 3 in row 2 instead"):
        leep_score(shares, y, probabilities=True)
    assert np.isfinite(leep_score(shares, y))


SCORING = {"logme": embedding_scorer(logme_score), "h": embedding_scorer(h_score, shrinkage=0.5)}


def test_scorers_rank_transformers_in_a_search():
    X, y = make_task(60, 8, 3)
    search = GridSearchCV(PCA(), {"n_components": [1, 4]}, scoring=SCORING, refit="logme", cv=3).fit(X, y)
    found = clone(search).fit(X, y).cv_results_
    train, test = next(KFold(3).split(X))
    embedded = PCA(n_components=4).fit(X[train]).transform(X[test])
    assert found["split0_test_logme"][1] == pytest.approx(logme_score(embedded, y[test]))
    assert found["split0_test_h"][1] == pytest.approx(h_score(embedded, y[test], shrinkage=0.5))


@pytest.mark.parametrize("head", [LogisticRegression(), LinearDiscriminantAnalysis()])
def test_scorers_rank_pipelines_by_what_reaches_their_head(head):
    X, y = make_task(60, 8, 3)
    pipeline = Pipeline([("scale", StandardScaler()), ("reduce", PCA()), ("head", head)])
    whole = [(np.arange(60), np.arange(60))]
    search = GridSearchCV(pipeline, {"reduce__n_components": [1, 4]}, scoring=SCORING, refit="h", cv=whole).fit(X, y)
    embedded = PCA(4).fit_transform(StandardScaler().fit_transform(X))
    assert search.cv_results_["mean_test_logme"][1] == pytest.approx(logme_score(embedded, y))


def test_a_pipeline_of_transformers_is_scored_as_a_whole():
    X, y = make_task(60, 8, 3)
    pipeline = make_pipeline(StandardScaler(), PCA(2)).fit(X)
    assert SCORING["logme"](pipeline, X, y) == pytest.approx(logme_score(pipeline.transform(X), y))


def test_scorers_can_be_pickled_for_other_processes():
    X, y = make_task(60, 8, 3)
    scorer = pickle.loads(pickle.dumps(SCORING["h"]))
    assert scorer == SCORING["h"]
    assert scorer(PCA(2).fit(X), X, y) == SCORING["h"](PCA(2).fit(X), X, y)


def test_a_scorer_refuses_what_makes_no_embeddings():
    X, y = make_task(20, 3, 2)
    with pytest.raises(TypeError, match=r"estimator must be a transformer, or a Pipeline .* Got LogisticRegression"):
        SCORING["h"](LogisticRegression().fit(X, y), X, y)
    with pytest.raises(TypeError, match=r"estimator must be a transformer, or a Pipeline .* Got Pipeline"):
        SCORING["h"](make_pipeline(LogisticRegression()).fit(X, y), X, y)

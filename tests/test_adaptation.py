"""Methods of adaptation against other libraries' and against slow, obvious references."""

import sys
import warnings

import numpy as np
import pytest
import sklearn
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from sktransfer.adaptation import (
    Adapter,
    Coral,
    ImportanceWeighting,
    OptimalTransport,
    SelfTraining,
    Standardize,
    SubspaceAlignment,
)
from sktransfer.adaptation.learners import fit_model
from sktransfer.adaptation.report import score_agreement, score_reverse
from sktransfer.adaptation.shift import tell_domains_apart
from sktransfer.exceptions import MissingExtraError

SHAPES = [(60, 8), (30, 50)]  # rows of each domain, features


def make_shift(n=60, d=8, n_classes=3, seed=0, n_sources=1):
    """Clusters, of which the target's are stretched and moved: X, y with the truth, sample_domain."""
    rng = np.random.default_rng(seed)
    centers = 3 * rng.standard_normal((n_classes, d))
    y = np.arange(n * (n_sources + 1)) % n_classes
    X = centers[y] + rng.standard_normal((len(y), d))
    domains = np.repeat([*range(n_sources), -1], n)
    X[domains < 0] = 0.4 * X[domains < 0] * rng.uniform(0.5, 2, d) + rng.standard_normal(d)
    order = rng.permutation(len(y))
    return X[order], y[order], domains[order]


def mask(y, domains):
    return np.where(domains < 0, -1, y)


def adapt(method, X, y, domains):
    return method.fit(X, mask(y, domains), domains).transform(X, domains)


def predict_target(rows, y, domains):
    return LogisticRegression().fit(rows[domains >= 0], y[domains >= 0]).predict_proba(rows[domains < 0])


@pytest.fixture(scope="module")
def skada():
    """The oracle, a dependency of the tests; it has no release for Python 3.14."""
    if sys.version_info >= (3, 14):
        pytest.skip("skada has no release for Python 3.14")
    with warnings.catch_warnings(), sklearn.config_context():  # its import turns metadata routing on
        warnings.simplefilter("ignore")
        import skada
    return skada


def run_oracle(adapter, X, y, domains):
    """skada's source domains are numbered from 1, its only target -2 here."""
    numbers = np.where(domains < 0, -2, domains + 1)
    return adapter.fit_transform(X, mask(y, domains), sample_domain=numbers)


def assert_same(rows, expected, y, domains, rtol=1e-6):
    np.testing.assert_allclose(rows, expected, rtol=rtol, atol=rtol * np.abs(expected).max())
    np.testing.assert_allclose(*(predict_target(X, y, domains) for X in (rows, expected)), rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("shrinkage", [0.1, 0.5, 1.0])
def test_coral_is_that_of_skada(skada, n, d, shrinkage):
    X, y, domains = make_shift(n, d)
    expected = run_oracle(skada.CORALAdapter(reg=shrinkage), X, y, domains)
    assert_same(adapt(Coral(shrinkage), X, y, domains), expected, y, domains)


def test_skada_shrinks_standardised_features_where_the_shrinkage_is_estimated(skada):
    X, y, domains = make_shift(60, 8)
    for domain in (0, -1):  # then the two agree
        X[domains == domain] = StandardScaler().fit_transform(X[domains == domain])
    assert_same(adapt(Coral(), X, y, domains), run_oracle(skada.CORALAdapter(), X, y, domains), y, domains)
    X[:, 0] *= 100
    expected = run_oracle(skada.CORALAdapter(), X, y, domains)
    assert not np.allclose(adapt(Coral(), X, y, domains), expected, rtol=1e-2)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("width", [2, 7])
def test_subspace_alignment_without_a_length_is_that_of_skada(skada, n, d, width):
    X, y, domains = make_shift(n, d)
    expected = run_oracle(skada.SubspaceAlignmentAdapter(n_components=width), X, y, domains)
    assert_same(adapt(SubspaceAlignment(width, length=None), X, y, domains), expected, y, domains)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("reg", [5.0, 20.0])
def test_optimal_transport_of_raw_distances_is_that_of_skada(skada, n, d, reg):
    X, y, domains = make_shift(n, d)
    with warnings.catch_warnings():  # POT's, of couplings that have not converged to the last digit
        warnings.simplefilter("ignore")
        oracle = skada.ClassRegularizerOTMappingAdapter(reg_e=reg, reg_cl=0.1, norm="lpl1")
        expected = run_oracle(oracle, X, y, domains)
    assert_same(adapt(OptimalTransport(reg, 0.1, norm=None), X, y, domains), expected, y, domains)


def test_optimal_transport_divides_distances_by_their_median_which_skada_does_not(skada):
    X, y, domains = make_shift()
    square = ((X[domains >= 0][:, None] - X[domains < 0]) ** 2).sum(axis=2)
    oracle = skada.ClassRegularizerOTMappingAdapter(reg_e=0.5, reg_cl=0.1, norm="lpl1")
    expected = run_oracle(oracle, X / np.sqrt(np.median(square)), y, domains) * np.sqrt(np.median(square))
    assert_same(adapt(OptimalTransport(0.5, 0.1), X, y, domains), expected, y, domains)


@pytest.mark.parametrize("n_sources", [1, 3])
def test_standardized_domains_have_no_mean_and_unit_variance(n_sources):
    X, y, domains = make_shift(n_sources=n_sources)
    rows = adapt(Standardize(), X, y, domains)
    for domain in np.unique(domains):
        expected = StandardScaler().fit_transform(X[domains == domain])
        np.testing.assert_allclose(rows[domains == domain], expected, rtol=1e-9, atol=1e-12)


def test_rows_standardized_onto_the_source_have_its_moments_and_one_source_stays():
    X, y, domains = make_shift(n_sources=2)
    rows, source = adapt(Standardize(onto="source"), X, y, domains), X[domains >= 0]
    for domain in (0, 1, -1):
        np.testing.assert_allclose(rows[domains == domain].mean(axis=0), source.mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(rows[domains == domain].std(axis=0), source.std(axis=0), rtol=1e-9)
    X, y, domains = make_shift()
    np.testing.assert_allclose(adapt(Standardize("source"), X, y, domains)[domains >= 0], X[domains >= 0], rtol=1e-9)


def slow_root(covariance, power):
    values, axes = np.linalg.eigh(covariance)
    return axes @ np.diag(values**power) @ axes.T


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("shrinkage", [0.2, "ledoit-wolf"])
def test_coral_recolours_each_source_by_whole_covariances(n, d, shrinkage):
    X, y, domains = make_shift(n, d, n_sources=2)
    covariances = {}
    for domain in (0, 1, -1):
        rows = X[domains == domain]
        raw = np.cov(rows.T, bias=True)
        fixed = shrinkage != "ledoit-wolf" and 0.8 * raw + 0.2 * np.trace(raw) / d * np.eye(d)
        covariances[domain] = ledoit_wolf(rows)[0] if shrinkage == "ledoit-wolf" else fixed
    adapted = adapt(Coral(shrinkage), X, y, domains)
    for domain in (0, 1):
        turn = slow_root(covariances[domain], -0.5) @ slow_root(covariances[-1], 0.5)
        centred = X[domains == domain] - X[domains == domain].mean(axis=0)
        np.testing.assert_allclose(adapted[domains == domain], centred @ turn, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(adapted[domains < 0], X[domains < 0] - X[domains < 0].mean(axis=0), atol=1e-12)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_subspaces_are_turned_as_in_the_paper(n, d):
    X, y, domains = make_shift(n, d, n_sources=2)
    axes = {}
    for domain in (0, 1, -1):
        centred = X[domains == domain] - X[domains == domain].mean(axis=0)
        axes[domain] = np.linalg.svd(centred, full_matrices=False)[2][:5].T
    rows = adapt(SubspaceAlignment(5, length=None), X, y, domains)
    flips = np.sign((rows[domains < 0] * ((X - X[domains < 0].mean(axis=0)) @ axes[-1])[domains < 0]).sum(axis=0))
    for domain in (0, 1):
        centred = X[domains == domain] - X[domains == domain].mean(axis=0)
        expected = centred @ axes[domain] @ axes[domain].T @ axes[-1] * flips
        np.testing.assert_allclose(rows[domains == domain], expected, rtol=1e-6, atol=1e-9)


def slow_weights(X, domains, exponent, most):
    """Two folds, one row at a time."""
    scaled = PCA().fit_transform(StandardScaler().fit_transform(X))
    scaled /= np.sqrt((scaled**2).sum(axis=1).mean())
    target = domains < 0
    ratios = np.empty(len(X))
    for taught, asked in StratifiedKFold(2, shuffle=True, random_state=0).split(X, target):
        model = LogisticRegression().fit(scaled[taught], target[taught])
        for row in asked:
            p_source, p_target = model.predict_proba(scaled[row : row + 1])[0]
            ratios[row] = (p_target / p_source) ** exponent
    return np.minimum(ratios[~target] / ratios[~target].mean(), most)


@pytest.mark.parametrize(("exponent", "most"), [(1.0, 2.0), (0.5, 10.0), (0.0, 10.0)])
def test_importance_weights_are_ratios_of_out_of_fold_probabilities(exponent, most):
    X, y, domains = make_shift(40, 4)
    rows = np.concatenate([np.flatnonzero(domains >= 0), np.flatnonzero(domains < 0)[:2]])  # two rows: two folds
    method = ImportanceWeighting(exponent, most).fit(X[rows], mask(y, domains)[rows], domains[rows])
    expected = slow_weights(X[rows], domains[rows], exponent, most)
    np.testing.assert_allclose(method.weights_, expected, rtol=1e-5)
    weights = method.source_weight(X[rows], domains[rows])
    assert (weights[:-2] == method.weights_).all()
    assert (weights[-2:] == 1).all()


def learner(estimator, n_classes=3):
    classes = None if n_classes is None else np.arange(n_classes)
    return lambda X, y, weight: fit_model(estimator, classes, X, y, weight)


def smooth_slowly(scores, X, k, share):
    """Mixed with the mean of the k rows of smallest angle."""
    mixed = []
    for row in X:
        cosines = X @ row / (np.linalg.norm(X, axis=1) * np.linalg.norm(row))
        mixed.append((1 - share) * scores[len(mixed)] + share * scores[np.argsort(-cosines)[1 : k + 1]].mean(axis=0))
    return np.array(mixed)


def choose_slowly(scores, share):
    labels, chosen = scores.argmax(axis=1), np.zeros(len(scores), dtype=bool)
    for label in set(labels):
        rows = sorted(np.flatnonzero(labels == label), key=lambda row: -scores[row, label])
        chosen[rows[: int(np.ceil(share * len(rows)))]] = True
    return labels, chosen


def test_one_round_of_self_training_is_what_one_does_by_hand():
    X, y, domains = make_shift(60)
    target = domains < 0
    first = LogisticRegression().fit(X[~target], y[~target]).predict_proba(X[target])
    labels, chosen = choose_slowly(smooth_slowly(first, X[target], 4, 0.3), 0.5)
    teach = np.vstack([X[~target], X[target][chosen]]), np.append(y[~target], labels[chosen])
    expected = LogisticRegression().fit(*teach).predict_proba(X[target])
    method = SelfTraining(rounds=1, fraction=0.5, n_neighbors=4, smoothing=0.3)
    model = method.train(learner(LogisticRegression()), X, mask(y, domains), domains, None)
    assert (method.labels_ == labels).all()
    assert (method.selected_ == chosen).all()
    np.testing.assert_allclose(model.scores(X[target]), expected, rtol=1e-3, atol=1e-5)


def test_every_round_learns_from_more_rows_of_each_class():
    X, y, domains = make_shift(60)
    sizes = []

    def learn(X, y, weight):
        sizes.append(len(X))
        return learner(LogisticRegression())(X, y, weight)

    method = SelfTraining(rounds=4, fraction=0.8, smoothing=0)
    method.train(learn, X, mask(y, domains), domains, None)
    assert sizes[0] == 60
    assert sizes == sorted(sizes)
    assert 60 + 0.8 * 60 <= sizes[-1] < 60 + 0.8 * 60 + 3
    assert sizes[-1] - 60 == method.selected_.sum()


def test_target_labels_that_are_known_stay_and_are_learnt_from():
    X, y, domains = make_shift(60)
    target = np.flatnonzero(domains < 0)
    known = mask(y, domains)
    known[target[:10]] = (y[target[:10]] + 1) % 3  # wrong on purpose
    method = SelfTraining(rounds=2)
    method.train(learner(LogisticRegression()), X, known, domains, None)
    assert (method.labels_[:10] == known[target[:10]]).all()
    assert method.selected_[:10].all()


def test_the_reverse_score_is_balanced_accuracy_of_the_way_back():
    X, y, domains = make_shift(60)
    target = domains < 0
    y[np.flatnonzero(~target)[:20]] = 0  # classes of different sizes
    predicted = LogisticRegression().fit(X[~target], y[~target]).predict(X[target])
    back = LogisticRegression().fit(X[target], predicted).predict(X[~target])
    right = {label: [b == label for b, t in zip(back, y[~target], strict=True) if t == label] for label in (0, 1, 2)}
    expected = np.mean([np.mean(rows) for rows in right.values()])
    score = score_reverse(learner(LogisticRegression()), X, mask(y, domains), domains, predicted)
    assert score == pytest.approx(expected, rel=1e-12)


def test_the_reverse_score_of_one_predicted_class_is_chance():
    X, y, domains = make_shift(60)
    assert score_reverse(learner(LogisticRegression()), X, mask(y, domains), domains, np.zeros(60, int)) == 1 / 3


def test_the_reverse_score_of_values_is_r2():
    X, _, domains = make_shift(60)
    target, values = domains < 0, X @ np.arange(8.0)
    predicted = Ridge().fit(X[~target], values[~target]).predict(X[target])
    expected = r2_score(values[~target], Ridge().fit(X[target], predicted).predict(X[~target]))
    known = np.where(target, np.nan, values)
    assert score_reverse(learner(Ridge(), None), X, known, domains, predicted) == pytest.approx(expected)


def find_nearest_slowly(X, k):
    unit = (X - X.mean(axis=0)) / np.linalg.norm(X - X.mean(axis=0), axis=1)[:, None]
    for row in range(len(X)):
        yield row, sorted(set(range(len(X))) - {row}, key=lambda other: -unit[row] @ unit[other])[:k]


@pytest.mark.parametrize("n_rows", [30, 4])
def test_the_agreement_of_neighbours_is_that_beyond_chance(n_rows):
    X, y = make_shift(15)[0][:n_rows], np.arange(n_rows) % 2
    pairs = [y[row] == y[other] for row, near in find_nearest_slowly(X, 5) for other in near]
    chance = sum(np.mean(y == label) ** 2 for label in range(2))
    assert score_agreement(X, y) == pytest.approx((np.mean(pairs) - chance) / (1 - chance))
    assert score_agreement(X, np.ones(n_rows, dtype=int)) == 0


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_the_agreement_of_values_is_that_of_geary(n_outputs):
    X, _, _ = make_shift(15)
    values = X[:, :n_outputs] ** 2 if n_outputs > 1 else X[:, 0]
    near = [(row, other) for row, others in find_nearest_slowly(X, 5) for other in others]
    differences = np.mean([np.sum((values[row] - values[other]) ** 2) for row, other in near])
    expected = 1 - differences / (2 * values.var(axis=0).sum())
    assert score_agreement(X, values) == pytest.approx(expected)
    assert score_agreement(X, np.ones(30)) == 0


def test_the_auc_between_domains_is_that_of_out_of_fold_decisions():
    X, _, domains = make_shift(30, 4)
    X[domains < 0] = X[domains < 0] * 0.3 + X[domains >= 0].mean(axis=0)
    rows = np.append(np.flatnonzero(domains >= 0), np.flatnonzero(domains < 0)[:2])
    auc = tell_domains_apart(X[rows], domains[rows] < 0)
    order = np.random.default_rng(0)
    rows = np.concatenate([rows[order.permutation(30)], rows[30 + order.permutation(2)]])
    X, side = PCA().fit_transform(StandardScaler().fit_transform(X[rows])), domains[rows] < 0
    X *= 3 / np.sqrt((X**2).sum(axis=1).mean())
    told = np.empty(32)
    for taught, asked in StratifiedKFold(2, shuffle=True, random_state=0).split(X, side):
        told[asked] = (
            LogisticRegression(class_weight="balanced").fit(X[taught], side[taught]).decision_function(X[asked])
        )
    assert auc == pytest.approx(roc_auc_score(side, told), abs=1e-3)


def test_the_auc_between_domains_is_a_half_where_they_are_the_same_and_one_where_they_are_not():
    rng = np.random.default_rng(0)
    X, target = rng.standard_normal((600, 10)), np.arange(600) % 2 == 0
    assert abs(tell_domains_apart(X, target) - 0.5) < 0.1
    X[target] += 5
    assert tell_domains_apart(X, target) == 1.0


MOVES = [Standardize(), Coral(), Coral(0.5), SubspaceAlignment(3), OptimalTransport(1.0)]
SHIFTS = [*MOVES, ImportanceWeighting()]


@pytest.mark.parametrize("method", MOVES, ids=str)
def test_several_sources_are_each_aligned_by_itself(method):
    X, y, domains = make_shift(40, n_sources=2)
    both = adapt(method, X, y, domains)
    if isinstance(method, SubspaceAlignment):  # one scale serves all sources
        both /= method.scale_
    for domain in (0, 1):
        rows = (domains == domain) | (domains < 0)
        alone = adapt(method, X[rows], y[rows], domains[rows])
        alone /= method.scale_ if isinstance(method, SubspaceAlignment) else 1
        np.testing.assert_allclose(alone, both[rows], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", SHIFTS, ids=str)
def test_neither_rows_nor_labels_nor_domains_are_written_to(method):
    X, y, domains = make_shift(30)
    known = mask(y, domains)
    copies = X.copy(), known.copy(), domains.copy()
    for array in (X, known, domains):
        array.flags.writeable = False
    method.fit(X, known, domains).transform(X, domains)
    for array, copy in zip((X, known, domains), copies, strict=True):
        assert (array == copy).all()


@pytest.mark.parametrize("method", MOVES, ids=str)
def test_float32_rows_stay_float32_and_agree_with_float64(method):
    X, y, domains = make_shift(40)
    double, single = adapt(method, X, y, domains), adapt(method, X.astype(np.float32), y, domains)
    assert single.dtype == np.float32
    np.testing.assert_allclose(np.abs(single), np.abs(double), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", [*MOVES[::2], SubspaceAlignment(), ImportanceWeighting()], ids=str)
@pytest.mark.parametrize("n_target", [2, 3])
def test_two_target_rows_and_two_source_rows_are_enough(method, n_target):
    X, _, domains = make_shift(30)
    rows = np.append(np.flatnonzero(domains >= 0)[:2], np.flatnonzero(domains < 0)[:n_target])
    assert np.isfinite(adapt(method, X[rows], np.arange(len(rows)), domains[rows])).all()


@pytest.mark.parametrize(
    "method", [*MOVES[:3], SubspaceAlignment(), OptimalTransport(), ImportanceWeighting()], ids=str
)
def test_one_feature_is_enough(method):
    X, y, domains = make_shift(40, 1)
    assert np.isfinite(adapt(method, X, y, domains)).all()


def test_coral_of_one_feature_matches_its_variance():
    X, y, domains = make_shift(40, 1)
    rows = adapt(Coral(), X, y, domains)
    assert rows[domains >= 0].std() == pytest.approx(X[domains < 0].std())


@pytest.mark.parametrize("method", [*MOVES, ImportanceWeighting()], ids=str)
@pytest.mark.parametrize("side", [0, -1])
def test_features_that_are_constant_in_one_domain_give_finite_rows(method, side):
    X, y, domains = make_shift(40)
    X[domains == side, :3] = 0.1
    assert np.isfinite(adapt(method, X, y, domains)).all()


def test_two_rows_have_no_covariance_that_shrinkage_could_be_estimated_for():
    X, y, domains = make_shift(30)
    rows = np.append(np.flatnonzero(domains >= 0), np.flatnonzero(domains < 0)[:2])
    with pytest.raises(ValueError, match=r"Got a domain of too few different rows instead; give more, or a number as"):
        adapt(Coral(), X[rows], y[rows], domains[rows])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_that_are_constant_up_to_rounding_become_zero(dtype):
    X, y, domains = make_shift(40)
    X[:, 0] = 100 * (1 + 1e-16 * X[:, 0])
    X[:, 1] *= 1e-17  # as the last components of a PCA
    rows = adapt(Standardize(), X.astype(dtype), y, domains)
    np.testing.assert_allclose(rows[:, :2], 0, atol=1e-6)


def test_features_of_other_units_count_as_much():
    X, y, domains = make_shift(40)
    expected = adapt(Standardize(), X, y, domains)
    np.testing.assert_allclose(adapt(Standardize(), X * np.logspace(-6, 6, 8), y, domains), expected, rtol=1e-9)


@pytest.mark.parametrize("method", [*MOVES[:4], OptimalTransport()], ids=str)
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_rows_changes_that_of_the_outcome_at_most(method, scale):
    X, y, domains = make_shift(40)
    rows, scaled = (adapt(method, factor * X, y, domains) for factor in (1, scale))
    np.testing.assert_allclose(scaled / np.abs(scaled).max(), rows / np.abs(rows).max(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", [*MOVES[:4], OptimalTransport()], ids=str)
def test_duplicated_rows_are_no_obstacle(method):
    X, y, domains = make_shift(20, 30)
    X, y, domains = (np.concatenate([array] * 3) for array in (X, y, domains))
    assert np.isfinite(adapt(method, X, y, domains)).all()


def test_the_width_of_subspaces_follows_rows_features_and_classes():
    X, y, domains = make_shift(40, 300, n_classes=2)
    assert SubspaceAlignment().fit(X, mask(y, domains), domains).components_[-1].shape == (300, 20)
    assert SubspaceAlignment(length=2.0).fit(X, mask(y, domains), domains).transform(X, domains).shape == (80, 20)


def test_rows_of_subspaces_have_the_length_that_was_asked_for():
    X, y, domains = make_shift(40)
    rows = adapt(SubspaceAlignment(3, length=2.5), X, y, domains)[domains >= 0]
    assert np.sqrt((rows**2).sum(axis=1).mean()) == pytest.approx(2.5)


def test_labels_of_the_target_bind_the_transport_to_their_classes():
    X, y, domains = make_shift(30, n_classes=2)
    target = np.flatnonzero(domains < 0)
    known = mask(y, domains)
    known[target] = 1 - y[target]  # swapped
    carried = OptimalTransport(1.0).fit(X, known, domains).transform(X, domains)
    for label in (0, 1):
        own, other = (X[target[y[target] == k]].mean(axis=0) for k in (1 - label, label))
        mean = carried[(domains == 0) & (y == label)].mean(axis=0)
        assert np.linalg.norm(mean - own) < 0.1 * np.linalg.norm(mean - other)


def test_transport_takes_classes_that_only_labelled_target_rows_have():
    X, y, domains = make_shift(30)
    target = np.flatnonzero(domains < 0)
    known = mask(y, domains)
    unlabelled = OptimalTransport(1.0).fit(X, known, domains).transform(X, domains)
    known[target[:5]] = 7
    np.testing.assert_allclose(OptimalTransport(1.0).fit(X, known, domains).transform(X, domains), unlabelled)


def test_transport_in_a_regression_has_no_classes():
    X, _, domains = make_shift(30)
    known = np.where(domains < 0, np.nan, X[:, 0])
    rows = OptimalTransport(1.0).fit(X, known, domains).transform(X, domains)
    low, high = X[domains < 0].min(axis=0), X[domains < 0].max(axis=0)
    assert ((rows[domains >= 0] >= low) & (rows[domains >= 0] <= high)).all()


def test_a_transport_that_does_not_converge_says_what_to_change():
    X, y, domains = make_shift(30)
    with pytest.raises(ValueError, match=r"^reg must be larger for the coupling to converge here\. Got 1e-09 instead"):
        OptimalTransport(1e-9, norm=None).fit(1e3 * X, mask(y, domains), domains)


def test_without_pot_the_error_has_the_pip_line(monkeypatch):
    X, y, domains = make_shift(30)
    monkeypatch.setitem(sys.modules, "ot", None)
    monkeypatch.setitem(sys.modules, "ot.da", None)
    with pytest.raises(MissingExtraError, match=r'needs ot.*pip install "sktransfer\[adaptation\]"'):
        OptimalTransport().fit(X, mask(y, domains), domains)


WRONG = [
    (Standardize("target"), r'^onto must be "unit" or "source"\. Got \'target\' instead'),
    (Standardize([]), r'^onto must be "unit" or "source"\. Got \[\] instead'),
    (Coral(0), r'^shrinkage must be "ledoit-wolf" or a number above 0 and up to 1\. Got 0 instead'),
    (Coral("auto"), r"^shrinkage must be .* Got 'auto' instead"),
    (Coral(np.nan), r"^shrinkage must be .* Got nan instead"),
    (SubspaceAlignment(0), r"^n_components must be an integer >= 1, or None\. Got 0 instead"),
    (SubspaceAlignment(2.0), r"^n_components must be an integer >= 1, or None\. Got 2\.0 instead"),
    (SubspaceAlignment(True), r"^n_components must be an integer >= 1, or None\. Got True instead"),
    (SubspaceAlignment(9), r"^n_components must be at most 8 here: .* Got 9 instead"),
    (SubspaceAlignment(length=0), r"^length must be above 0, or None\. Got 0 instead"),
    (SubspaceAlignment(length="1"), r"^length must be above 0, or None\. Got '1' instead"),
    (ImportanceWeighting(2), r"^exponent must be in 0\.\.1\. Got 2 instead"),
    (ImportanceWeighting(max_weight=0.5), r"^max_weight must be at least 1\. Got 0\.5 instead"),
    (OptimalTransport(reg=0), r"^reg must be above 0\. Got 0 instead"),
    (OptimalTransport(reg_class=-1), r"^reg_class must be at least 0\. Got -1 instead"),
    (OptimalTransport(norm="mean"), r'^norm must be "max", "median", "log", "loglog" or None\. Got \'mean\' instead'),
    (OptimalTransport(max_iter=0), r"^max_iter must be an integer >= 1\. Got 0 instead"),
]


@pytest.mark.parametrize(("method", "message"), WRONG, ids=str)
def test_parameters_that_a_method_cannot_have_are_refused(method, message):
    X, y, domains = make_shift(30)
    with pytest.raises(ValueError, match=message):
        method.fit(X, mask(y, domains), domains)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rounds": 0}, r"^rounds must be an integer >= 1\. Got 0 instead"),
        ({"rounds": 1.5}, r"^rounds must be an integer >= 1\. Got 1\.5 instead"),
        ({"n_neighbors": 0}, r"^n_neighbors must be an integer >= 1\. Got 0 instead"),
        ({"fraction": 0}, r"^fraction must be above 0 and up to 1\. Got 0 instead"),
        ({"fraction": "1"}, r"^fraction must be above 0 and up to 1\. Got '1' instead"),
        ({"smoothing": 1.1}, r"^smoothing must be in 0\.\.1\. Got 1\.1 instead"),
    ],
)
def test_parameters_that_self_training_cannot_have_are_refused(parameters, message):
    X, y, domains = make_shift(30)
    with pytest.raises(ValueError, match=message):
        SelfTraining(**parameters).train(learner(LogisticRegression()), X, mask(y, domains), domains, None)


def test_self_training_is_refused_for_values():
    X, _, domains = make_shift(30)
    with pytest.raises(ValueError, match=r'^Self-training \("pseudo"\) needs classes: values have no certainty'):
        SelfTraining().train(learner(Ridge(), None), X, np.where(domains < 0, np.nan, X[:, 0]), domains, None)


def test_an_adapter_by_itself_changes_nothing():
    X, y, domains = make_shift(30)
    assert (adapt(Adapter(), X, y, domains) == X).all()
    assert Adapter().source_weight(X, domains) is None
    model = Adapter().train(learner(LogisticRegression()), X, mask(y, domains), domains, None)
    assert (model.scores(X) == LogisticRegression().fit(X[domains >= 0], y[domains >= 0]).predict_proba(X)).all()

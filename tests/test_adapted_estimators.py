"""Meta-estimators that adapt: what they read, refuse, warn of and report, and how they go with scikit-learn."""

import pickle
import sys
import warnings
from functools import partial

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import sklearn
from conftest import photo
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score, cross_validate
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import _num_samples
from test_adaptation import make_shift, mask

from sktransfer import AdaptedClassifier, AdaptedRegressor, PretrainedFeatureExtractor, TransferLogisticRegression
from sktransfer.adaptation import (
    Adapter,
    Coral,
    OptimalTransport,
    SelfTraining,
    Standardize,
    SubspaceAlignment,
    TargetScorer,
)
from sktransfer.adaptation.domains import read_classes, read_domains
from sktransfer.adaptation.lengths import fit_length
from sktransfer.adaptation.report import score_agreement
from sktransfer.exceptions import MissingExtraError

METHODS = ["standardize", "coral", "subspace", "importance", "ot", "pseudo"]
EXACT = LogisticRegression(tol=1e-8, max_iter=1000)  # so that equal problems have equal solutions


def make_values(n=60, seed=0):
    """A linear task, of which the target's rows are stretched and moved: X, y with the truth, sample_domain."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((2 * n, 5))
    y = X @ np.arange(1.0, 6.0)
    domains = np.tile([0, -1], n)
    X[domains < 0] = 2 * X[domains < 0] + 10
    return X, y, domains


def fit_shift(method="standardize", estimator=None, check=False):
    """X, truth, sample_domain, and the adapted estimator that learnt no target label."""
    X, y, domains = make_shift()
    adapted = AdaptedClassifier(LogisticRegression() if estimator is None else estimator, method, check=check)
    return X, y, domains, adapted.fit(X, mask(y, domains), sample_domain=domains)


def score_target(adapted, X, y, domains):
    return adapted.score(X[domains < 0], y[domains < 0])


def same_model(one, other, X):
    np.testing.assert_allclose(one.predict_proba(X), other.predict_proba(X), rtol=1e-9, atol=1e-12)
    return True


# Contract


@pytest.mark.parametrize("adapted", [AdaptedClassifier(LogisticRegression()), AdaptedRegressor(Ridge())], ids=str)
def test_more_than_forty_conformance_checks_run_and_none_fails(adapted):
    outcomes = check_estimator(adapted, on_fail=None, on_skip=None)
    failed = [(o["check_name"], repr(o["exception"])) for o in outcomes if o["status"] == "failed"]
    assert failed == []
    assert sum(o["status"] == "passed" for o in outcomes) > 40
    assert {o["check_name"] for o in outcomes if o["status"] == "skipped"} <= {"check_array_api_input"}


class AlwaysAdapted:
    """Half of the rows are the target's, with whatever y they have."""

    def fit(self, X, y, sample_weight=None):
        domains = -(np.arange(_num_samples(X)) % 2)
        return super().fit(X, y, sample_domain=domains, sample_weight=sample_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags


class AlwaysAdaptedClassifier(AlwaysAdapted, AdaptedClassifier):
    pass


UNLIKE_PLAIN = {
    "check_classifiers_classes": "strings of fixed width are refused",
    "check_estimators_dtypes": "every second label of its y is the same, so that the source has one class",
    "check_fit2d_1sample": "the error is that of sample_domain",
    "check_sample_weight_equivalence_on_dense_data": "weights are for the estimator, the moments of domains have none",
    "check_supervised_y_2d": "a column of labels is taken without a warning",
}


@pytest.mark.filterwarnings("ignore:Only .* target rows")
def test_conformance_checks_pass_with_sample_domain_but_for_five():
    adapted = AlwaysAdaptedClassifier(LogisticRegression(), "standardize", use_target_labels=True, check=False)
    outcomes = check_estimator(adapted, on_fail=None, on_skip=None, expected_failed_checks=UNLIKE_PLAIN)
    assert [(o["check_name"], repr(o["exception"])) for o in outcomes if o["status"] == "failed"] == []
    assert {o["check_name"] for o in outcomes if o["status"] == "xfail"} == set(UNLIKE_PLAIN)
    assert sum(o["status"] == "passed" for o in outcomes) > 40


# Laws


@pytest.mark.parametrize("method", [*METHODS, "auto", ["standardize", "subspace", "pseudo"]], ids=str)
def test_without_sample_domain_it_is_the_plain_estimator_bit_for_bit(method):
    X, y, _ = make_shift()
    y -= 1  # -1 is a class then
    adapted, plain = AdaptedClassifier(LogisticRegression(), method).fit(X, y), LogisticRegression().fit(X, y)
    assert (adapted.predict_proba(X) == plain.predict_proba(X)).all()
    assert (adapted.predict_log_proba(X) == plain.predict_log_proba(X)).all()
    assert (adapted.decision_function(X) == plain.decision_function(X)).all()
    assert list(adapted.classes_) == [-1, 0, 1]
    assert adapted.adapters_ == []
    assert not hasattr(adapted, "report_")


ORDERLY = ["standardize", "coral", "subspace", OptimalTransport(1.0), ["standardize", "pseudo"]]


@pytest.mark.parametrize("method", ORDERLY, ids=str)  # the folds of "importance" follow the order
def test_the_order_of_rows_changes_nothing(method):
    X, y, domains = make_shift(30)
    known, order = mask(y, domains), np.random.default_rng(1).permutation(len(y))
    adapted = AdaptedClassifier(EXACT, method, check=False)
    one = adapted.fit(X, known, sample_domain=domains).predict_proba(X)
    other = adapted.fit(X[order], known[order], sample_domain=domains[order]).predict_proba(X)
    np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**62), st.integers(-(2**62), -1), st.sampled_from([list, np.array, pd.Series]))
def test_domains_may_have_any_numbers_in_any_container(source, target, kind):
    X, y, domains, adapted = fit_shift()
    numbers = kind([source if domain >= 0 else target - int(row % 2) for row, domain in enumerate(domains)])
    other = clone(adapted).fit(X, mask(y, domains), sample_domain=numbers)
    assert same_model(other, adapted, X)
    assert list(other.adapters_[0].moments_) == [source, -1]


@pytest.mark.parametrize(
    "method", ["standardize", "coral", "importance", ["standardize", "subspace", "pseudo"]], ids=str
)
@pytest.mark.parametrize(
    "names", [np.array(["b", "c", "a"], dtype=object), np.array([7, -5, 3]), np.array([0.0, 2, 1])]
)
def test_relabelling_classes_relabels_predictions(method, names):
    X, y, domains = make_shift()
    adapted = AdaptedClassifier(EXACT, method, missing_label=-9, check=False)
    plain = adapted.fit(X, np.where(domains < 0, -9, y), sample_domain=domains)
    expected, probabilities = names[plain.predict(X)], plain.predict_proba(X)
    labels = names[y].astype(object)
    labels[domains < 0] = -9
    renamed = adapted.fit(X, labels, sample_domain=domains)
    assert list(renamed.classes_) == sorted(names)
    assert (renamed.predict(X) == expected).all()
    np.testing.assert_allclose(renamed.predict_proba(X)[:, np.argsort(np.argsort(names))], probabilities, atol=1e-5)


def test_a_list_of_methods_is_one_after_the_other():
    X, y, domains, adapted = fit_shift(["standardize", "coral", SubspaceAlignment(4)])
    known = mask(y, domains)
    rows = X
    for method in (Standardize(), Coral(), SubspaceAlignment(4)):
        rows = method.fit(rows, known, domains).transform(rows, domains)
    expected = LogisticRegression().fit(rows[domains >= 0], y[domains >= 0]).predict_proba(rows[domains < 0])
    np.testing.assert_allclose(adapted.predict_proba(X[domains < 0]), expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("method", [*METHODS, ["standardize", "subspace", "pseudo"]], ids=str)
def test_a_saved_estimator_predicts_the_same(method, tmp_path):
    X, y, domains, adapted = fit_shift(method)
    joblib.dump(adapted, tmp_path / "adapted.joblib")
    refitted = clone(adapted).fit(X, mask(y, domains), sample_domain=domains)
    for other in (pickle.loads(pickle.dumps(adapted)), joblib.load(tmp_path / "adapted.joblib"), refitted):
        assert (other.predict_proba(X) == adapted.predict_proba(X)).all()
        assert other.report_ == adapted.report_


def test_fitting_leaves_what_it_was_given_as_it_was():
    X, y, domains = make_shift()
    known, estimator, method = mask(y, domains), LogisticRegression(), SelfTraining()
    weights = np.ones(len(y))
    copies = [array.copy() for array in (X, known, domains, weights)]
    AdaptedClassifier(estimator, ["standardize", "ot", method]).fit(
        X, known, sample_domain=domains, sample_weight=weights
    )
    for array, copy in zip((X, known, domains, weights), copies, strict=True):
        assert (array == copy).all()
    assert not hasattr(estimator, "coef_")
    assert not hasattr(method, "labels_")


def test_values_of_y_are_not_written_to():
    X, y, domains = make_values()
    copy = y.copy()
    AdaptedRegressor(Ridge(), use_target_labels=False).fit(X, y, sample_domain=domains)
    assert (y == copy).all()


@pytest.mark.parametrize(
    "method", ["standardize", "coral", "subspace", "importance", ["standardize", "pseudo"]], ids=str
)
def test_float32_rows_give_nearly_the_same_probabilities(method):
    X, y, domains, double = fit_shift(method, EXACT)
    single = clone(double).fit(X.astype(np.float32), mask(y, domains), sample_domain=domains)
    np.testing.assert_allclose(single.predict_proba(X.astype(np.float32)), double.predict_proba(X), atol=2e-3)


# Labels


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_labels_of_the_target_have_no_influence_where_they_are_not_to_be_used(method):
    X, y, domains, adapted = fit_shift(method)
    other = clone(adapted).set_params(use_target_labels=False)
    other.fit(X, np.where(domains < 0, y + 1, y), sample_domain=domains)
    assert (other.predict_proba(X) == adapted.predict_proba(X)).all()
    assert list(other.classes_) == [0, 1, 2]
    assert other.report_ == adapted.report_


def test_a_false_of_numpy_leaves_labels_unread():
    X, y, domains = make_shift()
    adapted = AdaptedClassifier(LogisticRegression(), "standardize", use_target_labels=np.False_)
    assert adapted.fit(X, y, sample_domain=domains).report_.n_target_labels == 0


def test_known_labels_of_the_target_are_learnt_from():
    X, y, domains, adapted = fit_shift(["standardize", "pseudo"])
    target = np.flatnonzero(domains < 0)
    known = mask(y, domains)
    known[target[:15]] = (y[target[:15]] + 1) % 3
    other = clone(adapted).fit(X, known, sample_domain=domains)
    assert not np.allclose(other.predict_proba(X), adapted.predict_proba(X), atol=1e-3)
    assert other.report_.n_target_labels == 15
    assert (other.adapters_[-1].labels_[:15] == known[target[:15]]).all()
    assert "(15 with labels)" in str(other.report_)


def as_numpy(names, y, target, hole):
    labels = names[y].astype(object)
    labels[target] = hole
    return labels


STRINGS, NUMBERS = np.array(["ant", "bee", "caterpillar"], dtype=object), np.array([0, 1, 2])
SPELLINGS = {
    "object, None": (STRINGS, partial(as_numpy, hole=None)),
    "object, NaN": (STRINGS, partial(as_numpy, hole=np.nan)),
    "object, NA": (STRINGS, partial(as_numpy, hole=pd.NA)),
    "list of strings": (STRINGS, lambda *args: list(as_numpy(*args, hole=None))),
    "tuple of strings": (STRINGS, lambda *args: tuple(as_numpy(*args, hole=None))),
    "pandas string": (
        STRINGS,
        lambda *args: pd.Series(as_numpy(*args, hole=None), dtype="string", index=range(3, 123)),
    ),
    "pandas strings, plain": (STRINGS, lambda *args: pd.Series(list(as_numpy(*args, hole=None)))),
    "categorical": (STRINGS, lambda *args: pd.Series(as_numpy(*args, hole=None), dtype="category")),
    "polars": (STRINGS, lambda *args: pl.Series(list(as_numpy(*args, hole=None)))),
    "int": (NUMBERS, lambda *args: as_numpy(*args, hole=-1).astype(int)),
    "int8": (NUMBERS, lambda *args: as_numpy(*args, hole=-1).astype(np.int8)),
    "list of int": (NUMBERS, lambda *args: list(map(int, as_numpy(*args, hole=-1)))),
    "column": (NUMBERS, lambda *args: as_numpy(*args, hole=-1).astype(int)[:, None]),
    "int as object": (NUMBERS, partial(as_numpy, hole=-1)),
    "int and None": (NUMBERS, lambda *args: list(as_numpy(*args, hole=None))),
    "Int64, NA": (NUMBERS, lambda *args: pd.Series(as_numpy(*args, hole=pd.NA), dtype="Int64")),
    "Int64, -1": (NUMBERS, lambda *args: pd.Series(as_numpy(*args, hole=-1), dtype="Int64")),
    "Int64 array": (NUMBERS, lambda *args: pd.array(as_numpy(*args, hole=pd.NA), dtype="Int64")),
    "float, NaN": (NUMBERS, lambda *args: as_numpy(*args, hole=np.nan).astype(float)),
    "bool": (np.array([False, True, True]), partial(as_numpy, hole=None)),
}


@pytest.mark.parametrize(("names", "spell"), SPELLINGS.values(), ids=SPELLINGS)
def test_a_missing_label_may_be_spelt_in_many_ways(names, spell):
    X, y, domains = make_shift()
    adapted = AdaptedClassifier(LogisticRegression(), "standardize")
    adapted.fit(X, spell(names, y, domains < 0), sample_domain=domains)
    assert list(adapted.classes_) == sorted(set(names))
    assert adapted.report_.n_target_labels == 0
    assert adapted.score(X[domains < 0], np.array(names[y[domains < 0]].tolist())) > 0.9


@pytest.mark.parametrize(
    ("missing", "names"), [("unknown", STRINGS), (0, NUMBERS + 1), (-999, NUMBERS - 1), (9.0, NUMBERS)]
)
def test_a_missing_label_may_be_named(missing, names):
    X, y, domains = make_shift()
    labels = as_numpy(names, y, domains < 0, hole=missing)
    labels = labels if isinstance(missing, str) else labels.astype(float if missing == 9.0 else int)
    adapted = AdaptedClassifier(LogisticRegression(), "standardize", missing_label=missing)
    adapted.fit(X, labels, sample_domain=domains)
    assert list(adapted.classes_) == sorted(names)
    assert adapted.report_.n_target_labels == 0


@pytest.mark.parametrize("missing", ["unknown", None, np.nan, pd.NA], ids=str)
def test_nothing_at_all_is_missing_beside_a_missing_label(missing):
    X, y, domains = make_shift()
    labels = as_numpy(STRINGS, y, domains < 0, hole=None)
    labels[np.flatnonzero(domains < 0)[:9]] = pd.NA
    adapted = AdaptedClassifier(LogisticRegression(), "standardize", missing_label=missing)
    assert adapted.fit(X, labels, sample_domain=domains).report_.n_target_labels == 0


def test_minus_one_is_a_class_where_another_label_is_missing():
    X, y, domains = make_shift()
    labels = np.where(domains < 0, -999, y - 1)
    adapted = AdaptedClassifier(LogisticRegression(), missing_label=-999).fit(X, labels, sample_domain=domains)
    assert list(adapted.classes_) == [-1, 0, 1]
    assert score_target(adapted, X, y - 1, domains) > 0.9


@pytest.mark.parametrize("method", ["standardize", "importance", "ot", "pseudo", "auto"])
def test_classes_that_only_labelled_target_rows_have_are_learnt(method):
    X, y, domains = make_shift(n_classes=4)
    rows = (domains < 0) | (y != 3)
    known = np.where((domains < 0) & (y != 3), -1, y)
    adapted = AdaptedClassifier(LogisticRegression(), method).fit(X[rows], known[rows], sample_domain=domains[rows])
    assert list(adapted.classes_) == [0, 1, 2, 3]
    new = (domains < 0) & (y == 3)
    assert adapted.score(X[new], y[new]) > 0.9


@pytest.mark.parametrize("as_list", [False, True])
def test_values_that_are_missing_are_nan(as_list):
    X, y, domains = make_values()
    known = np.where(domains < 0, np.nan, y)
    adapted = AdaptedRegressor(Ridge(), "standardize")
    adapted.fit(X, known.astype(object).tolist() if as_list else known, sample_domain=domains)
    assert adapted.report_.n_target_labels == 0
    assert score_target(adapted, X, y, domains) > 0.9
    expected = adapted.predict(X)
    for other in (pd.Series(known, dtype="Float64", index=range(5, 125)), pl.Series(known), known[:, None]):
        np.testing.assert_allclose(np.ravel(adapted.fit(X, other, sample_domain=domains).predict(X)), expected)


def test_a_missing_value_may_be_named():
    X, y, domains = make_values()
    nan, named = np.where(domains < 0, np.nan, y), np.where(domains < 0, -999, y)
    one = AdaptedRegressor(Ridge()).fit(X, nan, sample_domain=domains)
    other = AdaptedRegressor(Ridge(), missing_label=-999).fit(X, named, sample_domain=domains)
    assert (one.predict(X) == other.predict(X)).all()


def test_a_row_of_several_outputs_is_missing_if_one_of_them_is():
    X, y, domains = make_values()
    both = np.column_stack([y, -y])
    half = np.where((domains < 0)[:, None] & [True, False], np.nan, both)
    whole = np.where((domains < 0)[:, None], np.nan, both)
    one, other = (AdaptedRegressor(Ridge()).fit(X, known, sample_domain=domains) for known in (half, whole))
    assert (one.predict(X) == other.predict(X)).all()
    assert one.predict(X).shape == (120, 2)
    assert pd.DataFrame(half).pipe(lambda y: clone(one).fit(X, y, sample_domain=domains)).report_ == one.report_


# Guards


def refused(message, X, y, domains, method="standardize", estimator=None, error=ValueError, **options):
    estimator = LogisticRegression() if estimator is None else estimator
    with pytest.raises(error, match=message):
        AdaptedClassifier(estimator, method, **options).fit(X, y, sample_domain=domains)


def test_strings_of_fixed_width_are_refused():
    X, y, domains = make_shift()
    message = r"^y must be an array of objects.* Got strings of fixed width \(<U3\) instead, .*use y\.astype\(object\)"
    refused(message, X, np.array(["ant", "bee", "cat"])[y], domains)


@pytest.mark.parametrize(("hole", "shown"), [(None, "None"), (np.nan, "nan"), (pd.NA, "<NA>")], ids=str)
def test_a_source_row_without_a_label_is_named(hole, shown):
    X, y, domains = make_shift()
    labels = STRINGS[y]
    labels[np.flatnonzero(domains >= 0)[:5]] = hole
    rows = ", ".join(str(row) for row in np.flatnonzero(domains >= 0)[:3])
    refused(
        rf"^Rows of a source must have a label\. Got {shown} in row {rows} and 2 more instead; leave",
        X,
        labels,
        domains,
    )


def test_minus_one_on_a_source_row_may_be_a_class_by_another_missing_label():
    X, y, domains = make_shift()
    message = (
        r"^Rows of a source must have a label\. Got -1 in row .*, or name another missing_label if this is a class\.$"
    )
    refused(message, X, y - 1, domains)


def test_a_source_row_without_a_value_is_named():
    X, y, domains = make_values()
    y[4] = np.nan
    with pytest.raises(
        ValueError, match=r"^Rows of a source must have a label\. Got nan in row 4 instead; leave such rows"
    ):
        AdaptedRegressor(Ridge()).fit(X, y, sample_domain=domains)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[:-1], r"must have one number for each of the 120 rows of X\. Got shape \(119,\) instead"),
        (lambda d: d[:, None], r"must have one number for each of the 120 rows of X\. Got shape \(120, 1\) instead"),
        (lambda d: 3, r"must have one number for each of the 120 rows of X\. Got shape \(\) instead"),
        (lambda d: d + 0.5, r"must be integers: 0 or more for rows of a source, .* Got -?0\.5 in row 0 instead"),
        (lambda d: np.append(d[:-1], np.nan), r"must be integers: .* Got nan in row 119 instead"),
        (
            lambda d: pd.Series([*d[:-1], pd.NA], dtype="Int64"),
            r"must be integers: .* Got (nan|<NA>) in row 119 instead",
        ),
        (lambda d: d >= 0, r"must be integers: .* Got (True|False) in row 0 instead"),
        (lambda d: d.astype(str), r"must be integers: .* Got '-?[01]' in row 0 instead"),
        (lambda d: np.full(120, -1), r"must be 0 or more for the rows of a source\. Got only rows of the target"),
        (lambda d: np.zeros(120), r"must be below 0 for the rows of the target, two at least\. Got 0 of 120 rows"),
        (lambda d: np.append(np.zeros(119), -1), r"must be below 0 .* Got 1 of 120 rows instead; leave it out to fit"),
        (lambda d: np.full(120, 2.0**64), r"must be integers: .* Got 1\.8.*e\+19 in row 0 instead"),
    ],
)
def test_a_sample_domain_that_does_not_say_where_rows_are_from_is_refused(change, message):
    X, y, domains = make_shift()
    refused(f"^sample_domain {message}", X, mask(y, domains), change(domains))


def test_one_class_in_the_source_is_refused_under_its_name():
    X, y, domains = make_shift()
    message = r"^The source rows must have at least two classes\. Got only one class instead: 'bee'\.$"
    refused(message, X, np.where(domains < 0, STRINGS[y], "bee"), domains, use_target_labels=True)


@pytest.mark.parametrize(("domain", "name"), [(-1, "the target"), (1, "source 1")])
def test_equal_rows_in_one_domain_are_refused(domain, name):
    X, y, domains = make_shift(n_sources=2)
    X[domains == domain] = 1.5
    message = rf"^X must vary within each domain\. Got 60 equal rows in {name} instead\.$"
    refused(message, X, mask(y, domains), domains)


def test_features_that_are_constant_within_a_domain_are_named():
    X, y, domains = make_shift(n_sources=2)
    X[domains == 1, 2] = X[domains < 0, 1] = X[domains < 0, 3] = 0.5
    adapted = AdaptedClassifier(LogisticRegression(), "standardize")
    with pytest.warns(UserWarning, match="constant within") as heard:
        adapted.fit(X, mask(y, domains), sample_domain=domains)
    told = [str(warning.message).partition(":")[0] for warning in heard]
    n = X.shape[1]
    assert told == [
        f"2 of {n} features are constant within the target (column 1, 3)",
        f"1 of {n} features are constant within source 1 (column 2)",
    ]
    assert {warning.filename for warning in heard} == {__file__}


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_a_row_that_is_not_finite_is_named_at_fit_and_at_predict(value, shown):
    X, y, domains, adapted = fit_shift()
    X[[7, 9, 9], [3, 0, 1]] = value
    message = rf"^X must be finite\. Got {shown} in row 7, column 3 \(1 more rows\) instead; impute the values or leave"
    refused(message, X, mask(y, domains), domains)
    with pytest.raises(ValueError, match=message):
        adapted.predict(X)


def test_sparse_rows_are_refused_where_there_are_domains():
    X, y, domains = make_shift()
    message, sparse = r"dense data is required\. Use '\.toarray\(\)'", scipy.sparse.csr_array(X)
    refused(message, sparse, mask(y, domains), domains, error=TypeError)
    AdaptedClassifier(LogisticRegression()).fit(sparse, y)


METHODS_REFUSED = [
    (
        "corral",
        r'^method must be one of "auto", "standardize", .*, an Adapter, or a list of these\. Got \'corral\' inst',
    ),
    (None, r"^method must be one of .* Got None instead"),
    (Coral, r"^method must be one of .* Got <class .*Coral'> instead"),
    ([], r"^method must name at least one method\. Got an empty list instead"),
    (["standardize", 3], r"^method must be one of .* Got 3 instead"),
    (["pseudo", "standardize"], r'^"pseudo" must be the last method of a list, on top of the others'),
]


@pytest.mark.parametrize(("method", "message"), METHODS_REFUSED, ids=str)
@pytest.mark.parametrize("plain", [False, True])
def test_methods_that_are_not_known_are_refused_with_and_without_domains(method, message, plain):
    X, y, domains = make_shift()
    refused(message, X, y, None if plain else domains, method)


@pytest.mark.parametrize("use", [[], "yes", 1, None, np.array([1, 2])], ids=str)
def test_use_target_labels_has_three_values(use):
    X, y, domains = make_shift()
    message = r'^use_target_labels must be True, False or "auto"\. Got .* instead'
    refused(message, X, mask(y, domains), domains, use_target_labels=use)


@pytest.mark.parametrize("estimator", [KNeighborsClassifier(), make_pipeline(StandardScaler(), KNeighborsClassifier())])
def test_weights_need_an_estimator_that_takes_them(estimator):
    X, y, domains = make_shift()
    message = r"^estimator must take sample_weight for rows to be weighed\. Got KNeighborsClassifier\(\) instead"
    refused(message, X, mask(y, domains), domains, "importance", estimator)
    with pytest.raises(ValueError, match=message):
        AdaptedClassifier(estimator).fit(X, mask(y, domains), sample_domain=domains, sample_weight=np.ones(120))
    with pytest.raises(ValueError, match=message):
        AdaptedClassifier(estimator).fit(X, y, sample_weight=np.ones(120))


@pytest.mark.parametrize("kind", [float, object])
def test_values_are_no_classes(kind):
    X, _, domains = make_shift()
    message = r"^Unknown label type: y must be classes\. Got continuous values instead; use AdaptedRegressor\."
    refused(message, X, np.where(domains < 0, np.nan, X[:, 0]).astype(kind), domains)


def test_labels_of_several_kinds_are_refused():
    X, y, domains = make_shift()
    names = np.array(["a", 1, 2.5], dtype=object)
    message = r"^y must hold labels of one kind\. Got float and int and str instead\.$"
    refused(message, X, np.where(domains < 0, None, names[y]), domains, error=TypeError)


@pytest.mark.parametrize(("y", "shape"), [(np.zeros(7), r"\(7,\)"), (np.zeros((120, 2)), r"\(120, 2\)"), (5, r"\(\)")])
def test_labels_of_another_shape_are_refused(y, shape):
    X, _, domains = make_shift()
    refused(rf"^y must have one label for each of the 120 rows\. Got shape {shape} instead", X, y, domains)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros(7), r"^y must have one value for each of the 120 rows\. Got shape \(7,\) instead"),
        (5.0, r"^y must have one value for each of the 120 rows\. Got shape \(\) instead"),
        (["a"] * 120, r"^y must be numbers, NaN where a target row has none\. could not convert string to float: 'a'"),
        ([np.inf] * 120, r"^y must be finite\. Got inf in row 0 instead"),
        ([[np.inf, -np.inf]] * 120, r"^y must be finite\. Got \[inf, -inf\] in row 0 instead"),
    ],
    ids=range(5),
)
def test_values_that_are_none_are_refused(y, message):
    X, _, domains = make_values()
    with pytest.raises(ValueError, match=message):
        AdaptedRegressor(Ridge(), use_target_labels=True).fit(X, y, sample_domain=domains)


def test_self_training_is_refused_for_a_regression():
    X, y, domains = make_values()
    with pytest.raises(ValueError, match=r'^Self-training \("pseudo"\) needs classes'):
        AdaptedRegressor(Ridge(), "pseudo").fit(X, np.where(domains < 0, np.nan, y), sample_domain=domains)


def test_names_of_columns_are_kept_and_others_refused():
    X, y, domains = make_shift()
    frame = pd.DataFrame(X, columns=[f"f{column}" for column in range(8)])
    adapted = AdaptedClassifier(LogisticRegression()).fit(frame, mask(y, domains), sample_domain=domains)
    assert list(adapted.feature_names_in_) == list(frame.columns)
    assert (adapted.predict_proba(frame) == fit_shift("auto")[3].predict_proba(X)).all()
    with pytest.raises(ValueError, match="The feature names should match those that were passed during fit"):
        adapted.predict(frame.rename(columns={"f0": "g0"}))
    with pytest.raises(ValueError, match="X has 7 features, but AdaptedClassifier is expecting 8 features"):
        fit_shift()[3].predict(X[:, :7])


def test_a_fit_that_fails_leaves_nothing_fitted():
    X, y, domains, adapted = fit_shift()
    with pytest.raises(ValueError, match="must vary"):
        adapted.fit(np.ones_like(X), mask(y, domains), sample_domain=domains)
    with pytest.raises(NotFittedError, match="not fitted yet"):
        adapted.predict(X)


def test_without_pot_the_estimator_names_the_extra(monkeypatch):
    X, y, domains = make_shift()
    for name in ("ot", "ot.da"):
        monkeypatch.setitem(sys.modules, name, None)
    refused(r'pip install "sktransfer\[adaptation\]"', X, mask(y, domains), domains, "ot", error=MissingExtraError)


FEW = "Only 19 target rows: what is learnt of the target from fewer than 20 is mostly noise."
UNMASKED = (
    "All 60 target rows have a label in y, and these are learnt from. To adapt without them, put {} there or set "
    "use_target_labels=False; to learn from them without this warning, True."
)


def warnings_of(estimator, X, y, **parameters):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        estimator.fit(X, y, **parameters)
    return [(str(one.message), one.category, one.filename) for one in heard]


def test_few_target_rows_warn_where_fit_was_called():
    X, y, domains = make_shift()
    rows = np.append(np.flatnonzero(domains >= 0), np.flatnonzero(domains < 0)[:19])
    data = X[rows], mask(y, domains)[rows]
    adapted = AdaptedClassifier(LogisticRegression(), "standardize")
    assert warnings_of(adapted, *data, sample_domain=domains[rows]) == [(FEW, UserWarning, __file__)]
    pipeline = make_pipeline(StandardScaler(), adapted)
    heard = warnings_of(pipeline, *data, adaptedclassifier__sample_domain=domains[rows])
    assert heard == [(FEW, UserWarning, __file__)]


@pytest.mark.parametrize(
    ("spell", "mark"), [(np.array, "-1"), (lambda y: y * 1.0, "NaN"), (lambda y: STRINGS[y], "None")]
)
def test_labels_on_all_target_rows_warn_where_fit_was_called(spell, mark):
    X, y, domains = make_shift()
    adapted = AdaptedClassifier(LogisticRegression(), "standardize")
    expected = [(UNMASKED.format(mark), UserWarning, __file__)]
    assert warnings_of(adapted, X, spell(y), sample_domain=domains) == expected
    pipeline = make_pipeline(StandardScaler(), adapted)
    assert warnings_of(pipeline, X, spell(y), adaptedclassifier__sample_domain=domains) == expected
    for use in (True, False):
        assert warnings_of(adapted.set_params(use_target_labels=use), X, spell(y), sample_domain=domains) == []


def test_values_on_all_target_rows_warn():
    X, y, domains = make_values()
    with pytest.warns(UserWarning, match="put NaN there or set use_target_labels=False"):
        AdaptedRegressor(Ridge()).fit(X, y, sample_domain=domains)


# Cooperation

ESTIMATORS = [
    LinearSVC(),
    KNeighborsClassifier(),
    SVC(),
    SVC(decision_function_shape="ovo"),
    make_pipeline(StandardScaler(), LogisticRegression()),
    GridSearchCV(LogisticRegression(), {"C": [1, 10]}, cv=2),
    TransferLogisticRegression(),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: str(estimator)[:20])
def test_any_classifier_is_adapted_and_trains_itself(estimator):
    X, y, domains, adapted = fit_shift(["standardize", "pseudo"], estimator)
    assert score_target(adapted, X, y, domains) > 0.95
    for method in ("predict_proba", "predict_log_proba", "decision_function"):
        assert hasattr(adapted, method) == hasattr(estimator, method)
        if hasattr(adapted, method):
            assert len(getattr(adapted, method)(X)) == len(X)


class Reversed(ClassifierMixin, BaseEstimator):
    """Has its classes, and its probabilities, the other way round."""

    def fit(self, X, y):
        self.model_ = LogisticRegression().fit(X, y)
        self.classes_ = self.model_.classes_[::-1]
        return self

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def predict_proba(self, X):
        return self.model_.predict_proba(X)[:, ::-1]


@pytest.mark.parametrize("method", ["standardize", "auto", "pseudo"])
def test_columns_of_probabilities_have_the_order_of_the_estimators_classes(method):
    X, _, _, adapted = fit_shift(method, Reversed())
    plain = fit_shift(method)[3]
    assert list(adapted.classes_) == [2, 1, 0]
    np.testing.assert_allclose(adapted.predict_proba(X)[:, ::-1], plain.predict_proba(X))
    assert (adapted.predict(X) == plain.predict(X)).all()


def test_a_kernel_is_split_in_rows_and_columns_as_for_the_plain_estimator():
    X, y, _ = make_shift()
    plain = SVC(kernel="precomputed")
    scores = [cross_val_score(model, X @ X.T, y) for model in (AdaptedClassifier(plain), plain)]
    assert (scores[0] == scores[1]).all()


def test_an_estimator_that_only_predicts_trains_itself():
    class Nearest(KNeighborsClassifier):
        predict_proba = property()

    X, y, domains, adapted = fit_shift(["standardize", "pseudo"], Nearest())
    assert score_target(adapted, X, y, domains) > 0.95


def test_a_fitted_estimator_sees_adapted_rows():
    X, y, domains = make_shift()
    source = (X[domains >= 0] - X[domains >= 0].mean(axis=0)) / X[domains >= 0].std(axis=0)
    fitted = LogisticRegression().fit(source, y[domains >= 0])
    adapted = AdaptedClassifier(FrozenEstimator(fitted), "standardize").fit(X, mask(y, domains), sample_domain=domains)
    assert score_target(adapted, X, y, domains) > 0.95
    assert (adapted.estimator_.estimator.coef_ == fitted.coef_).all()


@pytest.mark.parametrize("routing", [False, True])
@pytest.mark.parametrize(
    "estimator", [make_pipeline(StandardScaler(), EXACT), make_pipeline(make_pipeline(EXACT))], ids=str
)
def test_weights_reach_the_last_step_of_a_pipeline(estimator, routing):
    X, y, domains = make_shift()
    known, weights = mask(y, domains), np.arange(120) % 3
    with sklearn.config_context(enable_metadata_routing=routing):
        adapted = AdaptedClassifier(estimator, "importance").fit(X, known, sample_domain=domains, sample_weight=weights)
    source, importance = domains >= 0, adapted.adapters_[0].weights_
    steps = clone(estimator)
    name = "logisticregression__sample_weight" if len(steps) > 1 else "pipeline__logisticregression__sample_weight"
    steps.fit(X[source], y[source], **{name: importance * weights[source]})
    assert same_model(adapted, steps, X)


def test_rows_of_no_weight_do_not_count():
    X, y, domains, adapted = fit_shift("standardize", EXACT)
    known = np.where(np.arange(120) % 2, mask(y, domains), (y + 1) % 3)
    weights = np.where(domains < 0, 1.0, np.arange(120) % 2)
    known[domains < 0] = -1
    other = clone(adapted).fit(X, known, sample_domain=domains, sample_weight=weights)
    rows = Standardize().fit(X, known, domains).transform(X, domains)
    kept = weights * (domains >= 0) > 0
    expected = clone(EXACT).fit(rows[kept], known[kept]).predict_proba(rows[domains < 0])
    np.testing.assert_allclose(other.predict_proba(X[domains < 0]), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "message"),
    [(-np.ones(120), "Negative values"), (np.full(120, np.nan), "NaN"), (np.ones(7), r"inconsistent|shape")],
    ids=["negative", "NaN", "short"],
)
def test_weights_that_are_none_are_refused(weights, message):
    X, y, domains = make_shift()
    with pytest.raises(ValueError, match=message):
        AdaptedClassifier(LogisticRegression()).fit(X, mask(y, domains), sample_domain=domains, sample_weight=weights)


@pytest.mark.parametrize("routing", [False, True])
def test_sample_domain_reaches_it_behind_a_transformer(routing):
    X, y, domains = make_shift()
    known, pipeline = (
        mask(y, domains),
        make_pipeline(StandardScaler(), AdaptedClassifier(LogisticRegression(), "coral")),
    )
    with sklearn.config_context(enable_metadata_routing=routing):
        name = "sample_domain" if routing else "adaptedclassifier__sample_domain"
        pipeline.fit(X, known, **{name: domains})
    rows = StandardScaler().fit_transform(X)
    alone = AdaptedClassifier(LogisticRegression(), "coral").fit(rows, known, sample_domain=domains)
    assert (pipeline.predict_proba(X) == alone.predict_proba(rows)).all()


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


SPLITS = StratifiedKFold(3, shuffle=True, random_state=0)


def test_cross_validation_scores_target_rows_alone(routing):
    X, y, domains = make_shift()
    adapted = AdaptedClassifier(LogisticRegression(), "standardize", use_target_labels=False)
    scoring = TargetScorer()
    scores = cross_val_score(adapted, X, y, params={"sample_domain": domains}, scoring=scoring, cv=SPLITS)
    expected = []
    for rows, held in SPLITS.split(X, y):
        adapted.fit(X[rows], y[rows], sample_domain=domains[rows])
        expected.append(score_target(adapted, X[held], y[held], domains[held]))
    assert list(scores) == expected
    both = {"right": TargetScorer(), "log": TargetScorer("neg_log_loss")}
    several = cross_validate(adapted, X, y, params={"sample_domain": domains}, scoring=both, cv=SPLITS)
    assert list(several["test_right"]) == expected
    assert (several["test_log"] < 0).all()


@pytest.mark.parametrize("grid", [
    {"method": ["standardize", "importance", ["standardize", "pseudo"]]},
    {"estimator__C": [0.1, 1]},
])  # fmt: skip
def test_searches_try_methods_and_parameters(routing, grid):
    X, y, domains = make_shift()
    adapted = AdaptedClassifier(LogisticRegression(), "standardize", use_target_labels=False, check=False)
    search = GridSearchCV(adapted, grid, scoring=TargetScorer(), cv=SPLITS).fit(X, y, sample_domain=domains)
    assert search.best_score_ > 0.95
    assert hasattr(search.best_estimator_, "report_")


def test_a_search_tries_the_parameters_of_a_method_behind_a_transformer_in_threads(routing):
    X, y, domains = make_shift()
    adapted = AdaptedClassifier(LogisticRegression(), Coral(), use_target_labels=False, check=False)
    pipeline, grid = make_pipeline(StandardScaler(), adapted), {"adaptedclassifier__method__shrinkage": [0.1, 0.9]}
    search = GridSearchCV(pipeline, grid, scoring=TargetScorer(), cv=SPLITS, n_jobs=2)
    with joblib.parallel_backend("threading"):
        search.fit(X, y, sample_domain=domains)
    assert search.best_score_ > 0.9
    chosen = search.best_estimator_[-1].adapters_[0]
    assert chosen.shrinkage == search.best_params_["adaptedclassifier__method__shrinkage"]


def test_the_scorer_counts_the_target_rows_that_have_a_label():
    X, y, domains, adapted = fit_shift()
    known, target = mask(y, domains), np.flatnonzero(domains < 0)
    known[target[:10]] = (adapted.predict(X[target[:10]]) + np.arange(10) % 2) % 3
    assert TargetScorer()(adapted, X, known, sample_domain=domains) == 0.5
    assert TargetScorer()(make_pipeline(adapted), X, known, sample_domain=list(domains)) == 0.5
    assert TargetScorer()(adapted.estimator_, X, known, sample_domain=domains) < 0.2  # -1 may be a class elsewhere
    X, y, domains = make_values()
    regressor = AdaptedRegressor(Ridge()).fit(X, np.where(domains < 0, np.nan, y), sample_domain=domains)
    known = np.where(np.arange(120) < 90, np.nan, y)
    expected = regressor.score(X[90:][domains[90:] < 0], y[90:][domains[90:] < 0])
    assert TargetScorer("r2")(regressor, X, known, sample_domain=domains) == expected


def test_the_scorer_says_what_it_lacks():
    X, y, domains, adapted = fit_shift()
    with pytest.raises(ValueError, match=r"^TargetScorer needs sample_domain, which only metadata routing brings"):
        TargetScorer()(adapted, X, y)
    with pytest.raises(ValueError, match=r"^None of the rows to score is the target's\. Shuffle them into all folds"):
        TargetScorer()(adapted, X, y, sample_domain=np.zeros(120))
    with pytest.raises(ValueError, match=r"^None of the target's rows to score has a label in y\. Give the known ones"):
        TargetScorer()(adapted, X, mask(y, domains), sample_domain=domains)


class Scaled(Adapter):
    """A user's own method."""

    def __init__(self, factor=2.0):
        self.factor = factor

    def transform(self, X, sample_domain):
        return np.where((sample_domain < 0)[:, None], X * self.factor, X)

    def source_weight(self, X, sample_domain):
        return np.where(sample_domain < 0, 1.0, 3.0)


def test_a_method_of_ones_own_moves_and_weighs_rows_and_can_be_searched():
    X, y, domains, adapted = fit_shift(Scaled(3.0), EXACT)
    source = domains >= 0
    plain = clone(EXACT).fit(X[source], y[source], np.full(60, 3.0))
    np.testing.assert_allclose(adapted.predict_proba(X), plain.predict_proba(3 * X), rtol=1e-6, atol=1e-9)
    assert adapted.report_.methods == ("Scaled",)
    assert clone(adapted).set_params(method__factor=1.0).method.factor == 1.0


def test_regressors_are_adapted_too():
    X, y, domains = make_values()
    known = np.where(domains < 0, np.nan, y)
    for method in ("auto", "standardize", "coral", [Standardize("source"), "importance"]):
        adapted = AdaptedRegressor(Ridge(), method).fit(X, known, sample_domain=domains)
        assert score_target(adapted, X, y, domains) > 0.8
        assert not hasattr(adapted, "predict_proba")
        assert not hasattr(adapted, "classes_")
    for method in ("subspace", "ot"):  # these rows have no axes of their own, and need not be carried onto like ones
        assert AdaptedRegressor(Ridge(), method).fit(X, known, sample_domain=domains).predict(X).shape == (120,)


@pytest.mark.filterwarnings("ignore:.* features are constant")
def test_photos_of_another_camera_are_adapted_behind_the_extractor(backbone_file):
    photos = [photo(seed) for seed in range(40)]
    domains = np.tile([0, -1], 20)
    photos = [p if d >= 0 else p // 3 + 90 for p, d in zip(photos, domains, strict=True)]
    y = np.where(domains < 0, -1, [int(p.mean() > 127) for p in photos])
    extractor = PretrainedFeatureExtractor(backbone_file, n_jobs=1)
    pipeline = make_pipeline(extractor, AdaptedClassifier(LogisticRegression(), "standardize"))
    pipeline.fit(photos, y, adaptedclassifier__sample_domain=domains)
    assert pipeline[-1].n_features_in_ == 8
    assert set(pipeline.predict(photos)) <= {0, 1}
    assert pipeline[-1].report_.domain_auc > 0.9


# Report


def test_the_report_says_what_was_adapted_and_how_it_compares():
    report = fit_shift(["standardize", "coral"], check=True)[3].report_
    assert report.methods == ("Standardize", "Coral")
    assert (report.n_source, report.n_target, report.n_target_labels) == (60, 60, 0)
    assert set(report.scores) == {"source only", "Standardize, Coral"}
    assert report.domain_auc > 0.9
    assert report.adapted_score == report.scores["Standardize, Coral"] > report.source_only_score
    assert not report.harmful
    scores = f"{report.source_only_score:.3f} (source only), {report.adapted_score:.3f} (Standardize, Coral)"
    assert str(report).splitlines() == [
        f"60 source and 60 target rows; a classifier tells them apart with an AUC of {report.domain_auc:.2f}.",
        "Adapted by Standardize, Coral.",
        f"Scores without the target's labels: {scores}.",
    ]


def test_the_score_is_the_mean_of_the_way_back_and_the_agreement_of_neighbours():
    X, y, domains, adapted = fit_shift(check=True)
    target, rows = domains < 0, Standardize().fit(X, y, domains).transform(X, domains)
    predicted = adapted.predict(X[target])
    back = LogisticRegression().fit(rows[target], predicted).predict(rows[~target])
    expected = (balanced_accuracy_score(y[~target], back) + score_agreement(X[target], predicted)) / 2
    assert adapted.report_.adapted_score == pytest.approx(expected)


class Shuffled(Adapter):
    """Gives every target row the features of another one, from which nothing can be told."""

    def transform(self, X, sample_domain):
        noise = np.random.default_rng(0).standard_normal(X.shape)
        return np.where((sample_domain < 0)[:, None], noise, X)


def test_harmful_adaptation_looks_harmful():
    X, y, domains = make_shift()
    X[domains < 0] = make_shift(seed=0)[0][domains >= 0][:60]  # no shift at all
    known = mask(y, domains)
    adapted = AdaptedClassifier(LogisticRegression(), Shuffled()).fit(X, known, sample_domain=domains)
    assert adapted.report_.harmful
    assert str(adapted.report_).splitlines()[-1].startswith("Adaptation looks harmful here: compare with the plain")


def test_without_the_check_nothing_is_compared():
    report = fit_shift()[3].report_
    assert report.scores == {}
    assert np.isnan(report.adapted_score)
    assert np.isnan(report.source_only_score)
    assert not report.harmful
    assert str(report).endswith("Adapted by Standardize.")


def test_the_default_leaves_the_plain_estimator_where_domains_are_the_same():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((200, 5)), np.arange(200) // 2 % 2
    X[:, 0] += 3 * y
    domains = np.tile([0, -1], 100)
    adapted = AdaptedClassifier(LogisticRegression()).fit(X, mask(y, domains), sample_domain=domains)
    plain = LogisticRegression().fit(X[domains >= 0], y[domains >= 0])
    assert abs(adapted.report_.domain_auc - 0.5) < 0.15
    assert adapted.adapters_ == []
    assert (adapted.predict_proba(X) == plain.predict_proba(X)).all()
    assert str(adapted.report_).endswith("Not adapted: the domains are close.")


def test_the_default_adapts_where_domains_are_far_and_takes_the_best_score():
    X, y, domains, adapted = fit_shift("auto")
    scores = adapted.report_.scores
    assert len(scores) == 3
    assert adapted.report_.adapted_score == max(scores.values())
    assert adapted.report_.methods[:2] == ("Standardize", "SubspaceAlignment")
    plain = LogisticRegression().fit(X[domains >= 0], y[domains >= 0])
    assert score_target(adapted, X, y, domains) > plain.score(X[domains < 0], y[domains < 0]) + 0.2


def test_a_check_that_cannot_be_made_breaks_no_fit():
    X, y, domains = make_shift()
    rows = np.append(np.flatnonzero(domains >= 0), np.flatnonzero(domains < 0)[:3])
    data = X[rows], mask(y, domains)[rows]
    for estimator in (KNeighborsClassifier(), GridSearchCV(LogisticRegression(), {"C": [1]}, cv=4)):
        adapted = AdaptedClassifier(estimator, "standardize")
        with pytest.warns(UserWarning, match="Only 3 target rows"):
            adapted.fit(*data, sample_domain=domains[rows])
        assert np.isnan(adapted.report_.adapted_score)
        assert not adapted.report_.harmful


class Complains(LogisticRegression):
    """Warns where the rows are not centred."""

    def fit(self, X, y, sample_weight=None):
        if abs(X.mean()) > 1e-3:
            warnings.warn("not centred", ConvergenceWarning, stacklevel=2)
        return super().fit(X, y, sample_weight)


def test_warnings_of_models_that_serve_the_comparison_alone_are_not_heard():
    X, y, domains = make_shift()
    X += 3
    AdaptedClassifier(Complains(), "standardize").fit(X, mask(y, domains), sample_domain=domains)
    X[domains < 0] = X[domains >= 0] + 1e-3  # now the domains are the same, and the plain estimator is taken
    with pytest.warns(ConvergenceWarning, match="not centred"):
        AdaptedClassifier(Complains()).fit(X, mask(y, domains), sample_domain=domains)


def test_a_class_of_one_row_is_kept():
    X, y, domains = make_shift()
    known = mask(y, domains)
    known[np.flatnonzero(domains >= 0)[0]] = 9
    for method in ("auto", "ot", "importance", "coral"):
        adapted = AdaptedClassifier(LogisticRegression(), method).fit(X, known, sample_domain=domains)
        assert list(adapted.classes_) == [0, 1, 2, 9]


# Lengths


@pytest.mark.parametrize("penalty", [1e-3, 1e-2, 1e2])
def test_the_default_finds_rows_as_long_as_the_penalty_wants_them(penalty):
    X, y, domains = make_shift()
    adapted = AdaptedClassifier(LogisticRegression(C=penalty, max_iter=1000)).fit(
        X, mask(y, domains), sample_domain=domains
    )
    usual = AdaptedClassifier(LogisticRegression(max_iter=1000)).fit(X, mask(y, domains), sample_domain=domains)
    lengths = [estimator.adapters_[1].length for estimator in (adapted, usual)]
    assert (lengths[0] > lengths[1]) == (penalty < 1)
    assert adapted.score(X[domains < 0], y[domains < 0]) > usual.score(X[domains < 0], y[domains < 0]) - 0.05


@pytest.mark.parametrize("estimator", [DecisionTreeClassifier(random_state=0), KNeighborsClassifier()])
def test_lengths_are_left_alone_where_they_do_not_matter(estimator):
    X, y, domains = make_shift()
    task = read_classes(mask(y, domains), read_domains(domains, len(X)), None, "auto")
    adapters = [Standardize(), SubspaceAlignment()]
    assert fit_length(estimator, adapters, X, task, None) == 3**0.5
    assert not hasattr(adapters[1], "scale_")

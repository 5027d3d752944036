"""Estimators that learn from source rows and unlabelled target rows."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, RegressorMixin, clone
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from sktransfer.adaptation.chain import fit_best
from sktransfer.adaptation.domains import SHOWN, find_stacklevel, read_classes, read_domains, read_values
from sktransfer.adaptation.learners import find_weight_parameter, fit_weighted
from sktransfer.adaptation.lengths import fit_length, set_lengths
from sktransfer.adaptation.methods import choose_candidates, is_auto
from sktransfer.adaptation.shift import tell_domains_apart

CLOSE = 0.9  # AUC between the domains up to which "auto" leaves the plain estimator


def _estimator_has(name):
    def check(self):
        return hasattr(getattr(self, "estimator_", self.estimator), name)

    return check


class AdaptedEstimator(MetaEstimatorMixin, BaseEstimator):
    """What classification and regression share."""

    __metadata_request__fit = {"sample_domain": True}  # noqa: RUF012  # scikit-learn reads it off the class

    def __init__(self, estimator, method="auto", *, missing_label=None, use_target_labels="auto", check=True):
        self.estimator = estimator
        self.method = method
        self.missing_label = missing_label
        self.use_target_labels = use_target_labels
        self.check = check

    def fit(self, X, y, *, sample_domain=None, sample_weight=None):
        """Fit on the rows of all domains.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
            Finite numbers; whatever the estimator takes if there is no `sample_domain`.
        y : array-like of shape (n,)
            Target rows may lack a label, see `missing_label`.
        sample_domain : array-like of int, shape (n,), default=None
            0 or more: the number of the source that a row is from; below 0: a row of the target. None fits the plain
            estimator.
        sample_weight : array-like of shape (n,), default=None
            Given to the estimator; methods that weigh rows multiply it with their weights.

        Returns
        -------
        self
        """
        candidates = choose_candidates(self.method, self._kind)
        for attribute in ("estimator_", "adapters_", "report_", "classes_"):
            vars(self).pop(attribute, None)
        if sample_domain is None:
            return self._fit_plain(X, y, sample_weight)
        use = self.use_target_labels
        if not (isinstance(use, (bool, np.bool_)) or (isinstance(use, str) and use == "auto")):
            raise ValueError(f'use_target_labels must be True, False or "auto". Got {use!r} instead.')
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        X = self._read_rows(X, reset=True)
        task = self._read(y, read_domains(sample_domain, len(X)), self.missing_label, use)
        if sample_weight is not None:
            find_weight_parameter(self.estimator)
            sample_weight = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        _check_constant(X, task.sample_domain)
        auc = tell_domains_apart(X, task.sample_domain < 0)
        if is_auto(self.method) and auc < CLOSE:
            candidates = [[]]
        elif is_auto(self.method) and task.classes is not None:
            set_lengths(candidates, fit_length(self.estimator, candidates[1], X, task, sample_weight))
        chain, self.report_ = fit_best(
            self.estimator, candidates, X, task, auc, self.check or is_auto(self.method), sample_weight
        )
        self.adapters_, self.estimator_ = chain.adapters, chain.model.estimator
        if task.classes is not None:
            self.classes_ = getattr(self.estimator_, "classes_", task.classes)  # in the order of its columns
        return self

    def _fit_plain(self, X, y, sample_weight):
        validate_data(self, X, skip_check_array=True)
        self.estimator_ = fit_weighted(clone(self.estimator), X, y, sample_weight)
        self.adapters_ = []
        if hasattr(self.estimator_, "classes_"):
            self.classes_ = self.estimator_.classes_
        return self

    def _read_rows(self, X, reset):
        X = validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite=False)
        rows, columns = np.nonzero(~np.isfinite(X))
        if len(rows):
            value, more = X[rows[0], columns[0]], len(np.unique(rows)) - 1
            raise ValueError(
                f"X must be finite. Got {'NaN' if np.isnan(value) else value} in row {rows[0]}, column {columns[0]}"
                f"{f' ({more} more rows)' if more else ''} instead; impute the values or leave such rows out."
            )
        return X

    def _transform(self, X):
        """Target rows as the estimator sees them."""
        if not hasattr(self, "report_"):
            return X
        X = self._read_rows(X, reset=False)
        for adapter in self.adapters_:
            X = adapter.transform(X, np.full(len(X), -1))
        return X

    def predict(self, X):
        """Predict target rows.

        Parameters
        ----------
        X : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n,) or (n, n_outputs)
        """
        check_is_fitted(self)
        return self.estimator_.predict(self._transform(X))

    def __sklearn_is_fitted__(self):
        return hasattr(self, "estimator_")

    def __sklearn_tags__(self):
        tags, inner = super().__sklearn_tags__(), get_tags(self.estimator)
        tags.input_tags = inner.input_tags
        tags.target_tags.multi_output = inner.target_tags.multi_output
        tags.regressor_tags = inner.regressor_tags or tags.regressor_tags
        tags.classifier_tags = inner.classifier_tags or tags.classifier_tags
        return tags

    def get_metadata_routing(self):
        """What is asked for and passed on, see scikit-learn's guide to metadata routing."""
        return (
            MetadataRouter(owner=self)
            .add_self_request(self)
            .add(estimator=self.estimator, method_mapping=MethodMapping().add(caller="fit", callee="fit"))
        )


class AdaptedClassifier(ClassifierMixin, AdaptedEstimator):
    r"""Any classifier, adapted from labelled source rows to target rows that look different.

    The rows of the sources have labels, those of the target none or few; both go into `fit`, told apart by
    `sample_domain`. Rows at `predict` are target rows. Without `sample_domain` it is the plain estimator.

    Parameters
    ----------
    estimator : classifier
        Fitted on the adapted rows.
    method : str, Adapter, or list of these, default="auto"
        - "standardize": mean 0 and variance 1 in each domain (``Standardize``)
        - "coral": the target's covariance for source rows (``Coral``)
        - "subspace": the source's principal components turned onto the target's (``SubspaceAlignment``)
        - "importance": source rows weighed by how likely they are in the target (``ImportanceWeighting``)
        - "ot": source rows carried onto the target's by optimal transport (``OptimalTransport``; needs POT)
        - "pseudo": self-training on the target rows of most certain labels (``SelfTraining``), alone or last in a list
        - "auto": ``["standardize", "subspace", "pseudo"]``, the same without "pseudo", or the plain estimator: what
          scores best without labels of the target (see `report_`). The plain one too where a classifier tells the
          domains apart with an AUC below 0.9 only, since there is nothing to gain then

        The classes are in ``sktransfer.adaptation``; their docstrings have equation and paper. One's own method is a
        subclass of ``sktransfer.adaptation.Adapter``.
    missing_label : object, default=None
        What stands for an unknown label in `y`, on target rows only: None means -1 among integers, None (NaN, NA) among
        objects such as strings, NaN among floats. Name another value where -1 is a class. Never in `classes_`.
    use_target_labels : bool or "auto", default="auto"
        Whether the labels that target rows do have are learnt from. "auto" does, and warns if none is missing, since
        that is rarely meant; False does not read them, as in a search in which they serve the scorer alone.
    check : bool, default=True
        Whether `report_` compares with the source alone, which costs three more fits of the estimator; "auto" always
        compares.

    Attributes
    ----------
    estimator_ : classifier
        Fitted; takes adapted rows.
    classes_ : ndarray of shape (n_classes,)
    adapters_ : list of Adapter
        Fitted, in their order; empty where nothing was adapted.
    report_ : AdaptationReport
        How far the domains lie apart, and whether adaptation looks harmful; print it. Only with `sample_domain`.
    n_features_in_ : int
    feature_names_in_ : ndarray of str

    Raises
    ------
    ValueError
        If a source row has no label, `sample_domain` does not fit X, there are fewer than two target rows, the sources
        have one class only, y holds strings of fixed width, or a domain's rows are all the same.

    Warns
    -----
    UserWarning
        If there are fewer than 20 target rows, all of them have labels, or features are constant within a domain.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import make_blobs
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sktransfer import AdaptedClassifier
    >>> X, y = make_blobs(200, 8, centers=3, random_state=0)
    >>> target = np.arange(200) >= 100
    >>> X[target] = 0.3 * X[target] + 5  # another camera
    >>> known = np.where(target, -1, y)  # the target's labels are not known
    >>> adapted = AdaptedClassifier(LogisticRegression()).fit(X, known, sample_domain=np.where(target, -1, 1))
    >>> adapted.score(X[target], y[target]) > 0.95
    True
    >>> print(adapted.report_)  # doctest: +ELLIPSIS
    100 source and 100 target rows; a classifier tells them apart with an AUC of 1.00.
    Adapted by Standardize, SubspaceAlignment...
    Scores without the target's labels: 0... (source only)...
    """

    _kind = "classifier"
    _read = staticmethod(read_classes)

    @available_if(_estimator_has("predict_proba"))
    def predict_proba(self, X):
        """Probabilities of target rows: (n, n_classes)."""
        check_is_fitted(self)
        return self.estimator_.predict_proba(self._transform(X))

    @available_if(_estimator_has("predict_log_proba"))
    def predict_log_proba(self, X):
        """Logarithms of the probabilities of target rows: (n, n_classes)."""
        check_is_fitted(self)
        return self.estimator_.predict_log_proba(self._transform(X))

    @available_if(_estimator_has("decision_function"))
    def decision_function(self, X):
        """The estimator's decision function of target rows: (n,) or (n, n_classes)."""
        check_is_fitted(self)
        return self.estimator_.decision_function(self._transform(X))


class AdaptedRegressor(RegressorMixin, AdaptedEstimator):
    r"""Any regressor, adapted from labelled source rows to target rows that look different.

    As :class:`AdaptedClassifier`, for values in place of classes: what is unknown on target rows is NaN (in any of the
    outputs), "pseudo" is refused, and "auto" is ``Standardize(onto="source")`` or the plain
    regressor, whichever scores better.

    Parameters
    ----------
    estimator : regressor
        Fitted on the adapted rows.
    method : str, Adapter, or list of these, default="auto"
        "standardize", "coral", "subspace", "importance", "ot" or "auto", as for classifiers. Methods that align
        moments take away that the target's values may be higher as a whole: they are for shifts in how rows look.
    missing_label : float, default=None
        What stands for an unknown value of a target row beside NaN.
    use_target_labels : bool or "auto", default="auto"
        As for classifiers.
    check : bool, default=True
        As for classifiers; the score is R².

    Attributes
    ----------
    estimator_ : regressor
        Fitted; takes adapted rows.
    adapters_ : list of Adapter
    report_ : AdaptationReport
    n_features_in_ : int
    feature_names_in_ : ndarray of str

    Raises
    ------
    ValueError
        As for classifiers, and if a value is infinite or no number.

    Warns
    -----
    UserWarning
        If there are fewer than 20 target rows, all of them have values, or features are constant within a domain.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import Ridge
    >>> from sktransfer import AdaptedRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((200, 5))
    >>> y = X @ [1, 2, 3, 4, 5]
    >>> target = np.arange(200) >= 100
    >>> X[target] = 2 * X[target] + 10
    >>> known = np.where(target, np.nan, y)
    >>> adapted = AdaptedRegressor(Ridge(), "standardize").fit(X, known, sample_domain=np.where(target, -1, 1))
    >>> adapted.score(X[target], y[target]) > 0.9
    True
    """

    _kind = "regressor"
    _read = staticmethod(read_values)


def _check_constant(X, sample_domain):
    """Refuse domains without any variation, and name features that have none in one of them."""
    constant = {}
    for domain in np.unique(sample_domain):
        rows = X[sample_domain == domain]
        name = "the target" if domain < 0 else f"source {domain}"
        constant[name] = (rows == rows[0]).all(axis=0)
        if constant[name].all():
            raise ValueError(f"X must vary within each domain. Got {len(rows)} equal rows in {name} instead.")
    for name, features in constant.items():
        columns = np.flatnonzero(features)
        if len(columns):
            named = ", ".join(map(str, columns[:SHOWN])) + (", …" if len(columns) > SHOWN else "")
            warnings.warn(
                f"{len(columns)} of {X.shape[1]} features are constant within {name} (column {named}): they cannot be "
                "aligned there.", UserWarning, stacklevel=find_stacklevel(),
            )  # fmt: skip

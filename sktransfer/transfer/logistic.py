"""Multinomial logistic regression that is pulled to a source."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.special
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from sktransfer.transfer.coordinates import (
    check_jobs,
    check_number,
    check_sample_weight,
    choose_coordinates,
    limit_threads,
    warn_if_standardised,
)
from sktransfer.transfer.held import Held
from sktransfer.transfer.priors import (
    Prior,
    collapse,
    find_unused,
    match_classes,
    read_classifier,
    read_weights,
)
from sktransfer.transfer.softmax import Problem, solve


class TransferLogisticRegression(ClassifierMixin, BaseEstimator):
    r"""Logistic regression whose coefficients are pulled to those of a source.

    Minimises, over coefficients W of shape (n_classes, n_features) and intercepts b,

    .. math:: \sum_i s_i \, \ell(y_i, W x_i + b) + \frac{\lambda}{2} \|W\|^2
              + \sum_j \frac{\lambda_j}{2} \left(\|W - W_j\|^2 + \|b - b_j\|^2\right)

    with the cross-entropy :math:`\ell`, :math:`\lambda` = 1/C, :math:`\lambda_j` = source_weight, and the weight of a
    sample times that of its class :math:`s_i`. Nothing is divided by the number of samples, so that C and
    source_weight have the same unit and C is scikit-learn's. Two classes have one row of coefficients, as in
    scikit-learn. The intercept is free but for its source.

    With source_weight towards infinity the source's predictions come back, with 0 (and without a source) the result is
    scikit-learn's ``LogisticRegression``. Unlike ``warm_start``, which is only a place to begin at, the source moves
    the optimum itself: most where the target has few samples.

    Parameters
    ----------
    source : estimator, dict or list of these, default=None
        What the coefficients are pulled to:

        - a fitted linear classifier of scikit-learn or this class, also in a FrozenEstimator or a fitted search;
        - a Pipeline that ends in one: its scalers, projections and selections are folded into coefficients for the
          features in front of them, so X must be those features (see `scaler`);
        - a dict of class -> (coefficients of shape (n_features,), intercept), such as
          ``Backbone.classifier_weights()``;
        - a list of several of these.

        Classes are matched by label. A class that a source does not know is pulled to zero. A source with two classes
        and one row w counts as -w/2 and +w/2 if the target has more classes. A fitted estimator is held in a
        ``FrozenEstimator``, so that ``clone`` and searches keep what it has learnt.
    C : float, default=1.0
        1/λ, above 0; ``np.inf`` for no pull to zero.
    source_weight : float or list of float, default=1.0
        λ_j, at least 0: one number for all sources or one for each.
    fit_intercept : bool, default=True
        Without an intercept the sources' are left out too (a scaler that centres brings one all the same).
    class_weight : dict, "balanced" or None, default=None
        As in scikit-learn.
    scaler : transformer or None, default=None
        What X is scaled with before the fit, such as ``StandardScaler()``: the penalties then hold for coefficients of
        scaled features, to which the sources are converted. ``coef_`` is converted back, so that it takes X as it
        is. A scaler in front of this estimator in a Pipeline would instead meet coefficients of other coordinates.
        It must have ``inverse_transform``.
    solver : {"lbfgs"}, default="lbfgs"
        L-BFGS in coordinates in which the loss curves alike in all directions [3]_. Features of rank below n_features
        (fewer samples than features) are first reduced to it, which changes nothing in the result.
    max_iter : int, default=1000
    tol : float, default=1e-5
        Stops where the gradient proves that the coefficients are within tol of the optimum, relative to their norm:
        ‖gradient‖ <= tol (λ + Σλ_j) ‖(W, b)‖, and for intercepts without a source <= 0.001 tol Σ s_i.
    n_jobs : int, default=None
        Threads for products of matrices, -1 for all cores. None leaves them to the BLAS library.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    coef_ : ndarray of shape (1 or n_classes, n_features)
    intercept_ : ndarray of shape (1 or n_classes,)
        Sums to zero with more than two classes and no source, where only differences matter.
    unused_source_classes_ : ndarray
        Classes of the sources that y does not have.
    n_iter_ : int
    gradient_norm_ : float
        Euclidean norm of its gradient, in scaled features.
    n_features_in_ : int
    feature_names_in_ : ndarray of str

    Raises
    ------
    ValueError, TypeError
        If a parameter is out of its range, a source is not linear, not fitted, or takes other features than X has.

    References
    ----------
    .. [1] C. Chelba and A. Acero, "Adaptation of maximum entropy capitalizer: Little data can help a lot", Computer
       Speech & Language 20 (2006): the Gaussian prior around a source's weights.
    .. [2] X. Li, Y. Grandvalet and F. Davoine, "Explicit inductive bias for transfer learning with convolutional
       networks", ICML 2018: the same penalty (L2-SP) for networks.
    .. [3] D. Böhning, "Multinomial logistic regression algorithm", Annals of the Institute of Statistical Mathematics
       44 (1992): the curvature's bound that the coordinates come from.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sktransfer import TransferLogisticRegression
    >>> X, y = load_digits(return_X_y=True)
    >>> X = X / 16
    >>> source = LogisticRegression().fit(X[:800], y[:800])
    >>> faint = X / 2  # the target: another scanner, and 30 labels
    >>> head = TransferLogisticRegression(source).fit(faint[800:830], y[800:830])
    >>> scratch = LogisticRegression().fit(faint[800:830], y[800:830])
    >>> {name: round(model.score(faint[830:], y[830:]), 2)
    ...  for name, model in [("source", source), ("scratch", scratch), ("head", head)]}
    {'source': 0.78, 'scratch': 0.58, 'head': 0.86}
    """

    source = Held()

    def __init__(
        self,
        source=None,
        *,
        C=1.0,
        source_weight=1.0,
        fit_intercept=True,
        class_weight=None,
        scaler=None,
        solver="lbfgs",
        max_iter=1000,
        tol=1e-5,
        n_jobs=None,
    ):
        self.source = source
        self.C = C
        self.source_weight = source_weight
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.scaler = scaler
        self.solver = solver
        self.max_iter = max_iter
        self.tol = tol
        self.n_jobs = n_jobs

    def fit(self, X, y, sample_weight=None):
        """Fit to the target's samples.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
            Labels, of two classes or more.
        sample_weight : array-like of shape (n_samples,), default=None
            At least 0; None is 1 for all.

        Returns
        -------
        self
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32])
        check_classification_targets(np.repeat(np.unique(y), 3))  # which takes few labels a class for values otherwise
        self.classes_, encoded = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y must have at least 2 classes. Got 1 class instead, {self.classes_.tolist()[0]!r}, in "
                f"{len(encoded)} samples."
            )
        weights = check_sample_weight(sample_weight, len(encoded))
        if self.class_weight is not None:
            with np.errstate(divide="ignore"):  # classes whose samples all have weight 0
                by_class = compute_class_weight(
                    self.class_weight, classes=self.classes_, y=y, sample_weight=sample_weight
                )
            weights = weights * np.where(weights > 0, by_class[encoded], 1.0)
            weights = check_sample_weight(weights, len(encoded), "sample_weight times class_weight")
        prior = self._read_sources(X)
        with limit_threads(self.n_jobs):
            return self._solve(X, encoded, weights, prior)

    def _check_parameters(self):
        check_number("C", self.C, low=0, infinite=True)
        check_number("tol", self.tol, low=0)
        check_number("max_iter", self.max_iter, low=1, whole=True)
        check_jobs(self.n_jobs)
        if self.solver != "lbfgs":
            raise ValueError(f'solver must be "lbfgs". Got {self.solver!r} instead.')

    def _read_sources(self, X) -> Prior:
        sources = [
            (name, read_classifier(item), weight)
            for name, item, weight in read_weights(self.source, self.source_weight)
        ]
        labels = self.classes_.tolist()
        self.unused_source_classes_ = find_unused(sources, labels)
        if self.scaler is None and any(source.folded for _, source, _ in sources):
            warn_if_standardised(X)
        rows = 1 if len(labels) == 2 else len(labels)
        return collapse(self, sources, rows, lambda source: match_classes(source, labels), X)

    def _solve(self, X, encoded, weights, prior):
        coordinates, scaled = choose_coordinates(self.scaler, X, getattr(self, "feature_names_in_", None))
        coef, intercept = coordinates.enter(prior.coef, prior.intercept, scaled.shape[1])
        penalty = 1 / self.C + prior.weight  # λ‖W‖² + Λ‖W − W̄‖² = (λ + Λ)‖W − ΛW̄/(λ + Λ)‖², but for a constant
        problem = Problem(
            scaled,
            encoded,
            weights,
            coef=coef * (prior.weight / penalty if penalty else 0.0),
            intercept=intercept * self.fit_intercept,
            penalty=penalty,
            intercept_penalty=prior.weight,
            fit_intercept=self.fit_intercept,
        )
        solution = solve(problem, self.max_iter, self.tol)
        self.coef_, self.intercept_ = coordinates.leave(solution.coef, solution.intercept, X.shape[1])
        self.n_iter_, self.gradient_norm_ = max(solution.n_iter, 1), solution.gradient_norm
        if not solution.converged:
            warnings.warn(
                f"The coefficients are not known to be within tol={self.tol} of the optimum after {solution.n_iter} "
                f"iterations (norm of the gradient {solution.gradient_norm:.2g}). Raise max_iter, or scale the "
                "features (scaler=StandardScaler()).",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    def decision_function(self, X):
        """Return the logits.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        logits : ndarray of shape (n_samples,) or (n_samples, n_classes)
            With two classes the second's, positive where it is predicted.
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        logits = X @ self.coef_.T + self.intercept_
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict(self, X):
        """Return the most probable class of each sample, ndarray of shape (n_samples,)."""
        logits = self.decision_function(X)
        return self.classes_[(logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)]

    def predict_proba(self, X):
        """Return the probabilities, ndarray of shape (n_samples, n_classes), in the order of ``classes_``."""
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X):
        """Return the logarithms of the probabilities, ndarray of shape (n_samples, n_classes)."""
        logits = self.decision_function(X)
        if logits.ndim == 1:
            return scipy.special.log_expit(np.column_stack([-logits, logits]))
        return scipy.special.log_softmax(logits, axis=1)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

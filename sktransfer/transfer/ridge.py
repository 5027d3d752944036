"""Ridge regression that is pulled to a source."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import scipy.linalg
import scipy.sparse
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from sktransfer.transfer.coordinates import (
    check_number,
    check_sample_weight,
    choose_coordinates,
    warn_if_standardised,
)
from sktransfer.transfer.held import Held
from sktransfer.transfer.priors import collapse, read_regressor, read_weights


class TransferRidge(MultiOutputMixin, RegressorMixin, BaseEstimator):
    r"""Least squares whose coefficients are pulled to those of a source.

    Minimises, over coefficients w and the intercept b,

    .. math:: \frac{1}{2} \sum_i s_i \, (y_i - w^\top x_i - b)^2 + \frac{\lambda}{2} \|w\|^2
              + \sum_j \frac{\lambda_j}{2} \left(\|w - w_j\|^2 + (b - b_j)^2\right)

    in closed form, with :math:`\lambda` = 1/C, :math:`\lambda_j` = source_weight and the weight of a sample
    :math:`s_i`; each column of y on its own. With source_weight towards infinity the source's predictions come back,
    with 0 (and without a source) the result is scikit-learn's ``Ridge(alpha=1/C)``.

    Parameters
    ----------
    source : estimator, tuple or list of these, default=None
        What the coefficients are pulled to: a fitted regressor whose predictions are linear in X, a Pipeline that ends
        in one (its scalers, projections and selections are folded into coefficients for the features in front of them,
        see `scaler`), (coefficients of shape (n_features,) or (n_outputs, n_features), intercept), or a list of
        several. A fitted estimator is held in a ``FrozenEstimator``, so that ``clone`` and searches keep what it has
        learnt.
    C : float, default=1.0
        1/λ, above 0; ``np.inf`` for no pull to zero.
    source_weight : float or list of float, default=1.0
        λ_j, at least 0: one number for all sources or one for each.
    fit_intercept : bool, default=True
        Without an intercept the sources' are left out too.
    scaler : transformer or None, default=None
        What X is scaled with before the fit, such as ``StandardScaler()``: the penalties then hold for coefficients of
        scaled features, to which the sources are converted, and ``coef_`` is converted back. It must have
        ``inverse_transform``.
    n_jobs : int, default=None
        Threads for products of matrices. None leaves them to the BLAS library.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,) or (n_outputs, n_features)
    intercept_ : float or ndarray of shape (n_outputs,)
    n_features_in_ : int
    feature_names_in_ : ndarray of str

    Raises
    ------
    ValueError, TypeError
        If a parameter is out of its range, a source is not linear, not fitted, or takes other features than X has.

    References
    ----------
    .. [1] X. Li, Y. Grandvalet and F. Davoine, "Explicit inductive bias for transfer learning with convolutional
       networks", ICML 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from sktransfer import TransferRidge
    >>> X = np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> source = (np.array([2.0, -1.0]), 0.5)
    >>> TransferRidge(source, source_weight=1e9).fit(X, [0.0, 0.0]).predict(X).round(3)
    array([-0.5,  2.5])
    """

    source = Held()

    def __init__(self, source=None, *, C=1.0, source_weight=1.0, fit_intercept=True, scaler=None, n_jobs=None):
        self.source = source
        self.C = C
        self.source_weight = source_weight
        self.fit_intercept = fit_intercept
        self.scaler = scaler
        self.n_jobs = n_jobs

    def fit(self, X, y, sample_weight=None):
        """Fit to the target's samples.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None
            At least 0; None is 1 for all.

        Returns
        -------
        self
        """
        check_number("C", self.C, low=0, infinite=True)
        if self.n_jobs is not None:
            check_number("n_jobs", self.n_jobs, low=1, whole=True)
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64, multi_output=True, y_numeric=True)
        weights = check_sample_weight(sample_weight, X.shape[0])
        targets = np.asarray(y, dtype=np.float64).reshape(X.shape[0], -1)
        prior = self._read_sources(X, targets.shape[1])
        with nullcontext() if self.n_jobs is None else threadpool_limits(self.n_jobs):
            coef, intercept = self._solve(X, targets, weights, prior)
        self.coef_, self.intercept_ = (coef, intercept) if y.ndim == 2 else (coef[0], float(intercept[0]))
        return self

    def _read_sources(self, X, n_outputs):
        sources = [
            (name, read_regressor(item), weight) for name, item, weight in read_weights(self.source, self.source_weight)
        ]
        if self.scaler is None and any(source.folded for _, source, _ in sources):
            warn_if_standardised(X)
        return collapse(self, sources, n_outputs, lambda source: (source.coef, source.intercept))

    def _solve(self, X, targets, weights, prior):
        coordinates, scaled = choose_coordinates(self.scaler, X, getattr(self, "feature_names_in_", None))
        coef, intercept = coordinates.enter(prior.coef, prior.intercept, scaled.shape[1])
        penalty = 1 / self.C + prior.weight  # λ‖w‖² + Λ‖w − w̄‖² = (λ + Λ)‖w − Λw̄/(λ + Λ)‖², but for a constant
        coef = coef * (prior.weight / penalty if penalty else 0.0)
        intercept = intercept * self.fit_intercept
        root = np.sqrt(weights)
        residual = (targets - scaled @ coef.T - intercept) * root[:, None]
        weighted = scaled.multiply(root[:, None]).tocsr() if scipy.sparse.issparse(scaled) else scaled * root[:, None]
        ones = root if self.fit_intercept else None
        n, d = scaled.shape
        dual = n <= d and penalty > 0
        step = (solve_dual if dual else solve_primal)(weighted, ones, residual, penalty, prior.weight)
        coef, intercept = coef + step[:, :d], intercept + (step[:, d] if self.fit_intercept else 0.0)
        return coordinates.leave(coef, intercept, X.shape[1])

    def predict(self, X):
        """Return the predictions.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        return X @ self.coef_.T + self.intercept_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def solve_primal(X, ones, residual, penalty, intercept_penalty):
    """Minimise ½‖r − Xv − 1c‖² + ½Λ‖v‖² + ½Λ_b c² over (v, c) of shape (n_outputs, d + 1): one system of d + 1.

    Parameters
    ----------
    X : array or CSR matrix of shape (n, d)
        Rows times the roots of their weights.
    ones : ndarray of shape (n,) or None
        The roots of the weights; None for no intercept.
    residual : ndarray of shape (n, n_outputs)
    penalty, intercept_penalty : float
    """
    d = X.shape[1]
    gram, moment = X.T @ X, X.T @ residual
    gram = gram.toarray() if scipy.sparse.issparse(gram) else gram
    penalties = np.full(d, penalty)
    if ones is not None:
        column = np.asarray(X.T @ ones)[:, None]
        gram = np.block([[gram, column], [column.T, np.array([[ones @ ones]])]])
        moment = np.vstack([moment, ones @ residual])
        penalties = np.append(penalties, intercept_penalty)
    gram[np.diag_indices_from(gram)] += penalties
    try:
        return scipy.linalg.solve(gram, moment, assume_a="pos", check_finite=False).T
    except np.linalg.LinAlgError:  # no penalty and columns that depend on each other: the shortest solution
        return scipy.linalg.lstsq(gram, moment, check_finite=False)[0].T


def solve_dual(X, ones, residual, penalty, intercept_penalty):
    """Solve the problem of :func:`solve_primal` with one system of n + 1, for fewer samples than features."""
    gram = X @ X.T
    gram = gram.toarray() if scipy.sparse.issparse(gram) else gram
    gram[np.diag_indices_from(gram)] += penalty
    if ones is None:
        return np.asarray(X.T @ scipy.linalg.solve(gram, residual, assume_a="pos", check_finite=False)).T
    system = np.block([[gram, ones[:, None]], [ones[None, :], np.array([[-intercept_penalty / penalty]])]])
    right = np.vstack([residual, np.zeros((1, residual.shape[1]))])
    solved = scipy.linalg.solve(system, right, assume_a="sym", check_finite=False)
    return np.column_stack([np.asarray(X.T @ solved[:-1]).T, solved[-1]])

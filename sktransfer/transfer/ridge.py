"""Ridge regression that is pulled to a source."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
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
        Without an intercept the sources' are left out too (a scaler that centres brings one all the same).
    scaler : transformer or None, default=None
        What X is scaled with before the fit, such as ``StandardScaler()``: the penalties then hold for coefficients of
        scaled features, to which the sources are converted, and ``coef_`` is converted back. It must have
        ``inverse_transform``.
    n_jobs : int, default=None
        Threads for products of matrices, -1 for all cores. None leaves them to the BLAS library.

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
        check_jobs(self.n_jobs)
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64, multi_output=True, y_numeric=True)
        weights = check_sample_weight(sample_weight, X.shape[0])
        targets = np.asarray(y, dtype=np.float64).reshape(X.shape[0], -1)
        prior = self._read_sources(X, targets.shape[1])
        with limit_threads(self.n_jobs):
            coef, intercept = self._solve(X, targets, weights, prior)
        self.coef_, self.intercept_ = (coef, intercept) if y.ndim == 2 else (coef[0], float(intercept[0]))
        return self

    def _read_sources(self, X, n_outputs):
        sources = [
            (name, read_regressor(item), weight) for name, item, weight in read_weights(self.source, self.source_weight)
        ]
        if self.scaler is None and any(source.folded for _, source, _ in sources):
            warn_if_standardised(X)
        return collapse(self, sources, n_outputs, lambda source: (source.coef, source.intercept), X)

    def _solve(self, X, targets, weights, prior):
        coordinates, scaled = choose_coordinates(self.scaler, X, getattr(self, "feature_names_in_", None))
        coef, intercept = coordinates.enter(prior.coef, prior.intercept, scaled.shape[1])
        penalty = 1 / self.C + prior.weight  # λ‖w‖² + Λ‖w − w̄‖² = (λ + Λ)‖w − Λw̄/(λ + Λ)‖², but for a constant
        coef = coef * (prior.weight / penalty if penalty else 0.0)
        intercept = intercept * self.fit_intercept
        residual = targets - scaled @ coef.T - intercept
        system = Centred(scaled, residual, weights, prior.weight if self.fit_intercept else None)
        step = system.solve(penalty)
        coef, intercept = coef + step.T, intercept + system.find_intercept(step)
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


class Centred:
    """½Σ sᵢ‖rᵢ − xᵢv − c‖² + ½Λ_b‖c‖² with c eliminated: rows around their weighted mean, and one row for the penalty.

    Parameters
    ----------
    X : array or CSR matrix of shape (n, d)
    residual : ndarray of shape (n, n_outputs)
    weights : ndarray of shape (n,)
    intercept_penalty : float or None
        Λ_b; None for no intercept.
    """

    def __init__(self, X, residual, weights, intercept_penalty):
        self.X, self.root = X, np.sqrt(weights)
        total, self.pull = weights.sum(), intercept_penalty
        self.total, self.centers = total, intercept_penalty is not None
        self.mean = np.asarray(weights @ X).ravel() / total * self.centers
        self.target = weights @ residual / total * self.centers
        self.last = np.sqrt(total * self.pull / (total + self.pull)) if self.centers else 0.0
        self.right = np.vstack([(residual - self.target) * self.root[:, None], self.last * self.target])
        self.rows = None
        if not scipy.sparse.issparse(X):
            self.rows = np.vstack([(X - self.mean) * self.root[:, None], self.last * self.mean])

    def solve(self, penalty):
        """Return v of shape (d, n_outputs), which minimises the above + ½Λ‖v‖²."""
        n, d = self.X.shape
        if penalty == 0:  # the shortest of several solutions
            rows = self.rows if self.rows is not None else self._transpose(np.eye(n + 1)).T
            return scipy.linalg.lstsq(rows, self.right, check_finite=False)[0]
        if n < d:
            return self._transpose(solve_positive(self._dual_gram(), self.right, penalty))
        return solve_positive(self._gram(), self._transpose(self.right), penalty)

    def find_intercept(self, step):
        """Return c of shape (n_outputs,) for v."""
        return self.total * (self.target - self.mean @ step) / (self.total + self.pull) if self.centers else 0.0

    def _transpose(self, values):
        """Multiply with the rows' transpose; sparse rows are centred in the product alone."""
        if self.rows is not None:
            return self.rows.T @ values
        weighted = self.root[:, None] * values[:-1]
        return np.asarray(self.X.T @ weighted) - np.outer(self.mean, weighted.sum(axis=0) - self.last * values[-1])

    def _gram(self):
        if self.rows is not None:
            return self.rows.T @ self.rows
        weighted = self.X.multiply(self.root[:, None]).tocsr()
        excess = (self.total if self.centers else 0.0) - self.last**2
        return (weighted.T @ weighted).toarray() - excess * np.outer(self.mean, self.mean)

    def _dual_gram(self):
        if self.rows is not None:
            return self.rows @ self.rows.T
        shift, size = self.X @ self.mean, self.mean @ self.mean
        inner = (self.X @ self.X.T).toarray() - shift[:, None] - shift + size
        edge = self.last * (shift - size) * self.root
        return np.block([[inner * np.outer(self.root, self.root), edge[:, None]], [edge, self.last**2 * size]])


def solve_positive(gram, right, penalty):
    """Solve (G + Λ) v = r for a positive semidefinite G, however small Λ is beside it."""
    shifted = gram + penalty * np.eye(len(gram))
    try:
        return scipy.linalg.cho_solve(scipy.linalg.cho_factor(shifted, check_finite=False), right, check_finite=False)
    except np.linalg.LinAlgError:
        values, vectors = scipy.linalg.eigh(gram, check_finite=False)
        return vectors @ ((vectors.T @ right) / (np.maximum(values, 0.0) + penalty)[:, None])

"""The solver of penalised logistic regression: L-BFGS in coordinates in which the loss curves alike everywhere.

L-BFGS is our own, on numpy alone: scipy's brings the threads of a second BLAS library, and two of them that wait for
work on the same cores cost 2.6 times (design.md, decision 17).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.sparse
import scipy.special

from sktransfer.transfer.affine import Array

ROWS = 512  # rows at once: they stay in the processor's cache between the two products of a gradient
LARGEST = 5000  # columns up to which curvature is a matrix; beyond, its diagonal
MEMORY = 20  # pairs that L-BFGS remembers
DECREASE = 1e-4  # of what the slope promises, before a step is taken (Armijo)
FLAT = 1e-12  # of the objective: differences that rounding may have made
SHORTEST = 1e-8  # step of a line search
ROUNDING = 1e-14  # of the gradient's terms
UNPENALISED = 1e-3  # of the gradient's terms: what tol is relative to without any penalty
JITTER = 1e-10  # of the mean curvature, so that it has a root


@dataclass(frozen=True)
class Problem:
    """Penalised multinomial (one row: binomial) logistic regression around a centre.

    Minimises Σ sᵢ ℓ(yᵢ, Wxᵢ + b) + ½Λ‖W − W_c‖² + ½Λ_b‖b − b_c‖².
    """

    X: Any  # (n, d) array or CSR matrix, float32 or float64
    y: npt.NDArray[np.intp]  # (n,) positions of classes
    weights: Array  # (n,) s
    coef: Array  # (k, d) W_c; one row for two classes
    intercept: Array  # (k,) b_c
    penalty: float  # Λ
    intercept_penalty: float  # Λ_b
    fit_intercept: bool


@dataclass(frozen=True)
class Solution:
    """Where the solver stopped."""

    coef: Array  # (k, d)
    intercept: Array  # (k,)
    n_iter: int
    gradient_norm: float
    converged: bool


def solve(problem: Problem, max_iter: int, tol: float) -> Solution:
    """Minimise to the gradient that proves coefficients within tol, relative to their norm.

    Parameters
    ----------
    problem : Problem
    max_iter : int
    tol : float
        ‖gradient‖ <= tol Λ ‖(W, b)‖, or rounding.
    """
    offset = np.concatenate([x @ problem.coef.T for _, x in _blocks(problem.X)]) + problem.intercept
    reduced, basis = _reduce(problem)
    target = _Target.of(problem, reduced, tol)
    best, n_iter = _Descent(reduced, offset).run(target, max_iter)
    coef = problem.coef + (best.coef if basis is None else best.coef @ basis.T)
    intercept = problem.intercept + best.intercept
    if problem.intercept_penalty == 0 and len(intercept) > 1:  # only differences matter
        intercept -= intercept.mean()
    return Solution(coef, intercept, n_iter, best.gradient_norm, target.is_met(best))


def _reduce(problem: Problem) -> tuple[Problem, Array | None]:
    """Rotate X onto the space of its rows where that has less than half as many dimensions: W − W_c lies in it."""
    n, d = problem.X.shape
    if 2 * n > d or problem.penalty == 0 or scipy.sparse.issparse(problem.X):
        return problem, None
    basis, rows = scipy.linalg.qr(problem.X.T.astype(np.float64), mode="economic", check_finite=False)
    return replace(problem, X=np.ascontiguousarray(rows.T), coef=problem.coef @ basis), basis


@dataclass(frozen=True)
class _Point:
    u: Array  # where, in the coordinates of the descent
    value: float
    slope: Array  # by u
    coef: Array  # W − W_c
    intercept: Array  # b − b_c
    gradient_norm: float  # by (W, b)


@dataclass(frozen=True)
class _Target:
    """When a gradient is small enough: Λ‖θ − optimum‖ <= ‖gradient‖, as the objective is Λ-strongly convex."""

    coef: Array  # W_c in the coordinates of the descent
    intercept: Array  # b_c
    rest: float  # ‖W_c‖² outside of them
    scale: float  # tol Λ
    floor: float

    @classmethod
    def of(cls, problem: Problem, reduced: Problem, tol: float) -> _Target:
        size = _measure(problem)
        rest = max(float((problem.coef**2).sum() - (reduced.coef**2).sum()), 0.0)
        floor = (ROUNDING if problem.penalty else tol * UNPENALISED) * size
        return cls(reduced.coef, problem.intercept, rest, tol * problem.penalty, floor)

    def is_met(self, point: _Point) -> bool:
        coef, intercept = self.coef + point.coef, self.intercept + point.intercept
        norm = np.sqrt((coef**2).sum() + (intercept**2).sum() + self.rest)
        return bool(point.gradient_norm <= max(self.scale * norm, self.floor))


def _measure(problem: Problem) -> float:
    """Return the size of the gradient's terms, whose rounding bounds what can be reached."""
    X = problem.X
    squares = X.multiply(X).sum(axis=1) if scipy.sparse.issparse(X) else np.einsum("ij,ij->i", X, X, dtype=np.float64)
    return float(problem.weights @ np.sqrt(np.asarray(squares, dtype=np.float64).ravel() + 1))


class _Descent:
    """L-BFGS over U, where (W − W_c, b − b_c) = UT and TᵀT is the inverse of a bound of the curvature.

    With the bound TᵀT = (¼XᵀSX + Λ)⁻¹ (Böhning) for all rows of coefficients alike, the number of iterations no longer
    depends on how columns are scaled and correlated.
    """

    def __init__(self, problem: Problem, offset: Array) -> None:
        self.problem = problem
        self.offset = offset
        self.width = problem.X.shape[1] + problem.fit_intercept
        self.penalties = np.full(self.width, problem.penalty)
        if problem.fit_intercept:
            self.penalties[-1] = problem.intercept_penalty
        self.transform = self._precondition()

    def run(self, target: _Target, max_iter: int) -> tuple[_Point, int]:
        """Return the last point and the number of steps to it."""
        point = self._evaluate(np.zeros((self.offset.shape[1], self.width)))
        pairs: deque[tuple[Array, Array]] = deque(maxlen=MEMORY)
        n_iter = 0
        while n_iter < max_iter and not target.is_met(point):
            found = self._search(point, _find_direction(point.slope, pairs))
            if found is not None:
                pairs.append((found.u - point.u, found.slope - point.slope))
                point = found
                n_iter += 1
            elif pairs:
                pairs.clear()
            else:
                break
        return point, n_iter

    def _search(self, point: _Point, direction: Array) -> _Point | None:
        """Return a point further down; None if rounding hides it.

        Where values differ by rounding only, the slope decides (the approximate Wolfe condition of Hager and Zhang).
        """
        promise = float(np.vdot(point.slope, direction))
        step = 1.0
        while promise < 0 and step > SHORTEST:
            found = self._evaluate(point.u + step * direction)
            change = found.value - point.value
            if change <= DECREASE * step * promise:
                return found
            if change <= FLAT * abs(point.value) and np.vdot(found.slope, direction) <= (2 * DECREASE - 1) * promise:
                return found
            curvature = 2 * (change - step * promise)  # of the parabola through value, slope and new value
            step *= float(np.clip(-promise * step / curvature, 0.1, 0.5)) if np.isfinite(curvature) else 0.1
        return None

    def _evaluate(self, u: Array) -> _Point:
        problem, width = self.problem, self.problem.X.shape[1]
        parameters = u * self.transform if self.transform.ndim == 1 else u @ self.transform
        coef = parameters[:, :width]
        intercept = parameters[:, -1] if problem.fit_intercept else np.zeros(len(u))
        value, gradient = 0.0, np.zeros_like(parameters)
        for rows, x in _blocks(problem.X):
            logits = self.offset[rows] + x @ coef.T + intercept
            loss, residual = _differentiate(logits, problem.y[rows], problem.weights[rows])
            value += loss
            gradient[:, :width] += residual.T @ x
            if problem.fit_intercept:
                gradient[:, -1] += residual.sum(axis=0)
        value += 0.5 * float((parameters**2 @ self.penalties).sum())
        gradient += parameters * self.penalties
        slope = gradient * self.transform if self.transform.ndim == 1 else gradient @ self.transform.T
        return _Point(u, value, slope, coef, intercept, float(np.linalg.norm(gradient)))

    def _precondition(self) -> Array:
        """Return T: lower triangular, or a diagonal where the matrix would be too large."""
        problem, classes = self.problem, max(self.offset.shape[1], 2)
        curvature = (1 / classes) * (1 - 1 / classes)  # of the loss where all classes are as likely
        if self.width > LARGEST:
            squares = sum(
                problem.weights[rows] @ (x.multiply(x).toarray() if scipy.sparse.issparse(x) else x * x)
                for rows, x in _blocks(problem.X)
            )
            total = [problem.weights.sum()] if problem.fit_intercept else []
            diagonal = curvature * np.concatenate([squares, total]) + self.penalties
            return np.asarray(1 / np.sqrt(diagonal + JITTER * diagonal.mean()))
        gram = np.zeros((self.width, self.width))
        for rows, x in _blocks(problem.X):
            dense = x.toarray() if scipy.sparse.issparse(x) else x
            ones = np.ones((len(dense), 1)) if problem.fit_intercept else np.ones((len(dense), 0))
            scaled = np.hstack([dense, ones]) * np.sqrt(problem.weights[rows] * curvature)[:, None]
            gram += scaled.T @ scaled
        gram[np.diag_indices(self.width)] += self.penalties + JITTER * np.trace(gram) / self.width
        return np.asarray(np.tril(np.linalg.inv(np.linalg.cholesky(gram))))


def _find_direction(slope: Array, pairs: Iterable[tuple[Array, Array]]) -> Array:
    """Return the direction of L-BFGS from pairs of (change of place, change of slope), oldest first (Nocedal, 1980)."""
    direction = -slope
    scale = 1.0
    stack: list[tuple[Array, Array, float, float]] = []
    for moved, change in reversed(list(pairs)):
        product = float(np.vdot(moved, change))
        if product <= np.finfo(float).tiny:
            continue
        if not stack:
            scale = product / float(np.vdot(change, change))
        share = float(np.vdot(moved, direction)) / product
        direction = direction - share * change
        stack.append((moved, change, product, share))
    direction = scale * direction
    for moved, change, product, share in reversed(stack):
        direction += (share - float(np.vdot(change, direction)) / product) * moved
    return direction


def _blocks(X: Any) -> Iterator[tuple[slice, Any]]:
    """Yield slices of rows as float64, without a copy of all of X."""
    for start in range(0, X.shape[0], ROWS):
        rows = slice(start, start + ROWS)
        yield rows, X[rows].astype(np.float64, copy=False)


def _differentiate(logits: Array, y: npt.NDArray[np.intp], weights: Array) -> tuple[float, Array]:
    """Return the weighted sum of cross-entropies and its derivative by the logits (one column: of the second class)."""
    if logits.shape[1] == 1:
        z = logits[:, 0]
        loss = np.logaddexp(0.0, z) - y * z
        return float(weights @ loss), ((scipy.special.expit(z) - y) * weights)[:, None]
    rows = np.arange(len(y))
    shifted = logits - logits.max(axis=1, keepdims=True)
    residual = np.exp(shifted)
    total = residual.sum(axis=1)
    loss = np.log(total) - shifted[rows, y]
    residual /= total[:, None]
    residual[rows, y] -= 1
    residual *= weights[:, None]
    return float(weights @ loss), residual

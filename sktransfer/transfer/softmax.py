"""The solver of penalised logistic regression: L-BFGS in coordinates in which the loss curves alike everywhere.

L-BFGS is our own, on numpy alone: scipy's brings the threads of a second BLAS library, and two of them that wait for
work on the same cores cost more than half of the time (design.md, decision 17).
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
LARGEST_SPARSE = 500  # where passes over X are cheap and a matrix is not
LARGEST_DENSE = 50_000_000  # values of a sparse X with few rows that may become a dense one
REFRESH = 100  # steps after which the curvature is measured anew
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
    moved = best.parameters[:, : reduced.X.shape[1]]
    coef = problem.coef + (moved if basis is None else moved @ basis.T)
    intercept = problem.intercept + (best.parameters[:, -1] if problem.fit_intercept else 0.0)
    if problem.intercept_penalty == 0 and len(intercept) > 1:  # only differences matter
        intercept -= intercept.mean()
    return Solution(coef, intercept, n_iter, float(np.linalg.norm(best.gradient)), target.is_met(best))


def _reduce(problem: Problem) -> tuple[Problem, Array | None]:
    """Rotate X onto the space of its rows where that has less than half as many dimensions: W − W_c lies in it."""
    n, d = problem.X.shape
    sparse = scipy.sparse.issparse(problem.X)
    if 2 * n > d or problem.penalty == 0 or (sparse and n * d > LARGEST_DENSE):
        return problem, None
    X = problem.X.toarray() if sparse else problem.X
    basis, rows = scipy.linalg.qr(X.T.astype(np.float64), mode="economic", check_finite=False)
    return replace(problem, X=np.ascontiguousarray(rows.T), coef=problem.coef @ basis), basis


@dataclass(frozen=True)
class _Point:
    u: Array  # where, in the coordinates of the descent
    value: float
    slope: Array  # by u
    parameters: Array  # (W − W_c, b − b_c)
    gradient: Array  # by them


@dataclass(frozen=True)
class _Target:
    """When a gradient is small enough: Λ‖θ − optimum‖ <= ‖gradient‖, as the objective is Λ-strongly convex.

    It is not in intercepts without a penalty: theirs must be small beside the samples' weights as well.
    """

    center: Array  # (W_c, b_c) in the coordinates of the descent
    rest: float  # ‖W_c‖² outside of them
    scale: float  # tol Λ
    free: float  # the largest gradient of an intercept without a penalty
    floor: Array  # of each column of parameters: what rounding may leave of its gradient

    @classmethod
    def of(cls, problem: Problem, reduced: Problem, tol: float) -> _Target:
        size = sum(problem.weights[rows] @ abs(x) for rows, x in _blocks(reduced.X))
        total = problem.weights.sum()
        center = reduced.coef
        if problem.fit_intercept:
            center, size = np.column_stack([center, problem.intercept]), np.append(size, total)
        rest = max(float((problem.coef**2).sum() - (reduced.coef**2).sum()), 0.0)
        free = np.inf if problem.intercept_penalty or not problem.fit_intercept else tol * UNPENALISED * total
        floor = (ROUNDING if problem.penalty else tol * UNPENALISED) * np.asarray(size)
        return cls(center, rest, tol * problem.penalty, float(free), floor)

    def is_met(self, point: _Point) -> bool:
        norm = np.sqrt(((self.center + point.parameters) ** 2).sum() + self.rest)
        gradient = np.abs(point.gradient)
        small = np.linalg.norm(gradient) <= self.scale * norm and gradient[:, -1].max() <= self.free
        return bool(np.isfinite(point.value) and (small or np.all(gradient <= self.floor)))


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
        self.start = np.zeros((offset.shape[1], self.width))  # where u is zero
        self.transform = np.zeros(0)

    def run(self, target: _Target, max_iter: int) -> tuple[_Point, int]:
        """Return the last point and the number of steps to it."""
        self._precondition(None)
        point = self._evaluate(np.zeros_like(self.start))
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
            if n_iter % REFRESH == 0 and found is not None:  # classes that became certain curve less than the bound
                self._precondition(point)
                point = self._evaluate(np.zeros_like(self.start))
                pairs.clear()
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
        parameters = self.start + (u * self.transform if self.transform.ndim == 1 else u @ self.transform)
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
        return _Point(u, value, slope, parameters, gradient)

    def _precondition(self, point: _Point | None) -> None:
        """Choose T, lower triangular or a diagonal where the matrix would be too large, and begin at a point."""
        problem = self.problem
        curvature = np.full(len(problem.y), 1 / max(self.offset.shape[1], 2))
        curvature *= 1 - curvature  # of the loss where all classes are as likely
        if point is not None:
            self.start = point.parameters
            curvature = 0.01 * curvature + self._measure_curvature()
        weights = problem.weights * curvature
        sparse = scipy.sparse.issparse(problem.X)
        if self.width > (LARGEST_SPARSE if sparse else LARGEST):
            squares = sum(np.asarray((x.multiply(x) if sparse else x * x).T @ weights[r]) for r, x in self._rows())
            diagonal = squares + self.penalties
            self.transform = 1 / np.sqrt(diagonal + JITTER * diagonal.mean() + np.finfo(float).tiny)
            return
        gram = np.zeros((self.width, self.width))
        for rows, x in self._rows():
            scaled = (x.toarray() if sparse else x) * np.sqrt(weights[rows])[:, None]
            gram += scaled.T @ scaled
        jitter = JITTER * np.trace(gram) / self.width + np.finfo(float).tiny
        gram[np.diag_indices(self.width)] += self.penalties + jitter
        self.transform = np.tril(np.linalg.inv(np.linalg.cholesky(gram)))

    def _rows(self) -> Iterator[tuple[slice, Any]]:
        """Yield rows of X with a column of ones for the intercept."""
        for rows, x in _blocks(self.problem.X):
            if not self.problem.fit_intercept:
                yield rows, x
            elif scipy.sparse.issparse(x):
                yield rows, scipy.sparse.hstack([x, np.ones((x.shape[0], 1))], format="csr")
            else:
                yield rows, np.hstack([x, np.ones((len(x), 1))])

    def _measure_curvature(self) -> Array:
        """Return p(1 − p) of each sample, a mean over its classes, where u is zero."""
        found = np.empty(len(self.problem.y))
        for rows, x in self._rows():
            logits = self.offset[rows] + x @ self.start.T
            p = scipy.special.expit(logits) if logits.shape[1] == 1 else scipy.special.softmax(logits, axis=1)
            found[rows] = (p * (1 - p)).mean(axis=1)
        return found


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

"""The largest evidence of a Bayesian linear model, from its singular values and projections."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sktransfer.ranking.blocks import Array

NOISE = 1e-12  # the least variance of the noise, of y's mean square
GRID = np.linspace(np.log(1e-20), np.log(1e10), 100)  # of log(α/β), of the largest squared singular value
STEPS = 30  # of a golden section between neighbours: log(α/β) to 1e-6, the evidence to its rounding
GOLDEN = (np.sqrt(5) - 1) / 2
OUTPUTS = 256  # at once


@dataclass(frozen=True)
class Spectrum:
    """What the evidence of m targets depends on; each target's mean square is 1.

    With X = U diag(s) Vᵀ of shape (n, d).
    """

    n_samples: int
    squares: Array  # (k,) s², the largest of them 1 (or all 0)
    projections: Array  # (k, m) (Uᵀy)²
    rest: Array  # (m,) the squared length of y outside of U
    largest: float  # s² that was divided by; 1 for zeros


@dataclass(frozen=True)
class Evidence:
    """Where the evidence of m targets is largest."""

    values: Array  # (m,) log p(y) / n
    ratios: Array  # (m,) α/β
    noises: Array  # (m,) 1/β


def maximise(spectrum: Spectrum) -> Evidence:
    r"""Maximise the log evidence of y = Xw + noise over the precisions α of w and β of the noise.

    With t = α/β and q = Σ (uᵢᵀy)² t/(t + sᵢ²) + rest, the evidence is largest in β at 1/β = q/n, so that

    .. math:: \log p(y) = -\tfrac{n}{2} \left(\log 2\pi + \log \tfrac{q}{n} + 1\right)
              - \tfrac{1}{2} \sum_i \log(1 + s_i^2 / t)

    is left as a function of one number. It may have several maxima: a grid finds the highest, a golden section refines
    it, which the fixed-point iteration of the papers from α = β = 1 need not reach.
    """
    parts = [_maximise_few(_take(spectrum, start)) for start in range(0, len(spectrum.rest), OUTPUTS)]
    return Evidence(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.ratios for part in parts]),
        np.concatenate([part.noises for part in parts]),
    )


def _take(spectrum: Spectrum, start: int) -> Spectrum:
    part = slice(start, start + OUTPUTS)
    return replace(spectrum, projections=spectrum.projections[:, part], rest=spectrum.rest[part])


def _maximise_few(spectrum: Spectrum) -> Evidence:
    best = np.argmax(_evaluate_grid(spectrum), axis=0)
    low, high = GRID[np.maximum(best - 1, 0)], GRID[np.minimum(best + 1, len(GRID) - 1)]
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = _evaluate(spectrum, left)[0], _evaluate(spectrum, right)[0]
    for _ in range(STEPS):
        up = at_left < at_right
        low, high = np.where(up, left, low), np.where(up, high, right)
        probe = np.where(up, low + GOLDEN * (high - low), high - GOLDEN * (high - low))
        value = _evaluate(spectrum, probe)[0]
        left, right = np.where(up, right, probe), np.where(up, probe, left)
        at_left, at_right = np.where(up, at_right, value), np.where(up, value, at_left)
    middle = (low + high) / 2
    values, noises = _evaluate(spectrum, middle)
    return Evidence(values, np.exp(middle), noises)


def _evaluate_grid(spectrum: Spectrum) -> Array:
    """Return the evidence of all targets (columns) at all points of the grid (rows)."""
    ratios = np.exp(GRID)[:, None]
    left = (ratios / (ratios + spectrum.squares)) @ spectrum.projections + spectrum.rest
    return _combine(spectrum, left, np.log1p(spectrum.squares / ratios).sum(axis=1)[:, None])[0]


def _evaluate(spectrum: Spectrum, logarithms: Array) -> tuple[Array, Array]:
    """Return the evidence and the noise of each target at its own log(α/β)."""
    ratios, squares = np.exp(logarithms), spectrum.squares[:, None]
    left = (ratios / (ratios + squares) * spectrum.projections).sum(axis=0) + spectrum.rest
    return _combine(spectrum, left, np.log1p(squares / ratios).sum(axis=0))


def _combine(spectrum: Spectrum, left: Array, determinant: Array) -> tuple[Array, Array]:
    """Return log p(y) / n and 1/β from q and log |I + XXᵀ β/α|."""
    n = spectrum.n_samples
    noise = np.maximum(left / n, NOISE)
    return -0.5 * (np.log(2 * np.pi) + np.log(noise) + left / (n * noise) + determinant / n), noise

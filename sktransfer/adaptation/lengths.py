"""How long rows have to be for an estimator's penalty to leave it something to learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone

from sktransfer.adaptation.adapters import Adapter
from sktransfer.adaptation.chain import fit_chain
from sktransfer.adaptation.domains import Task
from sktransfer.adaptation.learners import fit_model
from sktransfer.adaptation.subspaces import SubspaceAlignment

LOSSES = (0.05, 0.4)  # of the source rows that are learnt from, in units of log(n_classes)
STEP = 10**0.5
STEPS = 4


def fit_length(estimator: Any, adapters: Sequence[Adapter], X: Any, task: Task, sample_weight: Any) -> float:
    """Return a length of aligned rows at which the estimator neither says next to nothing nor is certain of all.

    A penalised classifier on rows that are too short gives all classes alike probabilities, and self-training then
    follows little but the frequencies of its own labels; on rows that are too long it is certain where it should not
    be. The length begins at that of the alignment and is multiplied with or divided by √10 until the mean log loss on
    the source rows, divided by log(n_classes), lies in 0.05..0.4; at most four times, and only while that helps.

    Parameters
    ----------
    adapters : sequence of Adapter
        The last one is a SubspaceAlignment. Copies of them are fitted.
    """
    source = task.sample_domain >= 0
    adapters = [clone(adapter) for adapter in adapters]
    length = float(adapters[-1].length)
    chain = fit_chain(estimator, adapters, X, task, sample_weight)
    rows, y = chain.transform(X[source], task.sample_domain[source]), task.y[source]
    weight = None if sample_weight is None else sample_weight[source]

    def find_loss(scale: float) -> float:
        scores = fit_model(estimator, task.classes, rows * scale, y, weight).scores(rows * scale)
        likely = np.maximum(scores[np.arange(len(y)), y], np.finfo(float).eps)
        return float(-np.log(likely).mean() / np.log(scores.shape[1]))

    scale, loss = 1.0, find_loss(1.0)
    direction = STEP if loss > LOSSES[1] else 1 / STEP
    for _ in range(STEPS):
        if LOSSES[0] <= loss <= LOSSES[1]:
            break
        tried = find_loss(scale * direction)
        if abs(tried - loss) <= 0.01 * loss:  # an estimator that scales its rows itself, or a tree
            return length
        scale, loss = scale * direction, tried
    return length * scale


def set_lengths(candidates: Sequence[Sequence[Adapter]], length: float) -> None:
    """Give all alignments of subspaces the length."""
    for adapters in candidates:
        for adapter in adapters:
            if isinstance(adapter, SubspaceAlignment):
                adapter.length = length

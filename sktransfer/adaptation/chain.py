"""A list of adapters, fitted one after the other, with the estimator at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sktransfer.adaptation.adapters import Adapter, Array, find_known, train_on_known
from sktransfer.adaptation.domains import Task
from sktransfer.adaptation.learners import Model, fit_model
from sktransfer.adaptation.report import AdaptationReport, score_reverse


@dataclass(frozen=True)
class Chain:
    """Fitted adapters, and the model on the rows that they return."""

    adapters: list[Adapter]
    model: Model

    def transform(self, X: Array, sample_domain: Array | None = None) -> Array:
        """Rows as the model sees them, target rows if no domains are given."""
        domains = np.full(len(X), -1) if sample_domain is None else sample_domain
        for adapter in self.adapters:
            X = adapter.transform(X, domains)
        return X


def fit_chain(estimator: Any, adapters: Sequence[Adapter], X: Array, task: Task, sample_weight: Array | None) -> Chain:
    """Fit the adapters on all rows, and then the estimator.

    Parameters
    ----------
    adapters : sequence of Adapter
        These objects are fitted; none at all leaves the plain estimator on the rows with a label.
    """
    rows = X
    for adapter in adapters:
        adapter.fit(rows, task.y, task.sample_domain)
        weight = adapter.source_weight(rows, task.sample_domain)
        if weight is not None:
            sample_weight = weight if sample_weight is None else sample_weight * weight
        rows = adapter.transform(rows, task.sample_domain)
    learn = partial(fit_model, estimator, task.classes)
    train = adapters[-1].train if adapters else _train_plainly
    return Chain(list(adapters), train(learn, rows, task.y, task.sample_domain, sample_weight))


def report_on(estimator: Any, chain: Chain, X: Array, task: Task, auc: float, check: bool,
              sample_weight: Array | None) -> AdaptationReport:  # fmt: skip
    """Compare the chain with the plain estimator, by reverse validation."""
    target = task.sample_domain < 0
    plain = adapted = np.nan
    if chain.adapters and check:
        learn = partial(fit_model, estimator, task.classes)
        alone = fit_chain(estimator, [], X, task, sample_weight)
        plain = score_reverse(learn, X, task.y, task.sample_domain, alone.model.predict(X[target]))
        rows = chain.transform(X, task.sample_domain)
        adapted = score_reverse(learn, rows, task.y, task.sample_domain, chain.model.predict(rows[target]))
    return AdaptationReport(
        methods=tuple(type(adapter).__name__ for adapter in chain.adapters),
        n_source=int((~target).sum()),
        n_target=int(target.sum()),
        n_target_labels=int(find_known(task.y)[target].sum()),
        domain_auc=auc,
        source_only_score=plain,
        adapted_score=adapted,
    )


def _train_plainly(learn: Any, X: Array, y: Array, sample_domain: Array, sample_weight: Array | None) -> Any:  # noqa: ARG001
    return train_on_known(learn, X, y, sample_weight)

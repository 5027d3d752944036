"""A list of adapters, fitted one after the other, with the estimator at its end."""

from __future__ import annotations

import warnings
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


def fit_first_harmless(estimator: Any, candidates: Sequence[Sequence[Adapter]], X: Array, task: Task, auc: float,
                       check: bool, sample_weight: Array | None) -> tuple[Chain, AdaptationReport]:  # fmt: skip
    """Fit the first candidate that does not look harmful beside the plain estimator, or the last one.

    Parameters
    ----------
    candidates : sequence of sequences of Adapter
        An empty one is the plain estimator.
    auc : float
        Of a classifier between the domains, for the report.
    check : bool
        Without it the first candidate is taken and nothing is compared.
    """
    target = task.sample_domain < 0
    with warnings.catch_warnings(record=True) as heard:  # of a model that is mostly there to be compared with
        warnings.simplefilter("always")
        alone = fit_chain(estimator, [], X, task, sample_weight) if check and candidates[0] else None
    plain = np.nan if alone is None else _score(estimator, alone, X, task)
    left_out = list[tuple[str, ...]]()
    for adapters in candidates:
        chain = fit_chain(estimator, adapters, X, task, sample_weight) if adapters or alone is None else alone
        report = AdaptationReport(
            methods=_name(adapters),
            left_out=tuple(left_out),
            n_source=int((~target).sum()),
            n_target=int(target.sum()),
            n_target_labels=int(find_known(task.y)[target].sum()),
            domain_auc=auc,
            source_only_score=plain,
            adapted_score=np.nan if alone is None else plain if not adapters else _score(estimator, chain, X, task),
        )
        if not report.harmful:
            break
        left_out.append(_name(adapters))
    for one in heard if chain is alone else ():
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return chain, report


def _name(adapters: Sequence[Adapter]) -> tuple[str, ...]:
    return tuple(type(adapter).__name__ for adapter in adapters)


def _score(estimator: Any, chain: Chain, X: Array, task: Task) -> float:
    rows = chain.transform(X, task.sample_domain)
    predicted = chain.model.predict(rows[task.sample_domain < 0])
    learn = partial(fit_model, estimator, task.classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a model that nobody gets
        try:
            return score_reverse(learn, rows, task.y, task.sample_domain, predicted)
        except ValueError:  # fewer target rows, or of a predicted class, than the estimator's neighbours or folds
            return np.nan


def _train_plainly(learn: Any, X: Array, y: Array, sample_domain: Array, sample_weight: Array | None) -> Any:  # noqa: ARG001
    return train_on_known(learn, X, y, sample_weight)

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
from sktransfer.adaptation.report import SOURCE_ONLY, AdaptationReport, name_methods, score_agreement, score_reverse


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


def fit_best(estimator: Any, candidates: Sequence[Sequence[Adapter]], X: Array, task: Task, auc: float, check: bool,
             sample_weight: Array | None) -> tuple[Chain, AdaptationReport]:  # fmt: skip
    """Fit all candidates and return the one of the best score, with the report.

    Parameters
    ----------
    candidates : sequence of sequences of Adapter
        An empty one is the plain estimator. One alone is taken whatever its score.
    auc : float
        Of a classifier between the domains, for the report.
    check : bool
        Whether the candidates are compared; without it the first one is taken.
    """
    scores = dict[str, float]()
    chains = dict[str, Chain]()
    if check and any(candidates):
        with warnings.catch_warnings(record=True) as heard:  # of a model that is mostly there to be compared with
            warnings.simplefilter("always")
            chains[SOURCE_ONLY] = fit_chain(estimator, [], X, task, sample_weight)
        for adapters in candidates:
            if adapters:
                chains[_name(adapters)] = fit_chain(estimator, adapters, X, task, sample_weight)
        scores = {name: _score(estimator, chain, X, task) for name, chain in chains.items()}
        chosen = max(map(_name, candidates), key=lambda name: np.nan_to_num(scores[name], nan=-np.inf))
        for one in heard if chosen == SOURCE_ONLY else ():
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        chain = chains[chosen]
    else:
        chain = fit_chain(estimator, candidates[0], X, task, sample_weight)
    target = task.sample_domain < 0
    report = AdaptationReport(
        methods=tuple(type(adapter).__name__ for adapter in chain.adapters),
        n_source=int((~target).sum()),
        n_target=int(target.sum()),
        n_target_labels=int(find_known(task.y)[target].sum()),
        domain_auc=auc,
        scores=scores,
    )
    return chain, report


def _name(adapters: Sequence[Adapter]) -> str:
    return name_methods(tuple(type(adapter).__name__ for adapter in adapters))


def _score(estimator: Any, chain: Chain, X: Array, task: Task) -> float:
    target = task.sample_domain < 0
    rows = chain.transform(X, task.sample_domain)
    predicted = chain.model.predict(rows[target])
    learn = partial(fit_model, estimator, task.classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a model that nobody gets
        try:
            back = score_reverse(learn, rows, task.y, task.sample_domain, predicted)
        except ValueError:  # fewer target rows, or of a predicted class, than the estimator's neighbours or folds
            return np.nan
    return (back + score_agreement(X[target], predicted)) / 2


def _train_plainly(learn: Any, X: Array, y: Array, sample_domain: Array, sample_weight: Array | None) -> Any:  # noqa: ARG001
    return train_on_known(learn, X, y, sample_weight)

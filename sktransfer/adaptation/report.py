"""Whether adaptation helped, as far as that can be seen without labels of the target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import r2_score
from sklearn.neighbors import NearestNeighbors

from sktransfer.adaptation.adapters import Array, Learn, find_known

NEIGHBOURS = 5
SOURCE_ONLY = "source only"


@dataclass(frozen=True)
class AdaptationReport:
    """What was adapted, and how it compares with the source alone.

    The score is the mean of two, neither of which needs labels of the target; 1 is best.

    - The way back (reverse validation: E. Zhong et al., "Cross validation framework to choose amongst models and data
      sets for transfer learning", ECML 2010, section 3): the target rows with their predicted labels teach the
      estimator once more, and it is asked for the known labels of the source rows: balanced accuracy, or R². Where
      classes were mixed up it does not lead home.
    - Agreement of neighbours: how often a target row and its five nearest ones, by the cosine of their centred
      features as they came, are given the same label, beyond chance (a - c) / (1 - c) as in Cohen's kappa; for values
      1 - mean (difference between neighbours)² / (2 variance), as in Geary's C. Labels that cut across the target's own
      clusters are doubtful.
    """

    methods: tuple[str, ...]  # empty: the plain estimator
    n_source: int  # rows
    n_target: int
    n_target_labels: int  # rows of the target whose labels were learnt from
    domain_auc: float  # of a classifier between source and target: 0.5 are the same, 1 are told apart at once
    scores: dict[str, float]  # of all that was tried, "source only" among them; empty where the check was left out

    @property
    def source_only_score(self) -> float:
        """Score of the plain estimator; NaN where nothing was compared."""
        return self.scores.get(SOURCE_ONLY, np.nan)

    @property
    def adapted_score(self) -> float:
        """Score of what was chosen; NaN where nothing was compared, or too few target rows can teach the estimator."""
        return self.scores.get(name_methods(self.methods), np.nan)

    @property
    def harmful(self) -> bool:
        """Whether the adapted score is below that of the source alone."""
        return bool(self.adapted_score < self.source_only_score)

    def __str__(self) -> str:
        rows = f"{self.n_source} source and {self.n_target} target rows"
        if self.n_target_labels:
            rows += f" ({self.n_target_labels} with labels)"
        lines = [f"{rows}; a classifier tells them apart with an AUC of {self.domain_auc:.2f}."]
        if self.methods:
            lines.append(f"Adapted by {name_methods(self.methods)}.")
        else:
            why = "all else looks harmful" if self.scores else "the domains are close"
            lines.append(f"Not adapted: {why}.")
        if self.scores:
            scores = ", ".join(f"{score:.3f} ({name})" for name, score in self.scores.items())
            lines.append(f"Scores without the target's labels: {scores}.")
        if self.harmful:
            lines.append(
                "Adaptation looks harmful here: compare with the plain estimator on target rows that you label."
            )
        return "\n".join(lines)


def name_methods(methods: tuple[str, ...]) -> str:
    """Return "Standardize, Coral", or "source only" for none."""
    return ", ".join(methods) or SOURCE_ONLY


def score_reverse(learn: Learn, X: Array, y: Array, sample_domain: Array, predicted: Array) -> float:
    """Score of a model that learnt the target's predicted labels, on the labels of the source.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        In the coordinates of the model that predicted.
    predicted : ndarray of shape (n_target,) or (n_target, n_outputs)
        Numbers of classes, or values.
    """
    target = sample_domain < 0
    source = ~target & find_known(y)
    classes = np.issubdtype(y.dtype, np.integer)
    if classes and len(np.unique(predicted)) < 2:
        return 1 / len(np.unique(y[source]))
    back = learn(X[target], predicted, None).predict(X[source])
    if not classes:
        return float(r2_score(y[source], back))
    present = np.unique(y[source])
    return float(np.mean([(back[y[source] == label] == label).mean() for label in present]))


def score_agreement(X: Array, predicted: Array) -> float:
    """How much neighbours agree about their labels, beyond chance.

    Parameters
    ----------
    X : ndarray of shape (n_target, d)
        As it came, the same for all that is compared.
    predicted : ndarray of shape (n_target,) or (n_target, n_outputs)
        Numbers of classes, or values.
    """
    centred = X - X.mean(axis=0)
    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(X) - 1), metric="cosine").fit(centred)
    near = predicted[nearest.kneighbors(return_distance=False)]
    if np.issubdtype(predicted.dtype, np.integer):
        _, counts = np.unique(predicted, return_counts=True)
        chance = float(((counts / len(predicted)) ** 2).sum())
        return (float((near == predicted[:, None]).mean()) - chance) / (1 - chance) if chance < 1 else 0.0
    variance = float(predicted.var(axis=0).sum())
    differences = (near - predicted[:, None]) ** 2
    return 1 - float(differences.mean(axis=(0, 1)).sum()) / (2 * variance) if variance > 0 else 0.0

"""Whether adaptation helped, as far as that can be seen without labels of the target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import r2_score

from sktransfer.adaptation.adapters import Array, Learn, find_known

LOSS = 0.05  # of the reverse score: what adaptation may cost before it looks harmful


@dataclass(frozen=True)
class AdaptationReport:
    """What was adapted, and how it compares with the source alone.

    The score is that of reverse validation (E. Zhong et al., "Cross validation framework to choose amongst models and
    datasets for transfer learning", ECML 2010, section 3): the target rows with their predicted labels teach the
    estimator once more, and it is asked for the known labels of the source rows. Labels that make no sense there cannot
    lead back. Balanced accuracy of the source's classes, or R² of its values: 1 is best.
    """

    methods: tuple[str, ...]  # empty: the plain estimator
    left_out: tuple[tuple[str, ...], ...]  # what "auto" tried before, and found harmful
    n_source: int  # rows
    n_target: int
    n_target_labels: int  # rows of the target whose labels were learnt from
    domain_auc: float  # of a classifier between source and target: 0.5 are the same, 1 are told apart at once
    source_only_score: float  # NaN where the check was left out, or too few target rows can teach the estimator
    adapted_score: float

    @property
    def harmful(self) -> bool:
        """Whether the adapted score is below that of the source alone by more than 0.05."""
        return bool(self.adapted_score < self.source_only_score - LOSS)

    def __str__(self) -> str:
        rows = f"{self.n_source} source and {self.n_target} target rows"
        if self.n_target_labels:
            rows += f" ({self.n_target_labels} with labels)"
        lines = [f"{rows}; a classifier tells them apart with an AUC of {self.domain_auc:.2f}."]
        lines += [f"Left out as harmful: {', '.join(methods)}." for methods in self.left_out]
        if not self.methods:
            close = "" if self.left_out else "the domains are close, and "
            lines.append(f"Not adapted: {close}the plain estimator serves both.")
            return "\n".join(lines)
        lines.append(f"Adapted by {', '.join(self.methods)}.")
        if np.isnan(self.adapted_score):
            return "\n".join(lines)
        lines.append(
            f"Reverse score: {self.source_only_score:.3f} from the source alone, {self.adapted_score:.3f} adapted."
        )
        if self.harmful:
            lines.append(
                "Adaptation looks harmful here: compare with the plain estimator on target rows that you label."
            )
        return "\n".join(lines)


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

"""Support vector machines with a kernel, in float64 as in scikit-learn, and all pairs of classes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from sktransfer.export.operators import DOUBLE, Array, Nodes, write_classes, write_labels


@dataclass(eq=False)
class Kernel:
    """Similarities of rows and support vectors (LIBSVM, C.-C. Chang and C.-J. Lin 2011, section 2)."""

    kind: str  # "linear", "poly", "rbf" or "sigmoid"
    vectors: Array
    gamma: float
    coef0: float
    degree: float

    def write(self, nodes: Nodes, rows: str) -> str:
        """Write the nodes; returns (n, n_vectors)."""
        product = nodes.node("MatMul", rows, nodes.constant(np.ascontiguousarray(self.vectors.T)))
        if self.kind == "linear":
            return product
        if self.kind == "rbf":  # exp(-γ ‖x - v‖²)
            lengths = nodes.node("ReduceSumSquare", rows, nodes.constant(np.array([1])), keepdims=1)
            squares = nodes.constant((self.vectors**2).sum(axis=1)[None])
            twice = nodes.node("Mul", product, nodes.constant(np.float64(-2)))
            distances = nodes.node("Add", nodes.node("Add", twice, lengths), squares)
            return nodes.node("Exp", nodes.node("Mul", distances, nodes.constant(np.float64(-self.gamma))))
        scaled = nodes.node("Mul", product, nodes.constant(np.float64(self.gamma)))
        shifted = nodes.node("Add", scaled, nodes.constant(np.float64(self.coef0)))
        if self.kind == "sigmoid":
            return nodes.node("Tanh", shifted)
        return nodes.node("Pow", shifted, nodes.constant(np.float64(self.degree)))


@dataclass(eq=False)
class KernelRegressor:
    """Values Σ αᵢ k(x, vᵢ) + b."""

    kernel: Kernel
    weights: Array
    offset: Array
    classes: Array | None = None
    width: int | None = None

    def write(self, nodes: Nodes, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Write the nodes."""
        values = _weigh(nodes, self.kernel.write(nodes, inputs[0]), self.weights[:, None], self.offset)
        nodes.node("Reshape", values, nodes.constant(np.array([-1])), output=outputs[0])


@dataclass(eq=False)
class KernelClassifier:
    """Labels by the votes of pairs of classes, and what ``decision_function`` gives, one score a class.

    With `scores_only` it has one output: scores (n, k), or (n, 1) of the second of two classes.
    """

    kernel: Kernel
    weights: Array  # (n_vectors, n_pairs)
    offset: Array  # (n_pairs,)
    all_classes: Array
    scores_only: bool = False

    @property
    def classes(self) -> Array | None:
        """Of the labels."""
        return None if self.scores_only else self.all_classes

    @property
    def width(self) -> int | None:
        """How many scores."""
        n_classes = len(self.all_classes)
        return n_classes if n_classes > 2 else 1 if self.scores_only else None

    def without_labels(self) -> KernelClassifier:
        """The same with scores alone."""
        return replace(self, scores_only=True)

    def write(self, nodes: Nodes, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Write the nodes."""
        margins = _weigh(nodes, self.kernel.write(nodes, inputs[0]), self.weights, self.offset)
        if len(self.all_classes) == 2:
            if self.scores_only:
                nodes.node("Identity", margins, output=outputs[-1])
            else:
                write_classes(nodes, margins, "identity", self.all_classes, outputs)
            return
        votes = self._write_votes(nodes, margins)
        if not self.scores_only:
            index = nodes.node("ArgMax", votes, axis=1, keepdims=0)
            write_labels(nodes, index, self.all_classes, outputs[0])
        # sklearn/utils/multiclass.py, _ovr_decision_function: ties of votes are broken by the sum of margins
        total = nodes.node("MatMul", margins, nodes.constant(self._pair_signs()))
        bound = nodes.node("Add", nodes.node("Abs", total), nodes.constant(np.float64(1)))
        share = nodes.node("Div", total, nodes.node("Mul", bound, nodes.constant(np.float64(3))))
        nodes.node("Add", votes, share, output=outputs[-1])

    def _pair_signs(self) -> Array:
        """(n_pairs, n_classes): 1 for the first class of a pair, -1 for the second."""
        pairs = list(combinations(range(len(self.all_classes)), 2))
        signs = np.zeros((len(pairs), len(self.all_classes)))
        for row, (first, second) in enumerate(pairs):
            signs[row, first], signs[row, second] = 1.0, -1.0
        return signs

    def _write_votes(self, nodes: Nodes, margins: str) -> str:
        signs = self._pair_signs()
        wins = nodes.node("Cast", nodes.node("Greater", margins, nodes.constant(np.float64(0))), to=DOUBLE)
        # A pair gives its vote to the first class if it wins, else to the second.
        votes = nodes.node("MatMul", wins, nodes.constant(signs))
        return nodes.node("Add", votes, nodes.constant((signs < 0).sum(axis=0, keepdims=True).astype(np.float64)))


def _weigh(nodes: Nodes, similarities: str, weights: Array, offset: Array) -> str:
    product = nodes.node("MatMul", similarities, nodes.constant(np.ascontiguousarray(weights)))
    return nodes.node("Add", product, nodes.constant(np.asarray(offset, np.float64).reshape(1, -1)))


def read_kernel_machine(machine: Any) -> KernelClassifier | KernelRegressor:
    """A fitted SVC, NuSVC, SVR or NuSVR.

    Raises
    ------
    ValueError
        If its kernel is a function, or precomputed.
    """
    if machine.kernel not in ("linear", "poly", "rbf", "sigmoid"):
        raise ValueError(f'kernel must be "linear", "poly", "rbf" or "sigmoid". Got {machine.kernel!r} instead.')
    vectors, dual = (array.toarray() if hasattr(array, "toarray") else array
                     for array in (machine.support_vectors_, machine.dual_coef_))  # fmt: skip
    kernel = Kernel(machine.kernel, np.asarray(vectors, np.float64), machine._gamma, machine.coef0, machine.degree)
    classes = getattr(machine, "classes_", None)
    if classes is None:
        return KernelRegressor(kernel, dual[0], machine.intercept_)
    if len(classes) == 2:
        return KernelClassifier(kernel, dual[0][:, None], machine.intercept_, classes)
    owner = np.repeat(np.arange(len(classes)), machine.n_support_)
    pairs = list(combinations(range(len(classes)), 2))
    weights = np.zeros((len(vectors), len(pairs)))
    for number, (first, second) in enumerate(pairs):
        weights[owner == first, number] = dual[second - 1, owner == first]
        weights[owner == second, number] = dual[first, owner == second]
    return KernelClassifier(kernel, weights, machine.intercept_, classes)

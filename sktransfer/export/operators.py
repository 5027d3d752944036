"""Parts of a head that skl2onnx has not, or not exactly: what they are, and the nodes that compute them in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from sktransfer.export.inverses import Operation

EMBED, DOMAIN = "Embed", "sktransfer"  # the node that stands for an extractor until its network is there

Array = np.ndarray[Any, Any]
Link = Literal["softmax", "sigmoid", "shares", "exp", "identity"]

FLOAT, INT64, STRING, BOOL, DOUBLE = 1, 7, 8, 9, 11  # onnx.TensorProto's


class Nodes(Protocol):
    """Where nodes are written."""

    def constant(self, values: Any) -> str:
        """Write a constant; returns its name."""

    def node(self, op_type: str, *inputs: str, output: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Write a node; returns the name of its output."""


class Operator(Protocol):
    """Something that becomes nodes."""

    @property
    def classes(self) -> Array | None:
        """Of the labels in its first output; None where it has one output, of numbers."""

    @property
    def width(self) -> int | None:
        """Of its last output, which is (n, width); None stands for (n,)."""

    def write(self, nodes: Nodes, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Write the nodes that lead from `inputs` to `outputs`."""


@dataclass(eq=False)
class Embedding:
    """An extractor among the operators: as many columns of images as `inputs`, `width` features in all."""

    number: int
    width: int
    classes: Array | None = None

    def write(self, nodes: Nodes, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Write the node that stands for it."""
        nodes.node(EMBED, *inputs, output=outputs[0], domain=DOMAIN, number=self.number)


@dataclass(eq=False)
class AffineMap:
    """x ↦ x Aᵀ + b; weights of shape (d,) stand for a diagonal A."""

    weights: Array
    offset: Array
    classes: Array | None = None

    @property
    def width(self) -> int:
        """How many features come out."""
        return len(self.weights)

    def write(self, nodes: Nodes, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Write the nodes."""
        weights, offset = np.asarray(self.weights, np.float64), np.asarray(self.offset, np.float64)
        if weights.ndim == 1:
            scaled = nodes.node("Mul", inputs[0], nodes.constant(weights[None]))
        else:
            scaled = nodes.node("MatMul", inputs[0], nodes.constant(np.ascontiguousarray(weights.T)))
        nodes.node("Add", scaled, nodes.constant(offset.reshape(1, -1)), output=outputs[0])


@dataclass(eq=False)
class Imputation:
    """What stands for empty cells: NaN or a number, or an empty text."""

    fill: Array  # of each column
    missing: float  # NaN or the number that stands for an empty cell
    kept: Array  # columns that come out
    classes: Array | None = None

    @property
    def text(self) -> bool:
        """Whether cells are texts."""
        return bool(self.fill.dtype.kind == "O")

    @property
    def width(self) -> int:
        """How many columns come out."""
        return len(self.kept)

    def write(self, nodes: Nodes, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Write the nodes."""
        cells = inputs[0]
        if self.text:
            encoder: dict[str, Any] = {"keys_strings": [""], "values_int64s": [1], "default_int64": 0}
            codes = nodes.node("LabelEncoder", cells, domain="ai.onnx.ml", **encoder)
            empty = nodes.node("Cast", codes, to=BOOL)
        elif np.isnan(self.missing):
            empty = nodes.node("IsNaN", cells)
        else:
            empty = nodes.node("Equal", cells, nodes.constant(np.float64(self.missing)))
        filled = nodes.node("Where", empty, nodes.constant(self.fill[None]), cells)
        nodes.node("Gather", filled, nodes.constant(self.kept), output=outputs[0], axis=1)


@dataclass(eq=False)
class Inverse:
    """A chain of operators on a regression's values."""

    operations: tuple[Operation, ...]
    width: int | None
    classes: Array | None = None

    def write(self, nodes: Nodes, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Write the nodes."""
        name = inputs[0]
        for op_type, operand in self.operations:
            name = nodes.node(op_type, name, *([] if operand is None else [nodes.constant(np.float64(operand))]))
        nodes.node("Identity", name, output=outputs[0])


@dataclass(eq=False)
class LinearHead:
    """A linear classifier: one row of coefficients (for the second of two classes) or one a class.

    Its second output are probabilities, or with the link "identity" what ``decision_function`` gives.
    """

    coef: Array
    intercept: Array
    classes: Array
    link: Link

    @property
    def width(self) -> int | None:
        """How many probabilities or scores."""
        return None if self.link == "identity" and len(self.coef) == 1 else len(self.classes)

    def without_labels(self) -> AffineMap:
        """The scores alone, (n, k) or (n, 1)."""
        return AffineMap(self.coef, np.broadcast_to(self.intercept, (len(self.coef),)))

    def write(self, nodes: Nodes, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Write the nodes."""
        coef = np.asarray(self.coef, np.float64)
        intercept = np.broadcast_to(np.asarray(self.intercept, np.float64).reshape(1, -1), (1, len(coef)))
        product = nodes.node("MatMul", inputs[0], nodes.constant(np.ascontiguousarray(coef.T)))
        scores = nodes.node("Add", product, nodes.constant(np.ascontiguousarray(intercept)))
        if self.link == "sigmoid" and len(coef) > 1 and self.coef.dtype == np.float32:
            # Sigmoids that are too small for float32 are 0 in scikit-learn, and rows of them become uniform.
            small = write_sigmoid(nodes, nodes.node("Cast", scores, to=FLOAT), np.float32)
            write_labels(nodes, nodes.node("ArgMax", scores, axis=1, keepdims=0), self.classes, outputs[0])
            write_shares(nodes, nodes.node("Cast", small, to=DOUBLE), outputs[1])
            return
        write_classes(nodes, scores, self.link, self.classes, outputs)


@dataclass(eq=False)
class Trees:
    """A baseline and the sum of trees, whose thresholds and features are compared in float64."""

    attributes: dict[str, Any]
    baseline: Array
    link: Link
    classes: Array | None
    float32: bool  # whether features are rounded first, as in scikit-learn's trees and forests

    @property
    def width(self) -> int | None:
        """How many probabilities; a regression has values."""
        return None if self.classes is None else len(self.classes)

    def write(self, nodes: Nodes, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Write the nodes."""
        features = inputs[0]
        if self.float32:
            features = nodes.node("Cast", nodes.node("Cast", features, to=FLOAT), to=DOUBLE)
        sums = nodes.node("TreeEnsembleRegressor", features, domain="ai.onnx.ml", **self.attributes)
        sums = nodes.node("Cast", sums, to=DOUBLE)
        raw = nodes.node("Add", sums, nodes.constant(np.asarray(self.baseline, np.float64).reshape(1, -1)))
        if self.classes is None:
            values = raw if self.link == "identity" else nodes.node("Exp", raw)
            nodes.node("Reshape", values, nodes.constant(np.array([-1])), output=outputs[0])
        else:
            write_classes(nodes, raw, self.link, self.classes, outputs)


@dataclass(eq=False)
class Calibration:
    """Scores (n, k) -> calibrated probabilities, (n, 1) of the second of two classes.

    Platt's sigmoid 1 / (1 + exp(a s + b)) for each class, or softmax(β s).
    """

    slope: Array  # a of each class, or β
    offset: Array | None  # b of each class; None is a softmax
    from_probabilities: bool  # scores are probabilities, whose logarithm a softmax takes
    n_classes: int
    classes: Array | None = None

    @property
    def width(self) -> int:
        """How many probabilities."""
        return self.n_classes

    def write(self, nodes: Nodes, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Write the nodes."""
        slope = nodes.constant(np.asarray(self.slope, np.float64).reshape(1, -1))
        scores = inputs[0]
        if self.offset is not None:
            shifted = nodes.node(
                "Add",
                nodes.node("Mul", scores, slope),
                nodes.constant(np.asarray(self.offset, np.float64).reshape(1, -1)),
            )
            probabilities = write_sigmoid(nodes, nodes.node("Neg", shifted))
            if self.n_classes == 2:
                write_pair(nodes, probabilities, outputs[0])
            else:
                write_shares(nodes, probabilities, outputs[0])
            return
        if self.n_classes == 2:
            one = nodes.constant(np.float64(1))
            others = nodes.node("Sub", one, scores) if self.from_probabilities else nodes.node("Neg", scores)
            scores = nodes.node("Concat", others, scores, axis=1)
        if self.from_probabilities:
            scores = nodes.node("Log", nodes.node("Add", scores, nodes.constant(np.float64(1e-12))))
        nodes.node("Softmax", nodes.node("Mul", scores, slope), output=outputs[0], axis=1)


@dataclass(eq=False)
class MeanOfProbabilities:
    """The mean of several classifiers' probabilities, and the label of the largest."""

    classes: Array
    weights: Array | None  # of the classifiers

    @property
    def width(self) -> int:
        """How many probabilities."""
        return len(self.classes)

    def write(self, nodes: Nodes, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Write the nodes."""
        weights = np.ones(len(inputs)) if self.weights is None else np.asarray(self.weights, np.float64)
        names = list(inputs)
        if self.weights is not None:
            names = [nodes.node("Mul", name, nodes.constant(w)) for name, w in zip(inputs, weights, strict=True)]
        total = names[0]
        for name in names[1:]:
            total = nodes.node("Add", total, name)
        nodes.node("Div", total, nodes.constant(np.float64(weights.sum())), output=outputs[1])
        write_labels(nodes, nodes.node("ArgMax", outputs[1], axis=1, keepdims=0), self.classes, outputs[0])


def write_classes(nodes: Nodes, scores: str, link: Link, classes: Array, outputs: Sequence[str]) -> None:
    """Labels and probabilities of scores (n, k), or (n, 1) where the second of two classes has one."""
    binary = link in ("sigmoid", "identity") and len(classes) == 2
    if binary:
        above = nodes.node("Greater", scores, nodes.constant(np.float64(0)))
        flat = nodes.node("Reshape", above, nodes.constant(np.array([-1])))
        index = nodes.node("Cast", flat, to=INT64)
    else:
        index = nodes.node("ArgMax", scores, axis=1, keepdims=0)
    write_labels(nodes, index, classes, outputs[0])
    if link == "softmax":
        nodes.node("Softmax", scores, output=outputs[1], axis=1)
    elif link == "sigmoid":
        probabilities = write_sigmoid(nodes, scores)
        (write_pair if binary else write_shares)(nodes, probabilities, outputs[1])
    elif link == "shares":
        write_shares(nodes, scores, outputs[1])
    elif binary:
        nodes.node("Reshape", scores, nodes.constant(np.array([-1])), output=outputs[1])
    else:
        nodes.node("Identity", scores, output=outputs[1])


def write_sigmoid(nodes: Nodes, scores: str, dtype: type = np.float64) -> str:
    """1 / (1 + exp(-s)): onnxruntime's own Sigmoid rounds what is below 1e-16 to 0, and shares depend on it."""
    one = nodes.constant(dtype(1))
    return nodes.node("Div", one, nodes.node("Add", one, nodes.node("Exp", nodes.node("Neg", scores))))


def write_labels(nodes: Nodes, index: str, classes: Array, output: str) -> None:
    """Labels by their number."""
    nodes.node("Gather", nodes.constant(label_array(classes)), index, output=output)


def write_pair(nodes: Nodes, probabilities: str, output: str) -> None:
    """(n, 1) of the second class -> (n, 2)."""
    others = nodes.node("Sub", nodes.constant(np.float64(1)), probabilities)
    nodes.node("Concat", others, probabilities, output=output, axis=1)


def write_shares(nodes: Nodes, probabilities: str, output: str) -> None:
    """Rows divided by their sums; rows of zeros become uniform, as in scikit-learn."""
    axes, zero = nodes.constant(np.array([1])), nodes.constant(np.float64(0))
    empty = nodes.node("Equal", nodes.node("ReduceSum", probabilities, axes, keepdims=1), zero)
    filled = nodes.node("Add", probabilities, nodes.node("Cast", empty, to=DOUBLE))
    nodes.node("Div", filled, nodes.node("ReduceSum", filled, axes, keepdims=1), output=output)


def label_array(classes: Array) -> Array:
    """Classes as ONNX has them: int64 or strings.

    Raises
    ------
    ValueError
        If they are neither strings nor whole numbers.
    """
    values = np.asarray(classes)
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    if values.dtype.kind == "f" and (values == np.round(values)).all():
        return values.astype(np.int64)
    if all(isinstance(value, str) for value in values.tolist()):
        return values.astype(object)
    raise ValueError(f"Class labels must be strings or whole numbers. Got {values.tolist()[:5]} instead.")

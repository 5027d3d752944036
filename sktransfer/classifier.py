"""The classifier of a network as numbers: the linear function from its embedding to its logits, and its classes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sktransfer.exceptions import BackboneError
from sktransfer.network import METADATA_PREFIX, Network
from sktransfer.safety import node_inputs

if TYPE_CHECKING:
    import onnx

CLASSES_KEY = f"{METADATA_PREFIX}classes"  # JSON list of the names of the outputs

Array = npt.NDArray[np.float64]
Tensors = dict[str, npt.NDArray[Any]]

_CHUNK = 2**21  # values that are probed at once
_N_RANDOM = 4  # rows, at least, that show whether the function is linear
_NO_MEAN = "more than a mean over pixels"
_TOLERANCE = 1e-9  # relative, in double precision; what is not linear misses by far more
# What a classifier and its weights may be made of. None of them runs other graphs, or makes much of little.
_OPERATORS = frozenset({
    "Add", "AveragePool", "BatchNormalization", "Cast", "Concat", "Constant", "Conv", "DequantizeLinear", "Div",
    "Dropout", "Flatten", "Gather", "Gemm", "GlobalAveragePool", "Identity", "MatMul", "Mul", "Neg", "QuantizeLinear",
    "ReduceMean", "Reshape", "Shape", "Slice", "Sqrt", "Squeeze", "Sub", "Sum", "Transpose", "Unsqueeze",
})  # fmt: skip


def read_linear(network: Network, source: str, embedding: str, logits: str, n_features: int) -> tuple[Array, Array]:
    """The linear function that leads from the embedding to the logits, its weights read in double precision.

    The few nodes between are computed for zeros and for the identity, whatever their form (Gemm, MatMul, convolution,
    scales, weights stored as float16 or int8), and for random values, which shows that they are linear.

    Parameters
    ----------
    network : Network
    source : str
        Tensor that both others are computed from; the embedding itself, or the map whose mean it is.
    embedding, logits : str
        Tensors; the embedding may be a map (n, d, h, w) or (n, h, w, d), of which the mean is meant.
    n_features : int
        Length d of the embedding.

    Returns
    -------
    coefficients : ndarray of shape (k, d), float64
    intercepts : ndarray of shape (k,), float64

    Raises
    ------
    BackboneError
        If the logits are no linear function of the embedding.
    """
    function = _Function(network, source, embedding, logits, n_features)
    rows: list[Array] = []
    for start in range(-1, n_features, function.n_rows):  # a row of zeros, then the identity
        probes = np.eye(function.n_rows, n_features, k=start)
        vectors, values = function(_spread(probes, function.shape))
        if vectors.shape != probes.shape or not np.allclose(vectors, probes, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise _refuse(network, _NO_MEAN)
        rows.append(values)
    table = np.concatenate(rows)[: n_features + 1]
    coefficients, intercepts = (table[1:] - table[0]).T, table[0]
    rng = np.random.default_rng(0)
    for _ in range(max(1, _N_RANDOM // function.n_rows)):
        vectors, values = function(rng.standard_normal((function.n_rows, *function.shape)))
        error = np.abs(values - (vectors @ coefficients.T + intercepts)).max()
        if not error <= _TOLERANCE * np.abs(values).max():  # not "greater": NaN fails too
            raise _refuse(network, "another function")
    return np.ascontiguousarray(coefficients), intercepts.copy()


def _refuse(network: Network, found: str) -> BackboneError:
    remedy = "take its float32 original" if network.is_quantized else "fit a classifier on the embeddings"
    return BackboneError(
        f"The logits of {network.path} must be a linear function of its embedding. Got {found} between them instead; "
        f"{remedy}."
    )


class _Function:
    """What a network does from one tensor to its embedding and its logits, in double precision and without rounding.

    Double precision, so that differences between logits are weights to their last bit; the reference evaluator has it
    for all operators, onnxruntime does not.
    """

    def __init__(self, network: Network, source: str, embedding: str, logits: str, n_features: int) -> None:
        nodes = network.between(source, [embedding, logits])
        for node in nodes:
            if node.op_type not in _OPERATORS or node.domain not in ("", "ai.onnx"):
                raise _refuse(network, node.op_type)
        self.shape = tuple(size or 0 for size in network.shape(source)[1:])  # of one image's values
        is_map = len(self.shape) == 3 and n_features in (self.shape[0], self.shape[2])
        if math.prod(self.shape) != n_features and not is_map:
            raise _refuse(network, _NO_MEAN)
        self._network, self._n_features = network, n_features
        self._source, self._embedding, self._logits = source, embedding, logits
        batching = network.find_batching([embedding, logits])
        names = [source, *(name for node in nodes for name in node.output if name not in network.constants)]
        largest = max(math.prod(size or 1 for size in network.shape(name)[1:]) for name in names)
        self.n_rows = 1 if batching == "frozen" else min(n_features + 1, max(1, _CHUNK // largest))
        nodes, shapes = network.thaw(nodes) if batching == "thawed" else (nodes, [])
        self._constants = self._compute_constants(nodes, shapes)
        self._nodes = [node for node in nodes if node.output[0] not in self._constants]

    def __call__(self, values: Array) -> tuple[Array, Array]:
        """Embeddings (n_rows, d) and logits (n_rows, k)."""
        tensors = self._constants | {self._source: values}
        for node in self._nodes:
            tensors |= self._run(node, tensors)
        embedding = tensors[self._embedding]
        if embedding.ndim == 4 and math.prod(embedding.shape[1:]) != self._n_features:
            embedding = embedding.mean(axis=(2, 3) if embedding.shape[1] == self._n_features else (1, 2))
        return embedding.reshape(self.n_rows, -1), tensors[self._logits].reshape(self.n_rows, -1)

    def _compute_constants(self, nodes: Iterable[onnx.NodeProto], shapes: Iterable[onnx.TensorProto]) -> Tensors:
        import onnx

        network, used = self._network, {name for node in nodes for name in node_inputs(node)}
        stored = [*(entry for entry in network.model.graph.initializer if entry.name in used), *shapes]
        tensors: Tensors = {entry.name: _widen(onnx.numpy_helper.to_array(entry)) for entry in stored}
        for node in nodes:
            if node.op_type == "Shape":
                tensors[node.output[0]] = self._compute_shape(node)
            elif node.output[0] in network.constants:
                tensors |= self._run(node, tensors)
        return tensors

    def _compute_shape(self, node: onnx.NodeProto) -> npt.NDArray[np.int64]:
        shape = [size or 0 for size in self._network.shape(node.input[0])]
        sizes = shape if node.input[0] in self._network.constants else [self.n_rows, *shape[1:]]
        bounds = {entry.name: entry.i for entry in node.attribute}
        return np.array(sizes[bounds.get("start", 0) : bounds.get("end")], dtype=np.int64)

    def _run(self, node: onnx.NodeProto, tensors: Tensors) -> Tensors:
        """The outputs of a node; floats are float64 throughout."""
        try:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                return {node.output[0]: self._scale(node, tensors)}
            if node.op_type == "Cast" and _casts_to_float(node) and tensors[node.input[0]].dtype == np.float64:
                return {node.output[0]: tensors[node.input[0]]}
            return self._compute(node, tensors)
        except BackboneError:
            raise
        except Exception as error:  # whatever a strange node does
            what = f"{node.op_type} (node {node.name!r})"
            raise BackboneError(f"{what} of {self._network.path} could not be computed: {error}.") from error

    def _scale(self, node: onnx.NodeProto, tensors: Tensors) -> npt.NDArray[Any]:
        """What quantisation does to numbers, without its rounding; the reference evaluator has it for few opsets."""
        values, scale = (tensors[name] for name in node.input[:2])
        zero_point = tensors[node.input[2]] if len(node.input) > 2 and node.input[2] else np.uint8(0)
        if node.op_type == "QuantizeLinear" and np.any(zero_point == np.iinfo(zero_point.dtype).min):
            raise _refuse(self._network, "rounding that replaces a Relu")  # nothing below zero is left
        numbers = {entry.name: entry.i for entry in node.attribute}
        if numbers.get("block_size"):
            raise _refuse(self._network, f"{node.op_type} in blocks")
        if scale.ndim:
            sizes = [1] * values.ndim
            sizes[numbers.get("axis", 1) if scale.size > 1 else 0] = scale.size
            scale, zero_point = scale.reshape(sizes), zero_point.reshape(sizes if zero_point.ndim else ())
        shift = zero_point.astype(np.float64)
        quantized: npt.NDArray[Any] = values / scale + shift
        return quantized if node.op_type == "QuantizeLinear" else (values - shift) * scale

    def _compute(self, node: onnx.NodeProto, tensors: Tensors) -> Tensors:
        import onnx
        from onnx.reference import ReferenceEvaluator

        make, opsets = onnx.helper.make_empty_tensor_value_info, self._network.model.opset_import
        feeds = {name: tensors[name] for name in node.input if name}
        outputs = [name for name in node.output if name]
        graph = onnx.helper.make_graph([node], "node", [make(name) for name in feeds], [make(name) for name in outputs])
        results = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets)).run(None, feeds)
        return {name: _widen(np.asarray(result)) for name, result in zip(outputs, results, strict=True)}


def _spread(vectors: Array, shape: Sequence[int]) -> Array:
    """Vectors as values of this shape; where they are channels, each is the same on all pixels."""
    if math.prod(shape) == vectors.shape[1]:
        return vectors.reshape(len(vectors), *shape)
    maps = vectors[:, :, None, None] if shape[0] == vectors.shape[1] else vectors[:, None, None, :]
    return np.broadcast_to(maps, (len(vectors), *shape))


def _widen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Floats in double precision."""
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float64) if is_float else array


def _casts_to_float(node: onnx.NodeProto) -> bool:
    import onnx

    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
    return any(entry.name == "to" and entry.i in kinds for entry in node.attribute)


# Classes


def name_classes(network: Network, labels: Iterable[Any] | None, n_classes: int) -> list[Any]:
    """The given labels, those that the file or a config.json beside it states, or 0, 1, 2, …

    Raises
    ------
    ValueError
        If `labels` are not `n_classes` different ones.
    """
    if labels is None:
        stated = _read_classes(network)
        return stated if len(stated) == len(set(stated)) == n_classes else list(range(n_classes))
    must = f"labels must be {n_classes} different class labels, one for each output of {network.path}."
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise ValueError(f"{must} Got {labels!r} instead.")
    given = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    if len(given) != n_classes:
        raise ValueError(f"{must} Got {len(given)} instead.")
    label, count = Counter(given).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{must} Got {label!r} {count} times instead.")
    return given


def _read_classes(network: Network) -> list[str]:
    """The names that the file's metadata state, or the `id2label` of transformers' config.json; or none."""
    metadata = {entry.key: entry.value for entry in network.model.metadata_props}
    folder = network.path.parent
    configs = [place / "config.json" for place in (folder, folder.parent) if place == folder or folder.name == "onnx"]
    try:
        if CLASSES_KEY in metadata:
            return [str(name) for name in json.loads(metadata[CLASSES_KEY])]
        config: dict[str, Any] = next((json.loads(file.read_text("utf-8")) for file in configs if file.is_file()), {})
        names = config.get("id2label") or {}
        return [str(names[str(number)]) for number in range(len(names))]
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise BackboneError(
            f"The classes that {network.path} states cannot be read: {error!r}; pass labels=."
        ) from error

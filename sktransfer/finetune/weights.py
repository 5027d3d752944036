"""The weights of an ONNX graph: which there are, which can be trained, and how new values are written into the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer.exceptions import BackboneError
from sktransfer.network import Network

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]

# Where operators have weights, and what these are. Those of Add and Mul are weights if they hold several values.
_SLOTS: dict[str, dict[int, str]] = {
    "Conv": {1: "kernel", 2: "bias"},
    "Gemm": {0: "kernel", 1: "kernel", 2: "bias"},
    "MatMul": {0: "kernel", 1: "kernel"},
    "BatchNormalization": {1: "scale", 2: "bias"},
    "InstanceNormalization": {1: "scale", 2: "bias"},
    "LayerNormalization": {1: "scale", 2: "bias"},
    "PRelu": {1: "slope"},
    "Add": {0: "bias", 1: "bias"},
    "Mul": {0: "scale", 1: "scale"},
}
_STATISTICS = {3: "mean", 4: "variance"}  # of BatchNormalization
_PASSED = frozenset({"Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})


@dataclass(frozen=True)
class Role:
    """What a stored tensor is for: "kernel", "bias", "scale", "slope", "mean" or "variance" of which tensor."""

    kind: str
    used_as: str  # what the operator gets: the tensor itself, or what casts and reshapes make of it
    axis: int  # of what the operator gets, along which a kernel's sums do not run: that of its outputs


def read_constants(
    network: Network, nodes: Sequence[onnx.NodeProto], more: Sequence[onnx.TensorProto]
) -> dict[str, Array]:
    """Initializers and Constant nodes that `nodes` use, by the name of the tensor."""
    import onnx

    used = {name for node in nodes for name in node.input if name}
    sparse = {tensor.values.name for tensor in network.model.graph.sparse_initializer}
    if used & sparse:
        raise BackboneError(f"The sparse weights of {network.path} cannot be trained: {min(used & sparse)!r}.")
    stored = [*network.model.graph.initializer, *more]
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in stored if tensor.name in used}
    constants = (node for node in network.model.graph.node if node.op_type == "Constant")
    return found | {node.output[0]: _read_node(node) for node in constants if node.output[0] in used}


def _read_node(node: onnx.NodeProto) -> Array:
    import onnx

    entry = node.attribute[0]
    value = onnx.helper.get_attribute_value(entry)
    if entry.name == "value":
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value, dtype=np.float32 if entry.name.startswith("value_float") else np.int64)


def find_roles(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array], frozen: Iterable[str]
) -> dict[str, Role]:
    """The stored tensors that are weights of `nodes` and of none of the `frozen` tensors' own."""
    makers = {name: node for node in nodes for name in node.output}
    roles: dict[str, Role] = {}
    for node in nodes:
        slots = _SLOTS.get(node.op_type, {}) | (_STATISTICS if node.op_type == "BatchNormalization" else {})
        for position, kind in slots.items():
            name = node.input[position] if position < len(node.input) else ""
            stored = _find_stored(name, makers, constants)
            if stored is None or constants[stored].dtype.kind != "f":
                continue
            if node.op_type in ("Add", "Mul") and constants[stored].size == 1:
                continue
            roles.setdefault(stored, Role(kind, name, _find_output_axis(node, position)))
    kept = set(frozen)
    return {name: role for name, role in roles.items() if name not in kept}


def _find_stored(name: str, makers: Mapping[str, onnx.NodeProto], constants: Mapping[str, Array]) -> str | None:
    """Walk back over casts and reshapes to what is stored; None where pixels come in."""
    while name not in constants:
        node = makers.get(name)
        if node is None or node.op_type not in _PASSED:
            return None
        name = node.input[0]
    return name


def _find_output_axis(node: onnx.NodeProto, position: int) -> int:
    if node.op_type == "Gemm":
        return int(any(entry.name == "transB" and entry.i for entry in node.attribute)) ^ 1 if position == 1 else 0
    return -1 if node.op_type == "MatMul" and position == 1 else -2 if node.op_type == "MatMul" else 0


def draw_fresh(role: Role, shape: Sequence[int], used_shape: Sequence[int], rng: np.random.Generator) -> Array:
    """First values of a weight that is learnt anew: kernels as in He et al. 2015, arXiv:1502.01852, equation 10."""
    if role.kind == "kernel":
        fan_in = np.prod(used_shape) / used_shape[role.axis]
        return np.asarray(rng.standard_normal(shape) * np.sqrt(2 / fan_in), dtype=np.float32)
    value = {"bias": 0.0, "mean": 0.0, "slope": 0.25}.get(role.kind, 1.0)
    return np.full(shape, value, dtype=np.float32)


def replace_weights(model: onnx.ModelProto, weights: Mapping[str, Array]) -> None:
    """Write new values into initializers and Constant nodes, each in the type that it has there."""
    import onnx

    stored = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] in weights:
            entry = node.attribute[0]
            if entry.name == "value":
                stored.append((node.output[0], entry.t))
            elif entry.name == "value_floats":
                entry.floats[:] = weights[node.output[0]].ravel().tolist()
    for name, tensor in stored:
        if name in weights:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            own_name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(round_to(weights[name], dtype), own_name))


def round_to(values: Array, dtype: np.dtype[Any]) -> Array:
    """`values` in the type in which the file has them, the largest finite numbers instead of infinite ones."""
    limit = np.finfo(dtype).max if dtype.kind == "f" else np.inf
    return np.clip(values, -limit, limit).astype(dtype)

"""Shapes of all tensors of a graph, for one size of batch, from the graph alone: nothing is run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer.safety import copy_node

if TYPE_CHECKING:
    import onnx

Shape = tuple[int | None, ...]

SMALL = 4096  # elements; larger constants cannot be shapes and are left out
_ROUNDS = 12  # of inference and folding; each resolves at least one Shape that the one before could not

# What decides over shapes inside a graph, and can be computed here: Shape of a tensor, and arithmetic on it.
_FOLDED = frozenset({
    "Add", "And", "Cast", "Ceil", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Floor",
    "Gather", "Greater", "Identity", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range", "ReduceProd",
    "Reshape", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
# onnxruntime's own operators (ContribOperators.md): the standard operator of the same shape, and which inputs it gets.
_EQUIVALENTS = {
    "FusedConv": ("Conv", (0, 1, 2)),
    "FusedGemm": ("Gemm", (0, 1, 2)),
    "FusedMatMul": ("MatMul", (0, 1)),
    "Gelu": ("Identity", (0,)),
    "FastGelu": ("Identity", (0,)),
    "BiasGelu": ("Identity", (0,)),
    "QuickGelu": ("Identity", (0,)),
    "SkipLayerNormalization": ("Identity", (0,)),
    "QGemm": ("Gemm", (0, 3)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearConcat": ("Concat", (2, 5, 8, 11, 14, 17, 20, 23)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearLeakyRelu": ("Identity", (0,)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearReduceMean": ("ReduceMean", (0,)),
    "QLinearSigmoid": ("Identity", (0,)),
    "QLinearSoftmax": ("Identity", (0,)),
    "QuantizeLinear": ("QuantizeLinear", (0, 1, 2)),
    "DequantizeLinear": ("DequantizeLinear", (0, 1, 2)),
}
_NOT_STANDARD = frozenset({"activation", "activation_params", "channels_last", "opset"})  # attributes of the above


def dimensions(value: onnx.ValueInfoProto) -> Shape:
    """The shape that a declaration states, None where it is dynamic."""
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)


def infer_values(
    model: onnx.ModelProto,
    image: onnx.ValueInfoProto,
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto] = (),
) -> dict[str, onnx.ValueInfoProto]:
    """Types and shapes of the tensors that `nodes` compute from `image`, `constants` and the weights of `model`.

    Shapes that the graph computes itself (TorchScript's Shape → Gather → Concat → Reshape) are computed here as well.

    Raises
    ------
    onnx.shape_inference.InferenceError
        If the shapes do not fit together.
    """
    import onnx

    light = _strip_weights(model, image, nodes)
    light.graph.initializer.extend(constants)
    values: dict[str, onnx.ValueInfoProto] = {}
    for _ in range(_ROUNDS):
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
        values = {value.name: value for value in (*inferred.input, *inferred.value_info)}
        if all(_is_known(values.get(name)) for node in light.graph.node for name in node.output if name):
            break
        if not _fold_constants(light, values):
            break
    for tensor in light.graph.initializer:  # folded ones are no outputs of nodes any more
        if tensor.name not in values:
            values[tensor.name] = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
    return values


def _is_known(value: onnx.ValueInfoProto | None) -> bool:
    return value is not None and value.type.tensor_type.HasField("shape") and None not in dimensions(value)


def _strip_weights(
    model: onnx.ModelProto, image: onnx.ValueInfoProto, nodes: Sequence[onnx.NodeProto]
) -> onnx.ModelProto:
    """A copy without the large weights, whose types and shapes alone matter."""
    import onnx

    light = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    light.opset_import.extend(model.opset_import)
    light.graph.name = "light"
    light.graph.node.extend(_standardise(node) for node in nodes)
    light.graph.input.add().CopyFrom(image)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SMALL and not tensor.external_data:
            light.graph.initializer.add().CopyFrom(tensor)
        else:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            light.graph.input.append(info)
    return light


def _standardise(node: onnx.NodeProto) -> onnx.NodeProto:
    if node.domain != "com.microsoft" or node.op_type not in _EQUIVALENTS:
        return node
    op_type, positions = _EQUIVALENTS[node.op_type]
    standard = copy_node(node)
    standard.domain, standard.op_type = "", op_type
    del standard.input[:], standard.attribute[:], standard.output[1:]
    standard.input.extend(node.input[i] for i in positions if i < len(node.input) and node.input[i])
    standard.attribute.extend(entry for entry in node.attribute if entry.name not in _NOT_STANDARD)
    return standard


def _fold_constants(light: onnx.ModelProto, values: dict[str, onnx.ValueInfoProto]) -> bool:
    """Replace the nodes that compute shapes by what they yield; whether there were any."""
    import onnx

    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in light.graph.initializer}
    kept, new = list[onnx.NodeProto](), dict[str, np.ndarray[Any, Any]]()
    for node in light.graph.node:
        results = _evaluate(node, known, values, light.opset_import)
        if results is None:
            kept.append(copy_node(node))
        else:
            known.update(results)
            new.update(results)
    if new:
        del light.graph.node[:]
        light.graph.node.extend(kept)
        light.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in new.items())
    return bool(new)


def _evaluate(
    node: onnx.NodeProto,
    known: dict[str, np.ndarray[Any, Any]],
    values: dict[str, onnx.ValueInfoProto],
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> dict[str, np.ndarray[Any, Any]] | None:
    """The small constant outputs of a node, or None where they depend on the image."""
    if node.op_type == "Shape" and node.domain == "" and _is_known(values.get(node.input[0])):
        bounds = {entry.name: entry.i for entry in node.attribute}
        sizes = dimensions(values[node.input[0]])[bounds.get("start", 0) : bounds.get("end")]
        return {node.output[0]: np.array(sizes, dtype=np.int64)}
    if node.op_type not in _FOLDED or node.domain or any(name and name not in known for name in node.input):
        return None
    inputs = [known[name] for name in node.input if name]
    if not _is_small(node, inputs):
        return None
    return _run_node(node, {name: known[name] for name in node.input if name}, opsets)


def _is_small(node: onnx.NodeProto, inputs: list[np.ndarray[Any, Any]]) -> bool:
    if node.op_type == "ConstantOfShape":
        return bool(0 <= math.prod(inputs[0].tolist()) <= SMALL)
    if node.op_type == "Expand":
        return bool(0 <= math.prod(inputs[1].tolist()) * inputs[0].size <= SMALL)
    if node.op_type == "Range":
        start, limit, delta = (value.item() for value in inputs)
        return bool(delta) and (limit - start) / delta <= SMALL
    if node.op_type == "Constant":
        return all(math.prod(entry.t.dims) <= SMALL for entry in node.attribute)
    return sum(array.size for array in inputs) <= SMALL


def _run_node(
    node: onnx.NodeProto, feeds: dict[str, np.ndarray[Any, Any]], opsets: Sequence[onnx.OperatorSetIdProto]
) -> dict[str, np.ndarray[Any, Any]] | None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    make = onnx.helper.make_empty_tensor_value_info
    graph = onnx.helper.make_graph([node], "node", [make(name) for name in feeds], [make(n) for n in node.output if n])
    try:
        results = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets)).run(None, feeds)
    except Exception:  # whatever a strange node does: its shape stays unknown
        return None
    named = zip((name for name in node.output if name), results, strict=True)
    return {name: np.asarray(result) for name, result in named}

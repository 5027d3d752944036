"""ONNX surgery: from a backbone to one graph, uint8 NHWC pixels in, float32 (n, d) embedding out.

The embedding graph is  pixels → layout, channel order, scale, mean, std → backbone up to `layer` → pooling.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer.cache import NO_CACHE, EmbeddingCache
from sktransfer.network import Network, load_model, node_inputs
from sktransfer.preprocessing import Preprocessing

if TYPE_CHECKING:
    import onnx

GRAPH_VERSION = 1  # raise it when the surgery changes what is computed: every embedding gets a new key
PLAN_VERSION = 1  # raise it when another layer or size is found: plans are made again, embeddings stay
INPUT_NAME = "sktransfer_pixels"
OUTPUT_NAME = "sktransfer_embedding"
POOLINGS = ("avg", "max", "gem", "flatten")

Step = tuple[str, list[str], dict[str, Any]]  # operator, inputs beside the tensor itself, attributes


@dataclass(frozen=True)
class EmbeddingGraph:
    """What one embedding is computed with: small, hashable, without the weights.

    Attributes
    ----------
    path : Path
        File of the backbone.
    layer : str
        Tensor at which the backbone is cut.
    pooling : str or None
        What is done to that tensor: "avg", "max", "gem", "flatten", or None where it is a vector already.
    n_features : int
        Length of the embedding.
    frozen_batch : bool
        Whether the graph takes one image a run only.
    digest : str
        SHA-256 of everything the embedding depends on.
    """

    path: Path
    preprocessing: Preprocessing
    layer: str
    pooling: str | None
    precision: str
    n_features: int
    frozen_batch: bool
    digest: str

    def build_model(self) -> onnx.ModelProto:
        """The ONNX model, weights included."""
        return build_embedding_model(Network(load_model(self.path), self.path, self.preprocessing), self)


def plan_graph(
    path: Path,
    backbone_digest: str,
    preprocessing: Preprocessing,
    layer: str | None = None,
    pooling: str | None = None,
    precision: str = "float32",
    cache: EmbeddingCache = NO_CACHE,
) -> EmbeddingGraph:
    """Decide where the backbone at `path` is cut and pooled, from its graph alone; nothing is run.

    The decision is remembered in `cache`, and the file is not read for one that is known.

    Raises
    ------
    BackboneError
        If the file is not an ONNX image network, or `layer` or `pooling` do not fit it.
    """

    def decide() -> dict[str, Any]:
        network = Network(load_model(path), path, preprocessing)
        tensor, own_pooling = network.resolve_layer(layer)
        if pooling is not None:
            tensor, own_pooling = network.find_last_map(tensor), pooling
        arithmetic = f"{preprocessing.arithmetic}{network.layout}"
        identity = json.dumps([GRAPH_VERSION, backbone_digest, tensor, own_pooling, arithmetic, precision])
        return {
            "layer": tensor,
            "pooling": own_pooling,
            "n_features": network.count_features(tensor, own_pooling),
            "frozen_batch": network.is_batch_frozen(tensor),
            "digest": hashlib.sha256(identity.encode()).hexdigest(),
        }

    question = [PLAN_VERSION, GRAPH_VERSION, backbone_digest, preprocessing, layer, pooling, precision]
    plan = cache.recall("graph", question, decide)
    return EmbeddingGraph(path=path, preprocessing=preprocessing, precision=precision, **plan)


def build_embedding_model(network: Network, graph: EmbeddingGraph) -> onnx.ModelProto:
    """The ONNX model of `graph`: see the module's first lines."""
    import onnx

    elem_type = network.values[graph.layer].type.tensor_type.elem_type
    model = _cut(network, graph.layer, elem_type, graph.frozen_batch)
    if graph.precision == "float16":
        model = _convert_to_float16(model)
    before, before_weights = _arithmetic_steps(network)
    after, after_weights = _pooling_steps(graph.pooling, elem_type, network.opset)
    nodes = [
        *_make_chain(before, INPUT_NAME, network.image_input.name, "sktransfer_prefix"),
        *model.graph.node,
        *_make_chain(after, graph.layer, OUTPUT_NAME, "sktransfer_suffix"),
    ]
    batch, info = 1 if graph.frozen_batch else "n", onnx.helper.make_tensor_value_info
    height, width = network.preprocessing.crop
    embedding_graph = onnx.helper.make_graph(
        nodes,
        "embedding",
        [info(INPUT_NAME, onnx.TensorProto.UINT8, [batch, height, width, 3])],
        [info(OUTPUT_NAME, onnx.TensorProto.FLOAT, ["n", graph.n_features])],
        [*model.graph.initializer, *before_weights, *after_weights],
        sparse_initializer=model.graph.sparse_initializer,
    )
    model.graph.CopyFrom(embedding_graph)
    return model


def _cut(network: Network, tensor: str, elem_type: int, frozen_batch: bool) -> onnx.ModelProto:
    """The backbone from its own input to `tensor`, without what comes behind."""
    import onnx

    source, nodes = network.model.graph, network.ancestors(tensor)
    used = {name for node in nodes for name in node_inputs(node)} | {tensor}
    graph = onnx.helper.make_graph(
        nodes,
        "backbone",
        [network.make_input_info(1 if frozen_batch else "n")],
        [onnx.helper.make_tensor_value_info(tensor, elem_type, None)],
        [weight for weight in source.initializer if weight.name in used],
        sparse_initializer=source.sparse_initializer,
    )
    return onnx.helper.make_model(
        graph,
        opset_imports=network.model.opset_import,
        ir_version=max(network.model.ir_version, 4),  # 4: initializers need not be inputs
        functions=network.model.functions,
    )


def _arithmetic_steps(network: Network) -> tuple[list[Step], list[onnx.TensorProto]]:
    """Layout, channel order, scale, mean and std, and the type that the backbone takes."""
    import onnx

    p, steps, weights = network.preprocessing, list[Step](), list[onnx.TensorProto]()
    nchw = network.layout == "NCHW"
    if nchw:
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    if p.channel_order == "BGR":
        weights.append(onnx.numpy_helper.from_array(np.array([2, 1, 0]), "sktransfer_reversed"))
        steps.append(("Gather", ["sktransfer_reversed"], {"axis": 1 if nchw else 3}))
    steps.append(("Cast", [], {"to": onnx.TensorProto.FLOAT}))
    factor, offset = p.scale / np.array(p.std), -np.array(p.mean) / np.array(p.std)
    for op_type, values, neutral in (("Mul", factor, 1.0), ("Add", offset, 0.0)):
        if (values != neutral).any():
            name = f"sktransfer_{op_type.lower()}_operand"
            array = values.astype(np.float32).reshape((1, 3, 1, 1) if nchw else (1, 1, 1, 3))
            weights.append(onnx.numpy_helper.from_array(array, name))
            steps.append((op_type, [name], {}))
    elem_type = network.image_input.type.tensor_type.elem_type
    if elem_type != onnx.TensorProto.FLOAT:
        steps.append(("Cast", [], {"to": elem_type}))
    return steps, weights


def _pooling_steps(pooling: str | None, elem_type: int, opset: int) -> tuple[list[Step], list[onnx.TensorProto]]:
    """Float32, pooling and (n, d)."""
    import onnx

    steps, weights = list[Step](), list[onnx.TensorProto]()
    if elem_type != onnx.TensorProto.FLOAT:
        steps.append(("Cast", [], {"to": onnx.TensorProto.FLOAT}))
    if pooling == "gem":  # Radenović et al. 2018, arXiv:1711.02512, equation 3, with p = 3
        for name, value in (("floor", 1e-6), ("power", 3.0), ("root", 1 / 3)):
            array = np.array(value, dtype=np.float32)
            weights.append(onnx.numpy_helper.from_array(array, f"sktransfer_gem_{name}"))
        steps.append(("Clip", [], {"min": 1e-6}) if opset < 11 else ("Clip", ["sktransfer_gem_floor"], {}))
        steps.append(("Pow", ["sktransfer_gem_power"], {}))
        steps.append(("GlobalAveragePool", [], {}))
        steps.append(("Pow", ["sktransfer_gem_root"], {}))
    elif pooling in ("avg", "max"):
        steps.append(("GlobalAveragePool" if pooling == "avg" else "GlobalMaxPool", [], {}))
    steps.append(("Identity", [], {}) if pooling is None else ("Flatten", [], {"axis": 1}))
    return steps, weights


def _make_chain(steps: list[Step], source: str, target: str, name: str) -> list[onnx.NodeProto]:
    """Nodes that lead from the tensor `source` through `steps` to the tensor `target`."""
    import onnx

    tensors = [source, *(f"{name}{index}_out" for index in range(len(steps) - 1)), target]
    return [
        onnx.helper.make_node(op_type, [tensors[i], *operands], [tensors[i + 1]], name=f"{name}{i}", **attributes)
        for i, (op_type, operands, attributes) in enumerate(steps)
    ]


def _convert_to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network computing in float16, float32 at both ends."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted = OnnxModel(convert_float_to_float16(model, keep_io_types=True))
    converted.topological_sort()
    result: onnx.ModelProto = converted.model
    return result

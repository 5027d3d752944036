"""ONNX surgery: from a backbone to one graph, uint8 NHWC pixels in, float32 (n, d) embedding out.

The embedding graph is  pixels → layout, channel order, scale, mean, std → backbone up to `layer` → pooling.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer.cache import NO_CACHE, EmbeddingCache
from sktransfer.layers import Cut, resolve_layer
from sktransfer.network import Network, load_model
from sktransfer.preprocessing import Preprocessing
from sktransfer.safety import node_inputs

if TYPE_CHECKING:
    import onnx

GRAPH_VERSION = 1  # raise it when the surgery changes what is computed: every embedding gets a new key
PLAN_VERSION = 3  # raise it when another layer or size is found: plans are made again, embeddings stay
INPUT_NAME = "sktransfer_pixels"
OUTPUT_NAME = "sktransfer_embedding"

_CHANNELS_FIRST = {"nhwc": [0, 3, 1, 2], "tokens": [0, 2, 1]}

Layer = str | Sequence[str] | None
Step = tuple[str, list[str], dict[str, Any]]  # operator, inputs beside the tensor itself, attributes


@dataclass(frozen=True)
class EmbeddingGraph:
    """What one embedding is computed with: small, hashable, without the weights.

    Attributes
    ----------
    path : Path
        File of the backbone.
    cuts : tuple of Cut
        Where the backbone is cut, and how what is found there becomes a vector; several are concatenated.
    batching : {"dynamic", "thawed", "frozen"}
        How the graph takes a batch; see `Network.find_batching`.
    digest : str
        SHA-256 of everything the embedding depends on.
    """

    path: Path
    preprocessing: Preprocessing
    cuts: tuple[Cut, ...]
    precision: str
    batching: str
    digest: str

    @property
    def layer(self) -> str:
        """The tensors at which the backbone is cut."""
        return " + ".join(cut.tensor for cut in self.cuts)

    @property
    def n_features(self) -> int:
        """Length of the embedding."""
        return sum(cut.n_features for cut in self.cuts)

    @property
    def frozen_batch(self) -> bool:
        """Whether the graph takes one image a run only."""
        return self.batching == "frozen"

    def build_model(self) -> onnx.ModelProto:
        """The ONNX model, weights included."""
        return build_embedding_model(Network(load_model(self.path), self.path, self.preprocessing), self)


def plan_graph(
    path: Path,
    backbone_digest: str,
    preprocessing: Preprocessing,
    layer: Layer = None,
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
    layers = [layer] if layer is None or isinstance(layer, str) else list(layer)

    def decide() -> dict[str, Any]:
        network = Network(load_model(path, weights=False), path, preprocessing)
        cuts = [resolve_layer(network, name, pooling) for name in layers]
        arithmetic = f"{preprocessing.arithmetic}{network.layout}"
        places = [_identify(cut) for cut in cuts]
        places = places[0] if len(places) == 1 else places
        identity = json.dumps([GRAPH_VERSION, backbone_digest, *places, arithmetic, precision])
        return {
            "cuts": [asdict(cut) for cut in cuts],
            "batching": network.find_batching([cut.tensor for cut in cuts]),
            "digest": hashlib.sha256(identity.encode()).hexdigest(),
        }

    question = [PLAN_VERSION, GRAPH_VERSION, backbone_digest, preprocessing, layer, pooling, precision]
    plan = cache.recall("graph", question, decide)
    cuts = tuple(Cut(**cut) for cut in plan["cuts"])
    return EmbeddingGraph(path, preprocessing, cuts, precision, plan["batching"], plan["digest"])


def _identify(cut: Cut) -> list[Any]:
    """What the digest covers of a cut."""
    plain = cut.kind in ("vector", "map") and not cut.dequantized
    return [cut.tensor, cut.pooling, *([] if plain else [cut.kind, cut.n_prefix, cut.dequantized])]


def build_embedding_model(network: Network, graph: EmbeddingGraph) -> onnx.ModelProto:
    """The ONNX model of `graph`: see the module's first lines."""
    import onnx

    model = _cut(network, graph)
    if graph.precision == "float16":
        model = _convert_to_float16(model)
    before, weights = _arithmetic_steps(network)
    nodes = [*_make_chain(before, INPUT_NAME, network.image_input.name, "sktransfer_prefix"), *model.graph.node]
    vectors = [f"sktransfer_vector{index}" for index in range(len(graph.cuts))]
    for vector, cut in zip(vectors, graph.cuts, strict=True):
        after, more = _pooling_steps(cut, network, vector)
        weights += more
        nodes += _make_chain(after, cut.tensor, vector, f"{vector}_suffix")
    if len(vectors) == 1:
        nodes[-1].output[0] = OUTPUT_NAME
    else:
        nodes.append(onnx.helper.make_node("Concat", vectors, [OUTPUT_NAME], name="sktransfer_concat", axis=1))
    batch, info = 1 if graph.frozen_batch else "n", onnx.helper.make_tensor_value_info
    height, width = network.preprocessing.crop
    embedding_graph = onnx.helper.make_graph(
        nodes,
        "embedding",
        [info(INPUT_NAME, onnx.TensorProto.UINT8, [batch, height, width, 3])],
        [info(OUTPUT_NAME, onnx.TensorProto.FLOAT, ["n", graph.n_features])],
        [*model.graph.initializer, *weights],
        sparse_initializer=model.graph.sparse_initializer,
    )
    model.graph.CopyFrom(embedding_graph)
    return model


def _cut(network: Network, graph: EmbeddingGraph) -> onnx.ModelProto:
    """The backbone from its own input to the tensors of the cuts, without what comes behind."""
    import onnx

    source = network.model.graph
    tensors = [cut.tensor for cut in graph.cuts]
    ends = {*tensors, *(name for cut in graph.cuts for name in cut.dequantized or () if name)}
    nodes, shapes = network.ancestors(ends), list[onnx.TensorProto]()
    if graph.batching == "thawed":
        nodes, shapes = network.thaw(nodes)
    used = {name for node in nodes for name in node_inputs(node)} | ends
    cut_graph = onnx.helper.make_graph(
        nodes,
        "backbone",
        [network.make_input_info(1 if graph.frozen_batch else "n")],
        [onnx.helper.make_tensor_value_info(name, network.elem_type(name), None) for name in dict.fromkeys(tensors)],
        [*(weight for weight in source.initializer if weight.name in used), *shapes],
        sparse_initializer=source.sparse_initializer,
    )
    return onnx.helper.make_model(
        cut_graph,
        opset_imports=network.model.opset_import,
        ir_version=max(network.model.ir_version, 4),  # 4: initializers need not be inputs
    )


def _arithmetic_steps(network: Network) -> tuple[list[Step], list[onnx.TensorProto]]:
    """Layout, channel order, scale, mean and std, and the type that the backbone takes."""
    import onnx

    p, steps, weights = network.preprocessing, list[Step](), list[onnx.TensorProto]()
    nchw = network.layout == "NCHW"
    # onnxruntime computes quantised networks channels last and carries the transposition back to the pixels, where
    # operands of three values are repeated three by three, slowly. Operands as long as a line are not.
    transpose_first = nchw and not network.is_quantized
    channel_axis = 1 if transpose_first else 3
    transpose: Step = ("Transpose", [], {"perm": [0, 3, 1, 2]})
    steps += [transpose] if transpose_first else []
    if p.channel_order == "BGR":
        weights.append(onnx.numpy_helper.from_array(np.array([2, 1, 0]), "sktransfer_reversed"))
        steps.append(("Gather", ["sktransfer_reversed"], {"axis": channel_axis}))
    steps.append(("Cast", [], {"to": onnx.TensorProto.FLOAT}))
    factor, offset = p.scale / np.array(p.std), -np.array(p.mean) / np.array(p.std)
    for op_type, values, neutral in (("Mul", factor, 1.0), ("Add", offset, 0.0)):
        if (values != neutral).any():
            name = f"sktransfer_{op_type.lower()}_operand"
            array = values.astype(np.float32).reshape((1, 3, 1, 1) if transpose_first else (1, 1, 1, 3))
            if nchw and not transpose_first:
                array = np.tile(array, (1, 1, p.crop[1], 1))
            weights.append(onnx.numpy_helper.from_array(array, name))
            steps.append((op_type, [name], {}))
    steps += [transpose] if nchw and not transpose_first else []
    elem_type = network.image_input.type.tensor_type.elem_type
    if elem_type != onnx.TensorProto.FLOAT:
        steps.append(("Cast", [], {"to": elem_type}))
    return steps, weights


def _pooling_steps(cut: Cut, network: Network, prefix: str) -> tuple[list[Step], list[onnx.TensorProto]]:
    """Float32, channels first, pooling and (n, d)."""
    import onnx

    steps, weights = list[Step](), list[onnx.TensorProto]()

    def constant(name: str, values: Any) -> str:
        weights.append(onnx.numpy_helper.from_array(np.asarray(values), f"{prefix}_{name}"))
        return f"{prefix}_{name}"

    if cut.dequantized:
        steps.append(("DequantizeLinear", [name for name in cut.dequantized if name], {}))
    elif network.elem_type(cut.tensor) != onnx.TensorProto.FLOAT:
        steps.append(("Cast", [], {"to": onnx.TensorProto.FLOAT}))
    if cut.pooling == "cls":
        steps.append(("Gather", [constant("first", 0)], {"axis": 1}))
    elif cut.pooling in ("avg", "max", "gem"):
        if cut.n_prefix:
            patches = np.arange(cut.n_prefix, network.shape(cut.tensor)[1] or 0)
            steps.append(("Gather", [constant("patches", patches)], {"axis": 1}))
        if cut.kind in _CHANNELS_FIRST:
            steps.append(("Transpose", [], {"perm": _CHANNELS_FIRST[cut.kind]}))
        steps += _pool(cut.pooling, network.opset, constant)
    vector = cut.kind == "vector" or cut.pooling == "cls"
    steps.append(("Identity", [], {}) if vector else ("Flatten", [], {"axis": 1}))
    return steps, weights


def _pool(pooling: str, opset: int, constant: Callable[[str, Any], str]) -> list[Step]:
    if pooling != "gem":
        return [("GlobalAveragePool" if pooling == "avg" else "GlobalMaxPool", [], {})]
    floor: Step = ("Clip", [], {"min": 1e-6}) if opset < 11 else ("Clip", [constant("floor", np.float32(1e-6))], {})
    power, root = constant("power", np.float32(3)), constant("root", np.float32(1 / 3))
    # Radenović et al. 2018, arXiv:1711.02512, equation 3, with p = 3
    return [floor, ("Pow", [power], {}), ("GlobalAveragePool", [], {}), ("Pow", [root], {})]


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

"""ONNX surgery: from a backbone to one graph, uint8 NHWC pixels in, float32 (n, d) embedding out.

The embedding graph is  pixels → layout, channel order, scale, mean, std → backbone up to `layer` → pooling.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer.exceptions import BackboneError
from sktransfer.preprocessing import Preprocessing

if TYPE_CHECKING:
    import onnx

GRAPH_VERSION = 1  # raise it when the surgery changes what is computed: every embedding gets a new key
INPUT_NAME = "sktransfer_pixels"
OUTPUT_NAME = "sktransfer_embedding"
POOLINGS = ("avg", "max", "gem", "flatten")
MIN_OPSET = 7  # numpy-style broadcasting, which the arithmetic needs

Shape = tuple[int | None, ...]

_TRANSPARENT = frozenset({"Dropout", "Identity", "Cast"})
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze"})
_GLOBAL_POOLS = {"GlobalAveragePool": "avg", "GlobalMaxPool": "max", "AveragePool": "avg", "ReduceMean": "avg"}
_FEATURE_WORDS = ("feature", "embed", "pooler_output", "representation")
_LOGIT_WORDS = ("logit", "prob", "softmax", "class", "score", "pred")
_IMAGENET_CLASSES = (1000, 1001)
_SMALL = 4096  # elements; larger constants cannot be shapes and are left out of shape inference


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
        network = Network(load_model(self.path), self.path, self.preprocessing)
        return network.build_embedding_model(self.layer, self.pooling, self.precision, self.frozen_batch)


@functools.lru_cache(maxsize=256)
def plan_graph(
    path: Path,
    backbone_digest: str,
    preprocessing: Preprocessing,
    layer: str | None = None,
    pooling: str | None = None,
    precision: str = "float32",
) -> EmbeddingGraph:
    """Decide where the backbone at `path` is cut and pooled, from its graph alone; nothing is run.

    Raises
    ------
    BackboneError
        If the file is not an ONNX image network, or `layer` or `pooling` do not fit it.
    """
    network = Network(load_model(path), path, preprocessing)
    tensor, own_pooling = network.resolve_layer(layer)
    if pooling is not None:
        tensor, own_pooling = network.find_last_map(tensor), pooling
    arithmetic = f"{preprocessing.arithmetic}{network.layout}"
    identity = json.dumps([GRAPH_VERSION, backbone_digest, tensor, own_pooling, arithmetic, precision])
    return EmbeddingGraph(
        path=path,
        preprocessing=preprocessing,
        layer=tensor,
        pooling=own_pooling,
        precision=precision,
        n_features=network.count_features(tensor, own_pooling),
        frozen_batch=network.is_batch_frozen(tensor),
        digest=hashlib.sha256(identity.encode()).hexdigest(),
    )


def load_model(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Parse an ONNX file; external data are read too unless `weights` is false."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=weights)
    except DecodeError as error:
        raise BackboneError(f"{path} is not an ONNX file: {error}.") from error
    except (OSError, onnx.checker.ValidationError) as error:
        raise BackboneError(f"{path} could not be read: {error}") from error
    if not model.graph.node or not model.opset_import:
        raise BackboneError(f"{path} is not an ONNX file: it holds no graph.")
    return model


def read_input_size(path: Path) -> tuple[int, int]:
    """Height and width that the graph itself states for its image input.

    Raises
    ------
    BackboneError
        If they are dynamic.
    """
    graph = load_model(path, weights=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    shape: Shape = next((_dimensions(value) for value in graph.input if value.name not in weights), ())
    height, width = (shape[1:3] if shape[3:] == (3,) else shape[2:]) if len(shape) == 4 else (None, None)
    if height is None or width is None:
        raise BackboneError(f"{path} does not state the size of its images; pass Preprocessing(crop=...) instead.")
    return height, width


@dataclass
class Network:
    """A parsed backbone and what can be read from its graph."""

    model: onnx.ModelProto
    path: Path
    preprocessing: Preprocessing
    image_input: onnx.ValueInfoProto = field(init=False)

    def __post_init__(self) -> None:
        self._check_opset()
        weights = {tensor.name for tensor in self.model.graph.initializer}
        inputs = [value for value in self.model.graph.input if value.name not in weights]
        if len(inputs) != 1:
            names = ", ".join(repr(value.name) for value in inputs) or "none"
            raise BackboneError(f"{self.path} must have one input, the image. It has {len(inputs)}: {names}.")
        self.image_input = inputs[0]
        self._check_input()

    def _check_opset(self) -> None:
        opset = next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), None)
        if opset is None or opset < MIN_OPSET:
            raise BackboneError(
                f"{self.path} must use ONNX opset {MIN_OPSET} or newer. Got opset {opset} instead; "
                "onnx.version_converter.convert_version can raise it."
            )
        self.opset = opset

    def _check_input(self) -> None:
        import onnx

        allowed = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.UINT8)
        if self.image_input.type.tensor_type.elem_type not in allowed or len(self.input_shape) != 4:
            raise BackboneError(
                f"{self.path} does not take images: its input {self.image_input.name!r} must be a float tensor of "
                f"rank 4. Got rank {len(self.input_shape)} instead."
            )
        height, width = self.input_size
        if (height or self.preprocessing.crop[0], width or self.preprocessing.crop[1]) != self.preprocessing.crop:
            raise BackboneError(
                f"preprocessing.crop must be ({height}, {width}), the input of {self.path}. "
                f"Got {self.preprocessing.crop} instead."
            )

    @functools.cached_property
    def input_shape(self) -> Shape:
        """Shape that the file states for its input, None where it is dynamic."""
        return _dimensions(self.image_input)

    @functools.cached_property
    def layout(self) -> str:
        """Where the channels are: "NCHW" or "NHWC"."""
        if self.preprocessing.layout is not None:
            return self.preprocessing.layout
        if self.input_shape[1] == 3:
            return "NCHW"
        if self.input_shape[3] == 3:
            return "NHWC"
        raise BackboneError(
            f"{self.path} must take images of 3 channels. Its input has the shape {self.input_shape}; "
            'say where the channels are with Preprocessing(layout="NCHW") or "NHWC" if they are dynamic.'
        )

    @property
    def input_size(self) -> tuple[int | None, int | None]:
        """Height and width of the input, None where they are dynamic."""
        axes = self.input_shape[2:] if self.layout == "NCHW" else self.input_shape[1:3]
        return axes[0], axes[1]

    @functools.cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node behind every tensor."""
        return {name: node for node in self.model.graph.node for name in node.output if name}

    @functools.cached_property
    def constants(self) -> set[str]:
        """Names of the tensors that do not depend on the image."""
        found = {tensor.name for tensor in self.model.graph.initializer} | {""}
        for node in self.model.graph.node:
            if all(name in found for name in _node_inputs(node)):
                found.update(node.output)
        return found

    @functools.cached_property
    def values(self) -> dict[str, onnx.ValueInfoProto]:
        """Types and shapes of all tensors, for one image."""
        return self._infer_shapes(batch=1)

    def shape(self, tensor: str) -> Shape:
        """Shape of `tensor` for one image; empty where it cannot be inferred."""
        return _dimensions(self.values[tensor]) if tensor in self.values else ()

    def _infer_shapes(self, batch: int) -> dict[str, onnx.ValueInfoProto]:
        """Shape inference on a copy without the large weights, whose types alone matter."""
        import onnx

        source = self.model.graph
        light = onnx.ModelProto(ir_version=max(self.model.ir_version, 4))
        light.opset_import.extend(self.model.opset_import)
        light.functions.extend(self.model.functions)
        light.graph.name = "light"
        light.graph.node.extend(source.node)
        light.graph.input.add().CopyFrom(self._make_input_info(batch))
        for tensor in source.initializer:
            if math.prod(tensor.dims) <= _SMALL:
                light.graph.initializer.add().CopyFrom(tensor)
            else:
                light.graph.input.append(
                    onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                )
        try:
            inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
        except onnx.shape_inference.InferenceError as error:
            raise BackboneError(f"The shapes in {self.path} do not fit together: {error}") from error
        return {value.name: value for value in (*inferred.input, *inferred.value_info)}

    def _make_input_info(self, batch: int | str) -> onnx.ValueInfoProto:
        import onnx

        height, width = self.preprocessing.crop
        shape = [batch, 3, height, width] if self.layout == "NCHW" else [batch, height, width, 3]
        tensor_type = self.image_input.type.tensor_type
        return onnx.helper.make_tensor_value_info(self.image_input.name, tensor_type.elem_type, shape)

    # Where to cut

    def resolve_layer(self, layer: str | None) -> tuple[str, str | None]:
        """The tensor that `layer` means, and the pooling that makes it a vector."""
        if layer is None or layer == "penultimate":
            tensor, pooling = self._find_penultimate()
        elif layer == "last_map":
            tensor, pooling = self.find_last_map(self._find_penultimate()[0]), "avg"
        elif layer == "logits":
            tensor, pooling = self._skip_back(self.model.graph.output[0].name, {"Softmax", "LogSoftmax"}), None
        elif layer in self.producers and layer not in self.constants:
            tensor, pooling = layer, None
        else:
            raise BackboneError(self._describe_unknown_layer(layer))
        tensor = self._skip_reshapes(tensor)
        return tensor, self._own_pooling(tensor, pooling, flattened=tensor != layer and pooling is None)

    def _describe_unknown_layer(self, layer: str) -> str:
        names = [name for name in self.producers if name not in self.constants]
        near = difflib.get_close_matches(layer, names, n=3, cutoff=0)
        return (
            f'layer must be "penultimate", "last_map", "logits" or a tensor of {self.path}. Got {layer!r} instead; '
            f"the nearest names are {', '.join(map(repr, near))}."
        )

    def _own_pooling(self, tensor: str, pooling: str | None, *, flattened: bool) -> str | None:
        shape = self.shape(tensor)
        if len(shape) == 2:
            return None
        if len(shape) != 4:
            raise BackboneError(
                f"Layer {tensor!r} of {self.path} must have the shape (n, d) or (n, channels, height, width). "
                f"Got {shape} instead; name another one with layer=."
            )
        if shape[2:] == (1, 1):
            return "flatten"
        return pooling or ("flatten" if flattened else "avg")

    def _find_penultimate(self) -> tuple[str, str | None]:
        """The input of the classifier, walking back from the output; the output itself where there is none."""
        outputs = [value.name for value in self.model.graph.output]
        for name in outputs:
            if any(word in name.lower() for word in _FEATURE_WORDS):
                return name, None
        return self._find_head_input(outputs[0]) or (outputs[0], None)

    def _find_head_input(self, output: str) -> tuple[str, str | None] | None:
        """Walk back over Softmax, Relu, Dropout, reshapes and pooling to one linear layer, and give its input."""
        passed: set[str] = set()
        tensor, pooling = output, None
        while (node := self.producers.get(tensor)) is not None:
            if node.op_type in ("Gemm", "MatMul"):
                linear = "Relu" not in passed or "Softmax" in passed
                return (self._data_input(node), None) if linear and self._has_constant_input(node) else None
            if node.op_type == "Conv":
                is_head = self._is_convolutional_head(node, output, passed, pooling)
                return (node.input[0], pooling) if is_head else None
            if node.op_type in _GLOBAL_POOLS:
                pooling = _GLOBAL_POOLS[node.op_type]
            elif node.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
                passed.add("Softmax")
            elif node.op_type == "Relu":
                passed.add("Relu")
            elif not (
                node.op_type in _TRANSPARENT | _RESHAPES or (node.op_type == "Add" and self._has_constant_input(node))
            ):
                return None
            tensor = self._data_input(node)
        return None

    def _is_convolutional_head(self, node: onnx.NodeProto, output: str, passed: set[str], pooling: str | None) -> bool:
        """A convolution is a classifier when it is linear on a 1x1 map, or SqueezeNet's: before ReLU and pooling.

        The last form is also that of some headless networks, so it takes a Softmax behind it, an output named after
        classes, or ImageNet's number of classes.
        """
        shape = self.shape(node.output[0])
        if pooling is None:
            return "Relu" not in passed and shape[2:] == (1, 1)
        named = any(word in output.lower() for word in _LOGIT_WORDS)
        kernel = next((list(a.ints) for a in node.attribute if a.name == "kernel_shape"), [1, 1])
        return kernel == [1, 1] and ("Softmax" in passed or named or shape[1:2] in [(n,) for n in _IMAGENET_CLASSES])

    def _data_input(self, node: onnx.NodeProto) -> str:
        return str(next((name for name in node.input if name not in self.constants), node.input[0]))

    def _has_constant_input(self, node: onnx.NodeProto) -> bool:
        return any(name in self.constants for name in node.input[:2])

    def _skip_back(self, tensor: str, op_types: set[str]) -> str:
        while (node := self.producers.get(tensor)) is not None and node.op_type in op_types:
            tensor = self._data_input(node)
        return tensor

    def _skip_reshapes(self, tensor: str) -> str:
        """Walk back over what only flattens: a Reshape often freezes the batch size."""
        while (node := self.producers.get(tensor)) is not None:
            flattens = node.op_type in _RESHAPES and len(self.shape(tensor)) <= 2
            if not flattens and node.op_type not in _TRANSPARENT:
                break
            source = self._data_input(node)
            if source == self.image_input.name:
                break
            tensor = source
        return tensor

    def find_last_map(self, tensor: str) -> str:
        """The last tensor (n, channels, height, width) with more than one pixel, at or before `tensor`."""
        start = tensor
        while (node := self.producers.get(tensor)) is not None:
            shape = self.shape(tensor)
            to_nhwc = node.op_type == "Transpose" and [list(a.ints) for a in node.attribute] == [[0, 2, 3, 1]]
            if len(shape) == 4 and shape[2:] != (1, 1) and not to_nhwc:
                return tensor
            tensor = self._data_input(node)
        raise BackboneError(
            f"pooling needs a map (n, channels, height, width), and {self.path} has none at or before {start!r}; "
            "use pooling=None."
        )

    def count_features(self, tensor: str, pooling: str | None) -> int:
        """Length of the embedding."""
        shape = self.shape(tensor)
        sizes = shape[1:2] if pooling in ("avg", "max", "gem") else shape[1:]
        if None in sizes or not sizes:
            raise BackboneError(f"The size of layer {tensor!r} of {self.path} is not fixed by its graph: {shape}.")
        return math.prod(size for size in sizes if size is not None)

    def is_batch_frozen(self, tensor: str) -> bool:
        """Whether the graph up to `tensor` takes one image a run only."""
        declared = self.input_shape[0]
        value = self._infer_shapes(batch=2).get(tensor)
        size = _dimensions(value)[0] if value is not None and _dimensions(value) else None
        frozen = size != 2 if size is not None else declared is not None
        if frozen and declared not in (None, 1):
            raise BackboneError(f"{self.path} is frozen at {declared} images a run. Export it with a dynamic batch.")
        return frozen

    # Building the model

    def build_embedding_model(
        self, tensor: str, pooling: str | None, precision: str, frozen_batch: bool
    ) -> onnx.ModelProto:
        """The embedding graph: see the module's first lines."""
        import onnx

        nodes = self._ancestors(tensor)
        used = {name for node in nodes for name in _node_inputs(node)} | {tensor}
        backbone = onnx.helper.make_graph(
            nodes,
            "embedding",
            [self._make_input_info(1 if frozen_batch else "n")],
            [onnx.helper.make_empty_tensor_value_info(tensor)],
            [weight for weight in self.model.graph.initializer if weight.name in used],
        )
        backbone.sparse_initializer.extend(self.model.graph.sparse_initializer)
        model = onnx.helper.make_model(
            backbone,
            opset_imports=self.model.opset_import,
            ir_version=max(self.model.ir_version, 4),
            functions=self.model.functions,
        )
        elem_type = self.values[tensor].type.tensor_type.elem_type
        if precision == "float16":
            model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(tensor, elem_type, self.shape(tensor)))
            model = _convert_to_float16(model)
        self._add_arithmetic(model.graph, frozen_batch)
        self._add_pooling(model.graph, tensor, pooling, elem_type)
        return model

    def _ancestors(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that `tensor` depends on, in the order of the graph."""
        needed, kept = {tensor}, []
        for node in reversed(self.model.graph.node):
            if needed & set(node.output):
                kept.append(node)
                needed.update(_node_inputs(node))
        return kept[::-1]

    def _add_arithmetic(self, graph: onnx.GraphProto, frozen_batch: bool) -> None:
        """Put uint8 NHWC pixels, channel order, scale, mean and std before the backbone's input."""
        import onnx

        p, helper = self.preprocessing, onnx.helper
        elem_type = self.image_input.type.tensor_type.elem_type
        steps: list[tuple[str, list[str], dict[str, Any]]] = []
        channel_axis = 3
        if self.layout == "NCHW":
            steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
            channel_axis = 1
        if p.channel_order == "BGR":
            graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 1, 0]), "sktransfer_reversed"))
            steps.append(("Gather", ["sktransfer_reversed"], {"axis": channel_axis}))
        steps.append(("Cast", [], {"to": onnx.TensorProto.FLOAT}))
        factor, offset = p.scale / np.array(p.std), -np.array(p.mean) / np.array(p.std)
        shape = (1, 3, 1, 1) if self.layout == "NCHW" else (1, 1, 1, 3)
        for op_type, values, neutral in (("Mul", factor, 1.0), ("Add", offset, 0.0)):
            if (values != neutral).any():
                name = f"sktransfer_{op_type.lower()}_operand"
                array = values.astype(np.float32).reshape(shape)
                graph.initializer.append(onnx.numpy_helper.from_array(array, name))
                steps.append((op_type, [name], {}))
        if elem_type != onnx.TensorProto.FLOAT:
            steps.append(("Cast", [], {"to": elem_type}))
        nodes, source = [], INPUT_NAME
        for index, (op_type, operands, attributes) in enumerate(steps):
            target = graph.input[0].name if index == len(steps) - 1 else f"sktransfer_step{index}"
            name = f"sktransfer_prefix{index}"
            nodes.append(helper.make_node(op_type, [source, *operands], [target], name=name, **attributes))
            source = target
        nodes.extend(graph.node)
        del graph.node[:]
        graph.node.extend(nodes)
        batch = 1 if frozen_batch else "n"
        graph.input[0].CopyFrom(helper.make_tensor_value_info(INPUT_NAME, onnx.TensorProto.UINT8, [batch, *p.crop, 3]))

    def _add_pooling(self, graph: onnx.GraphProto, tensor: str, pooling: str | None, elem_type: int) -> None:
        """Put pooling and a Cast to float32 behind the cut."""
        import onnx

        steps: list[tuple[str, list[str], dict[str, Any]]] = []
        if elem_type != onnx.TensorProto.FLOAT:
            steps.append(("Cast", [], {"to": onnx.TensorProto.FLOAT}))
        if pooling == "gem":  # Radenović et al. 2018, arXiv:1711.02512, equation 3, with p = 3
            constants = {"floor": 1e-6, "power": 3.0, "root": 1 / 3}
            for name, value in constants.items():
                array = np.array(value, dtype=np.float32)
                graph.initializer.append(onnx.numpy_helper.from_array(array, f"sktransfer_gem_{name}"))
            floor = ("Clip", [], {"min": 1e-6}) if self.opset < 11 else ("Clip", ["sktransfer_gem_floor"], {})
            steps += [floor, ("Pow", ["sktransfer_gem_power"], {}), ("GlobalAveragePool", [], {})]
            steps += [("Pow", ["sktransfer_gem_root"], {})]
        elif pooling in ("avg", "max"):
            steps.append(("GlobalAveragePool" if pooling == "avg" else "GlobalMaxPool", [], {}))
        steps.append(("Identity", [], {}) if pooling is None else ("Flatten", [], {"axis": 1}))
        source = tensor
        for index, (op_type, operands, attributes) in enumerate(steps):
            target = OUTPUT_NAME if index == len(steps) - 1 else f"sktransfer_pooling{index}"
            name = f"sktransfer_suffix{index}"
            graph.node.append(onnx.helper.make_node(op_type, [source, *operands], [target], name=name, **attributes))
            source = target
        features = self.count_features(tensor, pooling)
        graph.output[0].CopyFrom(
            onnx.helper.make_tensor_value_info(OUTPUT_NAME, onnx.TensorProto.FLOAT, ["n", features])
        )


def _convert_to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network computing in float16, float32 at both ends."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted = OnnxModel(convert_float_to_float16(model, keep_io_types=True))
    converted.topological_sort()
    result: onnx.ModelProto = converted.model
    return result


def _dimensions(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)


def _node_inputs(node: onnx.NodeProto) -> Iterator[str]:
    """Inputs of a node, those that its subgraphs take from outside included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            inner = {name for child in graph.node for name in child.output}
            inner |= {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
            for child in graph.node:
                yield from (name for name in _node_inputs(child) if name not in inner)

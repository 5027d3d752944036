"""What an ONNX backbone says of itself: its input, its shapes, and where its embedding is."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sktransfer.exceptions import BackboneError
from sktransfer.preprocessing import Preprocessing

if TYPE_CHECKING:
    import onnx

MIN_OPSET = 7  # numpy-style broadcasting, which the arithmetic needs

Shape = tuple[int | None, ...]

_TRANSPARENT = frozenset({"Dropout", "Identity", "Cast"})
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze"})
_GLOBAL_POOLS = {"GlobalAveragePool": "avg", "GlobalMaxPool": "max", "AveragePool": "avg", "ReduceMean": "avg"}
_FEATURE_WORDS = ("feature", "embed", "pooler_output", "representation")
_LOGIT_WORDS = ("logit", "prob", "softmax", "class", "score", "pred")
_IMAGENET_CLASSES = (1000, 1001)
_SMALL = 4096  # elements; larger constants cannot be shapes and are left out of shape inference


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
            if all(name in found for name in node_inputs(node)):
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
        light.graph.input.add().CopyFrom(self.make_input_info(batch))
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

    def make_input_info(self, batch: int | str) -> onnx.ValueInfoProto:
        """The declaration of the image input for a batch of this size."""
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
        flattened = len(self.shape(tensor)) <= 2
        tensor = self._skip_reshapes(tensor)
        return tensor, self._own_pooling(tensor, pooling, flattened=flattened)

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
            source = self._data_input(node)
            flattens = node.op_type in _RESHAPES and len(self.shape(tensor)) <= 2 and len(self.shape(source)) in (2, 4)
            if source == self.image_input.name or not (flattens or node.op_type in _TRANSPARENT):
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

    def ancestors(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that `tensor` depends on, in the order of the graph."""
        needed, kept = {tensor}, []
        for node in reversed(self.model.graph.node):
            if needed & set(node.output):
                kept.append(node)
                needed.update(node_inputs(node))
        return kept[::-1]


def _dimensions(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)


def node_inputs(node: onnx.NodeProto) -> Iterator[str]:
    """Inputs of a node, those that its subgraphs take from outside included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            inner = {name for child in graph.node for name in child.output}
            inner |= {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
            for child in graph.node:
                yield from (name for name in node_inputs(child) if name not in inner)

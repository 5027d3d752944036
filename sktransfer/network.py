"""A parsed ONNX backbone: its input, its tensors, and how many images it takes a run."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer.exceptions import BackboneError
from sktransfer.preprocessing import Preprocessing
from sktransfer.safety import (
    MAX_FILE_BYTES,
    MAX_TENSOR_BYTES,
    check_model,
    copy_node,
    find_external_data,
    node_inputs,
)
from sktransfer.shapes import Shape, dimensions, infer_values

if TYPE_CHECKING:
    import onnx

MIN_OPSET = 7  # numpy-style broadcasting, which the arithmetic needs
METADATA_PREFIX = "sktransfer."  # entries of metadata_props: also .source, .license, .layer and .quantization
METADATA_KEY = "sktransfer.preprocessing"  # JSON of Preprocessing.to_dict()

_SHAPE_ONLY = frozenset({"Shape", "Size"})  # what they yield depends on the size of the image, never on its pixels


def load_model(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Parse an ONNX file and refuse a harmful one; external data are read too unless `weights` is false.

    Raises
    ------
    BackboneError
        If the file is not ONNX, is damaged, or does what `safety` forbids.
    """
    import onnx
    import onnx.inliner
    from google.protobuf.message import DecodeError

    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BackboneError(f"{path} is no ONNX file: none is larger than 2 GB; weights beyond lie beside it.")
        model = onnx.load(path, load_external_data=False)
        if not model.graph.node or not model.opset_import:
            raise BackboneError(f"{path} is not an ONNX file: it holds no graph.")
        check_model(model, path)
        external = find_external_data(model, path)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        if weights and external:
            onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except DecodeError as error:
        raise BackboneError(f"{path} is not an ONNX file: {error}.") from error
    except (OSError, onnx.checker.ValidationError) as error:
        raise BackboneError(f"{path} could not be read: {error}") from error
    return model


def describe_file(path: Path) -> dict[str, Any]:
    """What the file says of itself: our entries among its metadata, and the names of the files of its weights."""
    model = load_model(path, weights=False)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    own = {key: text for key, text in metadata.items() if key.startswith(METADATA_PREFIX)}
    return {"metadata": own, "external_data": find_external_data(model, path)}


def read_input_size(path: Path) -> tuple[int, int]:
    """Height and width that the graph itself states for its image input.

    Raises
    ------
    BackboneError
        If they are dynamic.
    """
    graph = load_model(path, weights=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    shape: Shape = next((dimensions(value) for value in graph.input if value.name not in weights), ())
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
        return dimensions(self.image_input)

    @functools.cached_property
    def layout(self) -> str:
        """Where the channels are: "NCHW" or "NHWC"."""
        if self.preprocessing.layout is not None:
            return self.preprocessing.layout
        if self.input_shape[1] == 3:
            return "NCHW"
        if self.input_shape[3] == 3:
            return "NHWC"
        for node in self.model.graph.node:  # the first that moves or mixes the channels knows where they are
            if node.op_type == "Conv" and self.input_shape[1] is None:
                return "NCHW"
            if node.op_type == "Transpose" and self.image_input.name in node.input:
                return "NHWC" if list(node.attribute[0].ints) == [0, 3, 1, 2] else "NCHW"
        raise BackboneError(
            f"{self.path} must take images of 3 channels. Its input has the shape {self.input_shape}; "
            'say where the channels are with Preprocessing(layout="NCHW") or "NHWC" if they are dynamic.'
        )

    @property
    def input_size(self) -> tuple[int | None, int | None]:
        """Height and width of the input, None where they are dynamic."""
        axes = self.input_shape[2:] if self.layout == "NCHW" else self.input_shape[1:3]
        return axes[0], axes[1]

    @property
    def is_quantized(self) -> bool:
        """Whether activations are quantised somewhere."""
        return any(
            "QuantizeLinear" in node.op_type or node.op_type.startswith("QLinear") for node in self.model.graph.node
        )

    @functools.cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node behind every tensor."""
        return {name: node for node in self.model.graph.node for name in node.output if name}

    @functools.cached_property
    def constants(self) -> set[str]:
        """Names of the tensors that do not depend on the pixels."""
        found = {tensor.name for tensor in self.model.graph.initializer} | {""}
        found |= {tensor.values.name for tensor in self.model.graph.sparse_initializer}
        for node in self.model.graph.node:
            if node.op_type in _SHAPE_ONLY or all(name in found for name in node_inputs(node)):
                found.update(node.output)
        return found

    @functools.cached_property
    def values(self) -> dict[str, onnx.ValueInfoProto]:
        """Types and shapes of all tensors, for one image."""
        values = self._infer(self.model.graph.node, self._own_batch)
        for name, value in values.items():
            size = np.prod([float(size or 1) for size in dimensions(value)]) * 4
            if size > MAX_TENSOR_BYTES * (self._own_batch if name not in self.constants else 1):
                raise BackboneError(f"The tensor {name!r} of {self.path} would take {size:.0f} bytes for one image.")
        return values

    @property
    def _own_batch(self) -> int:
        return self.input_shape[0] or 1

    def shape(self, tensor: str) -> Shape:
        """Shape of `tensor` for one image; empty where it cannot be inferred."""
        shape = dimensions(self.values[tensor]) if tensor in self.values else ()
        return (1, *shape[1:]) if shape and shape[0] == self._own_batch and tensor not in self.constants else shape

    def elem_type(self, tensor: str) -> int:
        """ONNX's number of the type of a tensor's values; float32 where it cannot be inferred."""
        found = self.values[tensor].type.tensor_type.elem_type if tensor in self.values else 0
        return int(found) or 1

    def _infer(
        self, nodes: Sequence[onnx.NodeProto], batch: int, constants: Sequence[onnx.TensorProto] = ()
    ) -> dict[str, onnx.ValueInfoProto]:
        import onnx

        try:
            return infer_values(self.model, self.make_input_info(batch), nodes, constants)
        except onnx.shape_inference.InferenceError as error:
            raise BackboneError(f"The shapes in {self.path} do not fit together: {error}") from error

    def make_input_info(self, batch: int | str) -> onnx.ValueInfoProto:
        """The declaration of the image input for a batch of this size."""
        import onnx

        height, width = self.preprocessing.crop
        shape = [batch, 3, height, width] if self.layout == "NCHW" else [batch, height, width, 3]
        tensor_type = self.image_input.type.tensor_type
        return onnx.helper.make_tensor_value_info(self.image_input.name, tensor_type.elem_type, shape)

    def ancestors(self, tensors: Iterable[str]) -> list[onnx.NodeProto]:
        """The nodes that `tensors` depend on, in the order of the graph."""
        needed, kept = set(tensors), []
        for node in reversed(self.model.graph.node):
            if needed & set(node.output):
                kept.append(node)
                needed.update(node_inputs(node))
        return kept[::-1]

    def between(self, source: str, tensors: Iterable[str]) -> list[onnx.NodeProto]:
        """The nodes that lead from `source` to `tensors`, those of weights included, in the order of the graph.

        What a Shape is taken of is not followed. Where some way passes `source` by, the nodes begin at the image.
        """
        needed, kept = set(tensors) - {source}, []
        for node in reversed(self.model.graph.node):
            if needed & set(node.output):
                kept.append(node)
                needed |= set() if node.op_type in _SHAPE_ONLY else set(node_inputs(node)) - {source}
        return kept[::-1]

    # How many images a run

    def find_batching(self, tensors: Sequence[str]) -> str:
        """How the graph up to `tensors` takes a batch.

        Returns
        -------
        str
            "dynamic": of any size; "thawed": of any size once `thaw` has freed the shapes that hold a number of images;
            "frozen": one image a run, also where a scale is taken from all images of a run together.
        """
        nodes = self.ancestors(tensors)
        if any(node.op_type.startswith("DynamicQuantize") for node in nodes) and self.input_shape[0] in (None, 1):
            return "frozen"
        used = {name for node in nodes for name in node_inputs(node)} | set(tensors)
        on_the_way = [name for node in nodes for name in node.output if name in used - self.constants]
        if self._takes_batches(nodes, (), tensors if self.input_shape[0] is None else on_the_way):
            return "dynamic"
        if self._takes_batches(*self.thaw(nodes), on_the_way):
            return "thawed"
        if self.input_shape[0] not in (None, 1):
            raise BackboneError(
                f"{self.path} is frozen at {self.input_shape[0]} images a run. Export it with a dynamic batch."
            )
        return "frozen"

    def _takes_batches(
        self, nodes: Sequence[onnx.NodeProto], shapes: Sequence[onnx.TensorProto], tensors: Sequence[str]
    ) -> bool:
        """Whether twice the images make `tensors` twice as long, and no different in other ways."""
        try:
            once, twice = self.values, self._infer(nodes, 2 * self._own_batch, shapes)
        except BackboneError:
            return False
        for name in tensors:
            before = dimensions(once[name]) if name in once else ()
            after = dimensions(twice[name]) if name in twice else ()
            if not before or None in after or after != (2 * (before[0] or 0), *before[1:]):
                return False
        return True

    def thaw(self, nodes: Sequence[onnx.NodeProto]) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Copies of the nodes whose Reshapes keep the number of images instead of stating it, and their new shapes."""
        import onnx

        free, shapes = list[onnx.NodeProto](), list[onnx.TensorProto]()
        for node in nodes:
            target = self._read_constant(node.input[1]) if node.op_type == "Reshape" and len(node.input) > 1 else None
            frozen = target is not None and target.size > 1 and target[0] == self._own_batch and 0 not in target
            if frozen and target is not None and node.input[0] not in self.constants:
                name = f"sktransfer_thawed{len(shapes)}"
                shapes.append(onnx.numpy_helper.from_array(np.array([0, *target[1:]], dtype=np.int64), name))
                node = copy_node(node)  # noqa: PLW2901
                node.input[1] = name
                del node.attribute[:]  # allowzero, under which 0 would mean no image
            free.append(node)
        return free, shapes

    def _read_constant(self, tensor: str) -> np.ndarray[Any, Any] | None:
        """The value of an initializer or a Constant node."""
        import onnx

        found = next((entry for entry in self.model.graph.initializer if entry.name == tensor), None)
        node = self.producers.get(tensor)
        if found is None and node is not None and node.op_type == "Constant":
            found = next((entry.t for entry in node.attribute if entry.name == "value"), None)
        return None if found is None or found.external_data else onnx.numpy_helper.to_array(found)

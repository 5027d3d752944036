"""Embedding graphs and a head -> one graph: photos and a table's columns in, predictions out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer.exceptions import BackboneError
from sktransfer.export.operators import DOMAIN, DOUBLE, FLOAT, INT64, STRING
from sktransfer.geometry import INPUT_NAME as PHOTO_NAME
from sktransfer.geometry import OUTPUT_NAME as CROP_NAME
from sktransfer.geometry import build_geometry_model
from sktransfer.graph import INPUT_NAME, OUTPUT_NAME
from sktransfer.network import load_model
from sktransfer.options import ExtractionPlan

if TYPE_CHECKING:
    import onnx

OPSET = 18  # of a file, at least: `Resize` with antialiasing, and what all converters write
HEAD_OPSET = 22  # the last one that skl2onnx writes
PREFIX = "sktransfer_"  # of every name in the graph but those of its inputs and outputs
_Seen = tuple[int, str]  # column and view
_ELEMENTS = {"number": DOUBLE, "integer": INT64, "text": STRING}


@dataclass(frozen=True)
class Photos:
    """An extractor of the pipeline: how its images become a block of features."""

    plan: ExtractionPlan
    fill: float | None  # what stands for the features of a missing photo; None: there is always one
    add_indicator: bool
    pixel_range: tuple[float, float] | None = None  # of arrays
    root: str | os.PathLike[str] | None = None  # that relative paths start from


@dataclass(frozen=True)
class Input:
    """An input of the file."""

    name: str
    kind: str  # "image", "number", "integer", "text" or "has_image"
    column: int  # of X


def choose_opset(photos: Iterable[Photos]) -> int:
    """The operator set of a file: that of the newest backbone in it, 18 at least."""
    versions: list[int] = [
        entry.version
        for one in photos
        for entry in load_model(one.plan.graph.path, weights=False).opset_import
        if not entry.domain
    ]
    return max(OPSET, *versions)


class Joint:
    """One graph in the making.

    Parameters
    ----------
    head : ModelProto
        As of `convert_head`.
    photos : sequence of Photos
        Of the extractors, in their order.
    columns : sequence of (name, kind)
        Those of X; the kind is None where nothing reads it.
    opset : int
    include_resize : bool
        Whether photos come as they are.

    Raises
    ------
    ValueError
        If a column is read by networks that take photos of different sizes, and `include_resize` is false.
    """

    def __init__(
        self,
        head: Any,
        photos: Sequence[Photos],
        columns: Sequence[tuple[str, str | None]],
        opset: int,
        *,
        include_resize: bool,
    ) -> None:
        from onnx import compose

        self.head = compose.add_prefix(level(head, opset), f"{PREFIX}head_").graph
        self.stands = [node for node in self.head.node if node.domain == DOMAIN]
        self.photos, self.opset, self.include_resize = photos, opset, include_resize
        self.inputs = self._list_inputs(columns)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.sparse_weights: list[Any] = []
        self.domains: dict[str, int] = {}
        self.ir_version = head.ir_version
        self.vectors: dict[tuple[str, int, str], str] = {}  # (graph digest, column, view) -> its embeddings

    def build(self, outputs: Sequence[Any]) -> onnx.ModelProto:
        """The whole model; `outputs` are those of the head with the names and types they shall have."""
        import onnx

        helper, head = onnx.helper, self.head
        self._embed()
        for stand in self.stands:
            self._replace(stand)
        for value in head.input:
            column = _column(value.name)
            for entry in self.inputs:
                if entry.column == column and entry.kind in _ELEMENTS:
                    self._node("Identity", entry.name, output=value.name)
        self.nodes += [node for node in head.node if node.domain != DOMAIN]
        self.weights += head.initializer
        self._check_names([name for name, *_ in outputs])
        final = [self._finish(value, *wanted) for value, wanted in zip(head.output, outputs, strict=True)]
        read = {name for node in self.nodes for name in node.input}
        inputs = [self._describe(entry) for entry in self.inputs if entry.name in read]
        sparse = self.sparse_weights
        graph = helper.make_graph(self.nodes, "pipeline", inputs, final, self.weights, sparse_initializer=sparse)
        domains = {"": self.opset, "ai.onnx.ml": 3, **self.domains}
        used = {node.domain for node in self.nodes}
        opsets = [helper.make_opsetid(name, version) for name, version in domains.items() if name in used]
        return helper.make_model(graph, opset_imports=opsets, ir_version=max(self.ir_version, 8))

    def _check_names(self, outputs: Sequence[str]) -> None:
        names = [entry.name for entry in self.inputs]
        for name in names:
            if name in outputs or name.startswith(PREFIX) or names.count(name) > 1:
                raise ValueError(
                    f"Columns of X must have names of their own, other than {', '.join(outputs)} and {PREFIX}…. Got "
                    f"{name!r} instead; rename it and fit again."
                )

    def readers(self, column: int) -> list[Photos]:
        """The extractors that read a column of images."""
        names = {f"{PREFIX}head_column_{column}"}
        return [self.photos[_number(stand)] for stand in self.stands if names.intersection(stand.input)]

    def _list_inputs(self, columns: Sequence[tuple[str, str | None]]) -> list[Input]:
        inputs = [Input(name, kind, i) for i, (name, kind) in enumerate(columns) if kind is not None]
        images = [entry for entry in inputs if entry.kind == "image"]
        for entry in images:
            readers = self.readers(entry.column)
            geometries = {photos.plan.graph.preprocessing.geometry for photos in readers}
            if len(geometries) > 1 and not self.include_resize:
                raise ValueError(
                    f"The backbones that read {entry.name!r} must take photos of one size. Got {len(geometries)} "
                    "instead; pass include_resize=True, and the file takes photos as they are."
                )
            if any(photos.fill is not None for photos in readers):
                name = "has_image" if len(images) == 1 else f"has_image_{entry.name}"
                inputs.append(Input(name, "has_image", entry.column))
        return inputs

    def _node(self, op_type: str, *inputs: str, output: str, **attributes: Any) -> str:
        import onnx

        self.nodes.append(onnx.helper.make_node(op_type, list(inputs), [output], name=output, **attributes))
        return output

    def _constant(self, name: str, values: Any) -> str:
        import onnx

        self.weights.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def _inline(self, model: Any, prefix: str, source: str, ends: tuple[str, str], target: str) -> None:
        """Append a model whose input and output are `ends` between two tensors of this graph."""
        from onnx import compose

        prefixed = compose.add_prefix(model, prefix)
        self._node("Identity", source, output=f"{prefix}{ends[0]}")
        self.nodes += prefixed.graph.node
        self.weights += prefixed.graph.initializer
        self.sparse_weights += prefixed.graph.sparse_initializer
        self._node("Identity", f"{prefix}{ends[1]}", output=target)
        self.domains.update((entry.domain, entry.version) for entry in model.opset_import if entry.domain)
        self.ir_version = max(self.ir_version, model.ir_version)

    def _name(self, kind: str, column: int) -> str:
        return next(entry.name for entry in self.inputs if entry.kind == kind and entry.column == column)

    def _embed(self) -> None:
        """Each network once, over all views of the images of all columns that it is to see."""
        wanted: dict[tuple[str, _Seen | None], tuple[ExtractionPlan, dict[_Seen, None]]] = {}
        for node in self.stands:
            plan = self.photos[_number(node)].plan
            for seen in itertools.product(map(_column, node.input), plan.views.windows):
                key = plan.graph.digest, seen if plan.graph.frozen_batch else None
                wanted.setdefault(key, (plan, {}))[1][seen] = None
        for number, ((digest, _), (plan, sights)) in enumerate(wanted.items()):
            prefix = f"{PREFIX}network{number}_"
            pixels = self._see(plan, list(sights), prefix)
            if len(pixels) > 1:
                pixels = [self._node("Concat", *pixels, output=f"{prefix}images", axis=0)]
            model, vectors = level(plan.graph.build_model(), self.opset), f"{prefix}vectors"
            self._inline(model, f"{prefix}backbone_", pixels[0], (INPUT_NAME, OUTPUT_NAME), vectors)
            names = [vectors] if len(sights) == 1 else [f"{vectors}_column{column}_{view}" for column, view in sights]
            if len(sights) > 1:
                self._split(vectors, names)
            self.vectors.update(((digest, *seen), name) for seen, name in zip(sights, names, strict=True))

    def _split(self, vectors: str, names: Sequence[str]) -> None:
        import onnx

        node = onnx.helper.make_node("Split", [vectors], names, name=f"{vectors}_split", axis=0, num_outputs=len(names))
        self.nodes.append(node)

    def _crop(self, plan: ExtractionPlan, column: int, prefix: str) -> str:
        """The pixels that a network takes of a column."""
        photo = self._name("image", column)
        if not self.include_resize:
            return photo
        model = build_geometry_model(plan.graph.preprocessing, self.opset)
        self._inline(model, prefix, photo, (PHOTO_NAME, CROP_NAME), f"{prefix}cropped")
        return f"{prefix}cropped"

    def _see(self, plan: ExtractionPlan, sights: Sequence[_Seen], prefix: str) -> list[str]:
        """The pixels of views of columns."""
        names = {column: f"{prefix}column{column}_" for column, _ in sights}
        crops = {column: self._crop(plan, column, name) for column, name in names.items()}
        return [crops[column] if view == "center" else self._mirror(crops[column], names[column])
                for column, view in sights]  # fmt: skip

    def _mirror(self, pixels: str, name: str) -> str:
        """Images with left and right exchanged."""
        bounds = {"start": -1, "end": np.iinfo(np.int64).min, "axis": 2, "step": -1}
        slices = [self._constant(f"{name}mirror_{key}", np.array([value])) for key, value in bounds.items()]
        return self._node("Slice", pixels, *slices, output=f"{name}mirrored")

    def _average(self, plan: ExtractionPlan, column: int, name: str) -> str:
        """The embeddings of a column: of several views their mean, in double precision."""
        vectors = [self.vectors[plan.graph.digest, column, view] for view in plan.views.windows]
        if len(vectors) == 1:
            return vectors[0]
        doubles = [self._node("Cast", one, output=f"{name}_view{i}", to=DOUBLE) for i, one in enumerate(vectors)]
        count = self._constant(f"{name}_views", np.float64(len(vectors)))
        mean = self._node("Div", self._node("Sum", *doubles, output=f"{name}_sum"), count, output=f"{name}_mean")
        return self._node("Cast", mean, output=f"{name}_vector", to=FLOAT)

    def _replace(self, stand: Any) -> None:
        """What an extractor makes of its columns, in float64, as the head takes it."""
        photos, target = self.photos[_number(stand)], stand.output[0]
        blocks, flags = [], []
        for column in map(_column, stand.input):
            name = f"{target}_column{column}"
            vector = self._average(photos.plan, column, name)
            if photos.fill is not None:
                axis = self._constant(f"{name}_axis", np.array([1]))
                there = self._node("Unsqueeze", self._name("has_image", column), axis, output=f"{name}_there")
                fill = self._constant(f"{name}_fill", np.float32(photos.fill))
                vector = self._node("Where", there, vector, fill, output=f"{name}_filled")
            blocks.append(vector)
            if photos.add_indicator:
                absent = self._node("Not", there, output=f"{name}_absent") if photos.fill is not None else None
                flags.append(self._flag(name, vector, absent))
        parts = blocks + flags
        joined = parts[0] if len(parts) == 1 else self._node("Concat", *parts, output=f"{target}_joined", axis=1)
        self._node("Cast", joined, output=target, to=DOUBLE)

    def _flag(self, name: str, vector: str, absent: str | None) -> str:
        """A column of 0 and 1: 1 where the photo is missing, and 0 where none may be."""
        if absent is None:
            first = self._constant(f"{name}_first", np.array([0]))
            value = self._node("Gather", vector, first, output=f"{name}_value", axis=1)
            absent = self._node("IsNaN", value, output=f"{name}_absent")
        return self._node("Cast", absent, output=f"{name}_flag", to=FLOAT)

    def _finish(self, value: Any, name: str, elem_type: int, shape: Sequence[Any]) -> Any:
        """An output under its final name, of its final type and shape."""
        import onnx

        tensor = value.name
        if not isinstance(shape[-1], str) or len(shape) == 1:
            dims = self._constant(f"{PREFIX}{name}_shape", np.array([-1, *shape[1:]]))
            tensor = self._node("Reshape", tensor, dims, output=f"{PREFIX}{name}_shaped")
        if elem_type == onnx.TensorProto.STRING:
            self._node("Identity", tensor, output=name)
        else:
            self._node("Cast", tensor, output=name, to=elem_type)
        return onnx.helper.make_tensor_value_info(name, elem_type, list(shape))

    def _describe(self, entry: Input) -> Any:
        import onnx

        info, types = onnx.helper.make_tensor_value_info, onnx.TensorProto
        graphs = [one.plan.graph for one in self.photos]
        n = 1 if any(graph.frozen_batch for graph in graphs) else "n"
        if entry.kind == "has_image":
            return info(entry.name, types.BOOL, [n])
        if entry.kind != "image":
            return info(entry.name, _ELEMENTS[entry.kind], [n, 1])
        height, width = self.readers(entry.column)[0].plan.graph.preprocessing.crop
        size = ["height", "width"] if self.include_resize else [height, width]
        return info(entry.name, types.UINT8, [n, *size, 3])


def level(model: Any, opset: int) -> Any:
    """The same model in another operator set.

    Raises
    ------
    BackboneError
        If onnx cannot convert it.
    """
    from onnx import version_converter

    current = next(entry.version for entry in model.opset_import if not entry.domain)
    if current == opset:
        return model
    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:
        raise BackboneError(
            f"The backbone's operators must be those of opset {opset}, or convertible to them. Got opset {current}, "
            f"which onnx cannot convert: {error}"
        ) from error


def _number(stand: Any) -> int:
    return int(next(attribute.i for attribute in stand.attribute if attribute.name == "number"))


def _column(name: str) -> int:
    """Position of a column in X, off the name of the head's input."""
    return int(name.rpartition("_")[2])

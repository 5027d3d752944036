"""What an ONNX file from anywhere must not do: reach outside its folder, ask for absurd memory, run unknown code."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from sktransfer.exceptions import BackboneError

if TYPE_CHECKING:
    import onnx

MAX_FILE_BYTES = 2**31  # the largest message that protobuf can read
MAX_TENSOR_BYTES = 2**31  # of one activation or generated constant, for one image
MAX_NODES = 1_000_000  # once functions are expanded
MAX_CALLS = 100  # of functions by functions

# Operators of onnxruntime itself: com.microsoft holds its quantised and fused ones.
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.ms.internal.nhwc"})


def check_model(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a parsed file before anything is allocated or computed for it.

    Raises
    ------
    BackboneError
        If weights lie outside the file's folder, a tensor declares more values than are stored, an operator is
        unknown to onnxruntime, or nodes or functions form a cycle.
    """
    for tensor in iterate_tensors(model):
        _check_payload(tensor, path)
    for tensor in model.graph.sparse_initializer:
        _check_sparse(tensor, path)
    _check_operators(model, path)
    _check_functions(model, path)
    _sort_nodes(model, path)


def iterate_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in the model, those of nodes, subgraphs and functions included."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _tensors_of_node(node)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _tensors_of_node(node)


def _tensors_of_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in _subgraphs(attribute):
            yield from _tensors_of_graph(graph)


def _subgraphs(attribute: onnx.AttributeProto) -> Iterable[onnx.GraphProto]:
    return [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs


def find_external_data(model: onnx.ModelProto, path: Path) -> list[str]:
    """Names of the files beside `path` that hold its weights.

    Raises
    ------
    BackboneError
        If a name leads out of the folder.
    """
    names = set[str]()
    for tensor in iterate_tensors(model):
        names.update(entry.value for entry in tensor.external_data if entry.key == "location")
    for name in names:
        if not is_plain_name(name):
            raise BackboneError(f"The weights of {path} must lie beside it. Got the place {name!r} instead.")
        place = path.parent / name
        if place.is_symlink() or not place.resolve().is_relative_to(path.parent.resolve()):
            raise BackboneError(f"The weights of {path} must lie beside it. {name!r} is a link; put the file there.")
    return sorted(names)


def is_plain_name(name: str) -> bool:
    """Whether a name from a file or a server stays in the folder it is joined to."""
    parts = PurePosixPath(name).parts
    plain = "\\" not in name and "\0" not in name and not PureWindowsPath(name).drive
    return plain and bool(parts) and ".." not in parts and not name.startswith("/")


def _check_payload(tensor: onnx.TensorProto, path: Path) -> None:
    declared = math.prod(tensor.dims)
    if any(size < 0 for size in tensor.dims):
        raise BackboneError(f"The tensor {tensor.name!r} of {path} declares a negative size: {list(tensor.dims)}.")
    stored = _count_external(tensor, path) if tensor.external_data else _count_stored(tensor)
    if stored is not None and stored < declared:
        raise BackboneError(
            f"The tensor {tensor.name!r} of {path} declares {declared} values and holds {stored}: the file is damaged."
        )


def _item_bits(tensor: onnx.TensorProto) -> int:
    import onnx

    try:
        name = onnx.TensorProto.DataType.Name(tensor.data_type)
    except ValueError:
        return 8
    narrow = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "STRING": 8}
    return narrow[name] if name in narrow else onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8


def _count_stored(tensor: onnx.TensorProto) -> int:
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data) * 8 // _item_bits(tensor)
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    packed = 8 // _item_bits(tensor) if _item_bits(tensor) < 8 else 1  # int4 values share the bytes of int32_data
    return max(len(tensor.string_data), *(len(field) for field in fields)) * packed


def _count_external(tensor: onnx.TensorProto, path: Path) -> int | None:
    """Values that the file of the weights has room for; None while it is missing."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not is_plain_name(location) or not (path.parent / location).is_file():
        return None
    try:
        offset = int(entries.get("offset", 0))
    except ValueError:
        offset = -1
    if offset < 0:
        raise BackboneError(f"The tensor {tensor.name!r} of {path} has an unreadable offset: {entries['offset']!r}.")
    room = (path.parent / location).stat().st_size - offset
    return int(max(0, room) * 8 // _item_bits(tensor))


def _check_sparse(tensor: onnx.SparseTensorProto, path: Path) -> None:
    dense = math.prod(tensor.dims) * _item_bits(tensor.values) // 8
    stored = max(1, tensor.values.ByteSize() + tensor.indices.ByteSize())
    if any(size < 0 for size in tensor.dims) or (dense > 2**26 and dense > 1000 * stored):
        raise BackboneError(f"The sparse tensor {tensor.values.name!r} of {path} would take {dense} bytes.")


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    for node in _all_nodes(model):
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in own:
            raise BackboneError(
                f"{path} needs the custom operator {node.domain}::{node.op_type} (node {node.name!r}), which "
                "onnxruntime does not have. Export the network with standard operators."
            )


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    stack = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while stack:
        node = stack.pop()
        yield node
        for attribute in node.attribute:
            for graph in _subgraphs(attribute):
                stack.extend(graph.node)


def _check_functions(model: onnx.ModelProto, path: Path) -> None:
    """Functions that call themselves, or each other so often that expanding them would not end in this life."""
    bodies = {(function.domain, function.name): function.node for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    calling: set[tuple[str, str]] = set()

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            total += expand(key) if key in bodies else 1
            total += sum(count(graph.node) for attribute in node.attribute for graph in _subgraphs(attribute))
        return total

    def expand(key: tuple[str, str]) -> int:
        if key in calling or len(calling) > MAX_CALLS:
            raise BackboneError(f"The function {key[1]!r} of {path} calls itself, or is nested too deeply.")
        if key not in sizes:
            calling.add(key)
            sizes[key] = count(bodies[key])
            calling.discard(key)
        return sizes[key]

    total = count(model.graph.node)
    if total > MAX_NODES:
        raise BackboneError(f"{path} must have at most {MAX_NODES} nodes. Got {total} instead.")


def _sort_nodes(model: onnx.ModelProto, path: Path) -> None:
    """Put the nodes into the order of computation, where they are not."""
    nodes = list(model.graph.node)
    given = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    given |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    users: dict[int, list[int]] = defaultdict(list)
    missing = [0] * len(nodes)  # inputs that are not computed yet
    for index, node in enumerate(nodes):
        for name in set(node_inputs(node)) - given:
            if name not in maker:
                raise BackboneError(f"The graph of {path} uses {name!r}, which nothing computes: the file is damaged.")
            users[maker[name]].append(index)
            missing[index] += 1
    ready, order = [index for index, count in enumerate(missing) if not count], list[int]()
    while ready:
        order.append(heapq.heappop(ready))
        for user in users[order[-1]]:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, user)
    if len(order) < len(nodes):
        stuck = nodes[next(index for index, count in enumerate(missing) if count)]
        raise BackboneError(f"The graph of {path} has a cycle at {stuck.op_type} (node {stuck.name!r}).")
    if order != sorted(order):
        copies = [copy_node(nodes[index]) for index in order]
        del model.graph.node[:]
        model.graph.node.extend(copies)


def copy_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """An independent copy of a node."""
    copy = type(node)()
    copy.CopyFrom(node)
    return copy


def node_inputs(node: onnx.NodeProto) -> Iterator[str]:
    """Inputs of a node, those that its subgraphs take from outside included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in _subgraphs(attribute):
            inner = {name for child in graph.node for name in child.output}
            inner |= {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
            for child in graph.node:
                yield from (name for name in node_inputs(child) if name not in inner)

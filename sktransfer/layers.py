"""Where a backbone is cut, and how what is found there becomes a vector."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sktransfer.exceptions import BackboneError
from sktransfer.network import Network
from sktransfer.safety import node_inputs
from sktransfer.shapes import Shape

if TYPE_CHECKING:
    import onnx

POOLINGS = ("avg", "max", "gem", "flatten")

_TRANSPARENT = frozenset({"Dropout", "Identity", "Cast"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_GLOBAL_POOLS = {
    "GlobalAveragePool": "avg",
    "GlobalMaxPool": "max",
    "AveragePool": "avg",
    "ReduceMean": "avg",
    "ReduceMax": "max",
    "QLinearGlobalAveragePool": "avg",
    "QLinearAveragePool": "avg",
    "QLinearReduceMean": "avg",
}
_SOFT = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "QLinearSoftmax", "QLinearSigmoid"})
LINEAR = frozenset({"Gemm", "MatMul", "FusedGemm", "FusedMatMul", "QGemm", "QLinearMatMul", "MatMulInteger"})
CONVOLUTIONS = frozenset({"Conv", "FusedConv", "QLinearConv", "ConvInteger"})
_MERGES = frozenset({"Add", "Concat", "Sum", "QLinearAdd", "QLinearConcat"})
_SCALINGS = frozenset({"Add", "Mul", "Sub", "Div", "QLinearAdd", "QLinearMul"})
WEIGHTS_AT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}  # input that holds the weights; 1 for the others
# Where a quantised operator names the scale of its output; the zero point is next (ContribOperators.md, Operators.md).
_SCALES_AT = {
    "QuantizeLinear": 1,
    "QLinearConv": 6,
    "QLinearMatMul": 6,
    "QLinearAdd": 6,
    "QLinearMul": 6,
    "QGemm": 7,
    "QLinearGlobalAveragePool": 3,
    "QLinearAveragePool": 3,
    "QLinearReduceMean": 3,
    "QLinearLeakyRelu": 3,
    "QLinearSigmoid": 3,
    "QLinearSoftmax": 3,
    "QLinearConcat": 0,
}
_FEATURE_WORDS = ("feature", "embed", "pooler_output", "representation")
_LOGIT_WORDS = ("logit", "prob", "softmax", "class", "score", "pred")
_IMAGENET_CLASSES = (1000, 1001)
_MAX_PREFIX = 16  # class, distillation and register tokens before those of the patches
_SAME_LEVEL = 0.6  # a map whose side is at most this share of another's lies a level deeper
_STAGE_CONVOLUTIONS = 2  # a level with fewer is a stem or a pooling, and no stage
_QUANTIZED = (2, 3)  # ONNX's numbers of uint8 and int8


@dataclass(frozen=True)
class Cut:
    """One place where a backbone is cut, and how what is found there becomes a vector.

    Attributes
    ----------
    tensor : str
    kind : {"vector", "map", "nhwc", "tokens"}
        What the tensor is: (n, d); (n, channels, height, width); (n, height, width, channels); (n, tokens, d).
    pooling : {"avg", "max", "gem", "flatten", "cls"} or None
        None only for a vector; "cls" takes the first token.
    n_features : int
        Length of the vector.
    n_prefix : int
        Tokens before those of the patches, which "avg", "max" and "gem" leave out.
    dequantized : (scale, zero point) or None
        Names of the tensors that turn a quantised tensor into numbers.
    """

    tensor: str
    kind: str
    pooling: str | None
    n_features: int
    n_prefix: int = 0
    dequantized: tuple[str, str] | None = None


def resolve_layer(network: Network, layer: str | None, pooling: str | None) -> Cut:
    """The cut that `layer` means, pooled as asked, or in the network's own way if `pooling` is None.

    Raises
    ------
    BackboneError
        If there is no such layer or stage, or nothing at or before it that `pooling` could be applied to.
    """
    if layer is None or layer == "penultimate":
        tensor, own = _find_penultimate(network)
    elif layer == "last_map":
        tensor, own = _find_pooled(network, _find_penultimate(network)[0]), "avg"
    elif layer == "logits":
        tensor, own = _find_logits(network), None
    elif layer in network.producers and layer not in network.constants:
        tensor, own = _follow_rounding(network, layer), None
    else:
        tensor, own = _find_stage(network, layer), "avg"
    if pooling is not None:
        return _make_cut(network, _find_pooled(network, tensor), pooling)
    flattened = len(network.shape(tensor)) <= 2
    tensor = _skip_reshapes(network, tensor)
    return _make_cut(network, tensor, _own_pooling(network, tensor, own, flattened=flattened))


def _make_cut(network: Network, tensor: str, pooling: str | None) -> Cut:
    shape, kind = network.shape(tensor), _describe_kind(network, tensor)
    n_prefix = _count_prefix_tokens(network, tensor) if kind == "tokens" else 0
    if pooling in ("avg", "max", "gem", "cls"):
        sizes = shape[-1:] if kind in ("nhwc", "tokens") else shape[1:2]
    else:
        sizes = shape[1:]
    if None in sizes or not sizes:
        raise BackboneError(f"The size of layer {tensor!r} of {network.path} is not fixed by its graph: {shape}.")
    n_features = math.prod(size for size in sizes if size is not None)
    scale = _find_scale(network, tensor) if network.elem_type(tensor) in _QUANTIZED else None
    return Cut(tensor, kind, None if kind == "vector" else pooling, n_features, n_prefix, scale)


def _own_pooling(network: Network, tensor: str, pooling: str | None, *, flattened: bool) -> str | None:
    shape, kind = network.shape(tensor), _describe_kind(network, tensor)
    if kind == "vector":
        return None
    if kind == "tokens":
        return pooling or ("cls" if _count_prefix_tokens(network, tensor) else "avg")
    if kind == "other":
        raise BackboneError(
            f"Layer {tensor!r} of {network.path} must have the shape (n, d), (n, tokens, d) or (n, channels, height, "
            f"width). Got {shape} instead; name another one with layer=."
        )
    if math.prod(size or 0 for size in _map_size(shape, kind)) == 1:
        return "flatten"
    return pooling or ("flatten" if flattened else "avg")


# -- what a tensor is -------------------------------------------------------------------------------------------------


def _describe_kind(network: Network, tensor: str) -> str:
    shape, (height, width) = network.shape(tensor), network.preprocessing.crop
    if len(shape) not in (2, 3, 4) or shape[0] not in (1, None):
        return "other"
    if len(shape) < 4:
        return "vector" if len(shape) == 2 else "tokens"
    # Maps are NCHW, as in all of ONNX's operators, unless the equal sides of a square say otherwise.
    return "nhwc" if height == width and shape[1] == shape[2] != shape[3] else "map"


def _map_size(shape: Shape, kind: str) -> Shape:
    return shape[1:3] if kind == "nhwc" else shape[2:]


def _is_map(network: Network, tensor: str) -> bool:
    """Whether a tensor is a map of more than one pixel."""
    shape, kind = network.shape(tensor), _describe_kind(network, tensor)
    return kind in ("map", "nhwc") and None not in shape and max(s or 0 for s in _map_size(shape, kind)) > 1


def _is_tokens(network: Network, tensor: str) -> bool:
    """Whether a tensor is a sequence of several tokens, rather than channels first (n, channels, pixels)."""
    node = network.producers.get(tensor)
    if _describe_kind(network, tensor) != "tokens" or node is None or 1 in network.shape(tensor)[1:]:
        return False
    source = _data_input(network, node)
    if node.op_type == "Transpose":
        return len(network.shape(source)) != 3 or not _is_tokens(network, source)
    return not (node.op_type in _RESHAPES and len(network.shape(source)) == 4)


def _count_prefix_tokens(network: Network, tensor: str) -> int:
    """Class, distillation and register tokens: what the sequence has more than its patches, or is put before them."""
    n_tokens = network.shape(tensor)[1]
    added = 0
    for node in network.ancestors([tensor]):
        if node.op_type == "Concat" and len(network.shape(node.output[0])) == 3:
            shapes = [network.shape(name) for name in node.input if name in network.constants]
            added += sum(shape[1] or 0 for shape in shapes if len(shape) == 3)
    maps = [point for point in find_cut_points(network, tensor) if _is_map(network, point)]
    if not maps or n_tokens is None:
        return added
    kind = _describe_kind(network, maps[-1])
    more = n_tokens - math.prod(size or 0 for size in _map_size(network.shape(maps[-1]), kind))
    return more if 0 <= more <= _MAX_PREFIX else 0


def _find_scale(network: Network, tensor: str) -> tuple[str, str]:
    """The names of the scale and the zero point that a quantised tensor is stored with."""
    start = tensor
    while (node := network.producers.get(tensor)) is not None:
        if node.op_type in _SCALES_AT:
            position = _SCALES_AT[node.op_type]
            return node.input[position], node.input[position + 1] if len(node.input) > position + 1 else ""
        if node.op_type == "DynamicQuantizeLinear":
            return node.output[1], node.output[2]
        tensor = _data_input(network, node)
    raise BackboneError(f"The scale of the quantised layer {start!r} of {network.path} is unknown; name another one.")


# -- the classifier ---------------------------------------------------------------------------------------------------


def _find_penultimate(network: Network) -> tuple[str, str | None]:
    """The input of the classifier and the pooling it has there; the output itself where there is no classifier."""
    outputs = [value.name for value in network.model.graph.output]
    for name in outputs:
        if any(word in name.lower() for word in _FEATURE_WORDS):
            return name, None
    head = _find_head(network, outputs[0])
    return head if head is not None else (outputs[0], None)


def _find_logits(network: Network) -> str:
    """The classifier's output before Softmax."""
    for value in network.model.graph.output:
        if _find_head(network, value.name) is not None:
            found = tensor = str(value.name)
            while (node := network.producers[tensor]).op_type in _SOFT | _QUANTIZERS | {"Identity"}:
                tensor = _data_input(network, node)
                found = tensor if node.op_type in _SOFT else found
            return found
    raise BackboneError(f'{network.path} has no classifier, and so no layer "logits"; use layer=None.')


def find_classifier(network: Network, layer: str | None) -> tuple[Cut, str, str]:
    """The embedding that `layer` means, the tensor that it and the logits are computed from, and the logits.

    The second is nearly always the embedding's own. Where a network has both as outputs it can be the map before them.

    Raises
    ------
    BackboneError
        If there is no such layer, or no classifier behind it.
    """
    cut, nothing = resolve_layer(network, layer, None), f"{network.path} has no linear classifier over its embedding"
    try:
        logits = resolve_layer(network, "logits", None).tensor
    except BackboneError as error:
        raise BackboneError(f"{nothing}; fit one on the embeddings.") from error
    source = cut.tensor
    on_the_way = [node for node in network.between(source, [logits]) if node.op_type != "Shape"]
    if any(network.image_input.name in node.input for node in on_the_way):
        before = set(find_cut_points(network, source))
        source = next((point for point in reversed(find_cut_points(network, logits)) if point in before), logits)
    if source == logits or cut.kind == "tokens" or cut.dequantized or cut.pooling not in (None, "avg", "flatten"):
        raise BackboneError(f"{nothing}; fit one on the embeddings.")
    return cut, source, logits


def _find_head(network: Network, output: str, *, alone: bool = True) -> tuple[str, str | None] | None:
    """Walk back over Softmax, Relu, Dropout, reshapes and pooling to one linear layer.

    Returns
    -------
    tuple or None
        Its input, and the pooling that stands behind it.
    """
    passed: set[str] = set()
    tensor, pooling = output, None
    while (node := network.producers.get(tensor)) is not None:
        kind = node.op_type
        if kind in LINEAR:
            linear = "Relu" not in passed or "Softmax" in passed
            found = linear and _has_constant_weights(network, node)
            return (_unquantize(network, _data_input(network, node)), None) if found else None
        if kind in CONVOLUTIONS:
            is_head = _is_convolutional_head(network, node, output, passed, pooling)
            return (_unquantize(network, node.input[0]), pooling) if is_head else None
        if kind in _GLOBAL_POOLS:
            pooling = _GLOBAL_POOLS[kind]
        elif kind in _SOFT:
            passed.add("Softmax")
        elif kind == "Relu":
            passed.add("Relu")
        elif kind == "Add" and alone and all(_find_head(network, name, alone=False) for name in node.input):
            # Two classifiers, averaged (distilled networks): what both of them see.
            return find_cut_points(network, tensor)[-2], None
        elif kind not in _TRANSPARENT | _QUANTIZERS and not _reshapes(network, node) and not _scales(network, node):
            return None
        tensor = _data_input(network, node)
    return None


def _is_convolutional_head(
    network: Network, node: onnx.NodeProto, output: str, passed: set[str], pooling: str | None
) -> bool:
    """A convolution is a classifier when it is linear on a 1x1 map, or SqueezeNet's: before ReLU and pooling.

    The last form is also that of some headless networks, so it takes a Softmax behind it, an output named after
    classes, or ImageNet's number of classes.
    """
    shape = network.shape(node.output[0])
    if pooling is None:
        return "Relu" not in passed and shape[2:] == (1, 1)
    named = any(word in output.lower() for word in _LOGIT_WORDS)
    kernel = next((list(a.ints) for a in node.attribute if a.name == "kernel_shape"), [1, 1])
    return kernel == [1, 1] and ("Softmax" in passed or named or shape[1:2] in [(n,) for n in _IMAGENET_CLASSES])


def _reshapes(network: Network, node: onnx.NodeProto) -> bool:
    """Whether a node gives the values of its input another shape: also by taking the only one along an axis."""
    if node.op_type in _RESHAPES:
        return True
    before, after = (_count_values(network, name) for name in (_data_input(network, node), node.output[0]))
    return node.op_type == "Gather" and before == after > 0


def _scales(network: Network, node: onnx.NodeProto) -> bool:
    """A bias, a constant factor, or one factor for a whole tensor, as dynamic quantisation has it."""
    if node.op_type not in _SCALINGS:
        return False
    others = [name for name in node.input if name != _data_input(network, node)]
    return all(name in network.constants or _count_values(network, name) == 1 for name in others)


def _count_values(network: Network, tensor: str) -> int:
    """For one image; 0 where it is not known."""
    return math.prod(size or 0 for size in network.shape(tensor)) if tensor in network.values else 0


def _unquantize(network: Network, tensor: str) -> str:
    """The numbers behind a tensor that was quantised just for its consumer."""
    while (node := network.producers.get(tensor)) is not None and (
        node.op_type == "DynamicQuantizeLinear"
        or (node.op_type == "QuantizeLinear" and network.elem_type(node.input[0]) not in _QUANTIZED)
    ):
        tensor = node.input[0]
    return tensor


def _follow_rounding(network: Network, tensor: str) -> str:
    """What a quantised network goes on with instead of `tensor`: rounded, and clipped where that replaced a ReLU."""
    found = tensor
    for op_type in ("QuantizeLinear", "DequantizeLinear"):
        consumers = [node for node in network.model.graph.node if found in node.input]
        if not consumers or any(node.op_type != op_type for node in consumers):
            return tensor
        found = consumers[0].output[0]
    return found


def _data_input(network: Network, node: onnx.NodeProto) -> str:
    return str(next((name for name in node.input if name not in network.constants), node.input[0]))


def _has_constant_weights(network: Network, node: onnx.NodeProto) -> bool:
    return any(name in network.constants for name in node.input[: WEIGHTS_AT.get(node.op_type, 1) + 1] if name)


def _skip_reshapes(network: Network, tensor: str) -> str:
    """Walk back over what only flattens: a Reshape often freezes the batch size."""
    while (node := network.producers.get(tensor)) is not None:
        source = _data_input(network, node)
        if source == network.image_input.name:
            break
        if not (
            node.op_type in _TRANSPARENT or (node.op_type in _RESHAPES and _only_flattens(network, source, tensor))
        ):
            break
        tensor = source
    return tensor


def _only_flattens(network: Network, source: str, tensor: str) -> bool:
    """Whether a vector holds the values of a vector or of a map, in the order in which "flatten" would put them."""
    kind, shape = _describe_kind(network, source), network.shape(source)
    one_pixel = kind == "nhwc" and math.prod(size or 0 for size in _map_size(shape, kind)) == 1
    return len(network.shape(tensor)) <= 2 and (kind in ("vector", "map") or one_pixel)


# -- maps and stages --------------------------------------------------------------------------------------------------


def find_cut_points(network: Network, tensor: str) -> list[str]:
    """The tensors that every path from the image to `tensor` goes through, itself included, in the order of the graph.

    Such a tensor holds all that the rest of the network learns of the image: the ends of blocks, not their branches.
    """
    nodes = network.ancestors([tensor])
    last_use: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node_inputs(node):
            last_use[name] = index
    points: list[str] = []
    alive = {network.image_input.name} if network.image_input.name in last_use else set[str]()
    for index, node in enumerate(nodes):
        alive -= {name for name in node_inputs(node) if last_use[name] == index}
        alive |= {name for name in node.output if name in last_use or name == tensor} - network.constants
        if len(alive) == 1 and alive <= set(node.output):
            points += alive
    return points


def _find_pooled(network: Network, tensor: str) -> str:
    """The last map of more than one pixel, or sequence of tokens, at or before `tensor`."""
    for point in reversed(find_cut_points(network, tensor)):
        if _is_map(network, point) or _is_tokens(network, point):
            return point
    raise BackboneError(
        f"pooling needs a map (n, channels, height, width), and {network.path} has none at or before {tensor!r}; "
        "use pooling=None."
    )


def find_stages(network: Network) -> list[str]:
    """The last map of every size that the network works on, its stem left out: stage1, stage2, …

    Where branches are merged at that size it is the last merged one, with what normalises or activates it: the end of
    a block, and not the widened map inside the next one.
    """
    levels: list[list[str]] = []
    for point in find_cut_points(network, _find_penultimate(network)[0]):
        if _is_map(network, point):
            if not levels or _side(network, point) <= _SAME_LEVEL * _side(network, levels[-1][0]):
                levels.append([])
            levels[-1].append(point)
    position = {name: index for index, node in enumerate(network.model.graph.node) for name in node.output}
    convolutions = [i for i, node in enumerate(network.model.graph.node) if node.op_type in CONVOLUTIONS]
    stages, start = [], 0
    for level in levels:
        end = position[level[-1]]
        if sum(start <= index <= end for index in convolutions) >= _STAGE_CONVOLUTIONS:
            stages.append(level[-1] if level is levels[-1] else _end_of_blocks(network, level))
        start = end + 1
    return stages


def _end_of_blocks(network: Network, level: Sequence[str]) -> str:
    """The last merged tensor of a level before more convolutions; the last of all where none is merged."""
    tensor = level[-1]
    for point in reversed(level):
        node = network.producers[point]
        if node.op_type in _MERGES and sum(name not in network.constants for name in node.input) > 1:
            return tensor
        if node.op_type in CONVOLUTIONS:
            tensor = level[level.index(point) - 1] if point != level[0] else tensor
    return level[-1]


def _side(network: Network, tensor: str) -> int:
    return min(size or 1 for size in _map_size(network.shape(tensor), _describe_kind(network, tensor)))


def _find_stage(network: Network, layer: str) -> str:
    stages = find_stages(network)
    number = layer.removeprefix("stage")
    if layer.startswith("stage") and number.isdecimal():
        if 1 <= int(number) <= len(stages):
            return stages[int(number) - 1]
        has = f"has stage1 to stage{len(stages)}" if stages else "has no stages"
        raise BackboneError(f"layer must name a stage of {network.path}, which {has}. Got {layer!r} instead.")
    names = [name for name in network.producers if name not in network.constants]
    near = difflib.get_close_matches(layer, names, n=3, cutoff=0)
    raise BackboneError(
        f'layer must be "penultimate", "last_map", "stage1", …, "logits" or a tensor of {network.path}. Got {layer!r} '
        f"instead; the nearest names are {', '.join(map(repr, near))}."
    )

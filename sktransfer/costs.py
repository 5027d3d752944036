"""The layers worth cutting a backbone at, and what it costs to get there."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sktransfer.exceptions import BackboneError
from sktransfer.layers import CONVOLUTIONS, LINEAR, WEIGHTS_AT, Cut, find_cut_points, find_stages, resolve_layer
from sktransfer.network import Network
from sktransfer.shapes import Shape

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Layer:
    """A layer that a backbone can be cut at."""

    name: str
    aliases: tuple[str, ...]  # "stage1", …, "last_map", "penultimate", "logits"
    shape: Shape  # of one image's activation, the number of images left out
    pooling: str | None  # that layer=name applies
    n_features: int  # of layer=name
    macs: int  # multiply-accumulates for one image up to here


def list_layers(network: Network) -> list[Layer]:
    """The ends of the network's blocks, from the image to the classifier.

    Of tensors in a row with the same shape and cost (convolution, normalisation, ReLU) the last one stands for all,
    unless another one has an alias.
    """
    aliases = _find_aliases(network)
    position = {name: index for index, node in enumerate(network.model.graph.node) for name in node.output}
    end = next((name for name, names in aliases.items() if "logits" in names), network.model.graph.output[0].name)
    rows: list[Layer] = []
    for name in sorted({*find_cut_points(network, end), *aliases}, key=position.__getitem__):
        with contextlib.suppress(BackboneError):  # a tensor of another rank is no layer
            cut = resolve_layer(network, name, None)
            macs = count_macs(network, network.ancestors([name]))
            row = _describe_layer(network, name, tuple(aliases.get(name, ())), cut, macs)
            same = rows and (rows[-1].shape, rows[-1].macs) == (row.shape, row.macs)
            if same and not rows[-1].aliases:
                rows[-1] = row
            elif not same or row.aliases:
                rows.append(row)
    return rows


def _describe_layer(network: Network, name: str, aliases: tuple[str, ...], cut: Cut, macs: int) -> Layer:
    return Layer(name, aliases, network.shape(name)[1:], cut.pooling, cut.n_features, macs)


def _find_aliases(network: Network) -> dict[str, list[str]]:
    """Tensors and what they are also called."""
    names: dict[str, list[str]] = {}
    for number, tensor in enumerate(find_stages(network), start=1):
        names.setdefault(tensor, []).append(f"stage{number}")
    for alias in ("last_map", "penultimate", "logits"):
        with contextlib.suppress(BackboneError):
            names.setdefault(resolve_layer(network, alias, None).tensor, []).append(alias)
    return names


def count_macs(network: Network, nodes: Iterable[onnx.NodeProto]) -> int:
    """Multiplications, each with its addition, of the convolutions and matrix products among `nodes`, for one image."""
    return sum(_count_node(network, node) for node in nodes)


def _count_node(network: Network, node: onnx.NodeProto) -> int:
    if node.op_type not in CONVOLUTIONS | LINEAR | {"ConvTranspose"}:
        return 0
    weights = _sizes(network.shape(node.input[WEIGHTS_AT.get(node.op_type, 1)]))
    if node.op_type in CONVOLUTIONS:
        return math.prod(_sizes(network.shape(node.output[0]))) * math.prod(weights[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(_sizes(network.shape(node.input[0]))) * math.prod(weights[1:])
    transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
    shared = weights[-1 if transposed or len(weights) < 2 else -2] if weights else 0
    return math.prod(_sizes(network.shape(node.output[0]))) * shared


def _sizes(shape: Shape) -> Sequence[int]:
    return [size or 0 for size in shape]

"""A torch module with the weights of an ONNX backbone, so that torch can be measured on the same network.

Onnxruntime folds constants and batch normalisations first, as it does for itself; the module is a plain
`torch.fx.GraphModule` of `torch.nn` layers, which channels_last and torch.compile take.
"""

from __future__ import annotations

import math
import operator
import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper
from torch import fx, nn

BINARY = {"Add": operator.add, "Mul": operator.mul}


def make_twin(onnx_bytes: bytes) -> nn.Module:
    """The network from its input to its first output, in eval mode.

    Raises
    ------
    ValueError
        If the network has an operator, or a form of one, that is not translated here.
    """
    return _Translation(_simplify(onnx_bytes).graph).translate()


def _simplify(onnx_bytes: bytes) -> onnx.ModelProto:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "simple.onnx")
        ort.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


class _Translation:
    """One pass over the nodes of an ONNX graph."""

    def __init__(self, source: onnx.GraphProto) -> None:
        self.source = source
        self.constants = {weight.name: numpy_helper.to_array(weight) for weight in source.initializer}
        self.root, self.graph = nn.Module(), fx.Graph()
        self.values: dict[str, fx.Node] = {}

    def translate(self) -> nn.Module:
        for image in (entry for entry in self.source.input if entry.name not in self.constants):
            self.values[image.name] = self.graph.placeholder("pixels")
        for node in self.source.node:
            attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
            self.values[node.output[0]] = self._translate_node(node, attributes)
        self.graph.output(self.values[self.source.output[0].name])
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph).eval()

    def _translate_node(self, node: onnx.NodeProto, attributes: dict) -> fx.Node:
        if node.op_type in BINARY:
            return self.graph.call_function(BINARY[node.op_type], tuple(map(self._operand, node.input)))
        if node.op_type == "Concat":
            tensors = [self._operand(name) for name in node.input]
            return self.graph.call_function(torch.cat, (tensors, attributes["axis"]))
        source = self.values[node.input[0]]
        if node.op_type in ("Identity", "Dropout"):
            return source
        if node.op_type == "Reshape":
            return self._reshape(source, self.constants[node.input[1]].tolist())
        operands = [self.constants[name] if name else None for name in node.input[1:]]
        for layer in _make_layers(node.op_type, operands, attributes):
            source = self._call(node.op_type, layer, source)
        return source

    def _call(self, op_type: str, layer: nn.Module, source: fx.Node) -> fx.Node:
        name = f"{op_type.lower()}{len(list(self.root.children()))}"
        self.root.add_module(name, layer)
        return self.graph.call_module(name, (source,))

    def _operand(self, name: str) -> fx.Node:
        if name in self.values:
            return self.values[name]
        buffer = f"constant{len(list(self.root.buffers(recurse=False)))}"
        self.root.register_buffer(buffer, _tensor(self.constants[name]))
        return self.graph.get_attr(buffer)

    def _reshape(self, source: fx.Node, shape: list[int]) -> fx.Node:
        if shape[0] > 0:
            raise ValueError(f"Reshape to a fixed batch is not translated. Got {shape}.")
        sizes = [self.graph.call_method("size", (source, axis)) if n == 0 else n for axis, n in enumerate(shape)]
        return self.graph.call_method("reshape", (source, *sizes))


def _make_layers(op_type: str, operands: list, attributes: dict) -> list[nn.Module]:
    """The torch layers of one ONNX node; two where padding is a layer of its own."""
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise ValueError(f"{op_type} with auto_pad={attributes['auto_pad'].decode()} is not translated.")
    makers = {"Conv": _make_convolution, "MaxPool": _make_max_pool, "AveragePool": _make_average_pool,
              "BatchNormalization": _make_normalisation, "Clip": _make_clip}  # fmt: skip
    plain = {"Relu": nn.ReLU, "GlobalAveragePool": lambda: nn.AdaptiveAvgPool2d(1), "Flatten": nn.Flatten}
    if op_type in makers:
        return makers[op_type](operands, attributes)
    if op_type in plain and attributes.get("axis", 1) == 1:
        return [plain[op_type]()]
    raise ValueError(f"{op_type} is not translated to torch.")


def _make_convolution(operands: list, attributes: dict) -> list[nn.Module]:
    weight, bias = operands[0], operands[1] if len(operands) > 1 else None
    groups = attributes.get("group", 1)
    before, padding = _split_padding(attributes, 0.0)
    layer = nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], weight.shape[2:], attributes.get("strides", (1, 1)), padding,
        attributes.get("dilations", (1, 1)), groups, bias is not None,
    )  # fmt: skip
    layer.weight.data = _tensor(weight)
    if bias is not None:
        layer.bias.data = _tensor(bias)
    return [*before, layer]


def _make_max_pool(_: list, attributes: dict) -> list[nn.Module]:
    before, padding = _split_padding(attributes, -math.inf)
    ceil, dilations = bool(attributes.get("ceil_mode", 0)), attributes.get("dilations", (1, 1))
    size, strides = attributes["kernel_shape"], attributes.get("strides", (1, 1))
    return [*before, nn.MaxPool2d(size, strides, padding, dilations, ceil_mode=ceil)]


def _make_average_pool(_: list, attributes: dict) -> list[nn.Module]:
    before, padding = _split_padding(attributes, 0.0)
    ceil, counted = bool(attributes.get("ceil_mode", 0)), bool(attributes.get("count_include_pad", 0))
    if (before and not counted) or max(attributes.get("dilations", (1,))) > 1:
        raise ValueError("AveragePool with dilations, or uneven padding that it does not count, is not translated.")
    size, strides = attributes["kernel_shape"], attributes.get("strides", (1, 1))
    return [*before, nn.AvgPool2d(size, strides, padding, ceil, counted)]


def _split_padding(attributes: dict, value: float) -> tuple[list[nn.Module], tuple[int, int]]:
    """Padding as a layer in front where it is uneven, else as the (height, width) that the layer itself takes."""
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        return [], (top, left)
    return [nn.ConstantPad2d((left, right, top, bottom), value)], (0, 0)


def _make_normalisation(operands: list, attributes: dict) -> list[nn.Module]:
    scale, shift, mean, variance = map(_tensor, operands)
    layer = nn.BatchNorm2d(len(scale), attributes.get("epsilon", 1e-5))
    layer.weight.data, layer.bias.data = scale, shift
    layer.running_mean, layer.running_var = mean, variance
    return [layer]


def _make_clip(operands: list, attributes: dict) -> list[nn.Module]:
    inputs = dict(zip(("min", "max"), operands, strict=False))
    bounds = {name: array.item() for name, array in inputs.items() if array is not None}
    low = bounds.get("min", attributes.get("min", -math.inf))
    high = bounds.get("max", attributes.get("max", math.inf))
    return [nn.ReLU6() if (low, high) == (0.0, 6.0) else nn.Hardtanh(low, high)]


def _tensor(array) -> torch.Tensor:
    return torch.from_numpy(array.copy())

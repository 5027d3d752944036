"""ONNX operators in torch: arithmetic, activations, linear layers and shapes. `spatial` has those of maps.

Each function takes the call, then the inputs in ONNX's order with None for those left out, and follows the operator's
page (onnx/docs/Operators.md and Changelog.md, for all opsets from 7 on).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Operator = Callable[..., Any]
Axes = Sequence[int]

_INTEGERS = frozenset({2, 3, 4, 5, 6, 7, 12, 13})  # ONNX's numbers of the integer types
_BOOL = 9


@dataclass
class Call:
    """A node: which operator, with which attributes, of which opset."""

    op_type: str
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 13
    adapts: bool = False  # a normalisation takes its statistics from the batch, and remembers them

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or what stands for it where it is left out."""
        return self.attributes.get(name, default)

    def axes(self, given: torch.Tensor | None, name: str = "axes") -> list[int] | None:
        """Numbers that older opsets have as an attribute and newer ones as an input."""
        values = self.get(name) if given is None else given.tolist()
        return None if values is None else [values] if isinstance(values, int) else list(values)


def _unary(function: str) -> Operator:
    def apply(call: Call, x: torch.Tensor) -> torch.Tensor:
        return getattr(x, function)()

    return apply


def _activation(function: str, **defaults: float) -> Operator:
    """A function of torch.nn.functional whose parameters are the attributes, in their order."""

    def apply(call: Call, x: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        return getattr(functional, function)(x, *(call.get(name, value) for name, value in defaults.items()))

    return apply


def _binary(function: str) -> Operator:
    def apply(call: Call, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        return functools.reduce(getattr(torch, function), inputs)

    return apply


# Arithmetic and activations


def divide(call: Call, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Div: integers are truncated towards zero."""
    return a / b if a.is_floating_point() else a.div(b, rounding_mode="trunc")


def mean(call: Call, *inputs: torch.Tensor) -> torch.Tensor:
    """Mean of several tensors."""
    return functools.reduce(lambda a, b: a + b, inputs) / len(inputs)


def clip(
    call: Call, x: torch.Tensor, low: torch.Tensor | None = None, high: torch.Tensor | None = None
) -> torch.Tensor:
    """Clip: bounds are attributes before opset 11."""
    bounds = [call.get(name) if bound is None else float(bound) for name, bound in (("min", low), ("max", high))]
    return x if bounds == [None, None] else x.clamp(*bounds)


def cast(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Cast: every float type is float32 here, so that weights kept in fewer bits can be trained."""
    target = call.get("to")
    return x.bool() if target == _BOOL else x.long() if target in _INTEGERS else x.float()


def hard_sigmoid(call: Call, x: torch.Tensor) -> torch.Tensor:
    """max(0, min(1, alpha x + beta))."""
    return (x * call.get("alpha", 0.2) + call.get("beta", 0.5)).clamp(0, 1)


def hard_swish(call: Call, x: torch.Tensor) -> torch.Tensor:
    """X max(0, min(1, x / 6 + 1/2))."""
    return x * (x / 6 + 0.5).clamp(0, 1)


def gelu(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Gelu, exact or by tanh."""
    from torch.nn import functional

    return functional.gelu(x, approximate=call.get("approximate", "none"))


def prelu(call: Call, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """PRelu: the slope broadcasts from the right."""
    import torch

    return torch.where(x < 0, x * slope, x)


def first(call: Call, x: torch.Tensor, *others: Any) -> torch.Tensor:
    """Identity and Dropout, which does nothing outside of training."""
    return x


# Linear layers


def gemm(call: Call, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    """Alpha A B + beta C."""
    a = a.T if call.get("transA", 0) else a
    product = a @ (b.T if call.get("transB", 0) else b) * call.get("alpha", 1.0)
    return product if c is None else product + c * call.get("beta", 1.0)


def softmax(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Softmax and LogSoftmax; before opset 13 over all axes from `axis` on."""
    function = "log_softmax" if call.op_type == "LogSoftmax" else "softmax"
    if call.opset >= 13:
        return getattr(x, function)(call.get("axis", -1))
    axis = call.get("axis", 1) % x.ndim
    return getattr(x.flatten(axis), function)(-1).reshape(x.shape)


# Shapes


def flatten(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Flatten to a matrix."""
    axis = call.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), -1)


def reshape(call: Call, x: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """Reshape: 0 keeps a size."""
    sizes = shape.tolist()
    if not call.get("allowzero", 0):
        sizes = [size or x.shape[index] for index, size in enumerate(sizes)]
    return x.reshape(sizes)


def transpose(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Transpose: reversed by default."""
    return x.permute(call.get("perm") or list(range(x.ndim))[::-1])


def squeeze(call: Call, x: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
    """Squeeze."""
    found = call.axes(axes)
    return x.squeeze() if found is None else x.squeeze(tuple(found))


def unsqueeze(call: Call, x: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
    """Unsqueeze: axes count in the output."""
    found = call.axes(axes) or []
    for axis in sorted(axis % (x.ndim + len(found)) for axis in found):
        x = x.unsqueeze(axis)
    return x


def concat(call: Call, *inputs: torch.Tensor) -> torch.Tensor:
    """Concat."""
    import torch

    return torch.cat(inputs, call.get("axis"))


def split(call: Call, x: torch.Tensor, sizes: torch.Tensor | None = None) -> Sequence[torch.Tensor]:
    """Split: into parts of stated sizes, or of equal ones."""
    axis, found = call.get("axis", 0), call.axes(sizes, "split")
    length = math.ceil(x.shape[axis] / call.get("num_outputs", call.get("n_outputs")))
    return tuple(x.split(length if found is None else found, axis))


def slice_(call: Call, x: torch.Tensor, *bounds: torch.Tensor | None) -> torch.Tensor:
    """Slice: bounds are attributes before opset 10."""
    inputs = [*bounds, None, None, None, None][:4]
    names = ("starts", "ends", "axes", "steps")
    starts, ends, axes, steps = (call.axes(given, name) for name, given in zip(names, inputs, strict=True))
    starts, ends = starts or [], ends or []
    for index, axis in enumerate(axes or range(len(starts))):
        step = steps[index] if steps else 1
        kept = range(x.shape[axis])[slice(starts[index], ends[index], step)]
        x = x.index_select(axis, _as_index(kept, x))
    return x


def gather(call: Call, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Gather: the axis is replaced by those of the indices."""
    axis = call.get("axis", 0) % x.ndim
    flat = (indices % x.shape[axis]).reshape(-1).to(x.device)
    return x.index_select(axis, flat).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def shape(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Shape, or part of it."""
    return _as_index(list(x.shape)[call.get("start", 0) : call.get("end")], None)


def expand(call: Call, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Expand: broadcast both ways."""
    import torch

    return x.expand(torch.broadcast_shapes(x.shape, sizes.tolist()))


def tile(call: Call, x: torch.Tensor, repeats: torch.Tensor) -> torch.Tensor:
    """Tile."""
    return x.repeat(repeats.tolist())


def fill(call: Call, sizes: torch.Tensor) -> torch.Tensor:
    """ConstantOfShape: zeros of float32 by default."""
    import torch

    value = call.get("value")
    return torch.zeros(sizes.tolist()) if value is None else value.reshape(()).expand(sizes.tolist())


def where(call: Call, condition: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Where."""
    import torch

    return torch.where(condition, a, b)


def _as_index(values: Sequence[int], beside: torch.Tensor | None) -> torch.Tensor:
    import torch

    return torch.tensor(list(values), dtype=torch.int64, device=None if beside is None else beside.device)


# Sums along axes


def _reduce(function: Callable[[Any, Any, bool], Any]) -> Operator:
    """ReduceMean and the like: axes are an attribute first, an input in newer opsets, all if left out."""

    def apply(call: Call, x: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
        found = call.axes(axes)
        if not found and call.get("noop_with_empty_axes", 0):
            return x
        result: torch.Tensor = function(x, tuple(found or range(x.ndim)), bool(call.get("keepdims", 1)))
        return result

    return apply


def normalise_length(call: Call, x: torch.Tensor) -> torch.Tensor:
    """LpNormalization."""
    from torch.nn import functional

    return functional.normalize(x, call.get("p", 2), call.get("axis", -1))


PLAIN: dict[str, Operator] = {
    **{name: _unary(name.lower()) for name in
       ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Log", "Neg", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign",
        "Sin", "Sqrt", "Tanh")},
    "Not": _unary("logical_not"),
    **{name: _binary(name.lower()) for name in ("Add", "Sub", "Mul", "Pow", "Less", "Greater")},
    "Sum": _binary("add"), "Max": _binary("maximum"), "Min": _binary("minimum"), "Equal": _binary("eq"),
    "And": _binary("logical_and"), "Or": _binary("logical_or"), "Div": divide, "Mean": mean,
    "Elu": _activation("elu", alpha=1.0), "Celu": _activation("celu", alpha=1.0), "Mish": _activation("mish"),
    "LeakyRelu": _activation("leaky_relu", alpha=0.01), "Selu": _activation("selu"), "Gelu": gelu,
    "Softplus": _activation("softplus"), "Softsign": _activation("softsign"), "PRelu": prelu,
    "HardSigmoid": hard_sigmoid, "HardSwish": hard_swish, "Clip": clip, "Cast": cast, "Identity": first,
    "Dropout": first, "MatMul": _binary("matmul"), "Gemm": gemm, "Softmax": softmax, "LogSoftmax": softmax,
    "Flatten": flatten, "Reshape": reshape, "Transpose": transpose, "Squeeze": squeeze, "Unsqueeze": unsqueeze,
    "Concat": concat, "Split": split, "Slice": slice_, "Gather": gather, "Shape": shape, "Expand": expand,
    "Tile": tile, "ConstantOfShape": fill, "Where": where, "LpNormalization": normalise_length,
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: x.norm(dim=axes, keepdim=keep)),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
}  # fmt: skip

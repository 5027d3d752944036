"""ONNX operators in torch: convolution, pooling, normalisation and padding of maps (n, channels, height, width)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sktransfer.finetune.operators import PLAIN, Call, Operator

if TYPE_CHECKING:
    import torch

MOMENTUM = 0.1  # share of a batch in the statistics that a normalisation remembers, as in torch.nn.BatchNorm2d


@dataclass(frozen=True)
class Windows:
    """Where a kernel is put along one axis.

    Attributes
    ----------
    before, after : int
        Padding that the operator states, in pixels.
    n : int
        How many windows there are.
    overhang : int
        Pixels that the last window needs behind the input, padding and those of ``ceil_mode`` together; negative where
        it ends before the input does.
    """

    before: int
    after: int
    n: int
    overhang: int


def place_windows(call: Call, size: Sequence[int], kernel: Sequence[int]) -> list[Windows]:
    """Windows along height and width (Operators.md, AveragePool: output shape; onnxruntime, PoolAttributes).

    With ``ceil_mode`` a last window that would begin behind input and padding in front is left out.
    """
    strides, dilations = call.get("strides", [1, 1]), call.get("dilations", [1, 1])
    pads, auto = call.get("pads", [0, 0, 0, 0]), call.get("auto_pad", "NOTSET")
    windows = []
    for axis in range(2):
        reach, stride = dilations[axis] * (kernel[axis] - 1) + 1, strides[axis]
        before, after = (pads[axis], pads[axis + 2]) if auto == "NOTSET" else (0, 0)
        if auto.startswith("SAME"):
            total = max(0, (math.ceil(size[axis] / stride) - 1) * stride + reach - size[axis])
            before, after = (total // 2, total - total // 2)[:: 1 if auto == "SAME_UPPER" else -1]
        room, ceil = size[axis] + before + after - reach, bool(call.get("ceil_mode", 0))
        n = (math.ceil(room / stride) if ceil else room // stride) + 1
        n -= ceil and (n - 1) * stride >= size[axis] + before
        windows.append(Windows(before, after, n, (n - 1) * stride + reach - size[axis] - before))
    return windows


def _pad(x: torch.Tensor, windows: Sequence[Windows], value: float = 0.0) -> torch.Tensor:
    """Input of exactly the length that the windows cover."""
    from torch.nn import functional

    pads = [pad for window in reversed(windows) for pad in (window.before, window.overhang)]
    return functional.pad(x, pads, value=value) if any(pads) else x


def convolve(call: Call, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """Conv."""
    from torch.nn import functional

    windows = place_windows(call, x.shape[2:], w.shape[2:])
    even = all(window.before == window.after for window in windows)
    x, padding = (x, [window.before for window in windows]) if even else (_pad(x, windows), [0, 0])
    strides, dilations = call.get("strides", [1, 1]), call.get("dilations", [1, 1])
    return functional.conv2d(x, w, b, strides, padding, dilations, call.get("group", 1))


def pool_maximum(call: Call, x: torch.Tensor) -> torch.Tensor:
    """MaxPool, without its second output."""
    from torch.nn import functional

    kernel = call.get("kernel_shape")
    x = _pad(x, place_windows(call, x.shape[2:], kernel), -math.inf)
    return functional.max_pool2d(x, kernel, call.get("strides", [1, 1]), 0, call.get("dilations", [1, 1]))


def pool_average(call: Call, x: torch.Tensor) -> torch.Tensor:
    """AveragePool: over pixels of the input alone, or over the padding too, and never over what ``ceil_mode`` adds."""
    import torch
    from torch.nn import functional

    kernel, strides = call.get("kernel_shape"), call.get("strides", [1, 1])
    if any(dilation != 1 for dilation in call.get("dilations", [1])):
        raise NotImplementedError("dilations of AveragePool")
    height, width = windows = place_windows(call, x.shape[2:], kernel)
    counted = torch.ones((1, 1, *x.shape[2:]), device=x.device)
    if call.get("count_include_pad", 0):
        counted = functional.pad(counted, [width.before, width.after, height.before, height.after], value=1.0)
        inside = [Windows(0, 0, w.n, w.overhang - w.after) for w in windows]
    else:
        inside = list(windows)
    n_pixels = functional.avg_pool2d(_pad(counted, inside), kernel, strides, divisor_override=1)
    return functional.avg_pool2d(_pad(x, windows), kernel, strides, divisor_override=1) / n_pixels


def normalise_batch(
    call: Call, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> torch.Tensor:
    """BatchNormalization, by its own statistics or, where it adapts, by those of the batch."""
    from torch.nn import functional

    return functional.batch_norm(
        x, mean, variance, scale, bias, call.adapts and x.numel() > x.shape[1], MOMENTUM, call.get("epsilon", 1e-5)
    )


def normalise_instance(call: Call, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """InstanceNormalization."""
    from torch.nn import functional

    return functional.instance_norm(x, weight=scale, bias=bias, eps=call.get("epsilon", 1e-5))


def normalise_layer(call: Call, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """LayerNormalization, without its second and third outputs."""
    from torch.nn import functional

    shape = x.shape[call.get("axis", -1) % x.ndim :]
    result = functional.layer_norm(x, shape, eps=call.get("epsilon", 1e-5)) * scale
    return result if bias is None else result + bias


def normalise_response(call: Call, x: torch.Tensor) -> torch.Tensor:
    """LRN: channels c - floor((size - 1) / 2) to c + ceil((size - 1) / 2)."""
    from torch.nn import functional

    size = call.get("size")
    squares = functional.pad(x.square().unsqueeze(1), [0, 0, 0, 0, (size - 1) // 2, size // 2])
    mean = functional.avg_pool3d(squares, (size, 1, 1), stride=1).squeeze(1)
    return x / (call.get("bias", 1.0) + call.get("alpha", 1e-4) * mean) ** call.get("beta", 0.75)


def pad(call: Call, x: torch.Tensor, *inputs: torch.Tensor | None) -> torch.Tensor:
    """Pad: sizes and value are attributes before opset 11."""
    from torch.nn import functional

    sizes, value, axes = [*inputs, None, None, None][:3]
    given = call.axes(sizes, "pads") or []
    chosen, full = call.axes(axes) or list(range(len(given) // 2)), [0] * (2 * x.ndim)
    for index, axis in enumerate(chosen):
        full[axis % x.ndim], full[axis % x.ndim + x.ndim] = given[index], given[index + len(chosen)]
    ends = [size for axis in reversed(range(x.ndim)) for size in (full[axis], full[axis + x.ndim])]
    mode = {"edge": "replicate", "wrap": "circular"}.get(call.get("mode", "constant"), call.get("mode", "constant"))
    if mode == "constant":
        return functional.pad(x, ends, value=float(value) if value is not None else call.get("value", 0.0))
    if any(ends[4:]):
        raise NotImplementedError(f"Pad of batches or channels with mode={call.get('mode')!r}")
    return functional.pad(x, ends[:4], mode=mode)


def spread_depth(call: Call, x: torch.Tensor) -> torch.Tensor:
    """DepthToSpace in the mode CRD, and in DCR, the default."""
    from torch.nn import functional

    block = call.get("blocksize")
    if call.get("mode", "DCR") == "DCR":
        n, channels, *size = x.shape
        x = x.reshape(n, block**2, channels // block**2, *size).transpose(1, 2).reshape(n, channels, *size)
    return functional.pixel_shuffle(x, block)


OPERATORS: dict[str, Operator] = PLAIN | {
    "Conv": convolve, "MaxPool": pool_maximum, "AveragePool": pool_average,
    "GlobalAveragePool": lambda call, x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda call, x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
    "BatchNormalization": normalise_batch, "InstanceNormalization": normalise_instance,
    "LayerNormalization": normalise_layer, "LRN": normalise_response, "Pad": pad, "DepthToSpace": spread_depth,
}  # fmt: skip

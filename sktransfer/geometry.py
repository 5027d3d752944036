"""`Preprocessing.resize_and_crop` as an ONNX graph, for a file that takes photos of any size.

onnxruntime's antialiased ``Resize`` works like Pillow's: two passes, weights of 22 bits, 8 bits in between. It computes
the weights in 32-bit floats where Pillow has 64, which leaves some pixels one level away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from sktransfer.preprocessing import Preprocessing

if TYPE_CHECKING:
    import onnx

INPUT_NAME = "sktransfer_photo"
OUTPUT_NAME = "sktransfer_cropped"
MIN_OPSET = 18  # Resize with antialias and axes

_GRAPH = """
<ir_version: {ir_version}, opset_import: ["": {opset}]>
geometry (uint8[n, height, width, 3] photo) => (uint8[n, {height}, {width}, 3] cropped)
{{
  size = Shape <start = 1, end = 3> (photo)
  zero = Constant <value_int = 0> ()
  two = Constant <value_int = 2> ()
  {resize}
  {crop}
}}"""

_NO_RESIZE = """
  new_size = Identity (size)
  resized = Identity (photo)"""

# torchvision, transforms/functional.py: _compute_resized_output_size
_SHORTER_SIDE = """
  length = Constant <value_ints = [{length}]> ()
  shorter = ReduceMin (size)
  product = Mul (size, length)
  new_size = Div (product, shorter)"""

_BOTH_SIDES = """
  new_size = Constant <value_ints = [{length[0]}, {length[1]}]> ()"""

_ACROSS_FIRST = """
  resized = Resize <{attributes}> (photo, , , new_size)"""

# Pillow 13 goes down first where the height shrinks by more than twice of what the width does (Resample.c in
# src/libImaging: horizontal_first), a Resize of both axes never does: here each axis has a Resize of its own.
_ORDER_BY_SIZE = """
  less = Sub (size, new_size)
  less_high, less_wide = Split <num_outputs = 2> (less)
  twice_less_wide = Mul (less_wide, two)
  bound = Max (twice_less_wide, zero)
  down_first = Greater (less_high, bound)
  across_first = Not (down_first)
  is_second = Concat <axis = 0> (across_first, down_first)
  size_between = Where (is_second, size, new_size)
  between = Resize <{attributes}> (photo, , , size_between)
  resized = Resize <{attributes}> (between, , , new_size)"""

# Pillow leaves out what lies beyond the edge, and its bicubic filter has a = -0.5 (Resample.c).
_ANTIALIAS = 'antialias = 1, exclude_outside = 1, coordinate_transformation_mode = "half_pixel", axes = [1, 2]'
_ATTRIBUTES = {
    "bilinear": f'mode = "linear", {_ANTIALIAS}',
    "bicubic": f'mode = "cubic", cubic_coeff_a = -0.5, {_ANTIALIAS}',
}

_NEAREST = """
  size_double = Cast <to = 11> (size)
  new_size_double = Cast <to = 11> (new_size)
  step = Div (size_double, new_size_double)
  half_a_step = Constant <value = double {0.5}> ()
  one = Constant <value_ints = [1]> ()
  last = Constant <value_ints = [9223372036854775807]> ()
  step_down, step_across = Split <num_outputs = 2> (step)
  n_down, n_across = Split <num_outputs = 2> (new_size)"""

# Pillow adds up the coordinates, as doubles (src/libImaging/Geometry.c: ImagingScaleAffine). Multiples would be
# cleaner, but are other pixels where the sum just misses a whole number.
_NEAREST_AXIS = """
  steps_{way} = Expand (step_{way}, n_{way})
  further_{way} = Slice (steps_{way}, one, last)
  first_{way} = Mul (step_{way}, half_a_step)
  parts_{way} = Concat <axis = 0> (first_{way}, further_{way})
  centre_{way} = CumSum (parts_{way}, zero)
  index_{way} = Cast <to = 7> (centre_{way})
  {target} = Gather <axis = {axis}> ({source}, index_{way})"""

# Half to even where it cuts, the smaller half first where it pads: preprocessing.py, _crop_start. The Reshape tells the
# network behind it the size.
_CROP = """
  crop = Constant <value_ints = [{height}, {width}]> ()
  axes = Constant <value_ints = [1, 2]> ()
  half = Constant <value_float = 0.5> ()
  shape = Constant <value_ints = [0, {height}, {width}, 3]> ()
  surplus = Sub (new_size, crop)
  excess = Max (surplus, zero)
  excess_float = Cast <to = 1> (excess)
  middle = Mul (excess_float, half)
  even_middle = Round (middle)
  start = Cast <to = 7> (even_middle)
  end = Add (start, crop)
  part = Slice (resized, start, end, axes)
  missing = Sub (crop, new_size)
  padding = Max (missing, zero)
  padding_before = Div (padding, two)
  padding_after = Sub (padding, padding_before)
  pads = Concat <axis = 0> (padding_before, padding_after)
  padded = Pad (part, pads, , axes)
  cropped = Reshape (padded, shape)"""


def build_geometry_model(preprocessing: Preprocessing, opset: int = MIN_OPSET, ir_version: int = 8) -> onnx.ModelProto:
    """The ONNX model that does what `Preprocessing.resize_and_crop` does, for photos of one size a run.

    From `INPUT_NAME`, uint8 (n, height, width, 3) of any height and width, to `OUTPUT_NAME`, uint8 (n, crop height,
    crop width, 3). Every name of the graph begins with "sktransfer".

    On onnxruntime's CPU and WebAssembly kernels "nearest" gives Pillow's pixels. "bilinear" is at most one level away
    and "bicubic" two, in one or two thousandths of the values, or some hundredths where the sizes put many of them
    halfway between two levels. Unlike on the host, a strip is resized as a whole, whatever memory that takes.

    Parameters
    ----------
    preprocessing : Preprocessing
        Only its geometry is used.
    opset, ir_version : int
        Those of the model that it is to be joined with.

    Raises
    ------
    ValueError
        If the filter is "lanczos", "box" or "hamming", which ONNX lacks, or `opset` is below 18.
    """
    import onnx.compose
    import onnx.parser

    if opset < MIN_OPSET:
        raise ValueError(
            f"opset must be an integer >= {MIN_OPSET} where the resize is in the graph. Got {opset} instead."
        )
    height, width = preprocessing.crop
    crop = _CROP.format(height=height, width=width)
    steps = {"resize": _resize_steps(preprocessing), "crop": crop}
    text = _GRAPH.format(ir_version=ir_version, opset=opset, height=height, width=width, **steps)
    return onnx.compose.add_prefix(onnx.parser.parse_model(text), "sktransfer_")


def _resize_steps(preprocessing: Preprocessing) -> str:
    """From `photo` and its `size` to `resized` and its `new_size`."""
    resize, resample = preprocessing.resize, preprocessing.resample
    if resize is None:
        return _NO_RESIZE
    size = (_BOTH_SIDES if isinstance(resize, tuple) else _SHORTER_SIDE).format(length=resize)
    if resample == "nearest":
        down = _NEAREST_AXIS.format(way="down", axis=1, source="photo", target="between")
        across = _NEAREST_AXIS.format(way="across", axis=2, source="between", target="resized")
        return size + _NEAREST + down + across
    if resample not in _ATTRIBUTES:
        raise ValueError(
            'resample must be "bilinear", "bicubic" or "nearest" where the resize is in the graph. '
            f"Got {resample!r} instead."
        )
    passes = _ORDER_BY_SIZE if _goes_down_first() else _ACROSS_FIRST
    return size + passes.format(attributes=_ATTRIBUTES[resample])


def _goes_down_first() -> bool:
    """Whether this Pillow is one that resizes a narrow image down first, as older ones than 13 do not."""
    image = Image.effect_noise((9, 64), 50).convert("RGB")
    down, across = image.resize((9, 8), Image.Resampling.BICUBIC), (8, 8)
    return image.resize(across, Image.Resampling.BICUBIC) == down.resize(across, Image.Resampling.BICUBIC)

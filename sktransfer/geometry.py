"""`Preprocessing.resize_and_crop` as an ONNX graph, for a file that takes photos of any size.

onnxruntime's antialiased ``Resize`` works like Pillow's: two passes, weights of 22 bits, 8 bits in between. It computes
the weights in 32-bit floats where Pillow has 64, which leaves some pixels one level away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from sktransfer.preprocessing import MAX_RESIZED_PIXELS, Preprocessing

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
  crop = Constant <value_ints = [{height}, {width}]> ()
  axes = Constant <value_ints = [1, 2]> ()
  zero = Constant <value_int = 0> ()
  two = Constant <value_int = 2> ()
  {new_size}
  {window}
  {part}
  {padding}
}}"""

_NO_RESIZE = """
  new_size = Identity (size)"""

# torchvision, transforms/functional.py: _compute_resized_output_size
_SHORTER_SIDE = """
  length = Constant <value_ints = [{length}]> ()
  shorter = ReduceMin (size)
  product = Mul (size, length)
  new_size = Div (product, shorter)"""

_BOTH_SIDES = """
  new_size = Constant <value_ints = [{length[0]}, {length[1]}]> ()"""

# Half to even: preprocessing.py, _crop_start.
_WINDOW = """
  half = Constant <value = double {0.5}> ()
  surplus = Sub (new_size, crop)
  excess = Max (surplus, zero)
  excess_double = Cast <to = 11> (excess)
  middle = Mul (excess_double, half)
  even_middle = Round (middle)
  start = Cast <to = 7> (even_middle)
  end = Add (start, crop)"""

_PART = """
  part = Slice (photo, start, end, axes)"""

_ACROSS_FIRST = """
  down_by = Constant <value_ints = [0]> ()"""

# Pillow 13, src/libImaging/Resample.c: horizontal_first, which is never false in older ones.
_ORDER_BY_SIZE = """
  less = Sub (size, new_size)
  less_high, less_wide = Split <num_outputs = 2> (less)
  twice_less_wide = Mul (less_wide, two)
  bound = Max (twice_less_wide, zero)
  down_by = Sub (less_high, bound)"""

# One axis at a time, of the first only what the crop keeps. The longer axis of a strip goes first, as the other order
# would take the memory of the whole strip.
_TWO_PASSES = """
  largest = Constant <value_int = {max_pixels}> ()
  area = ReduceProd (new_size)
  is_strip = Greater (area, largest)
  new_high, new_wide = Split <num_outputs = 2> (new_size)
  taller_by = Sub (new_high, new_wide)
  order = Where (is_strip, taller_by, down_by)
  down_first = Greater (order, zero)
  across_first = Not (down_first)
  is_second = Concat <axis = 0> (across_first, down_first)
  size_between = Where (is_second, size, new_size)
  between = Resize <{attributes}> (photo, , , size_between)
  start_between = Where (is_second, zero, start)
  end_between = Where (is_second, size, end)
  kept = Slice (between, start_between, end_between, axes)
  kept_size = Shape <start = 1, end = 3> (kept)
  size_after = Where (is_second, new_size, kept_size)
  resized = Resize <{attributes}> (kept, , , size_after)
  start_after = Where (is_second, start, zero)
  end_after = Add (start_after, crop)
  part = Slice (resized, start_after, end_after, axes)"""

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
  one = Constant <value_ints = [1]> ()
  last = Constant <value_ints = [9223372036854775807]> ()
  step_down, step_across = Split <num_outputs = 2> (step)
  n_down, n_across = Split <num_outputs = 2> (new_size)
  start_down, start_across = Split <num_outputs = 2> (start)
  end_down, end_across = Split <num_outputs = 2> (end)"""

# Pillow adds up the coordinates, as doubles (src/libImaging/Geometry.c: ImagingScaleAffine). Multiples would be
# cleaner, but are other pixels where the sum just misses a whole number.
_NEAREST_AXIS = """
  steps_{way} = Expand (step_{way}, n_{way})
  further_{way} = Slice (steps_{way}, one, last)
  first_{way} = Mul (step_{way}, half)
  parts_{way} = Concat <axis = 0> (first_{way}, further_{way})
  centre_{way} = CumSum (parts_{way}, zero)
  kept_{way} = Slice (centre_{way}, start_{way}, end_{way})
  index_{way} = Cast <to = 7> (kept_{way})
  {target} = Gather <axis = {axis}> ({source}, index_{way})"""

# The smaller half first: preprocessing.py, _crop_start. The Reshape tells the network behind it the size.
_PADDING = """
  shape = Constant <value_ints = [0, {height}, {width}, 3]> ()
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

    On onnxruntime's CPU and WebAssembly kernels "nearest" gives Pillow's pixels. With "bilinear" and "bicubic" values
    are at most two levels away, those of photos one: about one in a thousand, and one in a hundred where the sizes put
    many of them halfway between two levels (640 x 480 to 256).

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
    steps = {
        "new_size": _size_steps(preprocessing.resize),
        "window": _WINDOW,
        "part": _PART if preprocessing.resize is None else _resize_steps(preprocessing.resample),
        "padding": _PADDING.format(height=height, width=width),
    }
    text = _GRAPH.format(ir_version=ir_version, opset=opset, height=height, width=width, **steps)
    return onnx.compose.add_prefix(onnx.parser.parse_model(text), "sktransfer_")


def _size_steps(resize: int | tuple[int, int] | None) -> str:
    """From `size` to `new_size`."""
    if resize is None:
        return _NO_RESIZE
    return (_BOTH_SIDES if isinstance(resize, tuple) else _SHORTER_SIDE).format(length=resize)


def _resize_steps(resample: str) -> str:
    """From `photo` to the `part` of its resized form that lies between `start` and `end`."""
    if resample == "nearest":
        down = _NEAREST_AXIS.format(way="down", axis=1, source="photo", target="between")
        return _NEAREST + down + _NEAREST_AXIS.format(way="across", axis=2, source="between", target="part")
    if resample not in _ATTRIBUTES:
        raise ValueError(
            'resample must be "bilinear", "bicubic" or "nearest" where the resize is in the graph. '
            f"Got {resample!r} instead."
        )
    passes = _TWO_PASSES.format(attributes=_ATTRIBUTES[resample], max_pixels=MAX_RESIZED_PIXELS)
    return (_ORDER_BY_SIZE if _goes_down_first() else _ACROSS_FIRST) + passes


def _goes_down_first() -> bool:
    """Whether this Pillow is one that resizes a narrow image down first, as older ones than 13 do not."""
    image = Image.effect_noise((9, 64), 50).convert("RGB")
    down, across = image.resize((9, 8), Image.Resampling.BICUBIC), (8, 8)
    return image.resize(across, Image.Resampling.BICUBIC) == down.resize(across, Image.Resampling.BICUBIC)

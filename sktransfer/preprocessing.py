"""What a backbone expects: the geometry of its input and the arithmetic on its pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from sktransfer.resampling import resize_part

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Resample = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
MAX_RESIZED_PIXELS = 32_000_000  # a longer strip is cropped while it is resized

# (resize ÷ crop, scale, mean, std, channel order); mean and std in the order the network gets its channels
_PRESETS: dict[str, tuple[float, float, Sequence[float], Sequence[float], Literal["RGB", "BGR"]]] = {
    # torchvision/transforms/_presets.py, ImageClassification
    "imagenet": (256 / 224, 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "RGB"),
    # keras/src/applications/imagenet_utils.py, preprocess_input, modes "tf" and "caffe"
    "tf": (256 / 224, 1 / 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), "RGB"),
    "caffe": (256 / 224, 1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0), "BGR"),
}


@dataclass(frozen=True)
class Preprocessing:
    """Geometry and arithmetic between an RGB image and the input of a backbone.

    The geometry (`resize`, `crop`, `resample`) runs on the host, by `resize_and_crop`. The arithmetic
    ``(pixel * scale - mean) / std`` and the order of the channels become part of the ONNX graph.

    Parameters
    ----------
    crop : (int, int)
        Height and width of the network's input, in pixels; cut from the centre.
    resize : int, (int, int) or None
        Length of the shorter side before the crop (the aspect ratio is kept), or height and width (it is not);
        None crops the image as it is.
    resample : {"bilinear", "nearest", "bicubic", "lanczos", "box", "hamming"}
        Pillow's antialiased filter.
    scale : float
        Factor applied to pixels of 0..255 first.
    mean, std : three floats
        Applied after `scale`, in the order in which the network gets its channels.
    channel_order : {"RGB", "BGR"}
        The order in which the network gets its channels.
    layout : {"NCHW", "NHWC"} or None
        None reads it from the shape of the network's input.

    Raises
    ------
    ValueError
        If a value is outside what is listed above.

    Examples
    --------
    >>> import numpy as np
    >>> from PIL import Image
    >>> Preprocessing(crop=(224, 224), resize=256).resize_and_crop(Image.new("RGB", (640, 480))).shape
    (224, 224, 3)
    """

    crop: tuple[int, int]
    resize: int | tuple[int, int] | None = None
    resample: Resample = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_order: Literal["RGB", "BGR"] = "RGB"
    layout: Literal["NCHW", "NHWC"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop", _positive_pair("crop", self.crop))
        if self.resize is not None and not _is_positive_int(self.resize):
            object.__setattr__(self, "resize", _positive_pair("resize", self.resize))
        for name in ("mean", "std"):
            object.__setattr__(self, name, _three_floats(name, getattr(self, name)))
        if 0.0 in self.std:
            raise ValueError(f"std must not contain 0. Got {self.std} instead.")
        _check_choice("resample", self.resample, _FILTERS)
        _check_choice("channel_order", self.channel_order, ("RGB", "BGR"))
        _check_choice("layout", self.layout, ("NCHW", "NHWC", None))

    @property
    def geometry(self) -> str:
        """Text that identifies what `resize_and_crop` does; part of the key of an embedding."""
        return json.dumps([self.resize, self.crop, self.resample])

    @property
    def arithmetic(self) -> str:
        """Text that identifies what the graph does to the pixels; part of the graph's digest."""
        return json.dumps([self.scale, self.mean, self.std, self.channel_order, self.layout])

    def resize_and_crop(self, image: Image.Image) -> Pixels:
        """Resize with antialiasing and crop the centre: uint8 (height, width, 3).

        `image` is upright (its EXIF orientation applied). The pixels are those of torchvision's ``Resize(resize)`` and
        ``CenterCrop(crop)`` on PIL images (torchvision, transforms/functional.py: resize, center_crop). An image
        smaller than the crop is surrounded by black. Strips whose resized form would exceed 32 million pixels are
        cropped while they are resized, which moves a pixel by at most one level.
        """
        image = _convert(image)
        width, height = size = self._resized_size(image.width, image.height)
        left, top = start = _crop_start(width, self.crop[1]), _crop_start(height, self.crop[0])
        if width * height > MAX_RESIZED_PIXELS:
            return np.asarray(self._resize_the_crop(image, size, start))
        part = (left, top, left + self.crop[1], top + self.crop[0])
        if size != image.size and left >= 0 <= top:
            image = resize_part(image, size, part, _FILTERS[self.resample])
        elif size != image.size:
            image = image.resize(size, _FILTERS[self.resample])
        if image.size != self.crop[::-1]:
            image = image.crop(part)
        return np.asarray(image)

    def resize_and_crop_five(self, image: Image.Image) -> tuple[Pixels, ...]:
        """Resize once, and crop the centre, the upper left and right, and the lower left and right corner.

        The centre is that of `resize_and_crop`, the corners are those of torchvision's ``FiveCrop``. Along a side that
        is not longer than the crop's, all five lie in the middle.
        """
        image = _convert(image)
        width, height = size = self._resized_size(image.width, image.height)
        left, middle, right = _crop_starts(width, self.crop[1])
        top, centre, bottom = _crop_starts(height, self.crop[0])
        starts = ((middle, centre), (left, top), (right, top), (left, bottom), (right, bottom))
        if width * height > MAX_RESIZED_PIXELS:
            return tuple(np.asarray(self._resize_the_crop(image, size, start)) for start in starts)
        image = image if size == image.size else image.resize(size, _FILTERS[self.resample])
        return tuple(np.asarray(image.crop((x, y, x + self.crop[1], y + self.crop[0]))) for x, y in starts)

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        if self.resize is None:
            return width, height
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        short, long = min(width, height), max(width, height)
        length = int(self.resize * long / short)
        return (self.resize, length) if width <= height else (length, self.resize)

    def _resize_the_crop(self, image: Image.Image, size: tuple[int, int], start: tuple[int, int]) -> Image.Image:
        """Crop at `start` of the image as if it had been resized to `size`, in memory bounded by the crop."""
        crop_height, crop_width = min(self.crop[0], size[1]), min(self.crop[1], size[0])
        left, top = max(start[0], 0), max(start[1], 0)
        x, y = image.width / size[0], image.height / size[1]
        box = (left * x, top * y, (left + crop_width) * x, (top + crop_height) * y)
        cropped = image.resize((crop_width, crop_height), _FILTERS[self.resample], box=box)
        canvas = Image.new("RGB", (self.crop[1], self.crop[0]))
        canvas.paste(cropped, ((self.crop[1] - crop_width) // 2, (self.crop[0] - crop_height) // 2))
        return canvas

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; ``Preprocessing(**d)`` gives the same object back."""
        return asdict(self)

    @classmethod
    def from_preset(cls, name: str, input_size: tuple[int, int]) -> Preprocessing:
        """Preset "imagenet" (torchvision), "tf" or "caffe" (Keras) for a network input of (height, width)."""
        if not isinstance(name, str) or name not in _PRESETS:
            raise ValueError(
                f'preprocessing must be None, "imagenet", "tf", "caffe" or a Preprocessing. Got {name!r} instead.'
            )
        ratio, scale, mean, std, order = _PRESETS[name]
        mean, std = _three_floats("mean", mean), _three_floats("std", std)
        resize = round(min(input_size) * ratio)
        return cls(crop=input_size, resize=resize, scale=scale, mean=mean, std=std, channel_order=order)


def _convert(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _crop_start(size: int, crop: int) -> int:
    # torchvision rounds half to even where it cuts and pads the smaller half first where it extends.
    return round((size - crop) / 2.0) if size >= crop else -((crop - size) // 2)


def _crop_starts(size: int, crop: int) -> tuple[int, int, int]:
    """Where the first, the middle and the last crop begin along a side."""
    middle = _crop_start(size, crop)
    return (0, middle, size - crop) if size > crop else (middle, middle, middle)


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= 1


def _positive_pair(name: str, value: Any) -> tuple[int, int]:
    if isinstance(value, Sequence) and len(value) == 2 and all(map(_is_positive_int, value)):
        return int(value[0]), int(value[1])
    raise ValueError(f"{name} must be two integers >= 1 (height, width). Got {value!r} instead.")


def _three_floats(name: str, value: Any) -> tuple[float, float, float]:
    if isinstance(value, Sequence) and len(value) == 3 and not isinstance(value, str):
        return float(value[0]), float(value[1]), float(value[2])
    raise ValueError(f"{name} must be three numbers, one a channel. Got {value!r} instead.")


def _check_choice(name: str, value: Any, allowed: Any) -> None:
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name} must be one of {choices}. Got {value!r} instead.")

"""From an image reference to RGB uint8 pixels, or a reason why not.

A reference names a place (see `locations`) or holds the image itself: the bytes of an encoded image, a
``PIL.Image.Image``, an array of pixels, or a dict ``{"bytes": ..., "path": ...}``. Reading has two steps, so that a
digest can be taken in between: `read_place` or `read_pixels` gives encoded bytes or pixels, `decode_content` gives the
upright RGB image.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from sktransfer.exceptions import ImageReadError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
PixelRange = tuple[float, float] | None

IMAGE_SUFFIXES = frozenset(
    (
        *(".apng", ".avif", ".bmp", ".dds", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
        *(".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp"),
    )
)
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_WIDE_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})

LONGEST_PATH = 4096  # characters; PATH_MAX of Linux
SHORTEST_BASE64 = 64  # characters of an image
# A data URL, or base64 of the start of a JPEG, PNG, GIF, WebP, TIFF (both byte orders), BMP, AVIF or HEIC, JPEG 2000.
_INLINE = re.compile(
    r"(?i:data:)|\s*(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK|Qk[0-3]|AAAA.[GWm2]Z0eX|AAAADGpQ)", re.ASCII
)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]*[=\s]*", re.ASCII)


def is_missing(reference: Any) -> bool:
    """Whether a cell is empty: None, NaN, NaT, pandas' NA, or an empty string or bytes."""
    if reference is None or (isinstance(reference, (str, bytes)) and not reference):
        return True
    if isinstance(reference, (float, np.floating)):
        return math.isnan(reference)
    return type(reference).__name__ in ("NAType", "NaTType")


def is_inline(text: str) -> bool:
    """Whether a string holds the image itself: a ``data:`` URL, or base64 of an image."""
    if _INLINE.match(text) is None:
        return False
    if text[:5].lower() == "data:":
        return "," in text
    # What is longer than any path need not be read to its end.
    return len(text) >= SHORTEST_BASE64 and _BASE64.fullmatch(text[:LONGEST_PATH]) is not None


def describe_reference(reference: Any) -> str:
    """A short text that identifies a reference in a message."""
    if isinstance(reference, (str, os.PathLike)):
        return repr(os.fspath(reference))
    if isinstance(reference, (bytes, bytearray, memoryview)):
        return f"{len(reference)} bytes"
    if isinstance(reference, Image.Image):
        return f"{reference.width}x{reference.height} {reference.mode} image"
    if isinstance(reference, np.ndarray):
        return f"array of shape {reference.shape} and dtype {reference.dtype}"
    if isinstance(reference, dict):
        return describe_reference(reference.get("path") or reference.get("bytes") or "{}")
    return type(reference).__name__


def read_pixels(reference: Any, pixel_range: PixelRange) -> bytes | Pixels:
    """Encoded bytes, or RGB pixels of something already decoded, of a reference that holds the image itself."""
    if isinstance(reference, dict):
        reference = reference.get("bytes")
    if isinstance(reference, (bytes, bytearray, memoryview)):
        return bytes(reference)
    if isinstance(reference, Image.Image):
        return np.asarray(to_rgb(reference, pixel_range))
    if hasattr(reference, "__array__"):
        return pixels_from_array(np.asarray(reference), pixel_range)
    raise ImageReadError(
        "an image must be a path, bytes, a PIL image, an array or a dict with 'bytes' or 'path'. "
        f"Got {type(reference).__name__} instead"
    )


def decode_content(content: bytes | Pixels, pixel_range: PixelRange) -> Image.Image:
    """The upright RGB image of what `read_place` or `read_pixels` returned."""
    if isinstance(content, np.ndarray):
        return Image.fromarray(content)
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return to_rgb(image, pixel_range)
    except UnidentifiedImageError as error:
        raise ImageReadError(_why_unidentified(content)) from error
    except Image.DecompressionBombError as error:
        raise ImageReadError(f"too many pixels: {error}") from error


def _why_unidentified(content: bytes) -> str:
    if not content:
        return "the file is empty"
    if content[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return "HEIC images need a decoder: pip install pillow-heif and call pillow_heif.register_heif_opener()"
    return "Pillow recognises no image format in its content"


def describe_error(error: Exception) -> str:
    """One clause that says why a reference could not be read."""
    if isinstance(error, ImageReadError):
        return str(error)
    text = str(error).strip().splitlines()
    return text[0] if text and text[0] else type(error).__name__


def to_rgb(image: Image.Image, pixel_range: PixelRange = None) -> Image.Image:
    """Apply the EXIF orientation and convert any mode to RGB, transparency over white; `image` stays as it is."""
    # A damaged EXIF block costs the orientation, not the photo.
    with contextlib.suppress(Exception):
        # Without an orientation, exif_transpose would copy the pixels for nothing.
        if image.format != "JPEG" or image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
            image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE_MODES:
        return _wide_to_rgb(image, pixel_range)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None
        return converted
    return image if image.mode == "RGB" else image.convert("RGB")


def _wide_to_rgb(image: Image.Image, pixel_range: PixelRange) -> Image.Image:
    """Gray images of more than 8 bits: integers span their stored bit depth, floats 0..1 unless `pixel_range` says."""
    values = np.asarray(image)
    if pixel_range is None and image.mode != "F":
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # TIFF BitsPerSample
        pixel_range = (0.0, float(2 ** min(bits, 16) - 1))
        _refuse_outside(values, *pixel_range)
    gray = _scale_to_uint8(values, pixel_range)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray = np.where(values == transparent, np.uint8(255), gray)
    return Image.fromarray(gray).convert("RGB")


def pixels_from_array(array: np.ndarray[Any, Any], pixel_range: PixelRange = None) -> Pixels:
    """RGB uint8 pixels (h, w, 3) of an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4).

    Integers span 0..255, floats 0..1, booleans black and white; `pixel_range` (low, high) is mapped linearly to 0..255
    and clipped instead. Transparency is composed over white. Raises ImageReadError outside these.
    """
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        raise ImageReadError(
            f"an array must be (height, width, channels). Got {array.shape} instead; "
            "use np.moveaxis(array, 0, -1) if its channels come first"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise ImageReadError(f"an array must be (h, w), (h, w, 1), (h, w, 3) or (h, w, 4). Got {array.shape} instead")
    if array.dtype == np.uint8 and pixel_range is None:
        values = array
    elif array.dtype == np.bool_ and pixel_range is None:
        values = array * np.uint8(255)
    elif array.dtype.kind in "iu" and pixel_range is None:
        _refuse_outside(array, 0, 255)
        values = array.astype(np.uint8)
    elif array.dtype.kind in "iufb":
        values = _scale_to_uint8(array, pixel_range)
    else:
        raise ImageReadError(f"an array of pixels must be numeric. Got dtype {array.dtype} instead")
    return _to_three_channels(values)


def _to_three_channels(values: Pixels) -> Pixels:
    if values.ndim == 2:
        values = values[:, :, None]
    if values.shape[2] == 1:
        return np.repeat(values, 3, axis=2)
    if values.shape[2] == 4:
        return np.asarray(to_rgb(Image.fromarray(np.ascontiguousarray(values))))
    return np.ascontiguousarray(values)


def _scale_to_uint8(values: np.ndarray[Any, Any], pixel_range: PixelRange) -> Pixels:
    if not np.isfinite(values).all():
        raise ImageReadError("pixels must be finite. Got NaN or infinity instead")
    if pixel_range is None:
        _refuse_outside(values, 0.0, 1.0)
    low, high = pixel_range or (0.0, 1.0)
    scaled = (values.astype(np.float64) - low) * (255.0 / (high - low))
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def _refuse_outside(values: np.ndarray[Any, Any], low: float, high: float) -> None:
    smallest, largest = values.min(), values.max()
    if smallest < low or largest > high:
        value = smallest if smallest < low else largest
        raise ImageReadError(
            f"{'floating-point' if values.dtype.kind == 'f' else 'integer'} pixels must lie in {low:g}..{high:g}. "
            f"Got {value:g} instead; pass pixel_range=(low, high) if they are on another scale"
        )


_PIL_MODULES = re.compile(r"PIL\.")
_quiet_lock = threading.Lock()
_quiet_depth = 0


@contextlib.contextmanager
def quiet_decoder() -> Iterator[None]:
    """Ignore Pillow's warnings: whether a file decodes must not depend on the caller's warning filters.

    ``warnings.catch_warnings`` is not thread-safe, so one filter is added for all threads and removed by the last.
    """
    global _quiet_depth
    entry = ("ignore", None, Warning, _PIL_MODULES, 0)
    with _quiet_lock:
        _quiet_depth += 1
        if entry not in warnings.filters:
            warnings.filterwarnings("ignore", module=_PIL_MODULES.pattern)
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0 and entry in warnings.filters:
                warnings.filters.remove(entry)  # type: ignore[attr-defined]

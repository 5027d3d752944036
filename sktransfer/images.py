"""From an image reference to RGB uint8 pixels, or a reason why not.

A reference names a place (see `locations`) or holds the image itself: the bytes of an encoded image, a
``PIL.Image.Image``, an array of pixels, a file object, base64 text, or a dict ``{"bytes": ..., "path": ...}``. Reading
has two steps, so that a digest can be taken in between: `read_place` or `read_pixels` gives encoded bytes or pixels,
`decode_content` gives the upright RGB image.

A hostile file costs an error and not the process: pixels, memory and time of its decoding are bounded, unless
``PIL.Image.MAX_IMAGE_PIXELS`` has been changed, which then is the only limit.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import decimal
import io
import logging
import math
import os
import re
import threading
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from sktransfer.exceptions import ImageReadError
from sktransfer.limits import (
    JPEG,
    MAX_BYTES,
    REMEDY,
    Source,
    is_decoded_in_python,
    is_limited,
    why_hostile,
    why_too_large,
)
from sktransfer.sizes import format_bytes

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
PixelRange = tuple[float, float] | None

IMAGE_SUFFIXES = frozenset(
    (
        *(".apng", ".avif", ".bmp", ".dds", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
        *(".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp"),
    )
)

BAND_PIXELS = 2_000_000  # that are converted at a time
LARGE_PIXELS = 16_000_000  # from which on a process decodes one image at a time
LARGE_PYTHON_PIXELS = 1_000_000  # the same where a decoder in Python takes 15 bytes for each
DESCRIBED = 120  # characters of a reference in a message

_REFUSED = {  # formats and why
    "EPS": "EPS is a program that Ghostscript runs; convert it to PNG",
    "IPTC": "IPTC files may hold images of any other format; extract them",
    "WMF": "WMF and EMF are drawings that Windows draws; convert them to PNG",
}
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_WIDE_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})

LONGEST_PATH = 4096  # characters; PATH_MAX of Linux
SHORTEST_BASE64 = 64  # characters of an image
# A data URL, or base64 of the start of a JPEG, PNG, GIF, WebP, TIFF (both byte orders), BMP, AVIF or HEIC, JPEG 2000.
_INLINE = re.compile(
    r"\s*(?:(?i:data:)|/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK|Qk[0-3]|AAAA.[GWm2]Z0eX|AAAADGpQ)", re.ASCII
)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]*[=\s]*", re.ASCII)


def is_missing(reference: Any) -> bool:
    """Whether a cell is empty: None, NaN, NaT, pandas' NA, numpy's masked, empty text or bytes, a dict without both."""
    if reference is None or (isinstance(reference, (str, bytes)) and not reference):
        return True
    if isinstance(reference, (float, np.floating)):
        return math.isnan(reference)
    if isinstance(reference, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(reference))
    if isinstance(reference, decimal.Decimal):
        return reference.is_nan()
    if isinstance(reference, dict):
        known = not reference or "bytes" in reference or "path" in reference
        return known and all(part is None for part in split_dict(reference))
    return type(reference).__name__ in ("NAType", "NaTType", "MaskedConstant")


def split_dict(reference: Mapping[str, Any]) -> tuple[Any, Any]:
    """The bytes and the path of a dict as Hugging Face's datasets have them; None for what is missing."""
    content, path = reference.get("bytes"), reference.get("path")
    return (None if is_missing(content) else content), (None if is_missing(path) else path)


def is_inline(text: str) -> bool:
    """Whether a string holds the image itself: a ``data:`` URL, or base64 of an image."""
    if _INLINE.match(text) is None:
        return False
    if text.lstrip()[:5].lower() == "data:":
        return "," in text
    # What is longer than any path need not be read to its end.
    return len(text) >= SHORTEST_BASE64 and _BASE64.fullmatch(text[:LONGEST_PATH]) is not None


def describe_reference(reference: Any) -> str:
    """A short text that identifies a reference in a message."""
    if isinstance(reference, dict):
        content, path = split_dict(reference)
        reference = content if path is None else path
    if isinstance(reference, (str, os.PathLike)):
        with contextlib.suppress(Exception):  # of a path that is none
            return _describe_text(os.fspath(reference))
    if isinstance(reference, (bytes, bytearray, memoryview)):
        return f"{len(reference)} bytes"
    if isinstance(reference, Image.Image):
        return f"{reference.width}x{reference.height} {reference.mode} image"
    if isinstance(reference, np.ndarray):
        return f"array of shape {reference.shape} and dtype {reference.dtype}"
    if hasattr(reference, "read") and isinstance(getattr(reference, "name", None), str):
        return f"file {_describe_text(reference.name)}"
    return type(reference).__name__


def _describe_text(text: str | bytes) -> str:
    if isinstance(text, str) and is_inline(text):
        return f"{'data URL' if text.lstrip()[:5].lower() == 'data:' else 'base64 text'} of {len(text)} characters"
    shown = repr(text)
    return shown if len(shown) <= DESCRIBED else f"{shown[: DESCRIBED // 3]}...{shown[-DESCRIBED // 2 :]}"


def read_pixels(reference: Any, pixel_range: PixelRange) -> bytes | Pixels:
    """Encoded bytes, or RGB pixels of something already decoded, of a reference that holds the image itself."""
    if isinstance(reference, dict):
        reference = split_dict(reference)[0]
        if isinstance(reference, np.ndarray) and reference.ndim == 1:
            reference = reference.tobytes()
    if isinstance(reference, (bytes, bytearray, memoryview)):
        return _refuse_many(bytes(reference))
    if isinstance(reference, str) and is_inline(reference):
        return _decode_text(reference)
    if isinstance(reference, Image.Image):
        # An opened file is decoded now, and may stand in several cells, or belong to several images.
        with _image_locks[(id(getattr(reference, "fp", None) or reference) >> 4) % len(_image_locks)]:
            reference.load()
        return np.asarray(to_rgb(reference, pixel_range))
    if hasattr(reference, "__array__"):
        return pixels_from_array(np.asarray(reference), pixel_range)
    if hasattr(reference, "read"):
        return _read_file_object(reference)
    raise ImageReadError(
        "an image must be a path, bytes, a PIL image, an array, a file object, base64 text or a dict with 'bytes' or "
        f"'path'. Got {type(reference).__name__} instead"
    )


def _decode_text(text: str) -> bytes:
    """The bytes in a data URL, or in base64 whose line breaks and padding may be missing."""
    text = text.lstrip()
    if text[:5].lower() == "data:":
        header, _, text = text[5:].partition(",")
        if not "".join(header.lower().split()).endswith(";base64"):
            return urllib.parse.unquote_to_bytes(text)
        text = urllib.parse.unquote(text) if "%" in text else text
    text = "".join(text.split()).rstrip("=")
    try:
        return _refuse_many(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
    except ValueError as error:  # binascii.Error is one
        raise ImageReadError(f"its base64 text is damaged: {error}") from error


def _read_file_object(file: Any) -> bytes:
    """All bytes of a file, wherever its position is, which stays."""
    with _file_lock:
        try:
            position = file.tell()
            file.seek(0)
        except (AttributeError, OSError) as error:
            raise ImageReadError(
                "a file object must be seekable, since it may be read more than once; pass its bytes"
            ) from error
        try:
            content = file.read(MAX_BYTES + 1)
        except UnicodeError as error:
            raise ImageReadError("a file object must be opened in binary mode") from error
        finally:
            file.seek(position)
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise ImageReadError(f"a file object must be opened in binary mode. Its read() gave {type(content).__name__}")
    return _refuse_many(bytes(content))


def _refuse_many(content: bytes) -> bytes:
    if len(content) > MAX_BYTES:
        raise ImageReadError(f"an encoded image may have {format_bytes(MAX_BYTES)} at most")
    return content


# -- decoding ---------------------------------------------------------------------------------------------------------


def decode_content(content: bytes | Pixels, pixel_range: PixelRange) -> Image.Image:
    """The upright RGB image of what `read_place` or `read_pixels` returned.

    Raises
    ------
    ImageReadError
        Whatever goes wrong; the message says what in one clause.
    """
    with contextlib.ExitStack() as turn:
        return _decode(content, pixel_range, turn)


@contextlib.contextmanager
def decoding(content: bytes | Pixels, pixel_range: PixelRange) -> Iterator[Image.Image]:
    """The image of `decode_content`, closed at the end; until then no other thread decodes a large one."""
    with contextlib.ExitStack() as turn:
        image = _decode(content, pixel_range, turn)
        turn.callback(image.close)
        yield image


def _decode(content: bytes | Pixels, pixel_range: PixelRange, turn: contextlib.ExitStack) -> Image.Image:
    """The image; where it is large, `turn` ends the time in which it is the only one."""
    if isinstance(content, np.ndarray):
        return Image.fromarray(content)
    source, size = Source(content), ""
    try:
        _refuse(why_hostile(content))
        # A JPEG's header is read in many short pieces, which take no time that would have to be limited.
        opened = io.BytesIO(content) if content.startswith(JPEG) else source
        with _open(opened) as image:
            size = f"{image.width}x{image.height}"
            _refuse(why_too_large(image, content))
            if opened is not source:
                image.fp = source
            large = image.width * image.height > (LARGE_PYTHON_PIXELS if is_decoded_in_python(image) else LARGE_PIXELS)
            if large:
                turn.enter_context(_large_lock)
                _give_memory_back()  # what smaller images have left, before it is needed
                turn.callback(_give_memory_back)
            image.load()
            upright = to_rgb(image, pixel_range)
            # An opened file keeps more than its pixels.
            return upright.copy() if upright is image and image.format != "JPEG" and not large else upright
    except Exception as error:
        raise ImageReadError(source.refusal or _explain(error, content, size)) from error


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise ImageReadError(reason)


def _open(source: io.BytesIO) -> Any:
    """The opened image, its pixels not yet decoded; no format is tried that runs other programs."""
    Image.preinit()
    formats = [name for name in Image.ID if name not in _REFUSED]
    try:
        return Image.open(source, formats=formats)
    except UnidentifiedImageError:
        Image.init()  # the rarer formats
        more = [name for name in Image.ID if name not in _REFUSED]
        if more == formats:
            raise
        return Image.open(source, formats=more)


def _explain(error: Exception, content: bytes, size: str) -> str:
    if isinstance(error, MemoryError):
        return f"too little memory for {size or 'its'} pixels"
    if isinstance(error, UnidentifiedImageError):
        return _why_unidentified(content)
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels: {describe_error(error).rstrip('.')}{REMEDY if is_limited() else ''}"
    text = describe_error(error)
    spoken = isinstance(error, (ImageReadError, OSError)) or type(error) in (
        SyntaxError,
        ValueError,
        NotImplementedError,
    )
    if spoken and re.search("[a-z]", text):
        return text
    # The decoder did not expect such a file.
    return f"the image is damaged ({type(error).__name__}{': ' + text if text != type(error).__name__ else ''})"


def _why_unidentified(content: bytes) -> str:
    if not content:
        return "the file is empty"
    if content[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return "HEIC images need a decoder: pip install pillow-heif and call pillow_heif.register_heif_opener()"
    for name, reason in _REFUSED.items():
        accept = Image.OPEN[name][1] if name in Image.OPEN else None
        if accept is not None and accept(content[:16]):
            return reason
    return "Pillow recognises no image format in its content"


def describe_error(error: Exception) -> str:
    """One clause that says why a reference could not be read."""
    if isinstance(error, ImageReadError):
        return str(error)
    lines = str(error).strip().splitlines()
    text = "".join(character if character.isprintable() else "?" for character in lines[0][:200]) if lines else ""
    return text.rstrip(".") or type(error).__name__


# -- colours ----------------------------------------------------------------------------------------------------------


def to_rgb(image: Image.Image, pixel_range: PixelRange = None) -> Image.Image:
    """Apply the EXIF orientation and convert any mode to RGB, transparency over white; `image` stays as it is."""
    bits = min(getattr(image, "tag_v2", {}).get(258, (16,))[0], 16)  # TIFF BitsPerSample; a turned image has no tags
    # A damaged EXIF block costs the orientation, not the photo.
    with contextlib.suppress(Exception):
        # Without an orientation, exif_transpose would copy the pixels for nothing.
        if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
            image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE_MODES:
        return _convert_bands(image, partial(_wide_to_rgb, pixel_range=pixel_range, bits=bits))
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        return _convert_bands(image, _put_over_white)
    if image.mode == "LAB":
        return _convert_bands(image, _lab_to_rgb)
    return image if image.mode == "RGB" else image.convert("RGB")


def _convert_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert a large image in bands of rows, since some conversions take several times its memory."""
    if image.width * image.height <= BAND_PIXELS:
        return convert(image)
    result = Image.new("RGB", image.size)
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = (0, top, image.width, min(top + rows, image.height))
        result.paste(convert(image.crop(band)), band)
    return result


def _put_over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None
    return converted


def _wide_to_rgb(image: Image.Image, pixel_range: PixelRange, bits: int) -> Image.Image:
    """Gray images of more than 8 bits: integers span their stored depth, floats 0..1 unless `pixel_range` says."""
    values = np.asarray(image)
    if pixel_range is None and image.mode != "F":
        pixel_range = (0.0, 2.0**bits - 1)
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


# -- the process ------------------------------------------------------------------------------------------------------

_PIL_MODULES = re.compile(r"PIL\.")
_NO_LOG = logging.NullHandler()
_quiet_depth = 0
_quiet_lock, _file_lock, _large_lock = threading.Lock(), threading.Lock(), threading.RLock()
_image_locks = [threading.Lock() for _ in range(64)]


def _give_memory_back() -> None:
    """Ask glibc for it: it keeps what a thread has freed for that thread."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset_after_fork() -> None:
    global _quiet_lock, _file_lock, _large_lock
    _quiet_lock, _file_lock, _large_lock = threading.Lock(), threading.Lock(), threading.RLock()
    _image_locks[:] = [threading.Lock() for _ in _image_locks]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


@contextlib.contextmanager
def quiet_decoder() -> Iterator[None]:
    """Ignore Pillow's warnings: whether a file decodes must not depend on the caller's warning filters.

    Its log goes to the handlers that the caller has set up, and not to stderr where there are none.

    ``warnings.catch_warnings`` is not thread-safe, so one filter is added for all threads and removed by the last.
    """
    global _quiet_depth
    entry = ("ignore", None, Warning, _PIL_MODULES, 0)
    with _quiet_lock:
        _quiet_depth += 1
        logging.getLogger("PIL").addHandler(_NO_LOG)
        if entry not in warnings.filters:
            warnings.filterwarnings("ignore", module=_PIL_MODULES.pattern)
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                logging.getLogger("PIL").removeHandler(_NO_LOG)
            if _quiet_depth == 0 and entry in warnings.filters:
                warnings.filters.remove(entry)  # type: ignore[attr-defined]

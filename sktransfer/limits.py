"""How much of the memory and the time of a process one encoded image may take.

The limits hold as long as the user has not changed ``PIL.Image.MAX_IMAGE_PIXELS``, which then is the only one.
"""

from __future__ import annotations

import io
import re
import time
from typing import Any

from PIL import Image

MAX_BYTES = 256 * 2**20  # of one encoded image
MAX_PIXELS = 128_000_000  # that are decoded
DECODE_SECONDS = 5.0  # of one thread's CPU time; photos of 100 million pixels take half of it
SPARE_BYTES = 64_000_000  # that may be read beyond twice the size of the file
MAX_COMMENTS = 1000  # in a plain PPM
MAX_EXIF_PARTS = 2  # of 64 kB, in a JPEG
EXIF_BYTES = 100_000  # of a JPEG, below which any number of parts is harmless

# What decoders allocate beside the pixels, and how slow those in Python are: MAX_PIXELS is divided by it.
_SHARES = {"WEBP": 4, "JPEG2000": 4, "AVIF": 2, "HEIF": 2, "TIFF": 2, "MPO": 2}
_PYTHON_SHARE = 32
_NESTING = (b"BLP", b"icns", b"\0\0\1\0")  # BLP, ICNS and ICO hold images of another size than they state
_SCANNED_BYTES = 2048  # of a progressive JPEG that are decoded between two looks at the time
_NESTED_SIZES = re.compile(  # of PNG, JPEG 2000 (two forms) and JPEG, 4 or 2 bytes each
    rb"(?:IHDR|ihdr|\xff\x4f\xff\x51.{4})(.{8})|\xff[\xc0-\xc2\xc9\xca]\0[\x0b\x0e\x11\x14]\x08(.{4})", re.DOTALL
)
_PILLOW_PIXELS = 1024 * 1024 * 1024 // 4 // 3  # PIL.Image.MAX_IMAGE_PIXELS where nobody has changed it
_FAST_DECODERS = frozenset({"SGI16"})  # of those in Python
_COMPACT_MODES = frozenset({"1", "L", "P", "RGB"})  # that take at most a byte more than their RGB form

JPEG = b"\xff\xd8"  # is how one begins
REMEDY = "; make the image smaller, or set PIL.Image.MAX_IMAGE_PIXELS"


def is_limited() -> bool:
    """Whether the limits of this module hold: the user has not changed those of Pillow."""
    return Image.MAX_IMAGE_PIXELS == _PILLOW_PIXELS


class Source(io.BytesIO):
    """An encoded image, from which a decoder gets no more once it has taken too long or has read too much."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.left = 2 * len(content) + SPARE_BYTES
        self.deadline = time.thread_time() + DECODE_SECONDS
        self.unchecked = 0  # short reads
        self.refusal: str | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, or raise ValueError with the refusal."""
        data = super().read(size)
        self.unchecked += 1
        if self.unchecked == 64 or len(data) >= _SCANNED_BYTES:
            self._check(len(data))
        return data

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read, or raise ValueError with the refusal."""
        line = super().readline(size)
        self.unchecked += 1
        if self.unchecked == 64:
            self._check(len(line))
        return line

    def _check(self, size: int) -> None:
        # To ask for the time takes as long as a short read.
        self.unchecked = 0
        self.left -= size
        if not is_limited():
            return
        if time.thread_time() > self.deadline:
            self.refusal = f"decoding it takes more than {DECODE_SECONDS:g} seconds"
        elif self.left < 0:
            self.refusal = "its decoder reads the same bytes again and again"
        if self.refusal is not None:
            raise ValueError(self.refusal)


def why_hostile(content: bytes) -> str | None:
    """Why content should not even be opened, though some bytes say that it is small; None where it may be."""
    if not is_limited():
        return None
    if content.startswith(_NESTING):
        for match in _NESTED_SIZES.finditer(content):
            width, height = _read_size(match[1] or match[2])
            if width * height > MAX_PIXELS // 2:
                return f"too many pixels: the {width}x{height} of the image in it{REMEDY}"
    if content.startswith(JPEG) and len(content) > EXIF_BYTES and _count_exif_parts(content) > MAX_EXIF_PARTS:
        return "its EXIF data are in too many parts"
    return None


def why_too_large(image: Image.Image, content: bytes) -> str | None:
    """Why the pixels of an opened image would take too much memory or time to decode; None where they would not."""
    if not is_limited():
        return None
    limit = _limit_pixels(image, content)
    if image.width * image.height > limit:
        return (
            f"too many pixels: {image.width}x{image.height} are more than the {limit / 1e6:g} million that are decoded "
            f"of {image.format} in mode {image.mode}{REMEDY}"
        )
    if (
        any(tile[0] == "ppm_plain" for tile in getattr(image, "tile", ())) and content.count(b"#") > MAX_COMMENTS
    ):  # each copies what follows
        return "it has too many comments"
    if "progressive" in image.info and hasattr(image, "decodermaxblock"):
        image.decodermaxblock = _SCANNED_BYTES  # each scan goes over all pixels, however few bytes it has
    return None


def _read_size(width_and_height: bytes) -> tuple[int, int]:
    half = len(width_and_height) // 2
    return int.from_bytes(width_and_height[:half], "big"), int.from_bytes(width_and_height[half:], "big")


def is_decoded_in_python(image: Image.Image) -> bool:
    """Whether a decoder written in Python would decode an opened image: slowly, and one thread at a time anyway."""
    codecs = {tile[0] for tile in getattr(image, "tile", ())}
    return any(codec in Image.DECODERS for codec in codecs - _FAST_DECODERS)


def _limit_pixels(image: Any, content: bytes) -> int:
    if is_decoded_in_python(image):
        return MAX_PIXELS // _PYTHON_SHARE
    second_copy = image.mode not in _COMPACT_MODES or (image.mode == "RGB" and "transparency" in image.info)
    if image.format == "JPEG" and image.fp is not None:
        # In several scans, libjpeg keeps all coefficients. Pillow stops behind the header of the first one.
        n = image.layers
        header = b"\xff\xda" + bytes([0, 6 + 2 * n, n])
        second_copy |= "progressive" in image.info or not content.startswith(header, image.fp.tell() - 8 - 2 * n)
    return MAX_PIXELS // max(_SHARES.get(image.format or "", 1), 2 if second_copy else 1)


def _count_exif_parts(content: bytes) -> int:
    """Segments of EXIF data before the pixels of a JPEG: tags in many can name the same bytes thousands of times."""
    mark, parts, start = b"Exif\0\0", 0, 2
    if content.count(mark) <= MAX_EXIF_PARTS:
        return 0
    while start < len(content) - 10 and content[start + 1] != 0xDA:  # the pixels
        if content[start] != 0xFF or content[start + 1] in (0x00, 0xFF):
            start += 1
            continue
        parts += content[start + 1] == 0xE1 and content.startswith(mark, start + 4)
        start += 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    return parts

import base64
import decimal
import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from conftest import encode, photo
from PIL import Image

from sktransfer import images, limits
from sktransfer.exceptions import ImageReadError
from sktransfer.images import (
    decode_content,
    decoding,
    describe_error,
    describe_reference,
    is_inline,
    is_missing,
    pixels_from_array,
    quiet_decoder,
    read_pixels,
    to_rgb,
)
from sktransfer.locations import read_place


def decode(content, pixel_range=None):
    return np.asarray(decode_content(content, pixel_range))


EMPTY = [None, float("nan"), np.float32("nan"), "", b"", np.datetime64("NaT"), np.timedelta64("NaT"), np.ma.masked,
         decimal.Decimal("nan"), {}, {"bytes": None, "path": None}]  # fmt: skip


@pytest.mark.parametrize("cell", EMPTY)
def test_an_empty_cell_is_missing(cell):
    assert is_missing(cell)


def test_pandas_markers_are_missing():
    pd = pytest.importorskip("pandas")
    assert is_missing(pd.NA)
    assert is_missing(pd.NaT)


FILLED = ["x.png", b"x", np.zeros((2, 2)), {"bytes": None, "path": "x"}, 0.5, " ", {"bytes": b"x"},
          np.datetime64("2024-01-01"), decimal.Decimal(1)]  # fmt: skip


@pytest.mark.parametrize("cell", FILLED)
def test_a_filled_cell_is_not_missing(cell):
    assert not is_missing(cell)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000"])
def test_base64_of_an_image_and_data_urls_hold_the_image_itself(image_format):
    text = base64.b64encode(encode(photo(0), image_format)).decode()
    wrapped = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    for reference in (text, wrapped, text.rstrip("="), f"data:image/x;base64,{text}", f"DATA:,{text}"):
        assert is_inline(reference)


def test_base64_of_avif_and_heic_is_known():
    for size in (24, 28, 32, 36):
        assert is_inline(base64.b64encode(size.to_bytes(4) + b"ftypavif" + bytes(60)).decode())


@pytest.mark.parametrize(
    "path",
    ["", "a.jpg", "/9j/a.jpg", "/9j/" + 20 * "abc/" + "a.jpg", "/9j/" + "a" * 50, "UklGR" + "a" * 99 + "/0_1", "a" * 99,
     "data:1.jpg", "data/1.jpg", "http://host/,/9j/" + "a" * 99, "R0lGOD=" + "a" * 99],
)  # fmt: skip
def test_a_path_holds_no_image(path):
    assert not is_inline(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = photo(0)
    undo = [None, None, 0, 3, 1, 5, 2, 6, 4]  # Image.Transpose that stores `upright` under this orientation
    stored = Image.fromarray(upright)
    if undo[orientation] is not None:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[274] = orientation
    np.testing.assert_array_equal(decode(encode(stored, exif=exif)), upright)


def test_transparency_is_composed_over_white():
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 3] = [0, 255, 51]  # black: transparent, opaque, 20 % opaque
    expected = [[255] * 3, [0] * 3, [204] * 3]
    np.testing.assert_array_equal(decode(encode(rgba))[0], expected)
    np.testing.assert_array_equal(pixels_from_array(rgba)[0], expected)


def test_gray_with_alpha_and_palette_with_transparency_are_composed_over_white():
    gray_alpha = Image.fromarray(np.array([[[0, 0], [10, 255]]], dtype=np.uint8), "LA")
    np.testing.assert_array_equal(decode(encode(gray_alpha))[0], [[255] * 3, [10] * 3])
    palette = Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 40, 50, 60])
    palette.putdata([0, 1])
    np.testing.assert_array_equal(decode(encode(palette, transparency=0))[0], [[255] * 3, [40, 50, 60]])


def test_sixteen_bits_are_scaled_by_their_full_range():
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for image_format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encode(values, image_format))[0, :, 0], [0, 1, 128, 255])


def test_twelve_bits_are_scaled_by_their_own_range():
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 6)]
    packed = bytes.fromhex("000 001 800 fff".replace(" ", ""))  # four pixels of twelve bits
    ifd = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    content = struct.pack("<2sHI", b"II", 42, 14) + packed + struct.pack("<H", len(tags)) + ifd + bytes(4)
    np.testing.assert_array_equal(decode(content)[0, :, 0], [0, 0, 128, 255])


def test_float_tiff_spans_zero_to_one_and_is_refused_outside():
    values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    np.testing.assert_array_equal(decode(encode(values, "TIFF"))[0, :, 1], [0, 128, 255])
    with pytest.raises(ImageReadError, match=r"must lie in 0\.\.1\. Got 40"):
        decode(encode(values * 40, "TIFF"))
    np.testing.assert_array_equal(decode(encode(values * 40, "TIFF"), (0, 40))[0, :, 1], [0, 128, 255])


def test_cmyk_and_lab_become_rgb():
    cmyk = Image.fromarray(np.array([[[0, 0, 0, 0], [0, 255, 255, 0]]], dtype=np.uint8), "CMYK")
    np.testing.assert_array_equal(decode(encode(cmyk, "TIFF"))[0], [[255] * 3, [255, 0, 0]])
    white = Image.new("LAB", (1, 1), (255, 128, 128))
    assert np.abs(np.asarray(to_rgb(white)).astype(int) - 255).max() <= 2


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    for image_format in ("GIF", "WEBP", "PNG", "TIFF"):
        stream = io.BytesIO()
        options = {"lossless": True} if image_format == "WEBP" else {}
        frames[0].save(stream, image_format, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decode(stream.getvalue())[0, 0], [255, 0, 0])


def test_the_callers_image_is_not_changed():
    image = Image.open(io.BytesIO(encode(photo(0), "JPEG")))
    image.getexif()[274] = 6
    before = image.tobytes(), image.size
    read_pixels(image, None)
    assert (image.tobytes(), image.size) == before


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 255]], dtype=np.uint8), [0, 255]),
        (np.array([[0, 255]], dtype=np.int64), [0, 255]),
        (np.array([[0.0, 1.0]]), [0, 255]),
        (np.array([[False, True]]), [0, 255]),
    ],
)
def test_arrays_of_every_kind_become_uint8(array, expected):
    pixels = pixels_from_array(array)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[0, :, 2], expected)


def test_pixel_range_maps_linearly_and_clips():
    pixels = pixels_from_array(np.array([[-3.0, -1.0, 0.0, 1.0, 9.0]]), (-1, 1))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 0, 128, 255, 255])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 2), 256), r"integer pixels must lie in 0\.\.255\. Got 256 instead; pass pixel_range"),
        (np.full((2, 2), -1), r"Got -1 instead"),
        (np.full((2, 2), 1.5), r"floating-point pixels must lie in 0\.\.1\. Got 1\.5 instead"),
        (np.full((2, 2), np.nan), "NaN or infinity"),
        (np.zeros((3, 8, 8), dtype=np.uint8), r"np\.moveaxis\(array, 0, -1\)"),
        (np.zeros((8, 8, 5), dtype=np.uint8), r"Got \(8, 8, 5\) instead"),
        (np.zeros((0, 8, 3), dtype=np.uint8), r"Got \(0, 8, 3\) instead"),
        (np.array([["a"]]), "must be numeric"),
        (np.zeros((2, 2), dtype=complex), "must be numeric"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, message):
    with pytest.raises(ImageReadError, match=message):
        pixels_from_array(array)


def test_files_that_cannot_be_read_say_why(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    whole = encode(photo(0, 200, 200), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    reasons = {
        "text.jpg": "no image format",
        "empty.jpg": "is empty",
        "none.jpg": "no such file",
        "cut.jpg": "truncated",
    }
    for name, reason in reasons.items():
        with pytest.raises(ImageReadError, match=reason):
            decode_content(read_place(str(tmp_path / name))[0], None)
    with pytest.raises(ImageReadError, match="is a folder"):
        read_place(str(tmp_path))


def test_a_decompression_bomb_is_refused():
    header = encode(Image.new("1", (1, 1)), "PNG")
    bomb = bytearray(header)
    bomb[16:24] = (60_000).to_bytes(4) + (60_000).to_bytes(4)
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4)
    with pytest.raises(ImageReadError, match="too many pixels"):
        decode_content(bytes(bomb), None)


def test_quiet_decoder_leaves_the_filters_as_they_were_whoever_leaves_first():
    before = list(warnings.filters)
    one, other = quiet_decoder(), quiet_decoder()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert len(warnings.filters) == len(before) + 1
    other.__exit__(None, None, None)
    assert list(warnings.filters) == before


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_text_gives_the_bytes_that_it_holds(image_format):
    content = encode(photo(0), image_format)
    text = base64.b64encode(content).decode()
    wrapped = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    escaped = "".join(f"%{byte:02X}" for byte in content)
    for reference in (text, wrapped, text.rstrip("="), f" {text}\n"):
        assert read_pixels(reference, None) == content
    for head in ("data:image/png;base64,", "data:;BASE64,", "Data:image/png;name=a.png;base64,"):
        assert read_pixels(head + text, None) == read_pixels(head + text.replace("+", "%2B"), None) == content
    assert read_pixels(f"data:image/png,{escaped}", None) == content


@pytest.mark.parametrize("text", ["data:image/png;base64,!", "data:;base64,abcde", "/9j/" + "a" * 5000 + "!"])
def test_damaged_base64_is_named(text):
    with pytest.raises(ImageReadError, match="its base64 text is damaged"):
        read_pixels(text, None)


def test_a_file_object_is_read_whole_and_stays_where_it_is(tmp_path):
    content = encode(photo(0))
    (tmp_path / "a.png").write_bytes(content)
    with open(tmp_path / "a.png", "rb") as file:
        file.seek(7)
        assert read_pixels(file, None) == read_pixels(io.BytesIO(content), None) == content
        assert file.tell() == 7
    for held in (bytearray(content), memoryview(content)):
        assert read_pixels({"bytes": held, "path": "gone.png"}, None) == content


class Pipe(io.RawIOBase):
    """A stream that cannot go back."""

    def read(self, size=-1):
        return b"x"


@pytest.mark.parametrize(
    ("file", "message"),
    [(Pipe(), "must be seekable, since it may be read more than once; pass its bytes"),
     (io.StringIO("x"), r"must be opened in binary mode. Its read\(\) gave str")],
)  # fmt: skip
def test_file_objects_that_give_no_bytes_are_refused(file, message):
    with pytest.raises(ImageReadError, match=message):
        read_pixels(file, None)


def test_references_are_described_in_a_few_words(tmp_path):
    (tmp_path / "a.png").touch()
    with open(tmp_path / "a.png", "rb") as file:
        assert describe_reference(file) == f"file {str(tmp_path / 'a.png')!r}"
    assert describe_reference(io.BytesIO()) == "BytesIO"
    assert describe_reference("/9j/" + "a" * 96) == "base64 text of 100 characters"
    assert describe_reference("data:image/png;base64," + "a" * 78) == "data URL of 100 characters"
    assert describe_reference({"bytes": None, "path": "a.png"}) == "'a.png'"
    long = describe_reference("/folder/" + "a" * 1000 + "/name.png")
    assert len(long) < 125
    assert long.startswith("'/folder/")
    assert long.endswith("/name.png'")


def test_reasons_are_one_printable_clause():
    assert describe_error(ValueError("a\0b\nc")) == "a?b"
    assert describe_error(KeyError()) == "KeyError"
    assert len(describe_error(ValueError("x" * 1000))) == 200


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "I;16", "I", "F", "LAB", "L"])
def test_bands_change_no_pixel(monkeypatch, mode, rng):
    values = rng.integers(0, 256, (40, 52, 4), dtype=np.uint8)
    image = Image.fromarray(values).convert("RGB").convert("L" if mode in ("I;16", "I", "F") else "RGB")
    image = Image.fromarray(values) if mode == "RGBA" else image.convert(mode) if mode != "LAB" else image
    if mode == "LAB":
        image = Image.merge("LAB", image.split())
    if mode == "F":
        image = Image.fromarray(np.asarray(image) / np.float32(255))
    if mode in ("P", "RGB", "L"):
        image.info["transparency"] = (9, 9, 9) if mode == "RGB" else 9
    whole = np.asarray(to_rgb(image))
    monkeypatch.setattr(images, "BAND_PIXELS", 300)
    np.testing.assert_array_equal(to_rgb(image), whole)


def test_the_users_limit_of_pillow_replaces_ours(monkeypatch):
    content = encode(Image.new("L", (300, 200)))
    monkeypatch.setattr(limits, "MAX_PIXELS", 59_999)
    with pytest.raises(ImageReadError, match="300x200 are more than .* in mode L; .* set PIL.Image.MAX_IMAGE_PIXELS"):
        decode_content(content, None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode_content(content, None).size == (300, 200)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 29_999)
    with pytest.raises(ImageReadError, match=r"exceeds limit of 59998 pixels, could be decompression bomb DOS attack$"):
        decode_content(content, None)


@pytest.mark.parametrize(("image_format", "options"), [("PPM", {}), ("JPEG", {"progressive": True}), ("PNG", {})])
def test_a_decoder_that_takes_too_long_is_stopped(monkeypatch, image_format, options):
    content = encode(photo(0, 200, 300), image_format, **options)
    monkeypatch.setattr(limits, "DECODE_SECONDS", -1.0)
    with pytest.raises(ImageReadError, match="takes more than -1 seconds"):
        decode_content(content, None)


def test_too_little_memory_is_the_reason_of_one_image(monkeypatch):
    def fail(image, pixel_range):
        raise MemoryError

    monkeypatch.setattr(images, "to_rgb", fail)
    with pytest.raises(ImageReadError, match="too little memory for 52x40 pixels"):
        decode_content(encode(photo(0)), None)


def test_large_images_are_decoded_one_at_a_time(monkeypatch):
    monkeypatch.setattr(images, "LARGE_PIXELS", 1_000)
    content, done = encode(photo(0)), threading.Event()
    thread = threading.Thread(target=lambda: (decode_content(content, None), done.set()))
    with decoding(content, None) as image:
        thread.start()
        assert image.size == (52, 40)
        assert not done.wait(0.2)
    assert done.wait(30)
    thread.join()


def test_a_format_that_is_registered_later_is_known(monkeypatch):
    class Late(Image.Image):
        format = "LATE"

        def __init__(self, file, name):
            super().__init__()
            self._mode, self._size, self.im = "RGB", (3, 2), Image.new("RGB", (3, 2), "red").im

    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    Image.register_open("LATE", Late, lambda prefix: prefix.startswith(b"late"))
    assert decode(b"late" * 9).tolist() == [[[255, 0, 0]] * 3] * 2

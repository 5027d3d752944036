"""Images made to take memory or time: small files, large or slow to decode."""

import io
import struct
import zlib

from PIL import Image


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def deflate(n_bytes):
    """Zeros as zlib compresses them, one megabyte again and again."""
    squeeze, block = zlib.compressobj(9, wbits=-15), bytes(2**20)
    first, again = (squeeze.compress(block) + squeeze.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    whole, rest = divmod(n_bytes, 2**20)
    parts = [first, again * (whole - 1)] if whole else []
    checksum = struct.pack(">I", n_bytes % 65521 << 16 | 1)  # Adler-32 of zeros
    return b"".join([b"\x78\xda", *parts, squeeze.compress(bytes(rest)), squeeze.flush(), checksum])


def png(width, height, mode, extra=b"", rows=None):
    """A black PNG, of which only the first `rows` are there; `extra` chunks come before the pixels."""
    colour, depth, row = {
        "1": (0, 1, -(-width // 8)), "L": (0, 8, width), "RGB": (2, 8, 3 * width), "RGBA": (6, 8, 4 * width),
        "I;16": (0, 16, 2 * width),
    }[mode]  # fmt: skip
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = deflate((row + 1) * (height if rows is None else rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(width, height, mode, image_format, **options):
    stream = io.BytesIO()
    Image.new(mode, (width, height)).save(stream, image_format, **options)
    return stream.getvalue()


def text_bomb(name, n_bytes=200_000_000):
    """A PNG whose text or profile are zeros."""
    head = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[name]
    return png(8, 8, "L", chunk(name, head + deflate(n_bytes)))


def qoi_runs(width, height):
    return b"qoif" + struct.pack(">II", width, height) + b"\x03\0" + b"\xfd" * (width * height // 62 + 1)


def plain_ppm(width, height, body=b""):
    return b"P3\n%d %d\n255\n" % (width, height) + (body or b"1 " * (width * height * 3))


def many_scans(width, height, scans):
    """A progressive JPEG with its last scan repeated."""
    content = saved(width, height, "L", "JPEG", progressive=True)
    start = content.rindex(b"\xff\xda")
    return content[:start] + content[start:-2] * scans + b"\xff\xd9"


def animation(frames, image_format):
    """An animation of one pixel; only its first frame is of interest."""
    if image_format == "PNG":
        still = png(8, 8, "L", chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)))
        control = struct.pack(">IIIIHHBB", 8, 8, 0, 0, 1, 1, 0, 0)
        parts = [chunk(b"fcTL", struct.pack(">I", i) + control) for i in range(frames)]
        return still[:-12] + b"".join(parts) + still[-12:]
    content = saved(8, 8, "P", "GIF")
    frame = content[content.index(b",") : -1]
    return content[:-1] + frame * frames + b";"


def tiff(entries, following):
    """A TIFF of 8x8 gray pixels; `entries` more tags name all of its 1 MB, and the IFD after the first is itself."""
    tags = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
            (277, 3, 1, 1), (278, 3, 1, 8), (279, 4, 1, 64)]  # fmt: skip
    tags += [(40000 + i, 1, 1_000_000, 8) for i in range(entries)]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    where = 1_000_008
    return b"II*\0" + struct.pack("<I", where) + bytes(1_000_000) + ifd + struct.pack("<I", where if following else 0)


def exif_block(entries, length):
    """EXIF data whose `entries` tags all name the same `length` bytes."""
    tags = [(1000 + i, 1, length, 8) for i in range(entries)]
    ifd = struct.pack("<H", entries) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<I", 8 + length) + bytes(length)
    return head + ifd + struct.pack("<I", 0)


def jpeg_exif(entries, length):
    """A JPEG with EXIF data in parts of 64 kB."""
    block = exif_block(entries, length)
    parts = [b"Exif\0\0" + block[i : i + 65_000] for i in range(0, len(block), 65_000)]
    content = saved(8, 8, "L", "JPEG")
    marks = [b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts]
    return content[:2] + b"".join(marks) + content[20:]  # without JFIF's density, which Pillow then looks for in EXIF


def ico(width, height, rows=None):
    """An icon that says 16x16 and holds a PNG."""
    inner = png(width, height, "RGBA", rows=rows)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def fits(side):
    """Pixels in gzip, which Pillow takes apart one by one in Python."""

    def card(key, value):
        return f"{key:8}= {value:>20}".encode().ljust(80)

    def block(*cards):
        return (b"".join(cards) + b"END".ljust(80)).ljust(2880)

    squeeze = zlib.compressobj(9, wbits=31)
    packed = b"".join(squeeze.compress(bytes(4 * side)) for _ in range(side)) + squeeze.flush()
    table = b"XTENSION= 'BINTABLE'".ljust(80), b"ZCMPTYPE= 'GZIP_1  '".ljust(80)
    sizes = {"BITPIX": 8, "NAXIS": 2, "NAXIS1": 8, "NAXIS2": 1, "ZIMAGE": "T", "ZBITPIX": 8, "ZNAXIS": 2}
    sizes |= {"ZNAXIS1": side, "ZNAXIS2": side}
    first = block(card("SIMPLE", "T"), card("BITPIX", 8), card("NAXIS", 0))
    return first + block(*table, *(card(*pair) for pair in sizes.items())) + bytes(8) + packed

"""Images made to take memory or time cost a row with a reason, and neither the process nor their neighbours."""

import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import bombs
import numpy as np
import pytest
from conftest import encode, photo
from PIL import Image

from sktransfer import extract
from sktransfer.exceptions import ImageReadError
from sktransfer.images import decode_content, quiet_decoder

FORMATS = ["AVIF", "BMP", "DDS", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI",
           "TGA", "TIFF", "WEBP", "XBM"]  # fmt: skip


def decode(content):
    """The image, or the reason why there is none; and the CPU time that it took."""
    start = time.thread_time()
    with quiet_decoder():
        try:
            result = decode_content(content, None)
        except ImageReadError as error:
            result = str(error)
    return result, time.thread_time() - start


QUICKLY_REFUSED = {
    "gray": (lambda: bombs.png(13_000, 10_000, "L", rows=9), "13000x10000 are more than the 128 million"),
    "colour": (lambda: bombs.png(13_370, 13_384, "RGB", rows=9), "13370x13384 are more than the 128 million"),
    "pillow": (lambda: bombs.png(14_000, 14_000, "RGB", rows=9), "too many pixels: Image size .196000000 pixels"),
    "transparent": (lambda: bombs.png(8_001, 8_000, "RGBA", rows=9), "more than the 64 million"),
    "deep": (lambda: bombs.png(8_001, 8_000, "I;16", rows=9), "more than the 64 million"),
    "key": (lambda: bombs.png(8_001, 8_000, "RGB", bombs.chunk(b"tRNS", bytes(6)), 9), "more than the 64 million"),
    "icon": (lambda: bombs.ico(8_001, 8_000, 9), "the 8001x8000 of the image in it"),
    "runs": (lambda: bombs.qoi_runs(2_001, 2_000), "more than the 4 million that are decoded of QOI"),
    "text": (lambda: bombs.plain_ppm(2_001, 2_000, b"1"), "more than the 4 million that are decoded of PPM"),
    "comments": (lambda: bombs.plain_ppm(9, 9, b"#\n" * 9_999), "too many comments"),
    "zTXt": (lambda: bombs.text_bomb(b"zTXt", 2_000_000), "too large"),
    "iTXt": (lambda: bombs.text_bomb(b"iTXt", 2_000_000), "too large"),
    "iCCP": (lambda: bombs.text_bomb(b"iCCP", 2_000_000), "too large"),
    "exif": (lambda: bombs.jpeg_exif(20_000, 500_000), "EXIF data are in too many parts"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "Ghostscript"),
    "drawing": (lambda: b"\xd7\xcd\xc6\x9a\0\0" + bytes(99), "WMF and EMF are drawings"),
}  # fmt: skip


@pytest.mark.parametrize("name", QUICKLY_REFUSED)
def test_a_bomb_is_refused_with_a_reason(name):
    make, reason = QUICKLY_REFUSED[name]
    assert re.search(reason, decode(make())[0])


HARMLESS = {
    "apng": lambda: bombs.animation(3_000, "PNG"),
    "gif": lambda: bombs.animation(3_000, "GIF"),
    "ifd": lambda: bombs.tiff(0, True),
    "exif": lambda: bombs.png(8, 8, "L", bombs.chunk(b"eXIf", bombs.exif_block(5_000, 50_000))),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_an_image_gives_its_pixels_however_odd_the_rest_of_the_file(name):
    assert np.array_equal(decode(HARMLESS[name]())[0], np.zeros((8, 8, 3)))


def test_tags_that_name_the_same_bytes_again_and_again_take_no_memory():
    result = decode(bombs.tiff(4_000, False))[0]  # newer versions of Pillow leave the tags where they are
    assert result == "its decoder reads the same bytes again and again" or result.size == (8, 8)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_bombs_cost_their_rows_and_leave_their_neighbours_as_they_are(backbone_file, n_jobs):
    cells = [[make(), encode(photo(i))] for i, (make, _) in enumerate(QUICKLY_REFUSED.values())]
    good = extract([pair[1] for pair in cells], backbone_file, cache_dir=None, n_jobs=1)
    cells = [cell for pair in cells for cell in (*pair, pair[1])]
    with pytest.warns(UserWarning, match="could not be read"):
        vectors = extract(cells, backbone_file, cache_dir=None, broken_images="nan", n_jobs=n_jobs)
    assert np.isnan(vectors[::3]).all()
    np.testing.assert_array_equal(vectors[1::3], good)
    np.testing.assert_array_equal(vectors[2::3], good)


REAL = {
    **{f"all {mode}": lambda mode=mode: bombs.png(11_305, 11_310, mode) for mode in ("1", "L", "RGB", "RGBA", "I;16")},
    **{f"half {mode}": lambda mode=mode: bombs.png(8_000, 7_990, mode) for mode in ("RGBA", "I;16")},
    "130": lambda: bombs.png(13_000, 10_000, "L"),
    "178": lambda: bombs.png(13_370, 13_384, "RGB"),
    "gif": lambda: bombs.saved(11_305, 11_310, "P", "GIF"),
    "transparent gif": lambda: bombs.saved(11_305, 11_310, "P", "GIF", transparency=0),
    "webp": lambda: bombs.saved(5_600, 5_600, "RGBA", "WEBP", lossless=True, method=0),
    "avif": lambda: bombs.saved(8_000, 7_990, "RGB", "AVIF", speed=10),
    "jp2": lambda: bombs.saved(5_600, 5_600, "RGB", "JPEG2000"),
    "tiff": lambda: bombs.saved(8_000, 7_990, "RGB", "TIFF", compression="tiff_adobe_deflate", tiffinfo={278: 7_990}),
    "qoi": lambda: bombs.qoi_runs(11_305, 11_310),
    "small qoi": lambda: bombs.qoi_runs(1_999, 2_000),
    "ppm": lambda: bombs.plain_ppm(1_999, 2_000),
    "ico": lambda: bombs.ico(11_000, 11_000),
    "fits": lambda: bombs.fits(2_000),
    "zTXt": lambda: bombs.text_bomb(b"zTXt"),
    "iTXt": lambda: bombs.text_bomb(b"iTXt"),
    "iCCP": lambda: bombs.text_bomb(b"iCCP"),
    "jpeg": lambda: bombs.saved(11_305, 11_310, "RGB", "JPEG"),
    "progressive": lambda: bombs.saved(8_000, 7_990, "RGB", "JPEG", progressive=True, subsampling=0),
    "scans": lambda: bombs.many_scans(7_990, 8_000, 3_000),
    "apng": lambda: bombs.animation(300_000, "PNG"),
    "frames": lambda: bombs.animation(300_000, "GIF"),
    "tags": lambda: bombs.tiff(4_000, True),
    "exif": lambda: bombs.png(8, 8, "L", bombs.chunk(b"eXIf", bombs.exif_block(20_000, 500_000))),
}

MEMORY = """
import sys, numpy as np, warnings
from sktransfer import extract
paths = open(sys.argv[2]).read().splitlines()
warnings.simplefilter("ignore")
vectors, report = extract(paths, sys.argv[1], cache_dir=None, broken_images="nan", n_jobs=2, return_report=True)
np.save(sys.argv[3], vectors)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # ru_maxrss begins with that of the parent
print(int(status["VmHWM"].split()[0]) * 1024)
print(len(report))
"""


@pytest.fixture(scope="module")
def bomb_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        for name, make in REAL.items():
            (folder / name).write_bytes(make())
    return [str(folder / name) for name in REAL]


@pytest.mark.slow
@pytest.mark.alone
def test_real_bombs_take_less_than_a_gigabyte(bomb_files, photo_files, backbone_file, tmp_path):
    paths = [path for i, bomb in enumerate(bomb_files) for path in (bomb, photo_files[i % 6])]
    (tmp_path / "list").write_text("\n".join(paths))
    command = [sys.executable, "-c", MEMORY, backbone_file, tmp_path / "list", tmp_path / "vectors.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, failed = map(int, done.stdout.split())
    vectors = np.load(tmp_path / "vectors.npy")
    good = extract(photo_files, backbone_file, cache_dir=None)
    np.testing.assert_array_equal(vectors[1::2], good[np.arange(len(bomb_files)) % 6])
    assert (len(vectors), np.isnan(vectors).all(axis=1).sum()) == (len(paths), failed)
    assert failed < len(bomb_files), "bombs within the limits are decoded"
    assert peak < 1e9


@pytest.mark.slow
@pytest.mark.alone
def test_no_bomb_takes_much_longer_than_the_limit(bomb_files):
    for path in bomb_files:
        result, seconds = decode(Path(path).read_bytes())
        assert seconds < 15, (path, result)


def originals():
    pixels = photo(3, 24, 30)
    gray = Image.fromarray(pixels).convert("L")
    Image.init()
    names = [name for name in FORMATS if name in Image.SAVE]  # older versions write fewer
    files = [encode(gray.convert("1") if name == "XBM" else pixels, name) for name in names]
    files += [encode(gray.convert("P"), "PNG"), encode(gray.convert("I;16"), "TIFF", compression="tiff_lzw")]
    files += [encode(pixels, "JPEG", progressive=True), encode(pixels, "TIFF", compression="jpeg")]
    return [*files, encode(Image.fromarray(pixels).convert("RGBA"), "WEBP", lossless=True)]


def mutate(files, rng):
    """One of the files with bits flipped, a piece cut out, or a piece of another one put in."""
    content = bytearray(rng.choice(files))
    kind, at = rng.randrange(3), rng.randrange(len(content))
    if kind == 0:
        for _ in range(rng.choice([1, 3, 30])):
            content[rng.randrange(min(len(content), rng.choice([64, 10**6])))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del content[at : at + rng.choice([1, 9, 10**6])]
    else:
        other = rng.choice(files)
        content[at : at + rng.randrange(200)] = other[rng.randrange(len(other)) :][: rng.randrange(200)]
    return bytes(content)


def decode_mutants(n, seed):
    """Decode mutated files: all reasons and times, and the peak of memory after a tenth of them and at the end."""
    rng, files, reasons, times, memory = random.Random(seed), originals(), [], [], []
    for i in range(n):
        result, seconds = decode(mutate(files, rng))
        times.append(seconds)
        reasons += [result] if isinstance(result, str) else []
        if i + 1 in (n // 10, n):
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return reasons, times, memory


def test_whatever_a_decoder_raises_becomes_a_reason(capfd):
    reasons = decode_mutants(300, seed=0)[0]
    assert 30 < len(reasons) < 270
    assert all(reason.isprintable() and 8 < len(reason) < 400 for reason in reasons)
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_ten_thousand_mutants_leave_memory_and_time_as_they_were():
    code = "import test_hostile_images as t; r, s, m = t.decode_mutants(10_000, seed=1); print(len(r), max(s), *m)"
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    broken, longest, early, late = map(float, done.stdout.split())
    assert 1_000 < broken < 9_000
    assert longest < 10
    assert late - early < 50e6

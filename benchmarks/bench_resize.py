"""What does it save to resize only what the crop keeps, and are the pixels the same?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_resize

Three ways to the cropped photo: Pillow's resize of the whole and then the crop; Pillow's ``resize(box=…)`` of the crop
alone; and the two passes, each over what the next one needs (`sktransfer.resampling`). Beside them what a photo costs
to decode, in Pillow and in simplejpeg, another wrapper of libjpeg-turbo. One thread.
"""

from __future__ import annotations

import importlib.util
import io
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import alternate, clothing_photos, spread, write_markdown
from sktransfer.resampling import resize_part

SIDE, CROP, ROUNDS, N_PHOTOS, N_RANDOM = 256, 224, 7, 200, 2000
BILINEAR = Image.Resampling.BILINEAR

Size, Part = tuple[int, int], tuple[int, int, int, int]


def geometry(image: Image.Image) -> tuple[Size, Part]:
    """Size of the resized image, and what the crop keeps of it."""
    short = min(image.size)
    width, height = (SIDE if side == short else int(SIDE * side / short) for side in image.size)
    left, top = round((width - CROP) / 2), round((height - CROP) / 2)
    return (width, height), (left, top, left + CROP, top + CROP)


def whole(image: Image.Image) -> Image.Image:
    size, part = geometry(image)
    return image.resize(size, BILINEAR).crop(part)


def box(image: Image.Image) -> Image.Image:
    (width, height), (left, upper, right, lower) = geometry(image)
    x, y = image.width / width, image.height / height
    return image.resize((CROP, CROP), BILINEAR, (left * x, upper * y, right * x, lower * y))


def passes(image: Image.Image) -> Image.Image:
    return resize_part(image, *geometry(image), BILINEAR)


WAYS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resize the whole, then crop": whole,
    "resize(box=…)": box,
    "two passes over what is needed": passes,
}


def random_images():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(60, 900, (N_RANDOM, 2)):
        yield Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def count_differences() -> dict[str, tuple[int, int]]:
    """Way -> (random images with another pixel than the whole, largest difference in levels)."""
    differences: dict[str, list[int]] = {name: [] for name in WAYS}
    for image in random_images():
        expected = np.asarray(whole(image)).astype(int)
        for name, way in WAYS.items():
            differences[name].append(int(np.abs(np.asarray(way(image)) - expected).max()))
    return {name: (int(np.count_nonzero(values)), max(values)) for name, values in differences.items()}


def main() -> None:
    contents = [Path(path).read_bytes() for path in clothing_photos()[:N_PHOTOS]]
    photos = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
    candidates: dict[str, Callable[[], object]] = {
        name: lambda way=way: [way(photo) for photo in photos] for name, way in WAYS.items()
    }
    candidates["decode, Pillow"] = lambda: [Image.open(io.BytesIO(content)).load() for content in contents]
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        decoded = [simplejpeg.decode_jpeg(content, "RGB") for content in contents]
        same = sum(np.array_equal(np.asarray(a), b) for a, b in zip(photos, decoded, strict=True))
        candidates["decode, simplejpeg, as a Pillow image"] = lambda: [
            Image.fromarray(simplejpeg.decode_jpeg(content, "RGB")) for content in contents
        ]
    differences = {name: f"{n} ({largest})" for name, (n, largest) in count_differences().items()}
    if "decode, simplejpeg, as a Pillow image" in candidates:
        differences["decode, simplejpeg, as a Pillow image"] = f"{len(photos) - same} of the photos"
    seconds = alternate(candidates, ROUNDS)
    floors = {name: "decode, Pillow" if name.startswith("decode") else next(iter(WAYS)) for name in candidates}
    rows = [
        [name, f"{statistics.median(values) / len(photos) * 1e3:.2f}",
         spread([slow / fast for slow, fast in zip(seconds[floors[name]], values, strict=True)]),
         differences.get(name, "–")]
        for name, values in seconds.items()
    ]  # fmt: skip
    write_markdown(
        "resize",
        "What does it save to resize only what the crop keeps, and are the pixels the same?",
        "python -m benchmarks.bench_resize",
        [
            "way",
            "ms a photo",
            "times as fast as the first of its kind",
            "images with another pixel (largest difference)",
        ],
        rows,
        f"{N_PHOTOS} photos of about 400×533 pixels, shorter side to {SIDE}, centre crop {CROP}, bilinear; one thread, "
        f"{ROUNDS} alternating rounds. Differences over {N_RANDOM} random images of 60–900 pixels a side, in levels of "
        "255.",
    )


if __name__ == "__main__":
    main()

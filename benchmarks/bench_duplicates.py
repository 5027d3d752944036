"""How far apart are embeddings of the same photo, saved anew, and of distinct photos?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_duplicates

Cosine distances with several backbones: between a photo and its copies (compressed again, smaller, cut), and between
a photo and the most similar other one. The threshold of `duplicate_groups` lies between the two.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import sktransfer
from benchmarks.measure import assets_folder, clothing_photos, write_markdown

BACKBONES = ("default", "mobilenetv2_features", "resnet50v2_stage3", "squeezenet1.1")
EVERY = 6  # of whose photos copies are made
THRESHOLD = 0.02


def compress(image: Image.Image) -> Image.Image:
    return image


def shrink(image: Image.Image) -> Image.Image:
    return image.resize((int(image.width * 0.6), int(image.height * 0.6)), Image.Resampling.LANCZOS)


def cut(image: Image.Image) -> Image.Image:
    w, h = image.size
    return image.crop((int(w * 0.03), int(h * 0.03), int(w * 0.97), int(h * 0.97)))


COPIES: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {
    "JPEG quality 60": (compress, 60),
    "0.6 of the size": (shrink, 85),
    "3 % cut on each side": (cut, 85),
}


def save_copy(path: str, change: Callable[[Image.Image], Image.Image], quality: int) -> bytes:
    stream = io.BytesIO()
    change(Image.open(path).convert("RGB")).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def normalise(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)


def measure(name: str, photos: list[str], backbone: object) -> list[str]:
    whole = normalise(sktransfer.extract(photos, backbone))
    cells = [name, "tiny-v1 (default)" if backbone == "default" else Path(str(backbone)).name]
    for change, quality in COPIES.values():
        copies = [save_copy(path, change, quality) for path in photos[::EVERY]]
        far = 1 - (normalise(sktransfer.extract(copies, backbone, cache_dir=None)) * whole[::EVERY]).sum(axis=1)
        cells.append(f"{np.median(far):.4f} / {far.max():.4f} / {(far <= THRESHOLD).mean():.0%}")
    distances = 1 - whole @ whole.T
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances.min(axis=1))
    below = int((nearest <= THRESHOLD).sum())
    return [*cells, str(below), f"{nearest[below]:.3f} / {np.median(nearest):.3f}"]


def main() -> None:
    houses = sorted(map(str, (assets_folder() / "datasets" / "houses" / "images").glob("*_frontal.jpg")))
    rows = []
    for name, photos in (("houses, 535 fronts", houses), ("clothing, 966 photos", clothing_photos())):
        for backbone in BACKBONES:
            reference = backbone if backbone == "default" else assets_folder() / "models" / backbone
            rows.append(measure(name, photos, reference))
    write_markdown(
        "duplicates",
        "How far apart are embeddings of the same photo, saved anew, and of distinct photos?",
        "python -m benchmarks.bench_duplicates",
        [
            "photos",
            "backbone",
            *COPIES,
            f"photos with another within {THRESHOLD}",
            "nearest other beyond that / median",
        ],
        rows,
        f"Cosine distance of embeddings. Copies of every {EVERY}th photo: median / largest / share within {THRESHOLD}. "
        "The fronts of houses hold repeated listings: some with the same file, others saved anew.",
    )


if __name__ == "__main__":
    main()

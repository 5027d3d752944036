"""What accuracy do embeddings reach on real photos, from the embedded backbone to ImageNet networks?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_quality

StandardScaler + LogisticRegression(C=0.01) over five folds, raw pixels (32x32 RGB) as the floor. Clothing is split by
the person who took the photo.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sktransfer
from benchmarks.measure import assets_folder, write_markdown
from sktransfer.images import decode_content
from sktransfer.locations import read_content

BACKBONES = ("tiny-v1", "mobilenetv1_0.25_128", "squeezenet1.1", "resnet18_layer3", "resnet50v2_stage3",
             "mobilenetv2_features", "inception_v3_mixed8")  # fmt: skip


def tasks():
    """Name -> images, labels, groups."""
    data = assets_folder() / "datasets"
    table = pd.read_csv(data / "clothing" / "images.csv")
    paths = [str(data / "clothing" / "images" / f"{name}.jpg") for name in table["image"]]
    yield "clothing, 17 kinds", paths, table["label"].to_numpy(), table["sender_id"].to_numpy()
    for domain in ("photo", "art_painting", "cartoon", "sketch"):
        found = sorted((data / "pacs" / domain).glob("*/*"))
        yield f"PACS {domain}, 7 kinds", list(map(str, found)), np.array([path.parent.name for path in found]), None
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    yield "digits, 10 kinds", images, digits.target, None


def raw_pixels(images) -> np.ndarray:
    small = []
    for image in images:
        decoded = decode_content(read_content(image, None), None)
        small.append(np.asarray(decoded.resize((32, 32), Image.Resampling.BILINEAR)).ravel())
    return np.stack(small).astype(np.float32)


def accuracy(X, labels, groups) -> float:
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = kind(5, shuffle=True, random_state=0)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    return cross_val_score(pipeline, X, labels, groups=groups, cv=folds, error_score="raise").mean()


def main() -> None:
    data = list(tasks())
    rows = [["raw pixels", *(f"{accuracy(raw_pixels(images), y, g):.3f}" for _, images, y, g in data)]]
    for name in BACKBONES:
        backbone = name if name == "tiny-v1" else assets_folder() / "models" / name
        rows.append(
            [name, *(f"{accuracy(sktransfer.extract(images, backbone), y, g):.3f}" for _, images, y, g in data)]
        )
    write_markdown(
        "quality",
        "What accuracy do embeddings reach on real photos?",
        "python -m benchmarks.bench_quality",
        ["features", *(name for name, *_ in data)],
        rows,
        "Accuracy over five folds of StandardScaler + LogisticRegression(C=0.01, max_iter=300). `tiny-v1` is the "
        "embedded backbone; the others are ImageNet networks, of which `resnet18_layer3`, `resnet50v2_stage3` and "
        "`inception_v3_mixed8` are cut before their last stage. Raw pixels are 32×32 RGB.",
    )


if __name__ == "__main__":
    main()

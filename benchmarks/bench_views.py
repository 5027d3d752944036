"""What do views bring at inference, and what do they cost: the centre, its mirror image, five crops?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_views

Clothing photos, StandardScaler + LogisticRegression over five folds that keep the photos of a sender together, the same
folds for all views. Speed is from files to embeddings without the cache, in alternation; that of "center" is the floor.
`--small` shows that it runs, and writes nothing.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sktransfer
from benchmarks.bench_quality import tasks
from benchmarks.measure import alternate, assets_folder, write_markdown

BACKBONES = ("mobilenetv1_0.25_128", "resnet18_layer3", "mobilenetv2_features")
VIEWS = ("center", "flip", "five_crop")
SEEDS = 3  # of the folds
TIMED_IMAGES, ROUNDS = 120, 5


def score(X: np.ndarray, labels: np.ndarray, groups: np.ndarray, n_seeds: int) -> np.ndarray:
    """Accuracy for each seed of the folds, a mean over the five of them."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    return np.array([
        cross_val_score(pipeline, X, labels, groups=groups, cv=StratifiedGroupKFold(5, shuffle=True, random_state=seed))
        .mean()
        for seed in range(n_seeds)
    ])  # fmt: skip


def measure(name: str, images: list[str], labels: np.ndarray, groups: np.ndarray, n_seeds: int, n_timed: int,
            rounds: int) -> list[list[str]]:  # fmt: skip
    """The table's lines of one backbone."""
    backbone = assets_folder() / "models" / name

    def run(views: str) -> Callable[[], object]:
        return lambda: sktransfer.extract(images[:n_timed], backbone, views=views, cache_dir=None)

    sktransfer.extract(images[:2], backbone, cache_dir=None)  # opens the session
    seconds = alternate({views: run(views) for views in VIEWS}, rounds)
    lines, base = [], None
    for views in VIEWS:
        with tempfile.TemporaryDirectory() as cache:
            before = sktransfer.session.forward_passes()
            X = sktransfer.extract(images, backbone, views=views, cache_dir=cache)
            passes = (sktransfer.session.forward_passes() - before) / len(images)
        scores = score(X, labels, groups, n_seeds)
        base = scores if base is None else base
        gains = scores - base
        rate = statistics.median(n_timed / value for value in seconds[views])
        slower = statistics.median(b / a for a, b in zip(seconds["center"], seconds[views], strict=True))
        gain = "–" if views == "center" else f"{gains.mean():+.3f} ({gains.min():+.3f} to {gains.max():+.3f})"
        lines.append([name, views, f"{scores.mean():.3f}", gain, f"{passes:.2f}", f"{rate:.0f}", f"{slower:.2f}"])
    return lines


def main() -> None:
    _, images, labels, groups = next(tasks())
    if "--small" in sys.argv[1:]:
        print(*measure(BACKBONES[0], images[:200], labels[:200], groups[:200], 1, 24, 1), sep="\n")
        return
    rows = [row for name in BACKBONES for row in measure(name, images, labels, groups, SEEDS, TIMED_IMAGES, ROUNDS)]
    write_markdown(
        "views",
        "What do views bring at inference, and what do they cost?",
        "python -m benchmarks.bench_views",
        ["backbone", "views", "accuracy", "above center", "passes an image", "images/s", "seconds, center = 1"],
        rows,
        f"{len(images)} clothing photos of 17 kinds. Accuracy: mean of five folds by sender, of {SEEDS} ways to draw "
        "them; in brackets the smallest and the largest difference among these. Images/s: median of "
        f"{ROUNDS} rounds over {TIMED_IMAGES} files, decoding included, nothing cached.",
    )


if __name__ == "__main__":
    main()

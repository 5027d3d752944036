"""What does GridSearchCV cost over one forward pass an image?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_grid_search

A grid over C of LogisticRegression (four candidates, five folds, n_jobs=1) behind the same extractor: plain, with
`Pipeline(memory=…)`, and as sktransfer does it. The floor is one extraction and the same search on the ready array.
Forward passes are counted where rows reach onnxruntime.
"""

from __future__ import annotations

import tempfile

import numpy as np
import onnxruntime as ort
import pandas as pd
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.measure import RESULTS, alternate, assets_folder, spread, write_markdown
from sktransfer import PretrainedFeatureExtractor, extract
from sktransfer.cache import forget_all

BACKBONE = "mobilenetv1_0.25_128"
ROUNDS = 3
GRID = {"head__C": [0.001, 0.01, 0.1, 1.0]}


class CountingSession(ort.InferenceSession):
    """Counts the rows of the first input of every run."""

    rows = 0

    def run(self, outputs, feeds, *args):
        """Count, then run."""
        CountingSession.rows += len(next(iter(feeds.values())))
        return super().run(outputs, feeds, *args)


def main() -> None:
    ort.InferenceSession = CountingSession
    folder = assets_folder() / "datasets" / "clothing"
    table = pd.read_csv(folder / "images.csv")
    paths = np.array([str(folder / "images" / f"{name}.jpg") for name in table["image"]], dtype=object)
    backbone = assets_folder() / "models" / BACKBONE

    def search(X, first_steps, memory=None):
        steps = [*first_steps, ("scale", StandardScaler()), ("head", LogisticRegression(max_iter=300))]
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        grid = GridSearchCV(Pipeline(steps, memory=memory), GRID, cv=folds, error_score="raise")
        return grid.fit(X, table["label"], groups=table["sender_id"])

    def extractor(cache_dir):
        return [("extract", PretrainedFeatureExtractor(backbone, cache_dir=cache_dir))]

    def ours():
        forget_all()
        search(paths, extractor("auto"))

    def with_memory():
        with tempfile.TemporaryDirectory() as memory:
            search(paths, extractor(None), memory)

    candidates = {
        "one extraction + search on the array": lambda: search(extract(paths, backbone, cache_dir=None), []),
        "sktransfer": ours,
        "Pipeline(memory=…), no cache": with_memory,
        "plain Pipeline, no cache": lambda: search(paths, extractor(None)),
    }
    passes = {}
    for name, run in candidates.items():
        before = CountingSession.rows
        run()
        passes[name] = (CountingSession.rows - before) / len(paths)
    seconds = alternate(candidates, ROUNDS)
    floor = seconds["one extraction + search on the array"]
    ratios = {name: [a / b for a, b in zip(values, floor, strict=True)] for name, values in seconds.items()}
    write_markdown(
        "grid_search",
        "What does GridSearchCV cost over one forward pass an image?",
        "python -m benchmarks.bench_grid_search",
        ["way", "forward passes per image", "seconds (median)", "time ÷ floor, median (smallest–largest)"],
        [[name, f"{passes[name]:.2f}", f"{np.median(seconds[name]):.1f}", spread(ratios[name])] for name in candidates],
        f"{len(paths)} clothing photos, {BACKBONE}, 5 folds × 4 candidates and the refit, n_jobs=1, {ROUNDS} "
        "alternating rounds. Vectors are remembered within the process only; a store on disk is not part of this "
        "version.",
    )
    plot(passes, {name: float(np.median(values)) for name, values in seconds.items()})


def plot(passes, seconds) -> None:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    names = list(passes)[::-1]
    colours = ["#b8b8b8", "#b8b8b8", "#1f77b4", "#dddddd"]
    axes = figure.subplots(1, 2, sharey=True)
    for axis, values, title, text in (
        (axes[0], passes, "forward passes per image", "%.0f"),
        (axes[1], seconds, "seconds", "%.1f"),
    ):
        bars = axis.barh(names, [values[name] for name in names], color=colours)
        axis.bar_label(bars, fmt=text, padding=3)
        axis.set_title(title)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.set_xticks([])
        axis.margins(x=0.12)
    figure.savefig(RESULTS / "grid_search.png", dpi=150)


if __name__ == "__main__":
    main()

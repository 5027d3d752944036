"""What does GridSearchCV cost over one forward pass an image?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_grid_search [--rounds 5]

A grid over C of LogisticRegression (five folds, 4 or 40 candidates, the refit) behind the same extractor: plain, with
`Pipeline(memory=…)`, and as sktransfer does it, cold and in the next run, with one process and with workers. The floor
is one extraction and the same search on the ready array. Every measurement is a process of its own, timed after its
imports; the order turns each round. Forward passes are the rows that reach `onnxruntime.InferenceSession.run`, in all
processes together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.measure import RESULTS, assets_folder, spread, write_markdown
from sktransfer import PretrainedFeatureExtractor, cache_info, extract

BACKBONE = "mobilenetv1_0.25_128"
FLOOR = "one extraction + search on the array"
COLD, NEXT = "sktransfer, cold", "sktransfer, next run"
HALF = "sktransfer, cold, bound of half the vectors"
WORKERS = {f"sktransfer, cold, n_jobs={n}": n for n in (2, 4)}
MEMORY, PLAIN = "Pipeline(memory=…), no cache", "plain Pipeline, no cache"
WAYS = {4: [FLOOR, COLD, NEXT, HALF, *WORKERS, MEMORY, PLAIN], 40: [FLOOR, COLD]}

InferenceSession = ort.InferenceSession


class CountingSession(InferenceSession):
    """Writes down how many rows each run has."""

    def run(self, outputs, feeds, *args):
        """Count, then run."""
        with open(os.environ["COUNTING_LOG"], "a") as file:
            file.write(f"{len(next(iter(feeds.values())))}\n")
        return super().run(outputs, feeds, *args)


class CountingExtractor(PretrainedFeatureExtractor):
    """Counts in the process it runs in."""

    def transform(self, X):
        """Embed, counting."""
        ort.InferenceSession = CountingSession
        return super().transform(X)


def clothing():
    """Paths, labels and groups."""
    folder = assets_folder() / "datasets" / "clothing"
    table = pd.read_csv(folder / "images.csv")
    paths = np.array([str(folder / "images" / f"{name}.jpg") for name in table["image"]], dtype=object)
    return paths, table["label"].to_numpy(), table["sender_id"].to_numpy()


def search(X, labels, groups, first_steps, n_candidates, memory=None, n_jobs=1) -> float:
    steps = [*first_steps, ("scale", StandardScaler()), ("head", LogisticRegression(max_iter=300))]
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    grid = {"head__C": np.logspace(-3, 0, n_candidates)}
    tuned = GridSearchCV(Pipeline(steps, memory=memory), grid, cv=folds, error_score="raise", n_jobs=n_jobs)
    return float(tuned.fit(X, labels, groups=groups).best_score_)


def run_once(way: str, n_candidates: int, memory: str) -> dict[str, float]:
    """In a process of its own: one search."""
    paths, labels, groups = clothing()
    backbone = assets_folder() / "models" / BACKBONE
    started = time.perf_counter()
    if way == FLOOR:
        ort.InferenceSession = CountingSession
        score = search(extract(paths, backbone, cache_dir=None), labels, groups, [], n_candidates)
    else:
        cache_dir = None if way in (MEMORY, PLAIN) else "auto"
        steps = [("extract", CountingExtractor(backbone, cache_dir=cache_dir))]
        kept = memory if way == MEMORY else None
        score = search(paths, labels, groups, steps, n_candidates, kept, WORKERS.get(way, 1))
    return {"seconds": time.perf_counter() - started, "score": score}


def measure(way: str, n_candidates: int, folder: Path) -> tuple[float, float, float]:
    """Start a process; returns its seconds, its passes an image, and the search's score."""
    log = folder / "rows.log"
    log.write_text("")
    cache = folder / ("kept" if way == NEXT else tempfile.mkdtemp(dir=folder))
    environment = {**os.environ, "COUNTING_LOG": str(log), "SKTRANSFER_CACHE_DIR": str(cache)}
    if way == HALF:
        environment["SKTRANSFER_CACHE_SIZE"] = str(cache_info(folder / "kept").bytes // 2)
    with tempfile.TemporaryDirectory(dir=folder) as memory:
        command = [sys.executable, "-m", "benchmarks.bench_grid_search", "--once", way, str(n_candidates), memory]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rows = sum(int(line) for line in log.read_text().split())
    return found["seconds"], rows / len(clothing()[0]), found["score"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", nargs=3, metavar=("WAY", "CANDIDATES", "MEMORY"))
    arguments = parser.parse_args()
    if arguments.once:
        way, n_candidates, memory = arguments.once
        print(json.dumps(run_once(way, int(n_candidates), memory)))
        return
    paths, _, _ = clothing()
    rows, bars = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        extract(paths, assets_folder() / "models" / BACKBONE, cache_dir=folder / "kept")  # and the disk is warm
        for n_candidates, ways in WAYS.items():
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            passes: dict[str, set[float]] = {way: set() for way in ways}
            scores = set()
            for index in range(arguments.rounds):
                turned = ways[index % len(ways) :] + ways[: index % len(ways)]
                for way in turned:
                    time_taken, passed, score = measure(way, n_candidates, folder)
                    print(f"{n_candidates} candidates, round {index + 1}, {way}: {time_taken:.1f} s, {passed:.4f}",
                          file=sys.stderr)  # fmt: skip
                    seconds[way].append(time_taken)
                    passes[way].add(passed)
                    scores.add(round(score, 3))
            for way in ways:
                ratios = [a / b for a, b in zip(seconds[way], seconds[FLOOR], strict=True)]
                low, high = min(passes[way]), max(passes[way])
                passed = f"{high:.2f}" if low == high else f"{low:.3f}–{high:.3f}"
                rows.append([n_candidates, way, passed, f"{np.median(seconds[way]):.1f}", spread(ratios)])
                bars[n_candidates, way] = high, float(np.median(seconds[way]))
            print(f"scores: {scores}", file=sys.stderr)
    write_markdown(
        "grid_search",
        "What does GridSearchCV cost over one forward pass an image?",
        "python -m benchmarks.bench_grid_search",
        ["candidates", "way", "forward passes per image", "seconds (median)", "time ÷ floor, median (range)"],
        rows,
        f"{len(paths)} clothing photos, {BACKBONE}, 5 folds and the refit, n_jobs=1 unless said, {arguments.rounds} "
        "rounds, every search in a process of its own, timed after its imports, in turning order.",
    )
    plot({way: bars[4, way] for way in (FLOOR, NEXT, COLD, MEMORY, PLAIN)})


def plot(bars) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    names = list(bars)[::-1]
    colours = ["#b8b8b8", "#b8b8b8", "#1f77b4", "#1f77b4", "#dddddd"]
    axes = figure.subplots(1, 2, sharey=True)
    for column, (axis, title, text) in enumerate(
        ((axes[0], "forward passes per image", "%.0f"), (axes[1], "seconds", "%.1f"))
    ):
        drawn = axis.barh(names, [bars[name][column] for name in names], color=colours)
        axis.bar_label(drawn, fmt=text, padding=3)
        axis.set_title(title)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.set_xticks([])
        axis.margins(x=0.12)
    figure.savefig(RESULTS / "grid_search.png", dpi=150)


if __name__ == "__main__":
    main()

"""Does the cheap score order backbones as the cross-validated linear probe does?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_ranking [--images 60]

Seven backbones, each cut at its own layer and at the stage before. Kendall's tau, weighted so that the first places
count most (scipy.stats.weightedtau), between the order of a score and that of the linear probe on all rows: the score
on ten random halves of the rows, whose spread is given. Beside it what taking the score's first costs. The floors are
orders that have not seen the images (size of the embedding, MACs); the ceiling is the probe itself on three halves.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import weightedtau
from threadpoolctl import threadpool_limits

import sktransfer
from benchmarks.bench_houses import load_example
from benchmarks.bench_quality import tasks
from benchmarks.measure import RESULTS, assets_folder, write_markdown
from sktransfer import extract, h_score, leep_score, linear_probe_score, logme_score, nce_score
from sktransfer.cache import open_cache
from sktransfer.candidates import count_plan_macs
from sktransfer.extraction import plan_extraction
from sktransfer.intervals import draw_subsets

# The stage before the last one, beside the network's own embedding.
LAYERS = {
    "tiny-v1": "stage3",
    "mobilenetv1_0.25_128": "stage4",
    "squeezenet1.1": "stage2",
    "resnet18_layer3": "stage2",
    "resnet50v2_stage3": "stage2",
    "mobilenetv2_features": "stage4",
    "inception_v3_mixed8": "stage4",
}
SCORES = {"LogME": logme_score, "H-score": h_score}
OF_CLASSIFIERS = {"LEEP": leep_score, "NCE": nce_score}
FLOORS = ("features", "MACs")
CEILING = "linear probe, half"
COLUMNS = ("LogME", "H-score", "LEEP", "NCE", *FLOORS, CEILING)
N_HALVES = 10
N_CEILING = 3
N_DIGITS = 500


class Task(NamedTuple):
    """Labelled images."""

    name: str
    images: Any
    y: np.ndarray
    groups: np.ndarray | None

    @property
    def regression(self) -> bool:
        """Whether y holds values."""
        return self.y.dtype.kind == "f"


class Embedded(NamedTuple):
    """One candidate on one task."""

    backbone: str
    layer: str
    X: np.ndarray
    logits: np.ndarray | None  # of a candidate that is cut at the network's own layer
    macs: int


def list_tasks(n_images: int | None) -> Iterator[Task]:
    """The open data sets; `n_images` of each for a trial."""
    found = [Task(name, list(images), np.asarray(y), groups) for name, images, y, groups in tasks()]
    domains = [task for task in found if task.name.startswith("PACS")]
    images, labels = [path for task in domains for path in task.images], np.concatenate([task.y for task in domains])
    found.append(Task("PACS, all four domains", images, labels, None))
    houses, folder = load_example(), assets_folder() / "datasets" / "houses"
    table = houses.read_table(folder)
    images = [str(folder / path) for path in table["frontal"]]
    prices = np.log(table["price"].to_numpy(dtype=float))
    prices -= prices.mean()  # as rank_backbones does, since LogME has no intercept
    found.append(Task("houses, log price (R²)", images, prices, houses.make_groups(table, folder)))
    for task in found:
        limit = min(n_images or len(task.y), N_DIGITS if "digits" in task.name else len(task.y))
        rows = np.sort(np.random.default_rng(0).permutation(len(task.y))[:limit])
        groups = None if task.groups is None else task.groups[rows]
        yield Task(task.name, [task.images[row] for row in rows], task.y[rows], groups)


def embed(task: Task) -> Iterator[Embedded]:
    """Both layers of each backbone, from one pass over them together."""
    for name, before in LAYERS.items():
        backbone = sktransfer.load_backbone(name if name == "tiny-v1" else assets_folder() / "models" / name)
        plans = {layer: plan_extraction(backbone, layer) for layer in (before, "penultimate")}
        both = extract(task.images, backbone, layer=list(plans))
        width = plans[before].graph.n_features
        try:
            logits = None if task.regression else extract(task.images, backbone, layer="logits")
        except sktransfer.BackboneError:
            logits = None
        macs = {layer: count_plan_macs(plan, open_cache()) for layer, plan in plans.items()}
        yield Embedded(name, before, both[:, :width], None, macs[before])
        yield Embedded(name, "penultimate", both[:, width:], logits, macs["penultimate"])


def score_half(task: Task, candidate: Embedded, rows: np.ndarray, seconds: dict[str, list[float]]) -> dict[str, float]:
    """Every score of some rows; NaN where it does not apply."""
    found: dict[str, float] = {"features": candidate.X.shape[1], "MACs": candidate.macs}
    for name, score in (SCORES | OF_CLASSIFIERS).items():
        X = candidate.logits if name in OF_CLASSIFIERS else candidate.X
        if X is None or (task.regression and name != "LogME"):
            found[name] = np.nan
            continue
        started = time.perf_counter()
        found[name] = score(X[rows], task.y[rows])
        seconds.setdefault(name, []).append(time.perf_counter() - started)
    return found


def probe(task: Task, candidate: Embedded, rows: np.ndarray) -> float:
    groups = None if task.groups is None else task.groups[rows]
    return linear_probe_score(candidate.X[rows], task.y[rows], groups=groups)


def compare(score: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Weighted tau, and what the exact answer loses by taking the score's first; NaN for fewer than three."""
    known = np.isfinite(score)
    if known.sum() < 3:
        return np.nan, np.nan
    score, exact = score[known], exact[known]
    return float(weightedtau(score, exact).statistic), float(exact.max() - exact[score.argmax()])


def measure(task: Task, seconds: dict[str, list[float]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The candidates with both answers on all rows; tau and loss of each score on each half."""
    candidates, everything = list(embed(task)), np.arange(len(task.y))
    exact = []
    for candidate in candidates:
        started = time.perf_counter()
        exact.append(probe(task, candidate, everything))
        seconds.setdefault("linear probe", []).append(time.perf_counter() - started)
    codes = None if task.regression else np.unique(task.y, return_inverse=True)[1]
    halves = draw_subsets(codes, task.groups, len(task.y), N_HALVES, len(task.y), 0)
    found = []
    for number, rows in enumerate(halves):
        table = pd.DataFrame([score_half(task, candidate, rows, seconds) for candidate in candidates])
        if number < N_CEILING:
            table[CEILING] = [probe(task, candidate, rows) for candidate in candidates]
        for name in table.columns:
            tau, loss = compare(table[name].to_numpy(dtype=float), np.array(exact))
            found.append((task.name, name, tau, loss))
    points = pd.DataFrame(
        {
            "backbone": [candidate.backbone for candidate in candidates],
            "layer": [candidate.layer for candidate in candidates],
            "LogME": [logme_score(candidate.X, task.y) for candidate in candidates],
            "exact": exact,
        }
    )
    return points, pd.DataFrame(found, columns=["task", "score", "tau", "loss"])


def describe(found: pd.DataFrame) -> Iterator[list[str]]:
    """One row a data set, and one of their means."""
    by_task = found.groupby(["task", "score"], sort=False).agg(
        tau=("tau", "mean"), sd=("tau", "std"), loss=("loss", "mean")
    )
    for task in dict.fromkeys(found["task"]):
        cells = []
        for name in COLUMNS:
            tau, sd, loss = by_task.loc[(task, name)]
            cells.append("–" if np.isnan(tau) else f"{tau:.2f} ± {0 if np.isnan(sd) else sd:.2f}; {loss:.3f}")
        yield [task, *cells]
    means = by_task.groupby("score").mean()
    spreads = by_task.groupby("score")["tau"].std()
    yield ["mean ± sd over data sets", *(f"{means['tau'][name]:.2f} ± {spreads[name]:.2f}; {means['loss'][name]:.3f}"
                                         for name in COLUMNS)]  # fmt: skip


def plot(points: dict[str, pd.DataFrame], taus: pd.Series) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(14, 7), layout="constrained")
    panels = figure.subplots(2, 4).ravel()
    for axes, (task, table) in zip(panels, points.items(), strict=False):
        for number, name in enumerate(LAYERS):
            rows = table[table["backbone"] == name]
            axes.plot(rows["LogME"], rows["exact"], "-", color=f"C{number}", linewidth=0.6)
            for row in rows.itertuples():
                face = f"C{number}" if row.layer == "penultimate" else "white"
                label = name if row.layer == "penultimate" else None
                axes.plot(row.LogME, row.exact, "o", color=f"C{number}", markerfacecolor=face, label=label)
        axes.set(title=f"{task}: τ = {taus[task]:.2f}", xlabel="LogME")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(alpha=0.3)
    for row in (0, 4):
        panels[row].set_ylabel("linear probe, cross-validated")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(LAYERS), frameon=False, fontsize="small")
    figure.savefig(RESULTS / "ranking.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, help="of each data set, for a trial")
    n_images = parser.parse_args().images
    seconds: dict[str, list[float]] = {}
    points, found = {}, []
    with threadpool_limits(1):  # of a thousand rows; more threads wait for each other
        for task in list_tasks(n_images):
            points[task.name], part = measure(task, seconds)
            found.append(part)
            print(part.groupby("score", sort=False)["tau"].mean().round(2).to_dict(), task.name, flush=True)
    table = pd.concat(found, ignore_index=True)
    taus = pd.Series({task: compare(rows["LogME"].to_numpy(), rows["exact"].to_numpy())[0]
                      for task, rows in points.items()})  # fmt: skip
    plot(points, taus)
    costs = ", ".join(f"{name} {np.mean(values):.3f} s" for name, values in seconds.items())
    write_markdown(
        "ranking",
        "Does the cheap score order backbones as the cross-validated linear probe does?",
        "python -m benchmarks.bench_ranking",
        ["data set", *COLUMNS],
        list(describe(table)),
        f"{2 * len(LAYERS)} candidates: {', '.join(LAYERS)}, each at its own layer and at the stage before. Weighted "
        "tau (1: the same order, 0: none) between a score on a random half of the rows and the linear probe (five "
        f"folds, accuracy or R²) on all rows, mean ± sd over {N_HALVES} halves ({N_CEILING} for the probe on a half); "
        "after the semicolon, how much less the probe gives for the score's first than for the best. LEEP and NCE are "
        "those of the networks that have a classifier, which are three. Clothing is split by the person who took the "
        "photo, houses by listing. Seconds a candidate, one thread (scores on half the rows, the probe on all): "
        f"{costs}.\n\n"
        "![LogME against the linear probe; hollow: the stage before](ranking.png)",
    )


if __name__ == "__main__":
    main()

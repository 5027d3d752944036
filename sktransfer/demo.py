"""The demonstration: a tuned pipeline on embeddings beside the same pipeline on raw pixels."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer._optional import import_optional
from sktransfer.exceptions import ImageReadError
from sktransfer.extractor import PretrainedFeatureExtractor
from sktransfer.images import decode_content, describe_error
from sktransfer.locations import read_content
from sktransfer.session import forward_passes
from sktransfer.tables import find_images

FOLDS = 3
MIN_IMAGES = 6  # of a class
RAW_SIZE = 32  # side of the photos behind the raw-pixel baseline
HEADS: dict[str, tuple[Any, dict[str, list[float]]]] = {
    "LogisticRegression": (
        LogisticRegression(max_iter=100),
        {"logisticregression__C": [0.001, 0.01, 0.1]},
    ),
    "MLPClassifier": (
        MLPClassifier((64,), max_iter=60, random_state=0),
        {"mlpclassifier__alpha": [0.1, 1.0, 10.0]},
    ),
}


@dataclass(frozen=True)
class Task:
    """Images with labels, and the same images as rows of raw pixels."""

    name: str
    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    pixels: np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Result:
    """One tuned pipeline."""

    task: str
    features: str  # "raw pixels" or "embeddings"
    head: str
    accuracy: float  # on the held-out quarter
    images: int
    passes: int
    seconds: float


def digits_tasks(n_images: int = 1000, seed: int = 0) -> list[Task]:
    """scikit-learn's digits as they are, and at random positions of patches of scikit-learn's two photographs."""
    digits = load_digits()
    images = np.rint(digits.images[:n_images] * (255 / 16)).astype(np.uint8)
    labels = digits.target[:n_images]
    moved = _scatter(images, canvas=64, digit=28, seed=seed)
    return [
        Task("digits, centred", images, labels, _flatten(images)),
        Task("digits, anywhere on a photograph", moved, labels, _flatten(moved[:, ::2, ::2].mean(axis=3))),
    ]


def _scatter(images: np.ndarray[Any, Any], canvas: int, digit: int, seed: int) -> np.ndarray[Any, Any]:
    """Each digit enlarged and laid over a darkened patch of a photograph, at a random position."""
    generator = np.random.default_rng(seed)
    photos = load_sample_images().images
    scattered = np.empty((len(images), canvas, canvas, 3), dtype=np.uint8)
    for row, image in enumerate(images):
        photo = photos[generator.integers(len(photos))]
        top, left = (generator.integers(size - canvas) for size in photo.shape[:2])
        patch = photo[top : top + canvas, left : left + canvas] // 3
        large = np.asarray(Image.fromarray(image).resize((digit, digit), Image.Resampling.BICUBIC))
        y, x = generator.integers(canvas - digit + 1, size=2)
        region = patch[y : y + digit, x : x + digit]
        patch[y : y + digit, x : x + digit] = np.maximum(region, large[:, :, None])
        scattered[row] = patch
    return scattered


def _flatten(images: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return images.reshape(len(images), -1).astype(np.float32)


def folder_task(folder: str | os.PathLike[str]) -> Task:
    """The user's own photos: one folder for each class.

    Raises
    ------
    ValueError
        If there are fewer than two classes, or a class has too few photos to be tuned on.
    ImageReadError
        If a photo cannot be read.
    """
    found = [path for path in find_images(folder) if "/" in path]
    counts = Counter(path.partition("/")[0] for path in found)
    if len(counts) < 2:
        raise ValueError(
            f"FOLDER must hold one folder of photos for each class. {os.fspath(folder)!r} holds {len(counts)} of them."
        )
    label, smallest = min(counts.items(), key=lambda item: item[1])
    if smallest < MIN_IMAGES:
        raise ValueError(f"Every class must have at least {MIN_IMAGES} photos. {label!r} has {smallest}.")
    paths = np.array([os.path.join(folder, path) for path in found], dtype=object)
    labels = np.array([path.partition("/")[0] for path in found])
    pixels = np.stack([_read_small(path, RAW_SIZE) for path in paths])
    return Task(Path(folder).resolve().name, paths, labels, _flatten(pixels))


def _read_small(reference: Any, side: int) -> np.ndarray[Any, Any]:
    # Here a photo that cannot be read is an error; in the search it would be a NaN score.
    try:
        image = decode_content(read_content(reference, None), None)
    except (ValueError, OSError) as error:
        raise ImageReadError(f"{reference!r} could not be read: {describe_error(error)}.") from error
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def run_demo(
    tasks: Sequence[Task],
    backbone: str,
    n_jobs: int | None = None,
    report: Callable[[str], object] = print,
) -> list[Result]:
    """Tune every head on raw pixels and on embeddings of every task, and report a table line by line."""
    width = max(len(task.name) for task in tasks)
    report(f"{'task':{width}}  features    head                accuracy  images  passes  seconds")
    results = []
    for task in tasks:
        for result in _run_task(task, backbone, n_jobs):
            report(
                f"{result.task:{width}}  {result.features:10}  {result.head:18}  {result.accuracy:8.3f}  "
                f"{result.images:6d}  {result.passes:6d}  {result.seconds:7.1f}"
            )
            results.append(result)
    return results


def _run_task(task: Task, backbone: str, n_jobs: int | None) -> Iterator[Result]:
    train, test = train_test_split(np.arange(len(task.labels)), stratify=task.labels, random_state=0)
    extractor = PretrainedFeatureExtractor(backbone, n_jobs=n_jobs)
    for features, first_steps, X in (
        ("raw pixels", [], task.pixels),
        ("embeddings", [extractor], task.images),
    ):
        for head, (estimator, grid) in HEADS.items():
            started, passes = time.perf_counter(), forward_passes()
            pipeline = make_pipeline(*first_steps, StandardScaler(), estimator)
            folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
            search = GridSearchCV(pipeline, grid, cv=folds, error_score="raise")
            with warnings.catch_warnings():
                # A bounded number of epochs is the demonstration's choice.
                warnings.simplefilter("ignore", ConvergenceWarning)
                search.fit(X[train], task.labels[train])
            accuracy = search.score(X[test], task.labels[test])
            seconds = time.perf_counter() - started
            yield Result(task.name, features, head, accuracy, len(X), forward_passes() - passes, seconds)


def check_plot(path: str | os.PathLike[str]) -> Path:
    """Refuse, before any work, a plot that could not be written."""
    import_optional("matplotlib", "plot")
    file = Path(path)
    if not file.parent.is_dir():
        raise ValueError(f"The folder of the plot must exist. There is no {str(file.parent)!r}; create it first.")
    if file.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"The plot must end in .png, .svg or .pdf. Got {file.name!r} instead.")
    if file.is_dir():
        raise ValueError(f"The plot must be a file. {str(file)!r} is a folder.")
    if not os.access(file.parent, os.W_OK):
        raise ValueError(f"The folder of the plot must be writable. {str(file.parent)!r} is not.")
    return file


def plot_results(tasks: Sequence[Task], results: Sequence[Result], path: str | os.PathLike[str]) -> None:
    """For each task some of its images, and bars of accuracy: raw pixels beside embeddings."""
    figure_module = import_optional("matplotlib.figure", "plot")
    figure = figure_module.Figure(figsize=(2 + 3.6 * len(tasks), 4.6), layout="constrained")
    axes = figure.subplots(2, len(tasks), squeeze=False, height_ratios=(1, 5))
    for column, task in enumerate(tasks):
        axes[0, column].imshow(_montage(task))
        axes[0, column].set_axis_off()
        axes[0, column].set_title(task.name)
        _plot_bars(axes[1, column], [result for result in results if result.task == task.name])
    axes[1, 0].set_ylabel("accuracy on held-out images")
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def _plot_bars(axis: Any, results: Sequence[Result]) -> None:
    heads = list(dict.fromkeys(result.head for result in results))
    for offset, (features, colour) in enumerate((("raw pixels", "#b8b8b8"), ("embeddings", "#1f77b4"))):
        values = [result.accuracy for result in results if result.features == features]
        bars = axis.bar(np.arange(len(heads)) + 0.38 * offset, values, 0.36, label=features, color=colour)
        axis.bar_label(bars, fmt="%.3f", padding=2)
    axis.set_xticks(np.arange(len(heads)) + 0.19, heads)
    axis.set_ylim(0, 1.12)
    axis.spines[["top", "right"]].set_visible(False)


def _montage(task: Task, n: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """`n` images of the task in a row, spread over its classes."""
    chosen = np.argsort(task.labels, kind="stable")[np.linspace(0, len(task.labels) - 1, n).astype(int)]
    tiles = [np.pad(_read_small(task.images[row], 64), ((0, 0), (2, 2), (0, 0)), constant_values=255) for row in chosen]
    return np.concatenate(tiles, axis=1)

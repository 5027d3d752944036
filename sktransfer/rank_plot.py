"""A picture of a ranking: score over speed, one labelled point a candidate, and who is not beaten on both."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer._optional import import_optional

if TYPE_CHECKING:
    import pandas as pd

SPEED = "images_per_second"
DISTANCES = (7, 14, 24, 36, 50)  # points, from a candidate to its label
DIRECTIONS = ((1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1))


def shorten_reference(reference: str) -> str:
    """What a backbone is called for people: the last part of a path that says something."""
    parts = [part for part in PurePath(reference.replace("\\", "/").partition("@")[0]).parts if part != "onnx"]
    name = parts[-2] if parts[-1] == "model.onnx" and len(parts) > 1 else parts[-1]
    return name.removesuffix(".onnx")


def shorten_references(references: Sequence[str]) -> list[str]:
    """Short names, or the references themselves where two of them would be called the same."""
    short = {reference: shorten_reference(reference) for reference in references}
    return [short[one] if len(set(short.values())) == len(short) else one for one in references]


def name_candidates(frame: pd.DataFrame) -> list[str]:
    """A label for each candidate; with its layer where that tells candidates apart."""
    names = shorten_references(frame["backbone"].tolist())
    if len(set(names)) == len(names):
        return names
    return [f"{name}, {layer}" for name, layer in zip(names, frame["layer"], strict=True)]


def find_front(speeds: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Candidates than which no other is better in one and no worse in the other, the fastest first."""
    order = sorted(range(len(scores)), key=lambda i: (-speeds[i], -scores[i]))
    front: list[int] = []
    for index in order:
        if math.isfinite(scores[index]) and (not front or scores[index] > scores[front[-1]]):
            front.append(index)
    return front


def plot_ranking(frame: pd.DataFrame, score: str, path: str | os.PathLike[str]) -> None:
    """Write the picture of what `rank_backbones` returned; candidates without a score or a speed are left out.

    Raises
    ------
    ValueError
        If none is left.
    """
    figure_module = import_optional("matplotlib.figure", "plot")
    agg = import_optional("matplotlib.backends.backend_agg", "plot")
    frame = frame[np.isfinite(frame[score]) & np.isfinite(frame[SPEED])].reset_index(drop=True)
    if frame.empty:
        raise ValueError(f"There is nothing to draw: no candidate has a score {score!r} and a speed.")
    figure = figure_module.Figure(figsize=(8.5, 5.5), layout="constrained")
    canvas = agg.FigureCanvasAgg(figure)
    axes = figure.subplots()
    front = find_front(frame[SPEED].tolist(), frame[score].tolist())
    _draw_front(axes, frame, score, front)
    _draw_candidates(axes, frame, score, front)
    axes.set(ylabel=f"{score}, with its 90 % interval", title="Which backbone suits these images?")
    axes.set_xlabel("images per second, decoded and embedded on this machine (log scale)")
    axes.margins(x=0.15, y=0.12)
    _mark_speeds(axes)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", frameon=False, fontsize="small")
    figure.draw_without_rendering()
    _place_labels(axes, canvas.get_renderer(), frame, score, front)
    figure.savefig(path, dpi=150)


def _draw_front(axes: Any, frame: pd.DataFrame, score: str, front: Sequence[int]) -> None:
    speeds, scores = frame[SPEED].to_numpy()[front], frame[score].to_numpy()[front]
    axes.set_xscale("log")
    if frame[SPEED].nunique() == 1:
        axes.set_xlim(frame[SPEED][0] / 2, frame[SPEED][0] * 2)
    axes.step(speeds, scores, where="post", color="#999999", linestyle="--", linewidth=1, zorder=1,
              label="nothing is both faster and better")  # fmt: skip


def _draw_candidates(axes: Any, frame: pd.DataFrame, score: str, front: Sequence[int]) -> None:
    palette = itertools.cycle(f"C{number}" for number in range(10))
    colours = {backbone: next(palette) for backbone in dict.fromkeys(frame["backbone"])}
    for index, row in frame.iterrows():
        colour = colours[row["backbone"]]
        if np.isfinite(row["low"]):
            axes.vlines(row[SPEED], row["low"], row["high"], color=colour, alpha=0.6, linewidth=1.5, zorder=2)
        face = colour if index in front else "white"
        axes.plot(row[SPEED], row[score], "o", markersize=7, color=colour, markerfacecolor=face, zorder=3)


def _mark_speeds(axes: Any) -> None:
    """Ticks at 1, 2 and 5 times the powers of ten, written out."""
    ticker = import_optional("matplotlib.ticker", "plot")
    axes.xaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def _place_labels(axes: Any, renderer: Any, frame: pd.DataFrame, score: str, front: Sequence[int]) -> None:
    """Beside each candidate, where the label covers neither another one nor a candidate."""
    points = axes.transData.transform(frame[[SPEED, score]].to_numpy())
    lows = frame["low"].where(np.isfinite(frame["low"]), frame[score])
    highs = frame["high"].where(np.isfinite(frame["high"]), frame[score])
    ends = [axes.transData.transform(np.column_stack([frame[SPEED], end]))[:, 1] for end in (lows, highs)]
    radius = 6 * renderer.dpi / 72
    taken = [(x - radius, min(y - radius, low), x + radius, max(y + radius, high))
             for (x, y), low, high in zip(points, *ends, strict=True)]  # fmt: skip
    inside = axes.get_window_extent(renderer)
    names, effects = name_candidates(frame), import_optional("matplotlib.patheffects", "plot")
    for index in [*front, *(i for i in range(len(frame)) if i not in front)]:
        place = (frame[SPEED][index], frame[score][index])
        arrow = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkB": 4, "shrinkA": 0}
        weight = "bold" if index in front else "normal"
        label = axes.annotate(names[index], place, (0, 0), textcoords="offset points", fontsize="small",
                              arrowprops=arrow, fontweight=weight, zorder=4,
                              path_effects=[effects.withStroke(linewidth=3, foreground="white")])  # fmt: skip
        best = min(_list_offsets(), key=lambda offset: _count_overlap(label, offset, taken, inside, renderer))
        taken.append(_move(label, best, renderer))


def _list_offsets() -> list[tuple[float, float]]:
    """Near ones first: `min` takes the first of equals."""
    return [(x * distance, y * distance) for distance in DISTANCES for x, y in DIRECTIONS]


def _move(label: Any, offset: tuple[float, float], renderer: Any) -> tuple[float, float, float, float]:
    """Put a label there; returns what it covers: left, bottom, right, top."""
    x, y = offset
    label.set_position(offset)
    label.set_horizontalalignment("left" if x > 0 else "right" if x < 0 else "center")
    label.set_verticalalignment("bottom" if y > 0 else "top" if y < 0 else "center")
    label.arrow_patch.set_visible(math.hypot(x, y) > 2 * DISTANCES[0])
    label.update_positions(renderer)
    from matplotlib.text import Text

    box = Text.get_window_extent(label, renderer)
    return box.x0, box.y0, box.x1, box.y1


def _count_overlap(
    label: Any,
    offset: tuple[float, float],
    taken: Sequence[tuple[float, float, float, float]],
    inside: Any,
    renderer: Any,
) -> float:
    """Square pixels that a label would share with what is there, or have outside."""
    left, bottom, right, top = _move(label, offset, renderer)
    shared = 0.0
    for x0, y0, x1, y1 in taken:
        shared += max(0.0, min(right, x1) - max(left, x0)) * max(0.0, min(top, y1) - max(bottom, y0))
    width = max(0.0, min(right, inside.x1) - max(left, inside.x0))
    height = max(0.0, min(top, inside.y1) - max(bottom, inside.y0))
    outside = (right - left) * (top - bottom) - width * height
    return float(shared + outside)

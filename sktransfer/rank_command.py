"""What ``sktransfer rank`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer.cache import open_cache
from sktransfer.candidates import describe_downloads, name_backbones
from sktransfer.model_commands import echo_table
from sktransfer.rank_plot import SPEED, name_candidates, plot_ranking, shorten_references
from sktransfer.selection import rank_backbones
from sktransfer.tables import find_images, open_table
from sktransfer.writers import check_output, write_table

if TYPE_CHECKING:
    import pandas as pd

Say = Callable[..., object]  # typer.echo


@dataclass(frozen=True)
class Labelled:
    """Images with what is to be told from them."""

    images: list[Any]
    labels: np.ndarray[Any, Any]
    groups: np.ndarray[Any, Any] | None
    root: Path | None


def read_labelled(
    source: Path,
    column: str | None,
    label: str | None,
    groups: str | None,
    root: Path | None,
    delimiter: str | None,
    *,
    from_folders: bool,
    regression: bool,
) -> Labelled:
    """The images and labels of a folder of folders, or of a table.

    Raises
    ------
    ValueError
        If the options do not say where the labels are, or they are not there.
    """
    if not source.exists():
        raise ValueError(f"There is no folder or table {str(source)!r} (from {Path.cwd()}).")
    if source.is_dir():
        if not from_folders:
            raise ValueError("A folder needs --labels-from-folders: the first folder's name is an image's label.")
        if column or label or groups or regression or root or delimiter:
            raise ValueError(
                "--column, --label, --groups, --regression, --root and --delimiter are for tables. Got a folder; leave "
                "them out."
            )
        return _read_folder(source)
    if from_folders:
        raise ValueError("--labels-from-folders needs a folder. Got a table; name its column of labels with --label.")
    if column is None or label is None:
        raise ValueError("A table needs --column NAME, the column of images, and --label NAME, that of the labels.")
    return _read_table(source, column, label, groups, root, delimiter, regression=regression)


def _read_folder(folder: Path) -> Labelled:
    """The images under a folder, labelled by the first folder on their way."""
    paths = find_images(folder)
    outside = [path for path in paths if "/" not in path]
    if outside:
        more = f" and {len(outside) - 1} more do" if len(outside) > 1 else " does"
        raise ValueError(
            f"FOLDER must hold one folder of images for each class. {outside[0]!r}{more} not lie in one; move what has "
            "no class elsewhere."
        )
    labels = np.array([path.partition("/")[0] for path in paths])
    if len(set(labels.tolist())) < 2:
        raise ValueError(
            f"FOLDER must hold folders of at least two classes. {str(folder)!r} has only {str(labels[0])!r}."
        )
    return Labelled(list(paths), labels, None, folder)


def _read_table(
    path: Path,
    column: str,
    label: str,
    groups: str | None,
    root: Path | None,
    delimiter: str | None,
    *,
    regression: bool,
) -> Labelled:
    table = open_table(path, [column], delimiter=delimiter, as_text=True)
    for option, name in (("--label", label), ("--groups", groups)):
        if name is not None and name not in table.others:
            raise ValueError(f"{option} must name another column of {path}. Got {name!r} instead.")
    rows = table.read(0, table.n_rows)
    labels = _read_labels(rows[label], label, regression=regression)
    members = None if groups is None else rows[groups].astype(object).to_numpy()
    return Labelled(rows[column].tolist(), labels, members, root)


def _read_labels(column: pd.Series[Any], name: str, *, regression: bool) -> np.ndarray[Any, Any]:
    empty = np.flatnonzero(column.isna() | (column.astype(str).str.strip() == ""))
    if len(empty):
        raise ValueError(f"Every row must have a label. Row {empty[0]} has none in the column {name!r}; leave it out.")
    if not regression:
        return np.asarray(column.astype(str))
    values = []
    for row, cell in enumerate(column):
        try:
            values.append(float(cell))
        except (TypeError, ValueError) as error:
            raise ValueError(f"--regression needs numbers. Got {cell!r} in row {row} of {name!r}.") from error
    return np.array(values)


def check_targets(output: Path | None, plot: Path | None) -> None:
    """Refuse, before any work, files that could not be written."""
    from sktransfer.demo import check_plot

    if output is not None:
        check_output(output)
    if plot is not None:
        check_plot(plot)


def rank(source: Labelled, backbones: Sequence[str], scores: Sequence[str], output: Path | None, plot: Path | None,
         say: Say, *, cache_dir: Any, quiet: bool, **options: Any) -> None:  # fmt: skip
    """Rank, and say, write and draw what came out."""
    if quiet and (text := describe_downloads(name_backbones(backbones), open_cache(cache_dir))):
        say(text, err=True)
    frame = rank_backbones(
        source.images,
        source.labels,
        backbones,
        scores=list(scores),
        groups=source.groups,
        root=source.root,
        cache_dir=cache_dir,
        verbose=not quiet,
        **options,
    )
    kind = "values" if source.labels.dtype.kind == "f" else f"{len(np.unique(source.labels))} classes"
    say(f"{len(source.images)} images, {kind}; ranked by {scores[0]}.\n")
    echo_table(_round(frame, scores))
    if advice := _advise(frame):
        say(f"\n{advice}")
    if output is not None:
        write_table(frame.set_index("rank"), output)
        say(f"The table is in {output}.", err=True)
    if plot is not None:
        plot_ranking(frame, scores[0], plot)
        say(f"The plot is in {plot}.", err=True)


def _round(frame: pd.DataFrame, scores: Sequence[str]) -> pd.DataFrame:
    """What is shown: figures that mean something."""
    shown = frame[["rank", "backbone", "layer"]].assign(backbone=shorten_references(frame["backbone"].tolist()))
    for name in scores:
        shown[name] = frame[name].map("{:.3f}".format, na_action="ignore")
        if name == scores[0]:
            ends = zip(frame["low"], frame["high"], strict=True)
            shown["90 % interval"] = [f"{low:.3f} to {high:.3f}" if np.isfinite(low) else "" for low, high in ends]
    shown["features"] = frame["n_features"]
    shown["GMACs"] = (frame["macs"] / 1e9).map("{:.3f}".format)
    shown["images/s"] = frame[SPEED].map("{:.0f}".format, na_action="ignore")
    return shown


def _advise(frame: pd.DataFrame) -> str:
    """The best, and what is faster and hardly to be told from it."""
    best, names = frame.iloc[0], name_candidates(frame)
    if not np.isfinite(best["low"]):
        return ""
    near = frame[(frame["high"] >= best["low"]) & (frame[SPEED] > best[SPEED])]
    text = f"Best: {names[0]}."
    if len(near):
        fastest = int(near[SPEED].idxmax())
        times = frame[SPEED][fastest] / best[SPEED]
        text += f" {names[fastest]} is {times:.1f} times as fast, and its interval overlaps."
    return text

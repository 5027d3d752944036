"""A picture of a tuning: losses and the score of the images held out, epoch by epoch."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from sktransfer._optional import import_optional

History = Sequence[Sequence[float | None]]


def plot_history(history: History, metric: str, path: str | os.PathLike[str], *, early_stopping: bool = False) -> None:
    """Write the picture of a card's `history`: loss, loss and score of the images held out, a row for each epoch.

    The epoch whose weights are kept is marked: the last, or with `early_stopping` that of the least loss held out.
    """
    figure_module = import_optional("matplotlib.figure", "plot")
    agg = import_optional("matplotlib.backends.backend_agg", "plot")
    columns = [[math.nan if value is None else value for value in column] for column in zip(*history, strict=True)]
    loss, held_out_loss, score = columns
    epochs, has_held_out = range(1, len(loss) + 1), math.isfinite(held_out_loss[0])
    figure = figure_module.Figure(figsize=(9 if has_held_out else 5, 4), layout="constrained")
    canvas = agg.FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if has_held_out else 1, squeeze=False)[0]
    axes[0].plot(epochs, loss, color="tab:blue", label="learnt from")
    axes[0].set(xlabel="epoch", ylabel="loss", title="loss")
    if has_held_out:
        axes[0].plot(epochs, held_out_loss, color="tab:orange", label="held out")
        axes[1].plot(epochs, score, color="tab:orange")
        axes[1].set(xlabel="epoch", ylabel=metric, title=f"{metric}, held out")
        kept = min(range(len(loss)), key=held_out_loss.__getitem__) if early_stopping else len(loss) - 1
        for axis, values in zip(axes, (held_out_loss, score), strict=True):
            axis.plot([kept + 1], [values[kept]], "o", color="tab:orange", label="kept")
            axis.legend(fontsize="small")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_xlim(left=min(1, len(loss) - 1))
    canvas.print_figure(path, dpi=120)

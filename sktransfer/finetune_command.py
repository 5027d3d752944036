"""What ``sktransfer finetune`` does."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sktransfer.finetune.card import describe_scores, write_page
from sktransfer.finetune.curve import plot_history
from sktransfer.finetune.recipe import Recipe
from sktransfer.finetune.tuning import tune
from sktransfer.options import ExtractionOptions
from sktransfer.rank_command import Labelled

MODEL, PAGE, CURVE = "model.onnx", "README.md", "learning_curve.png"

Say = Callable[..., object]  # typer.echo


def check_folder(output: Path) -> None:
    """Refuse, before any work, a folder that could not be written to, or that holds something else.

    Raises
    ------
    ValueError
        If it is no folder, or holds files that were not made here.
    """
    if not output.parent.is_dir() or (output.exists() and not output.is_dir()):
        raise ValueError(f"-o must be a folder, or the name of one in an existing folder. Got {str(output)!r} instead.")
    others = sorted({path.name for path in output.iterdir()} - {MODEL, PAGE, CURVE}) if output.is_dir() else []
    if others:
        raise ValueError(f"-o must be a folder of its own. {str(output)!r} holds {others[0]!r}.")


def finetune(
    source: Labelled,
    backbone: str,
    output: Path,
    say: Say,
    *,
    recipe: dict[str, Any],
    preprocessing: str | None,
    device: str,
    cache_dir: Any,
    n_jobs: int | None,
    quiet: bool,
) -> None:
    """Tune, and write the model, its page and its learning curve into a folder."""
    options = ExtractionOptions(root=source.root, cache_dir=cache_dir, n_jobs=n_jobs, verbose=not quiet)
    checked = Recipe(**recipe)
    output.mkdir(exist_ok=True)
    tuned = tune(
        backbone, source.images, source.labels, source.groups, checked, options,
        device=device, preprocessing=preprocessing, image_shape=None, output=output / MODEL,
    )  # fmt: skip
    card, curve = tuned.card, None
    if importlib.util.find_spec("matplotlib"):
        plot_history(card.history, card.metric, output / CURVE, early_stopping=card.recipe["early_stopping"])
        curve = CURVE
    page = write_page(card, tuned.backbone.name, tuned.backbone.digest, tuned.backbone.license, curve)
    (output / PAGE).write_text(page, "utf-8")
    say(f"{tuned.backbone.path} (SHA-256 {tuned.backbone.digest})")
    say(f"Learnt from {card.n_images} images behind {card.source!r}; {card.metric} {describe_scores(card)}.")
    if curve is None:
        say('There is no learning curve: pip install "sktransfer[plot]" draws one.', err=True)

"""How a backbone is tuned: the parameters of `finetune_backbone` that decide over the weights."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

AUGMENTATIONS = (None, "flip+crop")


@dataclass(frozen=True)
class Recipe:
    """The parameters are described in `finetune_backbone`."""

    trainable: str = "last_third"
    source_weight: float = 1.0
    C: float = 0.1
    epochs: int = 30
    learning_rate: float = 1e-3
    batch_size: int = 64
    augment: str | None = "flip+crop"
    n_views: int = 4
    validation_fraction: float = 0.1
    early_stopping: bool = False
    random_state: int = 0
    fresh_weights: bool = False
    adapt_batch_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "n_views"):
            _check(name, getattr(self, name), numbers.Integral, 1, "an integer >= 1")
        _check("random_state", self.random_state, numbers.Integral, 0, "an integer >= 0")
        _check("source_weight", self.source_weight, numbers.Real, 0, "a number >= 0")
        for name in ("C", "learning_rate"):
            _check(name, getattr(self, name), numbers.Real, math.ulp(0.0), "a number > 0")
        _check("validation_fraction", self.validation_fraction, numbers.Real, 0, "a number from 0 to 0.5", 0.5)
        if self.augment not in AUGMENTATIONS:
            raise ValueError(f'augment must be None or "flip+crop". Got {self.augment!r} instead.')
        if not isinstance(self.trainable, str) or not self.trainable:
            raise ValueError(
                'trainable must be "last_third", "last_stage", "all" or the name of a tensor. '
                f"Got {self.trainable!r} instead."
            )
        if self.early_stopping and not self.validation_fraction:
            raise ValueError("validation_fraction must be > 0 with early_stopping=True. Got 0 instead.")

    @property
    def n_crops(self) -> int:
        """Views of each image beside the image as it is used."""
        return 0 if self.augment is None else int(self.n_views)


def _check(name: str, value: Any, kind: type, least: float, allowed: str, most: float = math.inf) -> None:
    if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:  # type: ignore[operator]
        raise ValueError(f"{name} must be {allowed}. Got {value!r} instead.")

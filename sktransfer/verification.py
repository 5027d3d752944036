"""Whether a backbone is what its card says: its bytes, that it runs, and what it makes of a reference image."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from sktransfer.backbones import Backbone, load_backbone
from sktransfer.exceptions import BackboneError
from sktransfer.extraction import extract_references, plan_extraction
from sktransfer.network import read_input_size
from sktransfer.options import ExtractionOptions
from sktransfer.preprocessing import Preprocessing
from sktransfer.references import list_references
from sktransfer.registry import find_digest, models_folder

TOLERANCE = 1e-3  # relative; processors with other instructions add in another order
REFERENCE_NAME = "reference.json"  # beside an embedded model: what models/reference.py wrote


@dataclass(frozen=True)
class Verification:
    """What was found of one backbone."""

    backbone: Backbone
    checked: str  # "embedding", "digest only" (the project has not run these bytes) or "runs" (no registered digest)
    distance: float | None  # relative, between the embedding and the card's


def make_reference_image() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The image whose embedding cards state: uint8 (96, 128, 3), by integer arithmetic alone."""
    y, x = np.mgrid[0:96, 0:128]
    squares = ((x // 16 + y // 16) % 2) * 60
    channels = [x * 195 // 127 + squares, y * 195 // 95 + squares, (x * y) * 195 // (127 * 95) + squares]
    return np.stack(channels, axis=-1).astype(np.uint8)


def verify_backbone(reference: str) -> Verification:
    """Read every byte of a backbone again, run it on the reference image, and compare.

    Raises
    ------
    BackboneError
        If a digest is not the registered or recorded one, the network does not run or gives numbers that are not
        finite, or its embedding is not the one on its card.
    """
    backbone = load_backbone(reference)
    plan = plan_extraction(backbone, preprocessing=_neutral_preprocessing(backbone), device="cpu", cache_dir=None)
    options = ExtractionOptions(cache_dir=None, n_jobs=1)
    vector = extract_references(list_references([make_reference_image()]), plan, options)[0][0]
    if not np.isfinite(vector).all():
        raise BackboneError(f"{backbone.name} gives an embedding that is not finite: {backbone.path} is damaged.")
    entry = find_digest(backbone.digest)
    if entry is None:
        return Verification(backbone, "runs", None)
    if entry.n_features != len(vector):
        raise BackboneError(
            f"The embedding of {backbone.name} must have {entry.n_features} features. Got {len(vector)} instead."
        )
    expected = _read_reference(backbone)
    if expected is None:
        return Verification(backbone, "digest only", None)
    distance = float(np.linalg.norm(vector - expected) / np.linalg.norm(expected))
    if distance > TOLERANCE:
        raise BackboneError(
            f"The embedding of the reference image by {backbone.name} must be the one on its card to {TOLERANCE}. "
            f"Got a relative distance of {distance:.1e} instead: this onnxruntime computes something else."
        )
    return Verification(backbone, "embedding", distance)


def _neutral_preprocessing(backbone: Backbone) -> Preprocessing | None:
    """What lets a network run whose own preprocessing nobody states."""
    if backbone.preprocessing is not None:
        return None
    size = (224, 224)
    with contextlib.suppress(BackboneError):  # a network that takes any size
        size = read_input_size(backbone.path)
    return Preprocessing(crop=size, resize=size)


def _read_reference(backbone: Backbone) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    path = models_folder() / backbone.name / REFERENCE_NAME
    return np.array(json.loads(path.read_text("utf-8"))["embedding"]) if path.is_file() else None

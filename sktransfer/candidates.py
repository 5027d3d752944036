"""What is compared: backbones, each cut at one or several layers."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sktransfer.backbones import Backbone, find_backbone, pin_reference, place_entry
from sktransfer.cache import EmbeddingCache
from sktransfer.costs import count_macs
from sktransfer.exceptions import BackboneError
from sktransfer.graph import Layer
from sktransfer.hub import find_reference, is_remote_reference
from sktransfer.network import Network, load_model
from sktransfer.options import ExtractionPlan
from sktransfer.registry import find_entry, is_registered
from sktransfer.sizes import format_bytes
from sktransfer.sources import find_cached

COUNT_VERSION = 1  # raise it when MACs are counted in another way

logger = logging.getLogger(__name__)

BackboneReference = str | os.PathLike[str] | Backbone
Layers = Sequence[Layer] | Mapping[BackboneReference, Any] | None
Resolve = Callable[[BackboneReference, Layer], ExtractionPlan]


@dataclass(frozen=True)
class Candidate:
    """One backbone cut at one layer."""

    reference: BackboneReference
    layer: str  # as it was asked for
    plan: ExtractionPlan

    @property
    def backbone(self) -> str:
        """What `backbone=` takes, as text; of a Backbone, its name."""
        return self.reference.name if isinstance(self.reference, Backbone) else os.fspath(self.reference)

    def __str__(self) -> str:
        return f"{self.backbone} at {self.layer}"


def name_backbones(backbones: BackboneReference | Sequence[BackboneReference]) -> list[BackboneReference]:
    """The backbones once each, aliases replaced by the names that they stand for."""
    wanted: list[Any] = [backbones]
    if isinstance(backbones, Iterable) and not isinstance(backbones, str):
        wanted = list(backbones)
    if not wanted:
        raise ValueError("backbones must name at least one backbone. Got an empty list instead.")
    return list(dict.fromkeys(map(_name_backbone, wanted)))


def _name_backbone(reference: Any) -> BackboneReference:
    if isinstance(reference, Backbone):
        return reference
    if not isinstance(reference, (str, os.PathLike)):
        raise BackboneError(f"backbones must be names, paths of .onnx files or Backbones. Got {reference!r} instead.")
    return pin_reference(os.fspath(reference))


def describe_downloads(references: Sequence[BackboneReference], cache: EmbeddingCache) -> str:
    """What is to be fetched, in bytes; empty where all is on this machine.

    Raises
    ------
    BackboneError
        If a reference cannot be one, or its file is not there.
    """
    sizes: dict[str, int | None] = {}
    for reference in references:
        text = "" if isinstance(reference, Backbone) else os.fspath(reference)
        if is_registered(text):
            entry = find_entry(text)
            here = place_entry(entry).is_file() or entry.repository is None
            if not here and find_cached(entry.repository or "", entry.revision or "main", entry.path) is None:
                sizes[text] = entry.bytes
        elif is_remote_reference(text):
            if find_reference(text) is None:
                sizes[text] = None
        else:
            find_backbone(reference, cache)
    if not sizes:
        return ""
    total = sum(size or 0 for size in sizes.values())
    unknown = " and what the last of them take" if None in sizes.values() else ""
    ordered = sorted(sizes.items(), key=lambda item: item[1] is None)
    named = [f"{name} ({'size unknown' if size is None else format_bytes(size)})" for name, size in ordered]
    return f"To be fetched: {format_bytes(total)}{unknown}, {', '.join(named)}."


def announce_downloads(references: Sequence[BackboneReference], cache: EmbeddingCache, verbose: bool | int) -> None:
    """Say what is to be fetched, before it is."""
    text = describe_downloads(references, cache)
    if text:
        logger.info(text)
    if text and verbose:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)


def list_candidates(references: Sequence[BackboneReference], layers: Layers, resolve: Resolve) -> list[Candidate]:
    """Every backbone at every layer that is asked for and that it has; those that are the same graph once.

    Raises
    ------
    BackboneError
        If a backbone cannot be used, one named in a dict does not have a layer, or no backbone has a layer of a list.

    Warns
    -----
    UserWarning
        If some of the backbones have no layer of a name in a list.
    """
    chosen = _choose_layers(references, layers)
    found: dict[str, Candidate] = {}
    absent: dict[str, list[str]] = {}  # layer -> backbones without it
    reasons: dict[str, BackboneError] = {}
    for reference in references:
        own = resolve(reference, None)  # a backbone that cannot be used says so here
        for layer in chosen[reference]:
            try:
                plan = own if layer is None else resolve(reference, layer)
            except BackboneError as error:
                if isinstance(layers, Mapping):
                    raise
                absent.setdefault(_name_layer(layer), []).append(own.backbone.name)
                reasons[_name_layer(layer)] = error
                continue
            title = own.backbone.layer or "penultimate" if layer is None else _name_layer(layer)
            found.setdefault(plan.graph.digest + plan.graph.preprocessing.geometry, Candidate(reference, title, plan))
    for layer, names in absent.items():
        if len(names) == len(references):
            raise BackboneError(f"layers must be layers of at least one backbone. None has {layer!r}: "
                                f"{reasons[layer]}") from reasons[layer]  # fmt: skip
    if absent:
        pairs = "; ".join(f"{layer!r} of {', '.join(names)}" for layer, names in absent.items())
        warnings.warn(f"Left out, since these backbones have no such layer: {pairs}.", stacklevel=3)
    return list(found.values())


def _choose_layers(references: Sequence[BackboneReference], layers: Layers) -> dict[BackboneReference, list[Layer]]:
    if not isinstance(layers, Mapping):
        return dict.fromkeys(references, _list_layers(layers))
    given = {_name_backbone(reference): wanted for reference, wanted in layers.items()}
    for reference in given:
        if reference not in references:
            raise ValueError(f"The keys of layers must be among backbones. Got {reference!r}, which is not.")
    return {reference: _list_layers(given.get(reference)) for reference in references}


def _list_layers(layers: Any) -> list[Layer]:
    listed = [layers] if layers is None or isinstance(layers, str) else layers
    if not isinstance(listed, Sequence) or not listed or not all(map(_is_layer, listed)):
        raise ValueError(f"layers must be None, a list of layers, or a dict of such lists. Got {layers!r} instead.")
    return list(listed)


def _is_layer(layer: Any) -> bool:
    is_list = isinstance(layer, list) and bool(layer) and all(isinstance(name, str) for name in layer)
    return layer is None or isinstance(layer, str) or is_list


def _name_layer(layer: Layer) -> str:
    return "penultimate" if layer is None else layer if isinstance(layer, str) else " + ".join(layer)


def plan_logits(candidates: Sequence[Candidate], resolve: Resolve) -> dict[BackboneReference, ExtractionPlan]:
    """The plans of the classifiers of those backbones that have one."""
    plans: dict[BackboneReference, ExtractionPlan] = {}
    for reference in {candidate.reference: None for candidate in candidates}:
        with contextlib.suppress(BackboneError):
            plans[reference] = resolve(reference, "logits")
    return plans


def count_plan_macs(plan: ExtractionPlan, cache: EmbeddingCache) -> int:
    """Multiply-accumulates from the image to the layer, for all views of one image."""
    graph = plan.graph

    def count() -> dict[str, Any]:
        network = Network(load_model(graph.path, weights=False), graph.path, graph.preprocessing)
        return {"macs": count_macs(network, network.ancestors(cut.tensor for cut in graph.cuts))}

    macs = cache.recall("macs", [COUNT_VERSION, graph.digest, graph.preprocessing.crop], count)["macs"]
    return int(macs) * len(plan.views.windows)

"""The registry of backbones: names, and what `models/registry.json` states of them."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sktransfer.exceptions import BackboneError
from sktransfer.preprocessing import Preprocessing


@dataclass(frozen=True)
class Entry:
    """One registered backbone: pinned weights and everything that is stated of them."""

    name: str  # it carries the weights: "resnet50-v1-12"
    aliases: tuple[str, ...]
    architecture: str
    family: str
    repository: str | None  # on the Hugging Face Hub; None where the file is part of the package
    path: str  # in the repository, or in the package's folder `models`
    revision: str | None
    bytes: int
    sha256: str
    license: str  # SPDX
    source: str
    preprocessing: Preprocessing
    preprocessing_page: str  # where it was read
    layer: str | None  # default; None is the penultimate activation, found from the graph
    n_features: int  # of the default layer
    macs: int | None  # multiply-accumulates for one image
    macs_page: str | None
    top1: float | None  # % on ImageNet's validation set, as the source states it
    top5: float | None
    accuracy_page: str | None
    note: str | None


@functools.cache
def models_folder() -> Path:
    """Folder of the embedded backbones: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "models", package.parent / "models"):
        if (folder / "registry.json").is_file():
            return folder
    raise BackboneError(f"The embedded backbones are missing from {package}; install sktransfer again.")


@functools.cache
def _read_registry() -> Mapping[str, Any]:
    registry: Mapping[str, Any] = json.loads((models_folder() / "registry.json").read_text("utf-8"))
    return registry


def resolve_alias(name: str) -> str:
    """The name that an alias stands for; any other text as it is."""
    return str(_read_registry()["aliases"].get(name, name))


def list_names() -> list[str]:
    """The names of all registered backbones."""
    return list(_read_registry()["backbones"])


def is_registered(name: str) -> bool:
    """Whether `name` is a registered name (not an alias)."""
    return name in _read_registry()["backbones"]


@functools.cache
def find_entry(name: str) -> Entry:
    """What the registry states of a name or an alias.

    Raises
    ------
    BackboneError
        If there is no such name; the message lists the nearest ones.
    """
    registry, name = _read_registry(), resolve_alias(name)
    if name not in registry["backbones"]:
        raise BackboneError(describe_unknown(name))
    stated = registry["backbones"][name]
    architecture = registry["architectures"][stated["architecture"]]
    preprocessing = registry["preprocessings"][stated["preprocessing"]]
    repository, path = stated["repository"], stated["path"]
    return Entry(
        name=name,
        aliases=tuple(alias for alias, target in registry["aliases"].items() if target == name),
        architecture=architecture["title"],
        family=architecture["family"],
        repository=repository,
        path=path,
        revision=stated["revision"],
        bytes=stated["bytes"],
        sha256=stated["sha256"],
        license=stated["license"],
        source=stated.get("source") or f"hf:{repository}/{path}",
        preprocessing=Preprocessing(**preprocessing["values"]),
        preprocessing_page=preprocessing["page"],
        layer=stated["layer"],
        n_features=architecture["n_features"],
        macs=architecture["macs"],
        macs_page=architecture["macs_source"],
        top1=stated["top1"],
        top5=stated["top5"],
        accuracy_page=stated["accuracy_page"],
        note=stated.get("note"),
    )


@functools.cache
def _names_by_digest() -> Mapping[str, str]:
    return {stated["sha256"]: name for name, stated in _read_registry()["backbones"].items()}


def find_digest(sha256: str) -> Entry | None:
    """The registered backbone with these bytes, whatever its file is called."""
    name = _names_by_digest().get(sha256)
    return None if name is None else find_entry(name)


def describe_unknown(text: str) -> str:
    """The error for a name that is not registered."""
    names = [*_read_registry()["aliases"], *_read_registry()["backbones"]]
    near = difflib.get_close_matches(text, names, n=3, cutoff=0) or names
    return (
        f'backbone must be a registered name, the path of an .onnx file, "hf:owner/repo" or a URL. Got {text!r} '
        f"instead; the nearest names are {', '.join(map(repr, near))}."
    )

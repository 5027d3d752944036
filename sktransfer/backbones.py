"""Backbones: a file, the preprocessing it was trained with, and where it comes from."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sktransfer.cache import NO_CACHE, EmbeddingCache
from sktransfer.digests import digest_file
from sktransfer.exceptions import BackboneError
from sktransfer.network import load_model, read_input_size
from sktransfer.preprocessing import Preprocessing

METADATA_KEY = "sktransfer.preprocessing"  # metadata_props entry: JSON of Preprocessing.to_dict()
DESCRIPTION_VERSION = 1  # raise it when something else is read of a file
CONFIG_FILES = ("preprocessor_config.json", "preprocess.json")


@dataclass(frozen=True)
class Backbone:
    """A pretrained network in an ONNX file, and its provenance.

    Parameters
    ----------
    name : str
        Name that features are called after; it carries the weights ("tiny-v1", not "tiny").
    path : Path
        The ONNX file.
    digest : str
        SHA-256 of the file and of its external data, hexadecimal.
    preprocessing : Preprocessing or None
        What the network was trained with; None where the file does not say, and the caller must.
    layer : str or None
        Tensor taken as the embedding by default; None finds the penultimate activation from the graph.
    source : str
        Where the file comes from.
    license : str
        SPDX identifier of the weights' licence, or "unknown".
    """

    name: str
    path: Path
    digest: str
    preprocessing: Preprocessing | None = None
    layer: str | None = field(default=None, repr=False)
    source: str = field(default="local file", repr=False)
    license: str = field(default="unknown", repr=False)

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, path={str(self.path)!r}, digest={self.digest[:12]!r}…)"


def load_backbone(reference: str | os.PathLike[str] | Backbone) -> Backbone:
    """The backbone that a name, a path or a Backbone refers to.

    Parameters
    ----------
    reference : str, Path or Backbone
        A name of the registry ("default", "tiny-v1"), the path of an ``.onnx`` file, or of a folder that holds
        ``model.onnx``. Preprocessing is read from the file's metadata, or from a ``preprocessor_config.json`` or
        ``preprocess.json`` beside it.

    Returns
    -------
    Backbone

    Raises
    ------
    BackboneError
        If there is no such name or file, the file is not ONNX, or its digest is not the registered one.

    Examples
    --------
    >>> load_backbone("default").name
    'tiny-v1'
    """
    return find_backbone(reference, NO_CACHE)


def find_backbone(reference: str | os.PathLike[str] | Backbone, cache: EmbeddingCache) -> Backbone:
    """What `load_backbone` returns; a file that `cache` knows is not read again."""
    if isinstance(reference, Backbone):
        return reference
    if not isinstance(reference, (str, os.PathLike)) or not os.fspath(reference):
        raise BackboneError(
            f"backbone must be a name, the path of an .onnx file or a Backbone. Got {reference!r} instead."
        )
    text = os.fspath(reference)
    name = str(pin_reference(text))
    if name in _read_registry()["backbones"]:
        return _load_registered(name, cache)
    path = Path(text)
    if path.is_dir():
        if not (path / "model.onnx").is_file():
            raise BackboneError(f"The folder {text!r} holds no model.onnx; pass the path of the .onnx file itself.")
        path = path / "model.onnx"
    if path.is_file():
        return _load_file(path, cache)
    raise BackboneError(_describe_unknown(text))


def pin_reference(reference: str | os.PathLike[str] | Backbone) -> str | os.PathLike[str] | Backbone:
    """An alias replaced by the name it stands for; anything else as it is."""
    return _read_registry()["aliases"].get(reference, reference) if isinstance(reference, str) else reference


def _describe_unknown(text: str) -> str:
    if text.endswith(".onnx") or os.sep in text:
        return f"backbone must be a name or an existing file. There is no file {text!r} (from {Path.cwd()})."
    names = [*_read_registry()["aliases"], *_read_registry()["backbones"]]
    near = difflib.get_close_matches(text, names, n=3, cutoff=0) or names
    return (
        f"backbone must be a registered name or the path of an .onnx file. Got {text!r} instead; "
        f"the nearest names are {', '.join(map(repr, near))}."
    )


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


def _load_registered(name: str, cache: EmbeddingCache) -> Backbone:
    entry = _read_registry()["backbones"][name]
    path = models_folder() / entry["path"]
    digest = cache.places.digest_file(path, digest_file)
    if digest != entry["sha256"]:
        raise BackboneError(
            f"{path} must have the SHA-256 {entry['sha256']}. Got {digest} instead; install sktransfer again."
        )
    preprocessing = Preprocessing(**entry["preprocessing"])
    return Backbone(name, path, digest, preprocessing, entry["layer"], entry["source"], entry["license"])


def _load_file(path: Path, cache: EmbeddingCache) -> Backbone:
    digest = cache.places.digest_file(path, digest_file)
    description = cache.recall("backbone", [DESCRIPTION_VERSION, digest], lambda: _describe_file(path))
    external = description["external_data"]
    for name in external:
        if not (path.parent / name).is_file():
            raise BackboneError(f"The weights of {path} are missing: put {name!r} beside it.")
    if external:
        parts = [digest, *(cache.places.digest_file(path.parent / name, digest_file) for name in external)]
        digest = hashlib.sha256("".join(parts).encode()).hexdigest()
    name = path.parent.resolve().name if path.stem == "model" else path.stem
    metadata = description["preprocessing"]
    if metadata is None:
        return Backbone(name, path, digest, _read_config_beside(path))
    try:
        return Backbone(name, path, digest, Preprocessing(**json.loads(metadata)))
    except (TypeError, ValueError) as error:
        raise BackboneError(f"The metadata {METADATA_KEY} of {path} cannot be used: {error}") from error


def _describe_file(path: Path) -> dict[str, Any]:
    """What the file says of itself: its preprocessing in the words of its metadata, and the files of its weights."""
    model = load_model(path, weights=False)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    locations = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    return {"preprocessing": metadata.get(METADATA_KEY), "external_data": sorted(locations)}


def _read_config_beside(path: Path) -> Preprocessing | None:
    for name in CONFIG_FILES:
        file = path.parent / name
        if file.is_file():
            try:
                config = json.loads(file.read_text("utf-8"))
                return Preprocessing.from_config(config)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise BackboneError(f"{file} cannot be used: {error}; pass preprocessing= instead.") from error
    return None


def resolve_preprocessing(
    backbone: Backbone, preprocessing: str | Preprocessing | None, cache: EmbeddingCache
) -> Preprocessing:
    """The preprocessing to use: the given one, a preset at the network's input size, or the backbone's own.

    Raises
    ------
    BackboneError
        If neither the caller nor the file states one: sktransfer does not guess.
    """
    if isinstance(preprocessing, Preprocessing):
        return preprocessing
    if preprocessing is not None:
        size = cache.recall(
            "input size", [DESCRIPTION_VERSION, backbone.digest], lambda: {"crop": read_input_size(backbone.path)}
        )
        return Preprocessing.from_preset(preprocessing, tuple(size["crop"]))
    if backbone.preprocessing is None:
        raise BackboneError(
            f"The preprocessing of {backbone.path} is unknown: neither its metadata nor a {CONFIG_FILES[0]} beside it "
            'states one. Pass preprocessing="imagenet", "tf", "caffe" or a Preprocessing.'
        )
    return backbone.preprocessing

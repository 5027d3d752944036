"""Backbones: a file, the preprocessing it was trained with, and where it comes from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer.cache import NO_CACHE, EmbeddingCache
from sktransfer.classifier import name_classes, read_linear
from sktransfer.configurations import read_configuration
from sktransfer.digests import digest_file
from sktransfer.exceptions import BackboneError
from sktransfer.hub import RemoteBackbone, fetch_reference, fetch_registered, is_remote_reference, place_registered
from sktransfer.layers import find_classifier
from sktransfer.network import METADATA_KEY, METADATA_PREFIX, Network, describe_file, load_model, read_input_size
from sktransfer.preprocessing import Preprocessing
from sktransfer.registry import (
    Entry,
    describe_unknown,
    find_digest,
    find_entry,
    is_registered,
    list_names,
    models_folder,
    resolve_alias,
)

if TYPE_CHECKING:
    import pandas as pd

DESCRIPTION_VERSION = 2  # raise it when something else is read of a file

# Files beside a model that state its preprocessing, and the key without which they are about something else.
CONFIG_FILES = {
    "preprocessor_config.json": None,
    "preprocess.json": None,
    "processor_config.json": "image_processor",
    "config.json": "pretrained_cfg",
    "open_clip_config.json": "preprocess_cfg",
}


@dataclass(frozen=True)
class Backbone:
    """A pretrained network in an ONNX file, and its provenance.

    Parameters
    ----------
    name : str
        Name that features are called after; it carries the weights ("tiny-v1", not "tiny").
    path : str or Path
        The ONNX file.
    digest : str
        SHA-256 of the file and of its external data, hexadecimal; computed if it is left out. A file that has another
        one when it is used is refused.
    preprocessing : Preprocessing or None
        What the network was trained with; None where the file does not say, and the caller must.
    layer : str or None
        Tensor taken as the embedding by default; None finds the penultimate activation from the graph.
    source : str
        Where the file comes from.
    license : str
        SPDX identifier of the weights' licence, or "unknown".

    Raises
    ------
    BackboneError
        If `digest` is left out and the file cannot be read.

    Examples
    --------
    >>> from sktransfer import Backbone, Preprocessing, load_backbone
    >>> path = load_backbone("default").path
    >>> Backbone("mine", path, preprocessing=Preprocessing(crop=(96, 96), resize=(96, 96))).digest[:12]
    'd108fdb89cfb'
    """

    name: str
    path: Path
    digest: str = ""
    preprocessing: Preprocessing | None = None
    layer: str | None = field(default=None, repr=False)
    source: str = field(default="local file", repr=False)
    license: str = field(default="unknown", repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if not self.digest:
            object.__setattr__(self, "digest", _identify(self.path, NO_CACHE)[0])

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, path={str(self.path)!r}, digest={self.digest[:12]!r}…)"

    def classifier_weights(
        self, labels: Sequence[Any] | None = None
    ) -> dict[Any, tuple[np.ndarray[Any, np.dtype[np.float64]], float]]:
        """Return the network's own classifier: coefficients and intercept of each class, over the default embedding.

        ``coefficients @ embedding + intercept`` is the network's output for the class before Softmax, where the
        embedding is what :func:`extract` gives by default. In quantised (int8) files it is that without the rounding
        behind the embedding, and without the bounds that go with it.

        Parameters
        ----------
        labels : sequence of K class labels, or None
            One for each output, in their order, all different. None takes the names that the file's metadata
            (``sktransfer.classes``) or the ``id2label`` of a ``config.json`` beside it state, if they are K different
            ones; else 0 to K - 1.

        Returns
        -------
        dict
            Label -> (ndarray of shape (d,), float64; float), in the order of the outputs.

        Raises
        ------
        BackboneError
            If the network has no classifier, or one that is not linear in the embedding: SqueezeNet's has a ReLU
            before its pooling. If the file has changed since the Backbone was made.
        ValueError
            If `labels` are not K different ones.

        Examples
        --------
        >>> import numpy as np
        >>> from sktransfer import extract, load_backbone
        >>> weights = load_backbone("default").classifier_weights()
        >>> coefficients, intercept = weights["goldfish, Carassius auratus"]
        >>> len(weights), coefficients.shape
        (200, (256,))
        >>> images = np.zeros((1, 96, 96, 3), dtype=np.uint8)
        >>> logits = extract(images, layer="logits")
        >>> bool(np.isclose(extract(images)[0] @ coefficients + intercept, logits[0, 0], rtol=1e-4))
        True
        """
        find_backbone(self, NO_CACHE)  # refuses a file that has changed
        network, coefficients, intercepts = _read_classifier(self)
        classes = name_classes(network, labels, len(intercepts))
        return dict(zip(classes, zip(coefficients, intercepts.tolist(), strict=True), strict=True))


def load_backbone(reference: str | os.PathLike[str] | Backbone) -> Backbone:
    """The backbone that a name, a path, a reference to the Hub or a Backbone refers to.

    What is not on this machine is fetched once, its SHA-256 checked, and kept in the folder ``sktransfer-models`` of
    the user's cache (``SKTRANSFER_CACHE_DIR``).

    Parameters
    ----------
    reference : str, Path or Backbone
        - a name of the registry ("default", "resnet50", "vgg16-12"; see :func:`list_backbones`);
        - the path of an ``.onnx`` file, or of a folder that holds ``model.onnx`` or ``onnx/model.onnx``;
        - ``"hf:owner/repo"``, ``"hf:owner/repo/path/file.onnx@revision"``, on the Hugging Face Hub or the mirror that
          ``HF_ENDPOINT`` names;
        - ``"https://host/model.onnx"``, with ``#sha256=…`` if you know the digest.

        Preprocessing is the registry's, or read from the file's metadata, or from a ``preprocessor_config.json``,
        ``preprocess.json``, timm's ``config.json`` or ``open_clip_config.json`` beside the file.

    Returns
    -------
    Backbone

    Raises
    ------
    BackboneError
        If there is no such name or file, it cannot be fetched, is not ONNX, or its digest is not the registered or
        recorded one.

    Examples
    --------
    >>> load_backbone("default").name
    'tiny-v1'
    """
    return find_backbone(reference, NO_CACHE)


def find_backbone(
    reference: str | os.PathLike[str] | Backbone, cache: EmbeddingCache, *, progress: bool = False
) -> Backbone:
    """What `load_backbone` returns; a file that `cache` knows is not read again."""
    if isinstance(reference, Backbone):
        digest = _identify(reference.path, cache)[0]
        if digest != reference.digest:
            raise BackboneError(
                f"{reference.path} must have the SHA-256 {reference.digest} that {reference.name!r} was made with. Got "
                f"{digest} instead: the file has changed since."
            )
        return reference
    if not isinstance(reference, (str, os.PathLike)) or not os.fspath(reference):
        raise BackboneError(
            f"backbone must be a name, the path of an .onnx file or a Backbone. Got {reference!r} instead."
        )
    text = os.fspath(reference)
    name = str(pin_reference(text))
    if is_registered(name):
        return _load_registered(find_entry(name), cache, progress=progress)
    if is_remote_reference(text):
        return _load_remote(text, cache, progress=progress)
    path = _find_model(Path(text))
    if path.is_file():
        return _load_file(path, cache)
    if text.endswith(".onnx") or os.sep in text:
        raise BackboneError(
            f"backbone must be a name or an existing file. There is no file {text!r} (from {Path.cwd()})."
        )
    raise BackboneError(describe_unknown(text))


def _find_model(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("model.onnx", "onnx/model.onnx"):
        if (path / name).is_file():
            return path / name
    raise BackboneError(f"The folder {str(path)!r} holds no model.onnx; pass the path of the .onnx file itself.")


def pin_reference(reference: str | os.PathLike[str] | Backbone) -> str | os.PathLike[str] | Backbone:
    """An alias replaced by the name it stands for; anything else as it is."""
    return resolve_alias(reference) if isinstance(reference, str) else reference


def anchor_reference(reference: str | os.PathLike[str] | Backbone) -> str | os.PathLike[str] | Backbone:
    """The same reference for a process in another folder: an alias by its name, a path from the root."""
    if isinstance(reference, Backbone):
        return dataclasses.replace(reference, path=reference.path.absolute())
    pinned = pin_reference(reference)
    is_path = not is_registered(str(pinned)) and os.path.exists(os.fspath(reference))
    return os.path.abspath(reference) if is_path else pinned


def place_entry(entry: Entry) -> Path:
    """Where the file of a registered backbone lies, or would."""
    return place_registered(entry.name, entry.path) if entry.repository else models_folder() / entry.path


def _load_registered(entry: Entry, cache: EmbeddingCache, *, progress: bool) -> Backbone:
    path, remedy = place_entry(entry), "install sktransfer again"
    if entry.repository:
        remedy = "remove it, and it will be fetched again"
        path = fetch_registered(
            entry.name,
            entry.repository,
            entry.path,
            entry.revision or "main",
            entry.sha256,
            entry.bytes,
            progress=progress,
        )
    digest = cache.places.digest_file(path, digest_file)
    if digest != entry.sha256:
        raise BackboneError(f"{path} must have the SHA-256 {entry.sha256}. Got {digest} instead; {remedy}.")
    return _describe_entry(entry, path)


def _describe_entry(entry: Entry, path: Path) -> Backbone:
    return Backbone(entry.name, path, entry.sha256, entry.preprocessing, entry.layer, entry.source, entry.license)


def _load_remote(reference: str, cache: EmbeddingCache, *, progress: bool) -> Backbone:
    remote = fetch_reference(reference, progress=progress)
    for path, recorded in remote.digests.items():
        digest = cache.places.digest_file(path, digest_file)
        if digest != recorded:
            raise BackboneError(
                f"{path} must have the SHA-256 {recorded}, recorded at its first use. Got {digest} instead; remove it, "
                f"or run `sktransfer models accept {reference}` to take what the source has now."
            )
    return _load_file(remote.path, cache, remote)


def _load_file(path: Path, cache: EmbeddingCache, remote: RemoteBackbone | None = None) -> Backbone:
    digest, metadata = _identify(path, cache)
    preprocessing = _read_metadata(metadata, path) or _read_config_beside(path)
    entry = find_digest(digest)
    if entry is not None and preprocessing is None:
        return _describe_entry(entry, path)
    return Backbone(
        remote.name if remote is not None else _name_file(path),
        path,
        digest,
        preprocessing,
        metadata.get(f"{METADATA_PREFIX}layer"),
        source=metadata.get(f"{METADATA_PREFIX}source", remote.source if remote is not None else "local file"),
        license=metadata.get(f"{METADATA_PREFIX}license", remote.license if remote is not None else "unknown"),
    )


def _identify(path: Path, cache: EmbeddingCache) -> tuple[str, dict[str, str]]:
    """The SHA-256 of a file, or of its digest and those of its external data; and our entries in its metadata.

    Bytes that `cache` knows are not read again.
    """
    if not path.is_file():
        raise BackboneError(f"There is no file {str(path)!r} (from {Path.cwd()}).")
    digest = cache.places.digest_file(path, digest_file)
    description = cache.recall("backbone", [DESCRIPTION_VERSION, digest], lambda: describe_file(path))
    external = description["external_data"]
    for file in external:
        if not (path.parent / file).is_file():
            raise BackboneError(f"The weights of {path} are missing: put {file!r} beside it.")
    if external:
        parts = [digest, *(cache.places.digest_file(path.parent / file, digest_file) for file in external)]
        digest = hashlib.sha256("".join(parts).encode()).hexdigest()
    return digest, description["metadata"]


def _name_file(path: Path) -> str:
    if path.stem != "model":
        return path.stem
    folder = path.resolve().parent
    return folder.parent.name if folder.name == "onnx" else folder.name


def _read_metadata(metadata: Mapping[str, str], path: Path) -> Preprocessing | None:
    if METADATA_KEY not in metadata:
        return None
    try:
        return Preprocessing(**json.loads(metadata[METADATA_KEY]))
    except (TypeError, ValueError) as error:
        raise BackboneError(f"The metadata {METADATA_KEY} of {path} cannot be used: {error}") from error


def _read_config_beside(path: Path) -> Preprocessing | None:
    folders = [path.parent, *([path.parent.parent] if path.parent.name == "onnx" else [])]
    for file in (folder / name for folder in folders for name in CONFIG_FILES):
        if file.is_file():
            try:
                config = json.loads(file.read_text("utf-8"))
                needed = CONFIG_FILES[file.name]
                if needed is None or needed in config:
                    return read_configuration(config)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise BackboneError(f"{file} cannot be used: {error}; pass preprocessing= instead.") from error
    return None


def _read_classifier(
    backbone: Backbone,
) -> tuple[Network, np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.float64]]]:
    """The parsed network, and coefficients (k, d) and intercepts (k,) over the default embedding."""
    path, preprocessing = backbone.path, backbone.preprocessing
    if preprocessing is None:  # of which the size of the image alone matters here
        size = read_input_size(path)
        preprocessing = Preprocessing(crop=size, resize=size)
    network = Network(load_model(path), path, preprocessing)
    try:
        cut, source, logits = find_classifier(network, backbone.layer)
        return network, *read_linear(network, source, cut.tensor, logits, cut.n_features)
    except BackboneError as error:
        if backbone.layer is None:
            raise
        raise BackboneError(
            f"{error} The embedding is the layer {backbone.layer!r} here; dataclasses.replace(backbone, layer=None) "
            "takes the one before the classifier."
        ) from error


def list_backbones() -> pd.DataFrame:
    """The registered backbones: what they are, what they cost, and which of them are on this machine.

    Nothing is fetched, and no file is read.

    Returns
    -------
    DataFrame
        One row a backbone, with the columns `name`, `aliases` (joined by commas), `architecture`, `family`, `bytes`,
        `on_disk`, `license` (SPDX), `n_features` (of the default layer), `macs` (multiply-accumulates for one image;
        NaN where no source states them), `top1` and `top5` (% on ImageNet's validation set as the source states them;
        NaN where it does not) and `source`.

    Examples
    --------
    >>> frame = list_backbones().set_index("name")
    >>> int(frame.loc["resnet50-v1-12", "n_features"])
    2048
    """
    import pandas as pd

    rows = []
    for entry in map(find_entry, list_names()):
        row = {"name": entry.name, "aliases": ", ".join(entry.aliases), "on_disk": place_entry(entry).is_file()}
        stated = ("architecture", "family", "bytes", "license", "n_features", "macs", "top1", "top5", "source")
        rows.append(row | {key: getattr(entry, key) for key in stated})
    frame = pd.DataFrame(rows).astype({"macs": float, "top1": float, "top5": float})
    order = ["name", "aliases", "architecture", "family", "bytes", "on_disk", "license", "n_features", "macs"]
    return frame[[*order, "top1", "top5", "source"]]


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
            f"The preprocessing of {backbone.path} is unknown: neither its metadata nor a preprocessor_config.json "
            'beside it states one. Pass preprocessing="imagenet", "tf", "caffe" or a Preprocessing.'
        )
    return backbone.preprocessing

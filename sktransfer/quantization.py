"""A backbone in 8-bit integers: made once, from photos, measured, and kept only where it pays."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from sktransfer.backbones import Backbone, load_backbone, resolve_preprocessing
from sktransfer.cache import NO_CACHE
from sktransfer.derived import check_output, describe_origin, install
from sktransfer.devices import CPU
from sktransfer.exceptions import BackboneError, ImageReadError
from sktransfer.extraction import describe_failure, plan_extraction, read_references
from sktransfer.images import decode_content, describe_error, quiet_decoder
from sktransfer.locations import read_content
from sktransfer.network import METADATA_PREFIX, Network, load_model
from sktransfer.preprocessing import Preprocessing
from sktransfer.references import References, list_images
from sktransfer.session import EmbeddingSession
from sktransfer.silence import silence

if TYPE_CHECKING:
    import onnx

MAX_IMAGES = 320  # that are read: more do not move the ranges of activations
HELD_OUT = 4  # every fourth image measures the distance and is not calibrated on
MIN_SPEEDUP = 1.1  # below, float32 stays
MAX_DISTANCE = 0.3  # above, float32 stays; up to 0.2 no accuracy was lost (benchmarks/results/int8.md)
WEIGHT_BITS = 7  # of 8, so that no processor clips sums of products
CARD_KEY = f"{METADATA_PREFIX}quantization"

_MIN_OPSET = 13  # scales for each channel
_TIMED_IMAGES, _TIMED_ROUNDS = 8, 5
_OPERATORS = ("Conv", "Relu", "Clip", "MaxPool", "AveragePool", "Add", "Concat", "Gemm", "MatMul")

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class QuantizationCard:
    """What an int8 backbone states of itself, in the metadata of its file."""

    name: str  # of the float32 backbone
    digest: str  # its SHA-256
    n_images: int  # that it was calibrated on
    distance: float  # median over held-out images, in lengths of the float32 embedding
    max_distance: float  # the largest


@dataclass(frozen=True)
class Twin:
    """An int8 backbone, or the float32 one and why it stays."""

    backbone: Backbone
    card: QuantizationCard
    speedup: float  # images/s of one thread of this machine, int8 ÷ float32; not in the file, which it would change
    complaint: str  # empty where int8 pays


def quantize_backbone(
    backbone: str | os.PathLike[str] | Backbone,
    images: Any,
    *,
    preprocessing: str | Preprocessing | None = None,
    root: str | os.PathLike[str] | None = None,
    image_shape: tuple[int, ...] | None = None,
    output: str | os.PathLike[str] | None = None,
    verbose: bool | int = False,
) -> Backbone:
    """Make an int8 twin of a backbone, faster on the CPU, whose embeddings are close to the original's.

    Activations become uint8 with one scale a tensor, weights int8 with one scale a channel; what ranges activations
    have is measured on `images`. Weights use 7 of their 8 bits, so that sums of products cannot overflow on processors
    without VNNI, and all processors compute the same. The twin is a backbone of its own: another digest, other
    embeddings. Make it before cross-validation, never in it.

    Parameters
    ----------
    backbone : str, Path or Backbone
        As for :func:`load_backbone`; float32.
    images : sequence, Series, frame or array of images
        Typical ones, 50 or more; empty cells are passed over. At most 320, evenly spaced, are used; every fourth of
        those measures the distance and is not calibrated on.
    preprocessing : str, Preprocessing or None
        As for :class:`PretrainedFeatureExtractor`; it is written into the twin.
    root : str, Path or None
        Folder that relative paths start from.
    image_shape : (h, w), (h, w, 3) or None
        Shape of the images that rows of a 2-D numeric `images` are.
    output : str, Path or None
        The ``.onnx`` file to write; None keeps it in the folder of fetched backbones.
    verbose : bool, default=False
        Show a progress bar.

    Returns
    -------
    Backbone
        The twin; or, with a warning, the original, where the twin is less than 1.1 times as fast on this machine or
        its embeddings are further than 0.3 of their length from the original's. Nothing is written then.

    Raises
    ------
    BackboneError
        If the backbone does not compute in float32, or cannot be quantised.
    ImageReadError
        If an image cannot be read.
    ValueError
        If there are fewer than 8 images.

    Warns
    -----
    UserWarning
        If int8 does not pay.

    Notes
    -----
    The file's metadata state the distance; ``sktransfer models show`` prints it. The same backbone and images give the
    same file.

    Examples
    --------
    >>> from sktransfer import quantize_backbone
    >>> int8 = quantize_backbone("resnet50", photos)  # doctest: +SKIP
    >>> extractor = PretrainedFeatureExtractor(int8)  # doctest: +SKIP
    """
    twin = make_twin(
        backbone,
        images,
        preprocessing=preprocessing,
        root=root,
        image_shape=image_shape,
        output=output,
        verbose=verbose,
    )
    if twin.complaint:
        warnings.warn(twin.complaint, stacklevel=2)
    return twin.backbone


def make_twin(
    backbone: str | os.PathLike[str] | Backbone,
    images: Any,
    *,
    preprocessing: str | Preprocessing | None = None,
    root: str | os.PathLike[str] | None = None,
    image_shape: tuple[int, ...] | None = None,
    output: str | os.PathLike[str] | None = None,
    verbose: bool | int = False,
) -> Twin:
    """What `quantize_backbone` does, with all that was found; it does not warn."""
    loaded = load_backbone(backbone)
    resolved = resolve_preprocessing(loaded, preprocessing, NO_CACHE)
    original = replace(loaded, preprocessing=resolved)
    target = None if output is None else check_output(Path(output))
    network = Network(load_model(original.path), original.path, resolved)
    _check_network(network)
    pixels = _read_images(read_references(images, image_shape), resolved, root, verbose)
    held_out = np.arange(len(pixels)) % HELD_OUT == HELD_OUT - 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{original.name}-int8.onnx"
        _write_twin(network, pixels[~held_out], path, verbose)
        _annotate(path, describe_origin(original, "int8"))
        quantized = Backbone(path.stem, path, preprocessing=resolved, layer=original.layer)
        sessions = [_open(original), _open(quantized)]
        card = QuantizationCard(
            original.name, original.digest, int((~held_out).sum()), *_measure_distances(sessions, pixels[held_out])
        )
        speedup = _measure_speedup(sessions, pixels[held_out])
        complaint = _find_complaint(card, speedup)
        if complaint:
            return Twin(loaded, card, speedup, complaint)
        _annotate(path, {CARD_KEY: json.dumps(asdict(card))})
        return Twin(load_backbone(install(path, target, "int8")), card, speedup, "")


def read_card(metadata: dict[str, str]) -> QuantizationCard | None:
    """The card in the metadata of a backbone's file; None where there is none, or it is not ours."""
    try:
        return QuantizationCard(**json.loads(metadata[CARD_KEY]))
    except (KeyError, TypeError, ValueError):
        return None


def _check_network(network: Network) -> None:
    import onnx

    if network.is_quantized:
        raise BackboneError(f"{network.path} is quantised already.")
    elem_type = network.image_input.type.tensor_type.elem_type
    if elem_type != onnx.TensorProto.FLOAT:
        name = onnx.TensorProto.DataType.Name(elem_type).lower()
        raise BackboneError(f"{network.path} must take float32 images to be quantised. Got {name} instead.")


def _read_images(references: References, preprocessing: Preprocessing, root: Any, verbose: bool | int) -> Pixels:
    """Resized and cropped pixels of at most MAX_IMAGES cells: uint8 (n, h, w, 3)."""
    images = list_images(references)
    n_images = len(images.places)
    if n_images < 2 * HELD_OUT:
        raise ValueError(f"images must hold at least {2 * HELD_OUT} images, better 50 or more. Got {n_images}.")
    chosen = np.linspace(0, n_images - 1, min(n_images, MAX_IMAGES)).astype(int)
    pixels = np.empty((len(chosen), *preprocessing.crop, 3), dtype=np.uint8)
    with quiet_decoder():
        for index, image in enumerate(_follow(chosen, "reading", verbose)):
            reference = images.reference(image)
            try:
                pixels[index] = preprocessing.resize_and_crop(decode_content(read_content(reference, root), None))
            except Exception as error:
                failure = describe_failure(references, images, image, describe_error(error))
                raise ImageReadError(f"{failure}.", [failure]) from error
    return pixels


def _follow(steps: Iterable[Any], what: str, verbose: bool | int) -> Iterator[Any]:
    if not verbose:
        return iter(steps)
    from tqdm import tqdm

    return iter(tqdm(steps, desc=what, unit="image"))


# Making it


def _write_twin(network: Network, pixels: Pixels, path: Path, verbose: bool | int) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = _follow(pixels, "calibrating", verbose)

        def get_next(self) -> dict[str, Any] | None:
            row = next(self.rows, None)
            return None if row is None else {network.image_input.name: _normalize(row, network)}

    simplified, reader = path.with_name("simplified.onnx"), Reader()  # before the silence, which its bar would share
    try:
        _simplify(network.model, simplified)
        with silence():
            quantize_static(
                str(simplified),
                str(path),
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_OPERATORS),
                per_channel=True,
                reduce_range=WEIGHT_BITS == 7,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    except Exception as error:  # onnx and onnxruntime raise what they like
        raise BackboneError(f"{network.path} could not be quantised: {error}") from error


def _normalize(row: Pixels, network: Network) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the embedding graph makes of one image's pixels before the backbone: float32, a batch of one."""
    p = network.preprocessing
    image = row[..., ::-1] if p.channel_order == "BGR" else row
    image = (image * p.scale - np.array(p.mean)) / np.array(p.std)
    image = image.transpose(2, 0, 1) if network.layout == "NCHW" else image
    return np.ascontiguousarray(image[None], dtype=np.float32)


def _simplify(model: onnx.ModelProto, path: Path) -> None:
    """Write the same network with constants folded, normalisation in the convolutions, and opset 13 or newer."""
    import onnx

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    simplified = onnx.load(path)
    opset = next(entry.version for entry in simplified.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < _MIN_OPSET:
        simplified = onnx.version_converter.convert_version(simplified, _MIN_OPSET)
    _replace_normalizations(simplified.graph)
    onnx.save(simplified, path)


def _replace_normalizations(graph: onnx.GraphProto) -> None:
    """Batch normalisations that follow no convolution become convolutions of one pixel, channel by channel.

    onnxruntime has those in integers: between two quantised layers nothing goes back to float then.
    """
    from onnx import helper, numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    for index, node in enumerate(graph.node):
        if node.op_type != "BatchNormalization" or not all(name in weights for name in node.input[1:]):
            continue
        gamma, beta, mean, variance = (numpy_helper.to_array(weights[name]) for name in node.input[1:])
        epsilon = next((entry.f for entry in node.attribute if entry.name == "epsilon"), 1e-5)
        factor = gamma / np.sqrt(variance + epsilon)
        kernel, bias = f"{node.output[0]}_kernel", f"{node.output[0]}_bias"
        graph.initializer.append(numpy_helper.from_array(factor.reshape(-1, 1, 1, 1).astype(np.float32), kernel))
        graph.initializer.append(numpy_helper.from_array((beta - mean * factor).astype(np.float32), bias))
        convolution = helper.make_node(
            "Conv", [node.input[0], kernel, bias], [node.output[0]], name=f"{node.output[0]}_affine",
            group=len(factor), kernel_shape=[1, 1],
        )  # fmt: skip
        graph.node[index].CopyFrom(convolution)
    used = {name for node in graph.node for name in node.input}
    for tensor in [entry for entry in graph.initializer if entry.name not in used]:
        graph.initializer.remove(tensor)


# Judging it


def _open(backbone: Backbone) -> EmbeddingSession:
    return EmbeddingSession(plan_extraction(backbone, device="cpu", cache_dir=None).graph, CPU)


def _measure_distances(sessions: Sequence[EmbeddingSession], pixels: Pixels) -> tuple[float, float]:
    """Median and largest distance between the embeddings of two sessions, in lengths of the first one's."""
    before, after = (np.concatenate([session.run(row[None]) for row in pixels]) for session in sessions)
    lengths = np.maximum(np.linalg.norm(before, axis=1), np.finfo(np.float32).tiny)
    distances = np.linalg.norm(after.astype(np.float64) - before, axis=1) / lengths
    return round(float(np.median(distances)), 4), round(float(distances.max()), 4)


def _measure_speedup(sessions: Sequence[EmbeddingSession], pixels: Pixels) -> float:
    """How many times the second session is as fast as the first, image by image: a median over alternating rounds."""
    rows = [pixels[index % len(pixels)][None] for index in range(_TIMED_IMAGES)]
    ratios = []
    for _ in range(_TIMED_ROUNDS):
        seconds = []
        for session in sessions:
            started = time.perf_counter()
            for row in rows:
                session.run(row)
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def _find_complaint(card: QuantizationCard, speedup: float) -> str:
    if not card.distance <= MAX_DISTANCE:  # not "greater": NaN fails too
        found = f"its embeddings move by {card.distance:.2f} of their length (median), more than {MAX_DISTANCE}"
    elif speedup < MIN_SPEEDUP:
        found = f"it is {speedup:.2f} times as fast on this machine, less than {MIN_SPEEDUP}"
    else:
        return ""
    return f"int8 does not pay for {card.name}: {found}. It stays in float32."


# Keeping it


def _annotate(path: Path, entries: dict[str, str]) -> None:
    """Add entries to the metadata of the file, and drop onnxruntime's own."""
    import onnx

    model = onnx.load(path)
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith(METADATA_PREFIX)}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, kept | entries)
    onnx.save(model, path)

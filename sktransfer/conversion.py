"""From PyTorch models to ONNX backbones that carry their preprocessing with them."""

from __future__ import annotations

import copy
import difflib
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer._optional import import_optional
from sktransfer.exceptions import BackboneError, MissingExtraError
from sktransfer.network import METADATA_KEY, METADATA_PREFIX
from sktransfer.preprocessing import Preprocessing
from sktransfer.silence import silence

if TYPE_CHECKING:
    import torch

EXTRA = "torch"
TOLERANCE = 1e-4  # relative distance between the outputs of onnxruntime and of torch, image by image
MAX_BYTES = 2**31 - 2**24  # protobuf's 2 GiB, less room for the graph; larger weights lie beside the file

# Exporter: opset by default, oldest and newest opset. torch.export writes what PyTorch maintains, TorchScript what is
# older than opset 18 or cannot be captured (torch 2.13 and onnxscript 0.7).
_EXPORTERS = {"torch.export": (18, 18, 25), "TorchScript": (17, 9, 20)}
_LICENSES = {  # timm's words for licences, in those of SPDX
    "apache-2.0": "Apache-2.0",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "mit": "MIT",
}

Array = np.ndarray[Any, Any]
_Source = tuple["torch.nn.Module", Preprocessing, dict[str, str]]

logger = logging.getLogger(__name__)


def export_backbone(reference: str, output: Path, *, opset: int | None = None, pretrained: bool = True) -> Path:
    """Write a model of timm or torchvision as an ONNX backbone, its preprocessing, source and licence inside.

    Parameters
    ----------
    reference : str
        ``timm:<model>`` ("timm:resnet50.a1_in1k") or ``torchvision:<model>[@<weights>]``
        ("torchvision:resnet50@IMAGENET1K_V2"; without weights, torchvision's ``DEFAULT``).
    output : Path
        The ``.onnx`` file to write, in a folder that exists. A file that is there is replaced.
    opset : int or None
        ONNX opset; None takes the exporter's own.
    pretrained : bool
        False gives the model random weights and downloads nothing.

    Returns
    -------
    Path
        `output`.

    Raises
    ------
    BackboneError
        If there is no such model, its preprocessing cannot be expressed, or its export fails or computes something
        else than the model. No file is left then.
    MissingExtraError
        If torch or the library is not installed.
    """
    output = _check_output(output)
    library, _, name = reference.partition(":")
    if library not in _LOADERS or not name:
        raise BackboneError(
            f"The model must be timm:<model> or torchvision:<model>[@<weights>]. Got {reference!r} instead."
        )
    with silence():
        module, preprocessing, metadata = _LOADERS[library](name, pretrained)
    return export_module(module, preprocessing.crop, preprocessing, output, opset=opset, metadata=metadata)


def export_module(
    module: torch.nn.Module,
    input_size: tuple[int, int],
    preprocessing: Preprocessing | None,
    output: Path,
    *,
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write any image network as an ONNX backbone: float32, in eval mode, for any number of images a run.

    Parameters
    ----------
    module : torch.nn.Module
        Takes float images (n, 3, height, width); it is copied, not changed.
    input_size : (int, int)
        Height and width of its images, in pixels.
    preprocessing : Preprocessing or None
        Written into the file; None leaves it to who uses the file.
    output, opset
        As in `export_backbone`.
    metadata : mapping of str to str, optional
        Further entries of the file's metadata.

    Raises
    ------
    BackboneError
        If the export fails, or onnxruntime and torch disagree on random images by more than 1e-4 of the length of
        an output. No file is left then.
    """
    output = _check_output(output)
    torch = _import("torch")
    exporters = _choose_exporters(opset)
    module = copy.deepcopy(module).cpu().float().eval()
    entries = dict(metadata or {})
    if preprocessing is not None:
        entries[METADATA_KEY] = json.dumps(preprocessing.to_dict())
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder, torch.no_grad():
        images, expected = _run_module(module, input_size)
        written = _try_exporters(exporters, module, Path(folder) / output.name, entries, images, expected)
        for file in sorted(written.iterdir(), reverse=True):  # the weights before the graph
            os.replace(file, output.parent / file.name)
    return output


# Models


def _load_timm(name: str, pretrained: bool) -> _Source:
    timm = _import("timm")
    data = _import("timm.data")
    _check_name("timm has no model", name, [*timm.list_models(), *timm.list_models(pretrained=True)])
    try:
        model = timm.create_model(name, pretrained=pretrained, exportable=True)
    except Exception as error:
        raise BackboneError(f"timm could not load {name!r}: {error}") from error
    config = model.pretrained_cfg
    preprocessing = _read_timm_config(name, data.resolve_model_data_config(model))
    full_name = f"{config.get('architecture', name)}.{config['tag']}" if config.get("tag") else name
    license_name = config.get("license") if pretrained else None
    return model, preprocessing, _describe(timm, full_name, pretrained, license_name)


def _read_timm_config(name: str, config: Mapping[str, Any]) -> Preprocessing:
    """What timm/data/transforms_factory.py, transforms_imagenet_eval, does with this configuration."""
    channels, height, width = config["input_size"]
    mode, share = config["crop_mode"], config["crop_pct"]
    resize: int | tuple[int, int] = (math.floor(height / share), math.floor(width / share))
    if mode == "center" and height == width:
        resize = math.floor(height / share)
    elif mode != "squash":
        raise BackboneError(
            f"The images of timm:{name} must be cropped by 'squash', or by 'center' to a square. "
            f"Got {mode!r} to {height} × {width} instead; export it with export_module and a Preprocessing of your own."
        )
    if channels != 3:
        raise BackboneError(f"timm:{name} must take images of 3 channels. Got {channels} instead.")
    try:
        return Preprocessing((height, width), resize, config["interpolation"], mean=config["mean"], std=config["std"])
    except ValueError as error:
        raise BackboneError(f"The preprocessing of timm:{name} cannot be expressed: {error}") from error


def _load_torchvision(name: str, pretrained: bool) -> _Source:
    torchvision = _import("torchvision")
    models = _import("torchvision.models")
    name, _, weights_name = name.partition("@")
    _check_name("torchvision has no model", name, models.list_models(module=models))
    choices = models.get_model_weights(name).__members__
    weights_name = weights_name or "DEFAULT"
    _check_name(f"torchvision:{name} has no weights", weights_name, choices)
    weights = choices[weights_name]
    try:
        options = {"progress": False} if pretrained else {}
        model = models.get_model(name, weights=weights if pretrained else None, **options)
    except Exception as error:
        raise BackboneError(f"torchvision could not load {name}@{weights.name}: {error}") from error
    preset = weights.transforms()
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    interpolation = preset.interpolation.value
    preprocessing = Preprocessing((crop, crop), resize, interpolation, mean=tuple(preset.mean), std=tuple(preset.std))
    return model, preprocessing, _describe(torchvision, f"{name}@{weights.name}", pretrained, None)


_LOADERS = {"timm": _load_timm, "torchvision": _load_torchvision}


def _describe(library: ModuleType, name: str, pretrained: bool, license_name: str | None) -> dict[str, str]:
    version, _, _ = library.__version__.partition("+")
    weights = "" if pretrained else ", random weights"
    metadata = {f"{METADATA_PREFIX}source": f"{library.__name__} {version} {name}{weights}"}
    if license_name and license_name != "unknown":
        metadata[f"{METADATA_PREFIX}license"] = _LICENSES.get(license_name, license_name)
    return metadata


def _check_name(complaint: str, name: str, names: Iterable[str]) -> None:
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0)
        raise BackboneError(f"{complaint} {name!r}; the nearest names are {', '.join(map(repr, near))}.")


def _check_output(output: Path) -> Path:
    output = Path(output)
    if output.suffix != ".onnx" or output.is_dir():
        raise BackboneError(f"output must be a file whose name ends in .onnx. Got {str(output)!r} instead.")
    if not output.parent.is_dir():
        raise BackboneError(f"The folder of output must exist. Got {str(output)!r} instead.")
    return output


def _import(name: str) -> ModuleType:
    try:
        return import_optional(name, EXTRA)
    except MissingExtraError:
        raise
    except Exception as error:  # torchvision fails this way beside a torch that it was not built for
        raise BackboneError(f"{name} is installed but cannot be imported: {error}") from error


# Exporters


def _choose_exporters(opset: int | None) -> dict[str, int]:
    """The exporters that can write `opset`, the preferred one first, and the opset to ask of each."""
    able = {
        exporter: opset or default
        for exporter, (default, oldest, newest) in _EXPORTERS.items()
        if opset is None or oldest <= opset <= newest
    }
    if not able:
        oldest, newest = _EXPORTERS["TorchScript"][1], _EXPORTERS["torch.export"][2]
        raise BackboneError(f"opset must be None or an integer from {oldest} to {newest}. Got {opset} instead.")
    if "torch.export" in able:
        try:
            _import("onnxscript")
        except MissingExtraError:
            if len(able) == 1:
                raise
            del able["torch.export"]
            logger.info("onnxscript is not installed: the model is exported through TorchScript.")
    return able


def _run_module(module: torch.nn.Module, input_size: tuple[int, int]) -> tuple[torch.Tensor, list[Array]]:
    """Two random images, and what the module makes of them."""
    torch = _import("torch")
    images = torch.randn(2, 3, *input_size, generator=torch.Generator().manual_seed(0))
    try:
        result = module(images)
    except Exception as error:
        height, width = input_size
        raise BackboneError(f"The module must take float images (n, 3, {height}, {width}): {error}") from error
    results = result.values() if isinstance(result, Mapping) else [result] if torch.is_tensor(result) else result
    return images, [tensor.numpy() for tensor in results]


def _try_exporters(
    exporters: Mapping[str, int],
    module: torch.nn.Module,
    path: Path,
    metadata: Mapping[str, str],
    images: torch.Tensor,
    expected: list[Array],
) -> Path:
    """The folder with the file of the first exporter whose file computes what the module does."""
    complaints = []
    for exporter, opset in exporters.items():
        target = path.parent / exporter / path.name
        target.parent.mkdir()
        try:
            with silence():
                _export(exporter, module, target, images, opset)
            _annotate(target, metadata, is_large=_count_bytes(module) > MAX_BYTES)
            _check_file(target, opset, images, expected)
        except Exception as error:  # exporters raise what they like
            complaints.append(f"{exporter}: {_first_line(error.__cause__ or error)}")
            logger.info("The model could not be exported through %s", complaints[-1])
        else:
            return target.parent
    raise BackboneError(f"The model could not be exported. {'; '.join(complaints)}.")


def _export(exporter: str, module: torch.nn.Module, path: Path, images: torch.Tensor, opset: int) -> None:
    torch = _import("torch")
    options: dict[str, Any] = {"dynamic_axes": {"input": {0: "batch"}, "output": {0: "batch"}}}
    if exporter == "torch.export":
        large = _count_bytes(module) > MAX_BYTES
        options = {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "external_data": large, "verbose": False}
    else:
        torch._C._jit_set_onnx_log_enabled(False)  # it writes the whole graph of a failure past sys.stdout
    torch.onnx.export(
        module,
        (torch.cat([images, images[:1]]),),  # three, so that a batch frozen at what was traced fails with two
        path,
        input_names=["input"],
        output_names=["output"],
        opset_version=opset,
        dynamo=exporter == "torch.export",
        **options,
    )


def _annotate(path: Path, metadata: Mapping[str, str], *, is_large: bool) -> None:
    """Write the metadata, drop the paths of source files, and keep the weights in one place."""
    import onnx

    model = onnx.load(path)
    for item in (model, model.graph, *model.graph.node, *model.graph.value_info):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    onnx.helper.set_model_props(model, dict(metadata))
    for file in path.parent.iterdir():
        file.unlink()
    onnx.save(model, path, save_as_external_data=is_large, location=f"{path.name}.data")


def _check_file(path: Path, opset: int, images: torch.Tensor, expected: list[Array]) -> None:
    """Raise BackboneError unless the file has this opset, and onnxruntime computes the same as torch."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(path))
    opsets = {entry.domain: entry.version for entry in onnx.load(path, load_external_data=False).opset_import}
    if opsets.get("") != opset:  # torch.export keeps another one where its conversion fails
        raise BackboneError(f"opset {opset} is not possible for this model, {opsets.get('')} is")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    results = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    for ours, theirs in zip(results, expected, strict=True):
        distance = _compare(ours, theirs)
        if not distance <= TOLERANCE:  # not "greater": NaN fails too
            raise BackboneError(f"the file computes something else than the module, {distance:.1e} apart")


def _compare(ours: Array, theirs: Array) -> float:
    """Largest distance between two rows, in lengths of the second."""
    if ours.shape != theirs.shape:
        return math.inf
    a, b = (array.reshape(len(array), -1).astype(np.float64) for array in (ours, theirs))
    lengths = np.maximum(np.linalg.norm(b, axis=1), np.finfo(np.float32).tiny)
    return float((np.linalg.norm(a - b, axis=1) / lengths).max())


def _count_bytes(module: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _first_line(error: BaseException) -> str:
    lines = [line.strip(" .") for line in str(error).splitlines() if line.strip(" .")]
    return lines[0] if lines else type(error).__name__

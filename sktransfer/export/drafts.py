"""A fitted pipeline on its way to a file."""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sktransfer.exceptions import SktransferError
from sktransfer.export.checking import Comparison, compare, read_columns
from sktransfer.export.columns import find_columns, name_columns, walk
from sktransfer.export.joining import HEAD_OPSET, Joint, Photos, choose_opset
from sktransfer.export.operators import label_array
from sktransfer.export.parsing import convert_head
from sktransfer.export.plain import make_plain
from sktransfer.export.support import refuse_unsupported
from sktransfer.exported import FORMAT, METADATA, ExportedModel
from sktransfer.extractor import PretrainedFeatureExtractor
from sktransfer.images import is_missing
from sktransfer.locations import locate

if TYPE_CHECKING:
    import onnx


class Draft:
    """A pipeline on its way to a file."""

    def __init__(self, pipeline: Any, *, checked: bool, include_resize: bool) -> None:
        check_is_fitted(pipeline)
        self.pipeline, self.include_resize = pipeline, include_resize
        self.plain = make_plain(pipeline)
        parts = walk(self.plain)
        self.extractors = list({id(one): one for one in parts if isinstance(one, PretrainedFeatureExtractor)}.values())
        if not self.extractors:
            raise ValueError(
                f"The pipeline must have a PretrainedFeatureExtractor in it. Got a {type(pipeline).__name__} without "
                "one instead; skl2onnx converts estimators of arrays."
            )
        refuse_unsupported(parts, checked=checked)
        self.names = name_columns(self.plain)
        self.kinds = find_columns(self.plain, len(self.names))
        self.photos = [_describe_photos(extractor) for extractor in self.extractors]

    def build(self) -> onnx.ModelProto:
        """The model, with its metadata."""
        import onnx

        opset = choose_opset(self.photos)
        columns = [(f"column_{i}", str(kind or "number")) for i, kind in enumerate(self.kinds)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of attributes that skl2onnx reads
                head = convert_head(self.plain, columns, self.extractors, min(opset, HEAD_OPSET))
        except (ImportError, SktransferError):
            raise
        except Exception as error:
            text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"The pipeline cannot be exported: {text}") from error
        named = list(zip(self.names, self.kinds, strict=True))
        self.joint = Joint(head, self.photos, named, opset, include_resize=self.include_resize)
        model = self.joint.build(self._list_outputs())
        onnx.helper.set_model_props(model, {METADATA: json.dumps(self._describe(self.joint), ensure_ascii=False)})
        model.producer_name, model.producer_version = "sktransfer", _version("sktransfer")
        onnx.checker.check_model(model)
        return model

    def _list_outputs(self) -> list[tuple[str, int, list[Any]]]:
        """Name, element type and shape of each output."""
        import onnx

        n = 1 if any(photos.plan.graph.frozen_batch for photos in self.photos) else "n"
        real = onnx.TensorProto.FLOAT
        if is_classifier(self.pipeline):
            classes = self.pipeline.classes_
            label = onnx.TensorProto.STRING if label_array(classes).dtype.kind == "O" else onnx.TensorProto.INT64
            outputs: list[tuple[str, int, list[Any]]] = [("label", label, [n])]
            if hasattr(self.pipeline, "predict_proba"):
                return [*outputs, ("probabilities", real, [n, len(classes)])]
            if len(classes) > 2:
                return [*outputs, ("scores", real, [n, len(classes)])]
            return [*outputs, ("scores", real, [n])]
        if not hasattr(self.pipeline, "predict"):
            return [("features", real, [n, "features"])]
        n_values = _count_values(self._last())
        return [("value", real, [n] if n_values == 1 else [n, n_values])]

    def _last(self) -> Any:
        last = self.plain
        while isinstance(last, Pipeline) or hasattr(last, "regressor"):
            last = last.steps[-1][1] if isinstance(last, Pipeline) else last.regressor
        return last

    def _describe(self, joint: Joint) -> dict[str, Any]:
        """What the file states of itself."""
        classes = getattr(self.pipeline, "classes_", None)
        packages = ("sktransfer", "scikit-learn", "skl2onnx", "onnx", "onnxruntime", "numpy", "pillow")
        return {
            "format": FORMAT,
            "inputs": dict(self._describe_inputs(joint)),
            "classes": None if classes is None else np.asarray(classes).tolist(),
            "backbones": list(_describe_backbones(self.photos)),
            "versions": {name: version for name in packages if (version := _version(name))},
        }

    def _describe_inputs(self, joint: Joint) -> Iterator[tuple[str, dict[str, Any]]]:
        flags = {entry.column: entry.name for entry in joint.inputs if entry.kind == "has_image"}
        for entry in joint.inputs:
            stated: dict[str, Any] = {"kind": entry.kind}
            if entry.kind == "image":
                photos = joint.readers(entry.column)[0]
                stated |= {
                    "preprocessing": photos.plan.graph.preprocessing.to_dict(),
                    "resize_included": self.include_resize,
                    "pixel_range": photos.pixel_range,
                    "has_image": flags.get(entry.column),
                }
            if entry.kind != "has_image":
                yield entry.name, stated

    def compare(self, file: ExportedModel, X: Any) -> Comparison:
        """Run a file of this pipeline on rows beside the pipeline."""
        columns = {i: name for i, (name, kind) in enumerate(zip(self.names, self.kinds, strict=True)) if kind}
        cells = read_columns(X, columns, self.extractors[0].image_shape)
        for i, name in columns.items():
            if self.kinds[i] == "image":
                cells[name] = _find_places(cells[name], self.joint.readers(i)[0].root)
        return compare(file, self.pipeline, X, cells)


def _find_places(cells: Sequence[Any], root: Any) -> list[Any]:
    """Cells of images whose paths start from nowhere: each column may have a root of its own."""
    return [cell if is_missing(cell) else locate(cell, root) or cell for cell in cells]


def _describe_photos(extractor: Any) -> Photos:
    plan = extractor._fitted_plan()
    policies = [policy for policy in (extractor.missing_images, extractor.broken_images) if policy != "error"]
    fill = {"nan": float("nan"), "zero": 0.0}[policies[0]] if policies else None
    return Photos(plan, fill, bool(extractor.add_indicator), extractor.pixel_range, extractor.root)


def _describe_backbones(photos: Sequence[Photos]) -> Iterator[dict[str, Any]]:
    for plan in {(one.plan.graph.digest, one.plan.views.name): one.plan for one in photos}.values():
        yield {
            "name": plan.backbone.name,
            "sha256": plan.backbone.digest,
            "license": plan.backbone.license,
            "source": plan.backbone.source,
            "layer": plan.graph.layer,
            "views": plan.views.name,
            "graph_digest": plan.graph.digest,
        }


def _count_values(regressor: Any) -> int:
    """How many values a fitted regressor predicts for a row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that the row has not
        return int(np.size(regressor.predict(np.zeros((1, regressor.n_features_in_)))))


def _version(package: str) -> str:
    names = (package, f"{package}-gpu") if package == "onnxruntime" else (package,)
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""

"""An exported file at work: photos and a table's columns in, predictions out, by onnxruntime alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from sktransfer.exceptions import ImageFailure, ImageReadError, MissingExtraError
from sktransfer.images import decoding, describe_error, describe_reference, is_missing, quiet_decoder
from sktransfer.locations import read_content
from sktransfer.options import count_threads
from sktransfer.preprocessing import Preprocessing
from sktransfer.progress import Progress

METADATA = "sktransfer"  # the key of what a file states of itself
FORMAT = 1  # of that

Array = np.ndarray[Any, Any]
_DTYPES = {"number": np.float64, "integer": np.int64, "text": object}


@dataclass(frozen=True)
class Predictions:
    """What a file says of rows.

    Attributes
    ----------
    outputs : dict of str to ndarray
        "label" (n,) and "probabilities" (n, n_classes) or "scores"; or "value" (n,) or (n, n_outputs); or "features".
        Rows that failed hold the empty label, 0 or NaN.
    failures : list of ImageFailure
    """

    outputs: dict[str, Array]
    failures: list[ImageFailure]


class ExportedModel:
    """A file that `export_onnx` wrote.

    Parameters
    ----------
    path : str or Path

    Attributes
    ----------
    info : dict
        What the file states of itself: inputs, outputs, classes, backbones, versions.

    Raises
    ------
    ValueError
        If it is not such a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # rows run side by side
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            if not self.path.is_file():
                raise ValueError(f"The model must be an .onnx file. There is no {str(self.path)!r}.") from error
            raise ValueError(f"onnxruntime cannot open {self.path}: {error}") from error
        stated = self._session.get_modelmeta().custom_metadata_map.get(METADATA)
        self.info: dict[str, Any] = json.loads(stated) if stated else {}
        if self.info.get("format") != FORMAT:
            raise ValueError(
                f"{self.path} must be a file that export_onnx wrote, of format {FORMAT}. It states "
                f"{self.info.get('format', 'none')} instead."
            )
        self.inputs: dict[str, dict[str, Any]] = self.info["inputs"]
        self.output_names = [output.name for output in self._session.get_outputs()]

    @property
    def image_inputs(self) -> list[str]:
        """Names of the inputs that take photos."""
        return [name for name, stated in self.inputs.items() if stated["kind"] == "image"]

    @property
    def table_inputs(self) -> list[str]:
        """Names of the inputs that take a table's cells."""
        return [name for name, stated in self.inputs.items() if stated["kind"] in _DTYPES]

    def predict(
        self,
        columns: Mapping[str, Sequence[Any]],
        root: str | os.PathLike[str] | None = None,
        n_jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Predictions:
        """Predict rows, side by side, one a run.

        Parameters
        ----------
        columns : mapping of str to sequence
            The cells of each input that takes photos or a table's cells, all of one length: references as everywhere.
        root : str, Path or None
            Folder that relative paths start from.
        n_jobs : int or None
            Threads; None is every core.
        progress : Progress or None
            Told of every row.

        Raises
        ------
        ValueError
            If a column is missing, or holds what its input does not take.
        """
        cells = self._read_columns(columns)
        n_rows = len(next(iter(columns.values())))
        outputs: dict[str, Array] = {}
        failures: list[ImageFailure] = []

        def predict_row(row: int) -> tuple[dict[str, Array], list[ImageFailure]]:
            feeds, failed = self._feed(row, columns, cells, root)
            if feeds is None:
                return {}, failed
            values = self._session.run(None, feeds)
            return dict(zip(self.output_names, values, strict=True)), failed

        with quiet_decoder(), ThreadPoolExecutor(count_threads(n_jobs)) as pool:
            for row, (values, failed) in enumerate(pool.map(predict_row, range(n_rows))):
                failures += failed
                for name, value in values.items():
                    if name not in outputs:
                        outputs[name] = _allocate(n_rows, value)
                    outputs[name][row] = value[0]
                if progress is not None:
                    progress.advance(passes=not failed, failed=bool(failed))
        return Predictions(outputs, failures)

    def _read_columns(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, Array]:
        """The cells of the table's inputs as arrays (n, 1)."""
        wanted = [*self.image_inputs, *self.table_inputs]
        if absent := [name for name in wanted if name not in columns]:
            raise ValueError(f"{self.path.name} takes the columns {', '.join(wanted)}. {absent[0]!r} is missing.")
        return {name: _read_cells(name, columns[name], self.inputs[name]["kind"]) for name in self.table_inputs}

    def _feed(
        self, row: int, columns: Mapping[str, Sequence[Any]], cells: Mapping[str, Array], root: Any
    ) -> tuple[dict[str, Array] | None, list[ImageFailure]]:
        feeds: dict[str, Array] = {name: values[row : row + 1] for name, values in cells.items()}
        failures, whole = [], True
        for name in self.image_inputs:
            stated, reference = self.inputs[name], columns[name][row]
            flag = stated.get("has_image")
            pixels, reason = None, "empty cell"
            if not is_missing(reference):
                pixels, reason = self._read_pixels(reference, stated, root)
            if pixels is None:
                failed = ImageFailure(row, name, describe_reference(reference), reason, missing=is_missing(reference))
                failures += [] if failed.missing and flag else [failed]
                whole = whole and flag is not None
                pixels = np.zeros((*_smallest(stated), 3), np.uint8)
                feeds |= {flag: np.array([False])} if flag else {}
            elif flag:
                feeds[flag] = np.array([True])
            feeds[name] = pixels[None]
        return feeds if whole else None, failures

    def _read_pixels(self, reference: Any, stated: Mapping[str, Any], root: Any) -> tuple[Array | None, str]:
        if isinstance(reference, (list, tuple)):
            return None, "a file takes one image a cell"
        pixel_range = stated["pixel_range"] and tuple(stated["pixel_range"])
        try:
            with decoding(read_content(reference, root, pixel_range), pixel_range) as image:
                if stated["resize_included"]:
                    return np.asarray(image.convert("RGB")), ""
                return Preprocessing(**stated["preprocessing"]).resize_and_crop(image), ""
        except (MemoryError, MissingExtraError):
            raise
        except Exception as error:
            return None, describe_error(error)


def _smallest(stated: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of a photo that stands for none."""
    height, width = stated["preprocessing"]["crop"]
    return height, width


def _allocate(n_rows: int, value: Array) -> Array:
    fill = "" if value.dtype.kind == "O" else np.nan if value.dtype.kind == "f" else 0
    return np.full((n_rows, *value.shape[1:]), fill, value.dtype)


def _read_cells(name: str, cells: Sequence[Any], kind: str) -> Array:
    values = cells.to_numpy() if hasattr(cells, "to_numpy") else np.asarray(cells, dtype=object)
    if kind == "text":
        texts = ["" if is_missing(value) else str(value) for value in values]
        return np.array(texts, dtype=object).reshape(-1, 1)
    try:
        return values.astype(_DTYPES[kind]).reshape(-1, 1)
    except (TypeError, ValueError) as error:
        row = next(_find_wrong(values, _DTYPES[kind]))
        raise ValueError(f"{name} must be a {kind} in every row. Got {values[row]!r} in row {row} instead.") from error


def _find_wrong(values: Array, dtype: Any) -> Iterator[int]:
    for row, value in enumerate(values):
        try:
            np.asarray(value).astype(dtype)
        except (TypeError, ValueError):
            yield row
    yield 0


def raise_failures(predictions: Predictions) -> Predictions:
    """The predictions, if no photo failed.

    Raises
    ------
    ImageReadError
        Names the first row that failed, and counts the others.
    """
    if predictions.failures:
        more = len(predictions.failures) - 1
        text = f"{predictions.failures[0]}{f' ({more} more failed)' if more else ''}."
        raise ImageReadError(text, predictions.failures)
    return predictions

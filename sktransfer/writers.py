"""Tables of embeddings: the columns that were there and the features, part by part, in one file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from sktransfer._optional import import_optional
from sktransfer.outputs import replacing

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("parquet", "csv", "feather", "npz")
LAYOUTS = ("columns", "list")
METADATA_KEY = b"sktransfer"

Array = np.ndarray[Any, Any]


def check_output(path: str | os.PathLike[str], form: str | None = None) -> tuple[Path, str]:
    """The file and its format; refuses, before any work, one that could not be written.

    Raises
    ------
    ValueError
        If the format is unknown or the folder does not exist.
    MissingExtraError
        If the format needs an extra that is not installed.
    """
    file = Path(path)
    found = form or file.suffix.lower().removeprefix(".")
    if found not in FORMATS:
        suffixes = ", ".join(f".{name}" for name in FORMATS)
        raise ValueError(f"The output must end in {suffixes}. Got {file.name!r} instead.")
    if not file.parent.is_dir():
        raise ValueError(f"The folder of the output must exist. There is no {str(file.parent)!r}; create it first.")
    if file.is_dir():
        raise ValueError(f"The output must be a file. {str(file)!r} is a folder.")
    if file.exists() and not file.is_file():
        raise ValueError(f"The output must be a file. {str(file)!r} is a device or a pipe.")
    if not os.access(file.parent, os.W_OK):
        raise ValueError(f"The folder of the output must be writable. {str(file.parent)!r} is not.")
    if found in ("parquet", "feather"):
        import_optional("pyarrow", "table")
    return file, found


class Writer(Protocol):
    """Takes rows and their embeddings, part by part; a context that completes the file at its end."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the file."""

    def write(self, rows: pd.DataFrame, embeddings: Array) -> None:
        """Append rows and their embeddings, an array (n, features)."""


def open_writer(
    path: Path,
    form: str,
    features: Sequence[str],
    lists: Mapping[str, slice] | None = None,
    dtype: str = "float32",
    metadata: Mapping[str, Any] | None = None,
) -> Writer:
    """A writer of one file.

    Parameters
    ----------
    path : Path
        The file; it is written at once, so let it be a temporary one.
    form : {"parquet", "csv", "feather", "npz"}
    features : sequence of str
        Names of the features.
    lists : mapping of str to slice, or None
        Columns that hold lists of features, and which; the other features are columns of their own.
    dtype : {"float32", "float16"}
    metadata : mapping or None
        What is stated in a Parquet or Feather file, as JSON under the key "sktransfer".
    """
    if form in ("parquet", "feather"):
        return _ArrowWriter(path, form, features, lists or {}, dtype, metadata or {})
    return _CsvWriter(path, features, dtype) if form == "csv" else _NpzWriter(path, features, dtype)


def write_table(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a frame, its named index included, in the format of the suffix; the file appears whole or not at all."""
    file, form = check_output(path)
    with replacing(file) as temporary, open_writer(temporary, form, ()) as writer:
        writer.write(frame, np.empty((len(frame), 0), dtype=np.float32))


def _cast(embeddings: Array, dtype: str) -> Array:
    if dtype == "float32":
        return embeddings
    with np.errstate(over="ignore"):
        half = embeddings.astype(np.float16)
    lost = np.isinf(half) & np.isfinite(embeddings)
    if lost.any():
        value = embeddings[lost][0]
        raise ValueError(f'Features must lie in -65504..65504 for dtype "float16". Got {value:g} instead.')
    return half


class _CsvWriter:
    def __init__(self, path: Path, features: Sequence[str], dtype: str) -> None:
        self.path, self.features, self.dtype, self.begun = path, features, dtype, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, rows: pd.DataFrame, embeddings: Array) -> None:
        import pandas as pd

        values = pd.DataFrame(_cast(embeddings, self.dtype), index=rows.index, columns=list(self.features))
        frame = pd.concat([rows, values], axis=1)
        named = rows.index.name is not None
        frame.to_csv(self.path, mode="a" if self.begun else "w", header=not self.begun, index=named, encoding="utf-8")
        self.begun = True


class _NpzWriter:
    """Arrays `index`, `embeddings`, `columns` (names of the features), and one of texts for each other column."""

    def __init__(self, path: Path, features: Sequence[str], dtype: str) -> None:
        self.path, self.features, self.dtype = path, features, dtype
        self.rows: list[pd.DataFrame] = []
        self.embeddings: list[Array] = []

    def __enter__(self) -> Self:
        return self

    def write(self, rows: pd.DataFrame, embeddings: Array) -> None:
        self.rows.append(rows)
        self.embeddings.append(_cast(embeddings, self.dtype))

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            return
        import pandas as pd

        rows = pd.concat(self.rows)
        arrays = {name: _write_texts(rows[name]) for name in rows.columns}
        arrays["index"] = np.asarray(rows.index, dtype=str if rows.index.name is not None else None)
        arrays["embeddings"], arrays["columns"] = np.concatenate(self.embeddings), np.asarray(self.features, dtype=str)
        with open(self.path, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]


def _write_texts(column: pd.Series[Any]) -> Array:
    """A column as texts, empty where it has no value."""
    return np.array([str(value) if there else "" for value, there in zip(column, column.notna(), strict=True)], str)


class _ArrowWriter:
    def __init__(
        self,
        path: Path,
        form: str,
        features: Sequence[str],
        lists: Mapping[str, slice],
        dtype: str,
        metadata: Mapping[str, Any],
    ) -> None:
        self.path, self.form, self.features, self.lists, self.dtype = path, form, features, lists, dtype
        self.metadata = {METADATA_KEY: json.dumps(metadata, ensure_ascii=False)}
        self.writer: Any = None
        self.schema: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def write(self, rows: pd.DataFrame, embeddings: Array) -> None:
        import pyarrow as pa

        table = pa.Table.from_pandas(rows, preserve_index=rows.index.name is not None)
        if self.form == "feather":  # whose files have one dictionary a column, and row groups may differ
            kinds = [field.type.value_type if pa.types.is_dictionary(field.type) else field.type
                     for field in table.schema]  # fmt: skip
            table = table.cast(pa.schema(list(zip(table.column_names, kinds, strict=True)), table.schema.metadata))
        values = _cast(embeddings, self.dtype)
        taken: set[int] = set()
        for name, part in self.lists.items():
            block = pa.array(np.ascontiguousarray(values[:, part]).ravel())
            width = part.stop - part.start
            table = table.append_column(name, pa.FixedSizeListArray.from_arrays(block, width))
            taken.update(range(part.start, part.stop))
        for i, name in enumerate(self.features):
            if i not in taken:
                table = table.append_column(name, pa.array(np.ascontiguousarray(values[:, i])))
        # Without a named index, pandas shall read plain types, and not the Arrow ones that kept them whole here.
        kept = (table.schema.metadata or {}) if rows.index.name is not None else {}
        table = table.replace_schema_metadata({**kept, **self.metadata})
        if self.writer is None:
            self.schema = table.schema
            self.writer = self._open(table.schema)
        self.writer.write_table(table.cast(self.schema))

    def _open(self, schema: Any) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        return pq.ParquetWriter(self.path, schema) if self.form == "parquet" else pa.ipc.new_file(self.path, schema)


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What a Parquet file states of itself under "sktransfer"; None where it is not whole, or states nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        stated = (pq.read_metadata(path).metadata or {}).get(METADATA_KEY)
        found = json.loads(stated) if stated is not None else None
    except (OSError, ValueError, pa.ArrowException):
        return None
    return found if isinstance(found, dict) else None

"""What a command reads: the rows of a table, or the images of a folder as the rows of one."""

from __future__ import annotations

import functools
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer._optional import import_optional
from sktransfer.digests import digest_bytes, digest_file
from sktransfer.images import IMAGE_SUFFIXES

if TYPE_CHECKING:
    import pandas as pd

_Opened = tuple[tuple[str, ...], int, Callable[[int, int], "pd.DataFrame"], tuple[str, ...]]

TEXT_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
ARROW_SUFFIXES = (".parquet", ".feather", ".arrow")
MISSING_TEXTS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "<NA>")  # in a column of images


@dataclass(frozen=True)
class Table:
    """Rows that are read part by part."""

    n_rows: int
    columns: tuple[str, ...]  # of images
    others: tuple[str, ...]  # that are kept
    digest: str  # of the content of the file, or of the names of the images
    read: Callable[[int, int], pd.DataFrame]  # the rows from the first number up to the second
    names: tuple[str, ...] | None  # of the columns of images, in messages; a folder has none


def find_images(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of the images under `folder`, relative to it with forward slashes, sorted.

    Hidden files and folders are passed over; a file is an image by its suffix.

    Raises
    ------
    ValueError
        If `folder` is not a folder or holds no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"FOLDER must be an existing folder of images. Got {os.fspath(folder)!r} instead.")
    found = []
    for parent, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            (Path(parent) / name).relative_to(root).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    if not found:
        raise ValueError(f"FOLDER must hold images ({', '.join(sorted(IMAGE_SUFFIXES)[:6])}, …). {root} holds none.")
    return sorted(found)


def open_folder(folder: str | os.PathLike[str], *, labels: bool = False) -> Table:
    """The images under `folder`: their relative paths as the index, the first folder's name as the column "label"."""
    import pandas as pd

    paths = find_images(folder)
    shown = [os.fsencode(path).decode("utf-8", "backslashreplace") for path in paths]  # not every name is UTF-8
    frame = pd.DataFrame({"path": pd.Series(paths, dtype=object)}).set_axis(pd.Index(shown, name="path"))
    if labels:
        frame["label"] = [path.partition("/")[0] if "/" in path else "" for path in shown]
    digest = digest_bytes("\n".join(paths).encode("utf-8", "surrogateescape")).hex()
    return Table(len(paths), ("path",), tuple(frame.columns[1:]), digest, _slice(frame), None)


def open_table(
    path: str | os.PathLike[str], columns: Sequence[str], *, delimiter: str | None = None, as_text: bool = False
) -> Table:
    """A .csv, .tsv, .parquet, .feather or .arrow file with columns of images.

    Other columns are kept: with `as_text` those of a text file exactly as they are written there, else with the types
    that they look like. Columns that hold images themselves (bytes) are not kept.

    Raises
    ------
    ValueError
        If the file cannot be read, or has no column of a name.
    MissingExtraError
        If the format needs an extra that is not installed.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"The source must be an existing folder or table. Got {str(file)!r} instead.")
    is_text = file.name.lower().endswith(TEXT_SUFFIXES)
    if not is_text and not file.name.lower().endswith(ARROW_SUFFIXES):
        allowed = ", ".join((*TEXT_SUFFIXES, *ARROW_SUFFIXES))
        raise ValueError(f"The source must be a folder of images, or end in {allowed}. Got {file.name!r} instead.")
    wanted = tuple(dict.fromkeys(columns))
    if not wanted:
        raise ValueError("A table needs --column NAME, once for each column of images.")
    names, n_rows, read, kept = _open_file(file, wanted, delimiter, is_text=is_text, as_text=as_text)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"The columns of a table must have different names. {file} has {twice!r} more than once.")
    for column in wanted:
        if column not in names:
            raise ValueError(f"--column must name a column of {file}. Got {column!r} instead of {_join(names)}.")
    if n_rows == 0:
        raise ValueError(f"The table must have rows. {file} has none.")
    others = tuple(name for name in names if name not in wanted or name in kept)
    return Table(n_rows, wanted, others, digest_file(file), read, wanted)


def _open_file(file: Path, wanted: tuple[str, ...], delimiter: str | None, *, is_text: bool, as_text: bool) -> _Opened:
    """Names, number of rows, reader, and the columns of images that are kept."""
    try:
        if is_text:
            frame = _read_text(file, wanted, delimiter, as_text=as_text)
            return tuple(frame.columns), len(frame), _slice(frame), wanted
        return _open_arrow(file, wanted)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be UTF-8 text to be read as a table. Got {error.reason} in it.") from error
    except OverflowError as error:
        remedy = "write a .csv file, which keeps all cells as they are"
        raise ValueError(f"{file} holds whole numbers of more than 64 bits; {remedy}.") from error
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} cannot be read as a table: {_shorten(error)}") from error


def _shorten(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _join(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown


def _slice(frame: pd.DataFrame) -> Callable[[int, int], pd.DataFrame]:
    return lambda start, stop: frame.iloc[start:stop]


def _read_text(file: Path, columns: Sequence[str], delimiter: str | None, *, as_text: bool) -> pd.DataFrame:
    import pandas as pd

    separator = (delimiter or ("\t" if ".tsv" in file.name.lower() else ",")).replace("\\t", "\t")
    if len(separator) != 1:
        raise ValueError(f"the delimiter must be one character. Got {separator!r} instead")
    options: dict[str, Any] = {"sep": separator, "encoding": "utf-8-sig", "index_col": False}
    one_column = len(pd.read_csv(file, nrows=0, **options).columns) == 1
    options |= {"skip_blank_lines": not one_column, "keep_default_na": not as_text}
    if not as_text:
        import_optional("pyarrow", "table")
        options["dtype_backend"] = "pyarrow"  # keeps whole numbers whole where cells are empty
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            frame: pd.DataFrame = pd.read_csv(file, dtype=str if as_text else dict.fromkeys(columns, str), **options)
        except pd.errors.ParserWarning as error:
            raise ValueError("its rows have more cells than its header") from error
    for column in columns:
        if column in frame.columns:
            cells = frame[column].astype(object)
            frame[column] = cells.where(cells.notna() & ~cells.isin(MISSING_TEXTS), None)
            if not as_text:  # also where all of a part are empty
                frame[column] = frame[column].astype("string[pyarrow]")
    return frame


def _open_arrow(file: Path, columns: Sequence[str]) -> _Opened:
    import_optional("pyarrow", "table")
    import pyarrow as pa

    if file.name.lower().endswith(".parquet"):
        schema, starts, read_group = _open_parquet(file)
    else:
        with pa.memory_map(str(file)) as source:
            whole = pa.ipc.open_file(source).read_all()
        schema, starts, read_group = whole.schema, np.array([0, len(whole)]), lambda _: whole

    def read(start: int, stop: int) -> pd.DataFrame:
        try:
            return read_rows(start, stop)
        except (ValueError, OSError) as error:
            raise ValueError(f"{file} is damaged in rows {start} to {stop}: {_shorten(error)}") from error

    def read_rows(start: int, stop: int) -> pd.DataFrame:
        import pandas as pd

        first = int(np.searchsorted(starts, start, side="right")) - 1
        last = max(int(np.searchsorted(starts, stop, side="left")), first + 1)
        rows = pa.concat_tables([read_group(group) for group in range(first, last)])
        part = rows.slice(start - int(starts[first]), stop - start)
        frame: pd.DataFrame = part.drop_columns(held).to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
        for name in held:
            frame[name] = part.column(name).to_pandas()  # bytes and dicts, which nobody writes again
        return frame

    kinds = dict(zip(schema.names, schema.types, strict=True))
    held = [name for name in columns if name in kinds and _holds_bytes(kinds[name])]
    texts = tuple(name for name in columns if name not in held)
    return tuple(schema.names), int(starts[-1]), read, texts


def _open_parquet(file: Path) -> tuple[Any, np.ndarray[Any, Any], Callable[[int], Any]]:
    import pyarrow.parquet as pq

    source = pq.ParquetFile(file, memory_map=True)
    sizes = [source.metadata.row_group(group).num_rows for group in range(source.metadata.num_row_groups)]
    return source.schema_arrow, np.cumsum([0, *sizes]), functools.lru_cache(maxsize=2)(source.read_row_group)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    while hasattr(kind, "value_type"):  # of lists and dictionaries
        kind = kind.value_type
    return any(getattr(pa.types, f"is_{name}")(kind) for name in ("struct", "binary", "large_binary", "binary_view"))

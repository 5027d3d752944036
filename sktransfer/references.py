"""From whatever a user passes as X to columns of image references."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sktransfer.images import is_missing

_ONE_IMAGE = (str, bytes, bytearray, memoryview, os.PathLike, dict, Image.Image)

Column = Sequence[Any] | np.ndarray[Any, Any]
Cell = tuple[int, int]  # column, row


@dataclass(frozen=True)
class References:
    """Columns of image references, all of the same length."""

    columns: tuple[Column, ...]
    names: tuple[str, ...] | None = None  # of the columns, where X has them

    @property
    def n_rows(self) -> int:
        """Length of every column."""
        return len(self.columns[0])

    def name(self, column: int) -> str | None:
        """Name of a column, where X has names."""
        return self.names[column] if self.names is not None else None


@dataclass(frozen=True)
class Images:
    """Every image of some References, cell by cell."""

    columns: tuple[Column, ...]  # those of the References; one more holds the images of cells with several
    places: Sequence[Cell]  # (column, position) of each image, in the order of the rows
    empty: Sequence[Cell]  # cells without an image, in the order of the rows
    several: dict[Cell, range]  # cells with a list of images, and where these are in the last of the columns
    owners: Sequence[Cell]  # cell of each image in the last of the columns

    def cell(self, index: int) -> Cell:
        """The cell of an image."""
        column, position = place = self.places[index]
        return self.owners[position] if self.several and column == len(self.columns) - 1 else place

    def reference(self, index: int) -> Any:
        """The reference of an image."""
        column, position = self.places[index]
        return self.columns[column][position]


def list_images(references: References) -> Images:
    """The images of all cells. A list in a cell is several images of one row; None in it is passed over."""
    empty: list[Cell] = []
    several: dict[Cell, range] = {}
    owners: list[Cell] = []
    listed: list[Any] = []
    for column, cells in enumerate(references.columns):
        if isinstance(cells, np.ndarray):
            continue  # pixels
        for row, cell in enumerate(cells):
            if type(cell) is str and cell:  # most, and a search asks for each of them again and again
                continue
            parts = _list_parts(cell)
            if parts is not None:
                parts = [part for part in parts if not is_missing(part)]
            if not parts if parts is not None else is_missing(cell):
                empty.append((column, row))
            elif parts is not None:
                several[column, row] = range(len(listed), len(listed) + len(parts))
                owners += [(column, row)] * len(parts)
                listed += parts
    empty.sort(key=_by_row)
    columns = (*references.columns, listed) if several else references.columns
    return Images(columns, _list_places(references, set(empty), several), empty, several, owners)


def _by_row(cell: Cell) -> tuple[int, int]:
    return cell[1], cell[0]


def _list_places(references: References, empty: set[Cell], several: dict[Cell, range]) -> list[Cell]:
    n_columns = len(references.columns)
    cells = [(column, row) for row in range(references.n_rows) for column in range(n_columns)]
    if not several:
        return [cell for cell in cells if cell not in empty] if empty else cells
    places: list[Cell] = []
    for cell in cells:
        if cell in several:
            places += [(n_columns, position) for position in several[cell]]
        elif cell not in empty:
            places.append(cell)
    return places


def _list_parts(cell: Any) -> list[Any] | None:
    """The images of a cell that holds a list, a Series or a 1-D array of them; None for any other cell."""
    if isinstance(cell, (list, tuple)):
        return list(cell)
    if isinstance(cell, _ONE_IMAGE) or getattr(cell, "ndim", 1) != 1 or not hasattr(cell, "__len__"):
        return None
    for name in ("to_list", "to_pylist", "tolist"):  # of pandas and polars, pyarrow, numpy
        if hasattr(cell, name):
            values = getattr(cell, name)()
            return values if isinstance(values, list) and not any(map(_is_number, values)) else None
    return None


def list_references(X: Any) -> References:
    """The image references in X: a sequence, a Series, a frame, or an array of images.

    Parameters
    ----------
    X : list, ndarray, Series or frame
        One image a row, or one a row and column for a frame and a 2-D object array; a list in a cell is several images
        of one row. Arrays of pixels have the shape (n, h, w), (n, h, w, 1), (n, h, w, 3) or (n, h, w, 4).

    Raises
    ------
    TypeError
        If X is one image or no sequence at all.
    ValueError
        If X is empty or its rank does not fit.
    """
    if hasattr(X, "__iter__") and not hasattr(X, "__len__") and not isinstance(X, _ONE_IMAGE):
        raise TypeError(f"X must be a sequence of images. Got a {type(X).__name__} instead; pass list(X).")
    if isinstance(X, _ONE_IMAGE) or X is None or not hasattr(X, "__len__"):
        raise TypeError(f"X must be a sequence of images. Got one {type(X).__name__} instead; wrap it in a list.")
    if isinstance(X, (set, frozenset)):
        raise TypeError("X must be a sequence of images. Got a set instead, which has no order; sort it into a list.")
    if hasattr(X, "toarray") and hasattr(X, "nnz"):
        raise TypeError("X must be a sequence of images. Got a sparse matrix instead; sparse data hold no images.")
    if len(X) == 0:
        raise ValueError("X must hold at least one image. Found 0 sample(s) instead, and a minimum of 1 is required.")
    if hasattr(X, "column_names") and hasattr(X, "to_pydict"):  # a table of pyarrow
        names, columns = tuple(map(str, X.column_names)), [column.to_pylist() for column in X.columns]
        return _name_columns(columns, names)
    if _is_frame(X):
        return _list_frame(X)
    if isinstance(X, (list, tuple)):
        return _list_sequence(X)
    if isinstance(X, np.ndarray) or (hasattr(X, "__array__") and getattr(X, "ndim", 1) > 1):
        return _list_array(np.asarray(X))
    return _list_series(X)


def _is_frame(X: Any) -> bool:
    return hasattr(X, "columns") and hasattr(X, "dtypes") and not hasattr(X, "dtype")


def is_numeric_table(X: Any) -> bool:
    """Whether X is a 2-D table of numbers: flattened images, or a mistake."""
    if isinstance(X, _ONE_IMAGE):
        return False
    if _is_frame(X):
        return len(X.columns) > 0 and all(map(_is_numeric_dtype, X.dtypes)) and not _is_empty(X)
    if isinstance(X, (list, tuple)):
        return len(X) > 0 and _is_row_of_numbers(X[0])
    if not hasattr(X, "__array__") or getattr(X, "ndim", 2) != 2:
        return False
    array = np.asarray(X)
    if array.dtype.kind == "O":
        return array.ndim == 2 and len(array) > 0 and any(map(_is_number, array[0]))
    return array.ndim == 2 and array.dtype.kind in "iufbc"


def describe_flat_images(n_features: int) -> str:
    """The error for a 2-D numeric X without `image_shape`; it suggests the shape where the width is a square."""
    suggestion = "image_shape=(height, width)"
    for channels, suffix in ((1, ""), (3, ", 3")):
        side = math.isqrt(n_features // channels)
        if side > 1 and side * side * channels == n_features:
            suggestion = f"image_shape=({side}, {side}{suffix})"
            break
    return (
        f"X must be images, and a 2-D table of {n_features} numeric columns could be anything. "
        f"Pass {suggestion} if its rows are flattened images."
    )


def reshape_flat_images(X: np.ndarray[Any, Any], image_shape: Any) -> References:
    """Rows of a 2-D array as images of `image_shape`, (h, w) or (h, w, c)."""
    valid = isinstance(image_shape, (tuple, list)) and len(image_shape) in (2, 3)
    if not valid or not all(isinstance(size, (int, np.integer)) and size >= 1 for size in image_shape):
        raise ValueError(f"image_shape must be (h, w) or (h, w, c) of integers >= 1. Got {image_shape!r} instead.")
    if math.prod(image_shape) != X.shape[1]:
        raise ValueError(
            f"image_shape must multiply to the {X.shape[1]} columns of X. "
            f"Got {tuple(image_shape)} instead, which makes {math.prod(image_shape)}."
        )
    return References((X.reshape(len(X), *image_shape),))


def _list_frame(X: Any) -> References:
    names = tuple(str(name) for name in X.columns)
    if not names:
        raise ValueError("X must have at least one column of images. Got a frame without columns instead.")
    positions = range(len(names))
    columns = [X.iloc[:, i] for i in positions] if hasattr(X, "iloc") else [X[name] for name in X.columns]
    for name, column in zip(names, columns, strict=True):
        if _is_numeric_dtype(column.dtype) and not _is_empty(column):
            raise ValueError(f"Every column of X must hold images. Column {name!r} has dtype {column.dtype} instead.")
    return _name_columns([_list_cells(column) for column in columns], names)


def _name_columns(columns: Sequence[list[Any]], names: tuple[str, ...]) -> References:
    for name, column in zip(names, columns, strict=True):
        _check_cells(column, f", column {name!r},")
    return References(tuple(columns), names)


def _list_series(X: Any) -> References:
    cells, name = _list_cells(X), getattr(X, "name", None)
    _check_cells(cells)
    return References((cells,), (name,) if isinstance(name, str) and name else None)


def _list_cells(column: Any) -> list[Any]:
    """The cells of a Series of pandas or polars, or of another sequence."""
    for name in ("to_list", "to_pylist"):
        if hasattr(column, name):
            return list(getattr(column, name)())
    return list(column)


def _is_empty(X: Any) -> bool:
    """Whether a frame or a Series of numbers holds NaN alone: what is left of images where no row has one."""
    if hasattr(X, "isna"):
        return bool(np.asarray(X.isna()).all())
    values = np.asarray(X)
    return values.dtype.kind == "f" and bool(np.isnan(values).all())


def _list_array(X: np.ndarray[Any, Any]) -> References:
    if X.dtype.kind == "S":
        raise TypeError("X must not have the dtype S, which cuts trailing zero bytes. Use X.astype(object) instead.")
    if X.dtype.kind in "OUT":
        if X.ndim == 1:
            return _list_sequence(X.tolist())
        if X.ndim == 2:
            columns = [X[:, i].tolist() for i in range(X.shape[1])]
            for i, column in enumerate(columns):
                _check_cells(column, f", column {i},")
            return References(tuple(columns))
    elif X.ndim == 2:
        raise ValueError(describe_flat_images(X.shape[1]))
    elif X.ndim in (3, 4):
        return References((X,))
    elif X.ndim == 1 and _is_empty(X):
        return References((X.tolist(),))
    raise ValueError(
        "X must be a 1-D sequence of images, a 2-D table of them, or pixels (n, h, w) or (n, h, w, channels). "
        f"Got an array of shape {X.shape} and dtype {X.dtype} instead."
    )


def _list_sequence(X: Sequence[Any]) -> References:
    _check_cells(X)
    return References((X,))


def _check_cells(cells: Sequence[Any], where: str = "") -> None:
    """Refuse cells that hold numbers, or lists of anything but images."""
    for row, cell in enumerate(cells):
        if type(cell) is str:
            continue
        if _is_row_of_numbers(cell):
            raise ValueError(describe_flat_images(len(cell)))
        if _is_number(cell):
            raise ValueError(f"X must be a sequence of images. Got the number {cell} in row {row} instead.")
        for part in _list_parts(cell) or ():
            if _list_parts(part) is not None or _is_number(part):
                raise TypeError(
                    f"Row {row}{where} of X must be an image or a list of images. Got a list with a "
                    f"{type(part).__name__} in it instead; pass pixels as an array."
                )


def _is_numeric_dtype(dtype: Any) -> bool:
    kind = getattr(dtype, "kind", None)
    if kind is None:  # polars
        return bool(dtype.is_numeric())
    return kind in "iufbc"


def _is_row_of_numbers(cell: Any) -> bool:
    if isinstance(cell, np.ndarray):
        return cell.ndim == 1 and cell.dtype.kind in "iufb" and not _is_empty(cell)
    return isinstance(cell, (list, tuple)) and len(cell) > 0 and _is_number(cell[0])


def _is_number(value: Any) -> bool:
    # NaN is an empty cell.
    return isinstance(value, (int, float, np.number)) and value == value  # noqa: PLR0124

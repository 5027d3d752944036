"""Folders of images in, tables of embeddings out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sktransfer._optional import import_optional
from sktransfer.images import IMAGE_SUFFIXES
from sktransfer.outputs import replacing

if TYPE_CHECKING:
    import pandas as pd


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


def check_output(path: str | os.PathLike[str]) -> Path:
    """Refuse, before any work, an output file that could not be written.

    Raises
    ------
    ValueError
        If the suffix is unknown or the folder does not exist.
    MissingExtraError
        If the format needs an extra that is not installed.
    """
    file = Path(path)
    if file.suffix not in _WRITERS:
        raise ValueError(f"The output must end in {', '.join(_WRITERS)}. Got {file.name!r} instead.")
    if not file.parent.is_dir():
        raise ValueError(f"The folder of the output must exist. There is no {str(file.parent)!r}; create it first.")
    if file.is_dir():
        raise ValueError(f"The output must be a file. {str(file)!r} is a folder.")
    if not os.access(file.parent, os.W_OK):
        raise ValueError(f"The folder of the output must be writable. {str(file.parent)!r} is not.")
    if file.suffix in (".parquet", ".feather"):
        import_optional("pyarrow", "table")
    return file


def write_table(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write `frame`, its index included, in the format of the suffix; the file appears whole or not at all."""
    file = check_output(path)
    with replacing(file) as temporary:
        _WRITERS[file.suffix](frame, temporary)


def _write_npz(frame: pd.DataFrame, path: Path) -> None:
    """Arrays `index`, `embeddings` and `columns`, and one array for each column that is not numeric."""
    numeric = frame.select_dtypes("number")
    others = {name: np.asarray(frame[name], dtype=str) for name in frame.columns.difference(numeric.columns)}
    with open(path, "wb") as file:
        np.savez(
            file,
            index=np.asarray(frame.index, dtype=str),
            embeddings=numeric.to_numpy(np.float32),
            columns=np.asarray(numeric.columns, dtype=str),
            **others,  # type: ignore[arg-type]
        )


_WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".parquet": lambda frame, path: frame.to_parquet(path, engine="pyarrow"),
    ".csv": lambda frame, path: frame.to_csv(path, encoding="utf-8"),
    ".feather": lambda frame, path: frame.reset_index().to_feather(path),
    ".npz": _write_npz,
}

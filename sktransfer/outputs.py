"""Where embeddings are written: new memory, an array of the caller's, or a file that is mapped into memory."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]
Output = Array | str | os.PathLike[str] | None


@contextlib.contextmanager
def open_output(out: Output, shape: tuple[int, int]) -> Iterator[Array]:
    """A float32 array of `shape` to be filled: see `extract` for what `out` may be.

    A file appears under its name when the block ends without an error, whole.

    Raises
    ------
    ValueError
        If an array of the caller's does not fit, or a file could not be written there.
    """
    if out is None:
        yield np.empty(shape, dtype=np.float32)
    elif isinstance(out, np.ndarray):
        if out.shape != shape or out.dtype != np.float32 or not out.flags.writeable:
            raise ValueError(
                f"out must be a writable float32 array of shape {shape}. Got {out.dtype}, {out.shape}"
                f"{'' if out.flags.writeable else ', read-only'} instead."
            )
        yield out
    else:
        with _map_file(out, shape) as mapped:
            yield mapped


@contextlib.contextmanager
def _map_file(out: str | os.PathLike[str], shape: tuple[int, int]) -> Iterator[Array]:
    is_path = isinstance(out, (str, os.PathLike))
    if not is_path or Path(out).suffix != ".npy" or not Path(out).parent.is_dir() or Path(out).is_dir():
        got = repr(out) if is_path or isinstance(out, (int, float)) else f"a {type(out).__name__}"
        raise ValueError(f"out must be None, an array or the path of a .npy file in an existing folder. Got {got}.")
    with replacing(Path(out)) as temporary:
        mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        yield mapped
        mapped.flush()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when the block ends without an error."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise

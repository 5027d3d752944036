"""Look at every image before a long run, without a network."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sktransfer.digests import digest_bytes, digest_pixels
from sktransfer.extraction import read_references
from sktransfer.images import decoding, describe_error, describe_reference, quiet_decoder
from sktransfer.locations import locate, read_content
from sktransfer.options import ExtractionOptions, count_threads
from sktransfer.progress import open_progress
from sktransfer.references import Images, References, list_images

if TYPE_CHECKING:
    import pandas as pd

PENDING = 1000  # images that are handed out at a time


@dataclass(frozen=True)
class _Finding:
    """What one image is, or why it is none."""

    reason: str | None = None
    width: int | None = None
    height: int | None = None
    size: int | None = None  # bytes as stored, or of the pixels
    digest: str | None = None


def check_images(
    X: Any,
    root: str | os.PathLike[str] | None = None,
    *,
    image_shape: tuple[int, ...] | None = None,
    pixel_range: tuple[float, float] | None = None,
    n_jobs: int | None = None,
    verbose: bool | int = False,
) -> pd.DataFrame:
    """Read and decode every image of X, and say what is wrong: before a long run, or a cross-validation.

    Parameters
    ----------
    X : sequence, Series, frame or array of images
        As for :class:`PretrainedFeatureExtractor`.
    root : str, Path or None, default=None
        Folder that relative paths start from.
    image_shape, pixel_range, n_jobs, verbose
        As for :class:`PretrainedFeatureExtractor`.

    Returns
    -------
    DataFrame
        One line for each image, in the order of the rows (several for a cell with a list): row (position in X), column
        (its name, or None), reference, reason (None where the image is fine, "empty cell" where there is none),
        missing (whether the cell is empty), width and height (pixels, upright), size (bytes), digest (of the content,
        hexadecimal) and duplicate_of (the first row with the same content, missing where it is the first itself).

    Raises
    ------
    TypeError, ValueError
        If X holds no images, or `root` is no folder.

    Examples
    --------
    >>> report = check_images(["gone.jpg", None])
    >>> report[["row", "reason"]].to_numpy().tolist()
    [[0, 'no such file'], [1, 'empty cell']]
    """
    options = ExtractionOptions(root=root, pixel_range=pixel_range, n_jobs=n_jobs, verbose=verbose)
    references = read_references(X, image_shape)
    images = list_images(references)
    return _report(references, images, _examine_all(images, options))


def _examine_all(images: Images, options: ExtractionOptions) -> list[_Finding]:
    """A finding for each image; what lies at one place is read once."""
    places = [_try_to_locate(images.reference(index), options) for index in range(len(images.places))]
    first = {place: index for index, place in reversed(list(enumerate(places))) if place is not None}
    wanted = [index for index, place in enumerate(places) if place is None or first[place] == index]
    found = dict(zip(wanted, _examine(images, wanted, options), strict=True))
    return [found[index if place is None else first[place]] for index, place in enumerate(places)]


def _try_to_locate(reference: Any, options: ExtractionOptions) -> str | None:
    with contextlib.suppress(Exception):  # is said when it is read
        return locate(reference, options.root)
    return None


def _examine(images: Images, wanted: list[int], options: ExtractionOptions) -> Iterator[_Finding]:
    progress = open_progress(len(wanted), "plain") if options.verbose else None
    with quiet_decoder(), ThreadPoolExecutor(count_threads(options.n_jobs)) as pool:
        for start in range(0, len(wanted), PENDING):
            part = wanted[start : start + PENDING]
            for finding in pool.map(lambda index: _examine_one(images.reference(index), options), part):
                if progress is not None:
                    progress.advance(copies=finding.reason is None, failed=finding.reason is not None)
                yield finding
    if progress is not None:
        progress.close()


def _examine_one(reference: Any, options: ExtractionOptions) -> _Finding:
    try:
        content = read_content(reference, options.root, options.pixel_range)
        with decoding(content, options.pixel_range) as image:
            width, height = image.size
    except Exception as error:
        return _Finding(describe_error(error))
    if isinstance(content, bytes):
        return _Finding(None, width, height, len(content), digest_bytes(content).hex())
    return _Finding(None, width, height, content.nbytes, digest_pixels(content).hex())


def _report(references: References, images: Images, findings: list[_Finding]) -> pd.DataFrame:
    import pandas as pd

    lines: list[Mapping[str, Any]] = [
        {"row": row, "column": references.name(column), "reference": None, "reason": "empty cell", "missing": True}
        for column, row in images.empty
    ]
    first_row: dict[str, int] = {}
    for index, finding in enumerate(findings):
        column, row = images.cell(index)
        reference = describe_reference(images.reference(index))
        line = {"row": row, "column": references.name(column), "reference": reference, "missing": False}
        duplicate_of = None
        if finding.digest is not None and first_row.setdefault(finding.digest, row) != row:
            duplicate_of = first_row[finding.digest]
        lines.append({**line, **vars(finding), "duplicate_of": duplicate_of})
    lines.sort(key=lambda line: line["row"])
    integer, text = "Int64", object
    kinds = {"row": "int64", "column": text, "reference": text, "reason": text, "missing": "bool", "width": integer,
             "height": integer, "size": integer, "digest": text, "duplicate_of": integer}  # fmt: skip
    return pd.DataFrame(
        {name: pd.Series([line.get(name) for line in lines], dtype=kind) for name, kind in kinds.items()}  # type: ignore[call-overload]
    )

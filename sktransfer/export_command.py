"""What ``sktransfer export`` and ``sktransfer predict`` do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer._optional import import_optional
from sktransfer.export import ExportReport, export_onnx
from sktransfer.exported import ExportedModel, Predictions
from sktransfer.progress import open_progress
from sktransfer.tables import ARROW_SUFFIXES, TEXT_SUFFIXES, find_images, open_table
from sktransfer.writers import check_output, write_table

if TYPE_CHECKING:
    import pandas as pd

SHOWN_FAILURES = 20
PICKLES = (".joblib", ".pkl", ".pickle")

Say = Callable[..., object]  # typer.echo


def load_pipeline(path: Path, *, trusted: bool) -> Any:
    """A fitted pipeline that was saved by skops, or by joblib where it is trusted.

    Raises
    ------
    ValueError
        If it could run code that nobody vouches for.
    """
    if not path.is_file():
        raise ValueError(f"The pipeline must be a .skops or .joblib file. There is no {str(path)!r}.")
    if path.suffix in PICKLES:
        if not trusted:
            raise ValueError(
                f"{path} can run any code when it is loaded. Pass --trusted if you know who wrote it, or save the "
                "pipeline with skops.io.dump."
            )
        import joblib

        return joblib.load(path)
    if path.suffix != ".skops":
        raise ValueError(f"The pipeline must be a .skops or .joblib file. Got {path.name!r} instead.")
    io = import_optional("skops.io", "export")
    unknown = io.get_untrusted_types(file=path)
    foreign = [name for name in unknown if not name.startswith("sktransfer.")]
    if foreign and not trusted:
        raise ValueError(
            f"{path} holds types that neither skops nor sktransfer vouches for: {', '.join(foreign)}. Pass --trusted "
            "if you know who wrote it."
        )
    return io.load(path, trusted=unknown)


def export(
    pipeline: Path,
    output: Path,
    check: Path | None,
    column: str | None,
    tolerance: float,
    say: Say,
    *,
    include_resize: bool,
    trusted: bool,
) -> ExportReport:
    """Write a saved pipeline as an ONNX file, and say what it takes and gives."""
    rows = None if check is None else _read_check(check, column)
    report = export_onnx(
        load_pipeline(pipeline, trusted=trusted), output, rows, include_resize=include_resize, tolerance=tolerance
    )
    model = ExportedModel(output)
    inputs = ", ".join([*model.image_inputs, *model.table_inputs])
    say(f"{output}: {inputs} → {', '.join(model.output_names)}, {output.stat().st_size / 1e6:.1f} MB.")
    if rows is None:
        say("Not compared with the pipeline: --check FOLDER|TABLE does.")
    else:
        labels = "" if report.label_agreement is None else "the labels are the same, "
        say(f"Compared on {len(rows)} rows: {labels}the largest difference is {report.max_difference:.2g}.")
    return report


def _read_check(path: Path, column: str | None) -> Any:
    """Rows of X: the images of a folder, a table, or one of its columns."""
    if path.is_dir():
        return [str(path / name) for name in find_images(path)]
    import pandas as pd

    name = path.name.lower()
    if name.endswith(".parquet"):
        frame = pd.read_parquet(path)
    elif name.endswith(TEXT_SUFFIXES):
        frame = pd.read_csv(path, sep="\t" if ".tsv" in name else ",")
    else:
        raise ValueError(f"--check must be a folder of images, or a .csv, .tsv or .parquet file. Got {str(path)!r}.")
    return frame if column is None else frame[column].tolist()


def predict(
    path: Path,
    sources: Sequence[Path],
    output: Path | None,
    column: str | None,
    root: Path | None,
    n_jobs: int | None,
    say: Say,
    *,
    every_class: bool,
    progress: bool,
) -> int:
    """Predict photos, or the rows of a table, into a table; how many rows failed."""
    if output is not None:
        check_output(output)
    model = ExportedModel(path)
    columns, rows, root = _read_sources(model, sources, column, root)
    bar = open_progress(len(rows), "plain") if progress else None
    try:
        found = model.predict(columns, root, n_jobs, bar)
    finally:
        if bar is not None:
            bar.close()
    frame = _tabulate(model, found, rows, every_class=every_class)
    if output is None:
        frame.to_csv(sys.stdout)
    else:
        write_table(frame, output)
        say(f"{len(frame)} rows written to {output}.", err=True)
    for failure in found.failures[:SHOWN_FAILURES]:
        say(f"  {failure}", err=True)
    if len(found.failures) > SHOWN_FAILURES:
        say(f"  … and {len(found.failures) - SHOWN_FAILURES} more", err=True)
    return len({failure.row for failure in found.failures})


def _read_sources(
    model: ExportedModel, sources: Sequence[Path], column: str | None, root: Path | None
) -> tuple[dict[str, Sequence[Any]], pd.Index[Any], Path | None]:
    """Cells of each input, what the rows are called, and the folder that paths start from."""
    import pandas as pd

    tables = [path for path in sources if path.name.lower().endswith((*TEXT_SUFFIXES, *ARROW_SUFFIXES))]
    images = model.image_inputs
    if tables:
        if len(sources) > 1:
            raise ValueError(f"A table must come alone. Got {len(sources)} sources instead.")
        named = {images[0]: column} if column and len(images) == 1 else {}
        taken = {name: named.get(name, name) for name in (*images, *model.table_inputs)}
        table = open_table(tables[0], [taken[name] for name in images])
        frame = table.read(0, table.n_rows)
        if absent := [name for name in taken.values() if name not in frame.columns]:
            raise ValueError(f"{model.path.name} takes the columns {', '.join(taken)}. {absent[0]!r} is missing.")
        cells: dict[str, Sequence[Any]] = {name: frame[source].to_list() for name, source in taken.items()}
        return cells, pd.RangeIndex(len(frame), name="row"), root
    if model.table_inputs or len(images) > 1:
        wanted = ", ".join([*images, *model.table_inputs])
        raise ValueError(f"{model.path.name} takes a table with the columns {wanted}. Got photos instead.")
    photos = [path for source in sources for path in _list_photos(source)]
    return {images[0]: photos}, pd.Index([str(path) for path in photos], name="path"), root


def _list_photos(source: Path) -> list[Path]:
    return [source / name for name in find_images(source)] if source.is_dir() else [source]


def _tabulate(model: ExportedModel, found: Predictions, rows: pd.Index[Any], *, every_class: bool) -> pd.DataFrame:
    """Label and probability (or value, or features) of each row, empty where it failed, and why."""
    import pandas as pd

    frame = pd.DataFrame(index=rows)
    failed = {failure.row: failure.reason for failure in found.failures}
    for name, values in found.outputs.items():
        if name == "label":
            frame["label"] = values.astype(object)
        elif name == "probabilities":
            frame["probability"] = values.max(axis=1)
            if every_class:
                frame[[f"probability_{label}" for label in model.info["classes"]]] = values
        elif values.ndim == 1 or values.shape[1] == 1:
            frame[name.removesuffix("s") if name == "scores" else name] = values.ravel()
        elif every_class or name != "scores":
            frame[[f"{name.removesuffix('s')}_{i}" for i in range(values.shape[1])]] = values
    if failed:
        lost = list(failed)
        if len(frame.columns):
            frame.iloc[lost] = np.nan
        frame["error"] = pd.Series([failed.get(row) for row in range(len(rows))], index=rows, dtype=object)
    return frame

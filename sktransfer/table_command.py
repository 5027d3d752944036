"""What ``sktransfer extract`` and ``sktransfer check`` do."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sktransfer.backbones import anchor_reference
from sktransfer.cache import open_cache
from sktransfer.checks import check_images
from sktransfer.exceptions import ImageFailure, ImageReadError
from sktransfer.extraction import plan_extraction, report_failures
from sktransfer.jobs import (
    Job,
    PartWriter,
    claim_folder,
    count_images,
    estimate,
    unfinished_parts,
    write_file,
    write_parts,
)
from sktransfer.options import ExtractionOptions
from sktransfer.outputs import replacing
from sktransfer.progress import open_progress
from sktransfer.sizes import format_bytes
from sktransfer.tables import Table, open_folder, open_table
from sktransfer.writers import check_output

SHOWN_FAILURES = 20

Say = Callable[..., object]  # typer.echo


@dataclass(frozen=True)
class Target:
    """Where the result goes."""

    path: Path
    form: str
    in_parts: bool


def find_target(output: str, form: str | None) -> Target:
    """The file or the folder that `output` means: a folder ends in a slash, has no suffix, or is there.

    Raises
    ------
    ValueError
        If it could not be written.
    """
    path = Path(output)
    separators = tuple(filter(None, (os.sep, os.altsep)))
    if not (output.endswith(separators) or (not path.suffix and (form is None or path.is_dir()))):
        return Target(*check_output(path, form), in_parts=False)
    if form not in (None, "parquet"):
        raise ValueError(f"A folder of parts holds Parquet files. Got --format {form!r} instead; name a file.")
    if path.exists() and not path.is_dir():
        raise ValueError(f"The output must be a folder or end in .parquet, .csv, .feather, .npz. {output!r} is a file.")
    check_output(path / "part.parquet" if path.is_dir() else path.with_name("part.parquet"))
    return Target(path, "parquet", in_parts=True)


def open_source(
    source: Path, columns: Sequence[str] | None, delimiter: str | None, form: str, *, labels: bool = False
) -> Table:
    """The table that is embedded."""
    if source.is_dir():
        if columns:
            raise ValueError(f"--column names a column of a table. {str(source)!r} is a folder, so leave it out.")
        return open_folder(source, labels=labels)
    if labels:
        raise ValueError("--labels-from-folders needs a folder. Got a table, whose columns are kept anyway.")
    return open_table(source, columns or (), delimiter=delimiter, as_text=form in ("csv", "npz"))


def parse_shard(text: str) -> tuple[int, int]:
    """The numbers of "i/n"."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"--shard must be i/n with 1 <= i <= n. Got {text!r} instead.")
    return int(match[1]), int(match[2])


def plan_job(
    table: Table,
    target: Target,
    *,
    backbone: Any,
    layer: Any,
    pooling: str | None,
    preprocessing: str | None,
    views: Any,
    device: str,
    cache_dir: Any,
    layout: str,
    dtype: str,
    part_rows: int,
    shard: tuple[int, int],
    max_failures: int | None,
    progress: bool,
    **options: Any,
) -> Job:
    """Check the options and resolve the backbone, which is fetched where it is not on this machine."""
    chosen = ExtractionOptions(cache_dir=cache_dir, **options)
    plan = plan_extraction(
        backbone, layer, pooling, preprocessing, device, cache_dir=cache_dir, views=views, progress=progress
    )
    return Job(table, plan, chosen, target.form, layout, dtype, part_rows, shard, max_failures)


@dataclass(frozen=True)
class Request:
    """What was asked for, from which any process opens the same job."""

    source: Path
    columns: Sequence[str] | None
    delimiter: str | None
    from_folders: bool
    target: Target
    options: Mapping[str, Any]  # of plan_job

    def anchor(self) -> Request:
        """The same for a process in another folder, which shows no progress."""
        root, cache_dir = self.options["root"], self.options["cache_dir"]
        changed = {
            "backbone": anchor_reference(self.options["backbone"]),
            "root": root if root is None else Path(root).absolute(),
            "cache_dir": cache_dir if cache_dir == "auto" else Path(cache_dir).absolute(),
            "progress": False,
        }
        target = replace(self.target, path=self.target.path.absolute())
        return replace(self, source=self.source.absolute(), target=target, options={**self.options, **changed})


def make_request(
    source: Path,
    columns: Sequence[str] | None,
    delimiter: str | None,
    from_folders: bool,
    target: Target,
    **options: Any,
) -> Request:
    """The options are those of `plan_job`."""
    return Request(source, columns, delimiter, from_folders, target, options)


def open_job(request: Request) -> Job:
    """Open the table, and plan."""
    form = request.target.form
    table = open_source(request.source, request.columns, request.delimiter, form, labels=request.from_folders)
    return plan_job(table, request.target, **request.options)


def describe_estimate(job: Job, target: Target) -> str:
    """What a dry run says."""
    stretches = _list_stretches(job, target)
    found = estimate(job, stretches)
    new = found.distinct - found.cached
    minutes, seconds = divmod(round(found.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    lines = [
        f"rows           {found.rows}",
        f"empty cells    {found.empty}",
        f"images         {found.images}, {found.distinct} of them at different places or with different content",
        f"in the cache   {found.cached}",
        f"to be computed {new} with {job.plan.backbone.name} on {job.plan.device.name}",
        f"output         {format_bytes(found.output_bytes)} of features, before compression",
        f"time           {hours:d}:{minutes:02d}:{seconds:02d}"
        + (f" at {found.images_per_second:.0f} images/s, measured on some of them" if new else ""),
    ]
    return "\n".join(lines)


def run_job(
    job: Job, target: Target, progress: str, report: Path | None, say: Say, write: PartWriter | None = None
) -> int:
    """Do it, and say what was done and what failed; the number of images that could not be read."""
    if report is not None:
        check_output(report, "csv")
    stretches = _list_stretches(job, target)
    bar = None
    try:
        n_images = count_images(job, stretches)
        bar = open_progress(n_images, progress) if progress != "none" else None
        outcome = write_parts(job, target.path, bar, write) if target.in_parts else write_file(job, target.path, bar)
    except ImageReadError as error:
        _show_failures(error.failures, report, say)
        text = str(error).replace('broken_images="nan" or "zero"', "--broken-images nan or zero")
        raise ImageReadError(text, error.failures) from error
    except KeyboardInterrupt:
        say("sktransfer: interrupted; the same command goes on from here", err=True)
        raise
    finally:
        if bar is not None:
            bar.close()
        open_cache(job.options.cache_dir).warn(stacklevel=2)
    kept = f", {outcome.kept_parts} parts of them by an earlier run" if outcome.kept_parts else ""
    images = "images" if job.table.names is None else "rows"
    say(f"{outcome.rows} {images}, {len(job.features)} features each, written to {target.path}{kept}.", err=True)
    _show_failures(outcome.failures, report, say)
    return len(outcome.broken)


def _list_stretches(job: Job, target: Target) -> list[tuple[int, int]]:
    """First row and row after the last of what is to be done."""
    if target.in_parts:
        claim_folder(job, target.path, write=False)
        return unfinished_parts(job, target.path)
    if not (stretches := job.stretches()):
        raise ValueError(f"--shard must leave rows. The table has {job.table.n_rows}, and this share none of them.")
    return stretches


def refuse_same(**paths: Path | None) -> None:
    """Refuse two options that name one file or folder."""
    seen: dict[Path, str] = {}
    for name, path in paths.items():
        if path is not None and (other := seen.setdefault(path.resolve(), name)) != name:
            raise ValueError(f"{other} and {name} must be different. Both are {str(path)!r}.")


def _show_failures(failures: Sequence[ImageFailure], report: Path | None, say: Say) -> None:
    broken = [failure for failure in failures if not failure.missing]
    for failure in broken[:SHOWN_FAILURES]:
        say(f"  {failure}", err=True)
    if len(broken) > SHOWN_FAILURES:
        say(f"  … and {len(broken) - SHOWN_FAILURES} more (--report FILE.csv has all)", err=True)
    if report is not None:
        with replacing(report) as temporary:
            report_failures(failures).to_csv(temporary, index=False)
        say(f"{len(failures)} failures written to {report}.", err=True)


def check_table(
    table: Table, root: Path | None, output: Path | None, n_jobs: int | None, say: Say, *, progress: bool
) -> int:
    """Say what is wrong with a table's images; how many cannot be read."""
    if output is not None:
        check_output(output, "csv")
    cells = table.read(0, table.n_rows)[list(table.columns)]
    found = check_images(
        cells if table.names is not None else cells["path"].tolist(), root, n_jobs=n_jobs, verbose=progress
    )
    broken = found[found["reason"].notna() & ~found["missing"]]
    for line in broken.head(SHOWN_FAILURES).itertuples():
        column = f", column {line.column!r}" if line.column is not None else ""
        say(f"  Row {line.row}{column} ({line.reference}) could not be read: {line.reason}")
    if len(broken) > SHOWN_FAILURES:
        say(f"  … and {len(broken) - SHOWN_FAILURES} more{'' if output else ' (-o FILE.csv has all)'}")
    empty, copies = int(found["missing"].sum()), int(found["duplicate_of"].notna().sum())
    say(f"{len(found) - empty} images in {table.n_rows} rows: {len(broken)} cannot be read, {empty} cells are empty, "
        f"{copies} are copies of others.")  # fmt: skip
    if output is not None:
        with replacing(output) as temporary:
            found.to_csv(temporary, index=False)
        say(f"A line for each image is in {output}.")
    return len(broken)

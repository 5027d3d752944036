"""The command ``sktransfer``."""

from __future__ import annotations

import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from sktransfer.model_commands import models_app

app = typer.Typer(
    help="Images in, embeddings out, any scikit-learn estimator on top.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Backbone = Annotated[str, typer.Option(help="A registered name, an .onnx file, hf:owner/repo or a URL.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Where to write it.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", help="Threads; all cores by default.")]


@app.command()
def demo(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder with one folder of photos for each class; digits if left out.")
    ] = None,
    output: Output = Path("sktransfer-demo.png"),
    backbone: Backbone = "default",
    jobs: Jobs = None,
) -> None:
    """Tune a pipeline on top of embeddings, beside the same on raw pixels, and plot what came out."""
    from sktransfer import demo as demonstration

    plot = demonstration.check_plot(output)
    tasks = demonstration.digits_tasks() if folder is None else [demonstration.folder_task(folder)]
    results = demonstration.run_demo(tasks, backbone, jobs, report=typer.echo)
    demonstration.plot_results(tasks, results, plot)
    typer.echo(f"\nThe plot is in {plot}.")


Source = Annotated[Path, typer.Argument(help="A folder of images, or a table: .csv, .tsv, .parquet, .feather.")]
Columns = Annotated[list[str] | None, typer.Option("--column", help="A column of images of a table; several times.")]
Root = Annotated[Path | None, typer.Option(help="Folder that relative paths in a table start from.")]
Delimiter = Annotated[str | None, typer.Option(help="Between the cells of a text table; a comma, or a tab in .tsv.")]


@app.command()
def extract(
    source: Source,
    output: Annotated[
        str, typer.Option("-o", "--output", help="A .parquet, .csv, .feather or .npz file; or DIR/ for parts.")
    ],
    column: Columns = None,
    root: Root = None,
    backbone: Backbone = "default",
    layer: Annotated[list[str] | None, typer.Option(help="Where the network is cut; several are joined.")] = None,
    pooling: Annotated[str | None, typer.Option(help="avg, max, gem or flatten.")] = None,
    preprocessing: Annotated[str | None, typer.Option(help="imagenet, tf or caffe, if the file states none.")] = None,
    views: Annotated[str, typer.Option(help="Averaged: center, flip (2 passes an image) or five_crop (5).")] = "center",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    missing_images: Annotated[str, typer.Option(help="Empty cells: error, nan or zero.")] = "error",
    broken_images: Annotated[str, typer.Option(help="Unreadable images: error, nan or zero.")] = "error",
    indicator: Annotated[bool, typer.Option("--indicator", help="Add COLUMN_missing: 1 where there is none.")] = False,
    labels_from_folders: Annotated[bool, typer.Option(help="Add the first folder's name as column `label`.")] = False,
    output_format: Annotated[str | None, typer.Option("--format", help="parquet, csv, feather or npz.")] = None,
    layout: Annotated[str, typer.Option(help="columns: one a feature; list: one a column of images.")] = "columns",
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    part_rows: Annotated[int, typer.Option(min=1, help="Rows of a part in DIR/.")] = 4096,
    shard: Annotated[str, typer.Option(help="i/n: only the i-th of n shares, from 1/n to n/n.")] = "1/1",
    engine: Annotated[str | None, typer.Option(help="ray, spark or dask: its workers do the parts.")] = None,
    address: Annotated[str | None, typer.Option(help="Of the engine's cluster; None starts one here.")] = None,
    max_failures: Annotated[int | None, typer.Option(min=0, help="Stop when more images cannot be read.")] = None,
    report: Annotated[Path | None, typer.Option(help="A .csv file for all failures.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and write nothing.")] = False,
    progress: Annotated[str, typer.Option(help="bar, json or none, on stderr.")] = "bar",
    delimiter: Delimiter = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Where embeddings are kept.")] = None,
    jobs: Jobs = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Embed the images of a folder or of a table's columns into a table, beside its other columns.

    A run that was stopped goes on where it was: embeddings are kept in the cache, and finished parts of DIR/ stay.
    Exits with 1 if images could not be read; empty cells that --missing-images allows are no failure.
    """
    from sktransfer import table_command

    _check_choice("--layout", layout, ("columns", "list"))
    _check_choice("--dtype", dtype, ("float32", "float16"))
    _check_choice("--progress", progress, ("bar", "json", "none"))
    target = table_command.find_target(output, output_format)
    table_command.refuse_same(source=source, output=target.path, report=report)
    _check_engine(engine, address, shard, output if not target.in_parts else None)
    request = table_command.make_request(
        source,
        column,
        delimiter,
        labels_from_folders,
        target,
        root=source if source.is_dir() else root,
        backbone=backbone,
        layer=layer[0] if layer and len(layer) == 1 else layer or None,
        pooling=pooling,
        preprocessing=preprocessing,
        views=views,
        device=device,
        missing_images=missing_images,
        broken_images=broken_images,
        add_indicator=indicator,
        cache_dir="auto" if cache_dir is None else cache_dir,
        n_jobs=jobs,
        layout=layout,
        dtype=dtype,
        part_rows=part_rows,
        shard=table_command.parse_shard(shard),
        max_failures=max_failures,
        progress=not quiet and progress != "none",
    )
    job = table_command.open_job(request)
    if dry_run:
        typer.echo(table_command.describe_estimate(job, target))
        return
    write = None
    if engine is not None:
        from sktransfer.distributed.parts import write_on

        write = write_on(engine, address, request)
    failed = table_command.run_job(job, target, "none" if quiet else progress, report, typer.echo, write)
    raise typer.Exit(1 if failed else 0)


@app.command()
def check(
    source: Source,
    column: Columns = None,
    root: Root = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A .csv file with a line an image.")] = None,
    delimiter: Delimiter = None,
    jobs: Jobs = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Read and decode every image of a folder or a table, before a long run; exits with 1 if one cannot be read."""
    from sktransfer import table_command

    table_command.refuse_same(source=source, output=output)
    table = table_command.open_source(source, column, delimiter, "csv")
    folder = source if source.is_dir() else root
    broken = table_command.check_table(table, folder, output, jobs, typer.echo, progress=not quiet)
    raise typer.Exit(1 if broken else 0)


@app.command()
def rank(
    source: Source,
    backbones: Annotated[
        list[str], typer.Option("--backbones", "--backbone", help="What is compared; several times.")
    ] = ["default"],  # noqa: B006 - typer wants a list
    layers: Annotated[
        list[str] | None, typer.Option("--layers", "--layer", help="Where they are cut: stage3, penultimate, …")
    ] = None,
    scores: Annotated[
        list[str],
        typer.Option("--scores", "--score", help="logme, h_score, linear_probe, leep, nce; the first one ranks."),
    ] = ["logme"],  # noqa: B006
    labels_from_folders: Annotated[bool, typer.Option(help="The first folder's name is the label.")] = False,
    column: Annotated[str | None, typer.Option(help="The column of images of a table.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels of a table.")] = None,
    groups: Annotated[str | None, typer.Option(help="A column of a table whose equal cells stay together.")] = None,
    regression: Annotated[bool, typer.Option("--regression", help="The labels are numbers to be predicted.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write a .csv, .parquet, .feather or .npz file.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw score over speed: .png, .svg or .pdf.")] = None,
    root: Root = None,
    preprocessing: Annotated[str | None, typer.Option(help="imagenet, tf or caffe, if a file states none.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    delimiter: Delimiter = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Where embeddings are kept.")] = None,
    jobs: Jobs = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Rank backbones, and layers of them, by how well their embeddings tell the labels of your images.

    Nothing is trained. Embeddings are kept in the cache for whatever you do next.
    """
    from sktransfer import rank_command

    rank_command.check_targets(output, plot)
    labelled = rank_command.read_labelled(
        source, column, label, groups, root, delimiter, from_folders=labels_from_folders, regression=regression
    )
    rank_command.rank(
        labelled,
        backbones,
        scores,
        output,
        plot,
        typer.echo,
        layers=layers or None,
        preprocessing=preprocessing,
        device=device,
        cache_dir="auto" if cache_dir is None else cache_dir,
        n_jobs=jobs,
        quiet=quiet,
    )


@app.command()
def finetune(
    source: Annotated[Path, typer.Argument(help="A folder with one folder of images for each class, or a table.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for the model, its page and its curve.")],
    backbone: Backbone = "default",
    trainable: Annotated[str, typer.Option(help="last_third, last_stage, all, a stage or a tensor.")] = "last_third",
    source_weight: Annotated[float, typer.Option(help="How hard weights are pulled to those they had.")] = 1.0,
    epochs: Annotated[int, typer.Option(help="Times that each image is seen.")] = 30,
    learning_rate: Annotated[float, typer.Option(help="Of Adam, the largest.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 64,
    augment: Annotated[str, typer.Option(help="flip+crop or none.")] = "flip+crop",
    views: Annotated[int, typer.Option(help="Random crops of each image.")] = 4,
    validation_fraction: Annotated[float, typer.Option(help="Share of the images that is held out.")] = 0.1,
    fresh_weights: Annotated[bool, typer.Option("--fresh-weights", help="Begin from random weights.")] = False,
    seed: Annotated[int, typer.Option(help="Of crops, split and order.")] = 0,
    column: Annotated[str | None, typer.Option(help="The column of images of a table.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels of a table.")] = None,
    groups: Annotated[str | None, typer.Option(help="A column of a table whose equal cells stay together.")] = None,
    regression: Annotated[bool, typer.Option("--regression", help="The labels are numbers to be predicted.")] = False,
    root: Root = None,
    preprocessing: Annotated[str | None, typer.Option(help="imagenet, tf or caffe, if the file states none.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    delimiter: Delimiter = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Where what the frozen part yields is kept.")] = None,
    jobs: Jobs = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Train the last part of a backbone on labelled images. Needs sktransfer[torch].

    Writes an .onnx file that is used like any backbone, a page about it, and a picture of its learning curve.
    """
    from sktransfer import finetune_command, rank_command

    finetune_command.check_folder(output)
    labelled = rank_command.read_labelled(
        source, column, label, groups, root, delimiter, from_folders=source.is_dir(), regression=regression
    )
    recipe = {
        "trainable": trainable, "source_weight": source_weight, "epochs": epochs, "learning_rate": learning_rate,
        "batch_size": batch_size, "augment": None if augment == "none" else augment, "n_views": views,
        "validation_fraction": validation_fraction,
        "fresh_weights": fresh_weights, "random_state": seed,
    }  # fmt: skip
    finetune_command.finetune(
        labelled, backbone, output, typer.echo, recipe=recipe, preprocessing=preprocessing, device=device,
        cache_dir="auto" if cache_dir is None else cache_dir, n_jobs=jobs, quiet=quiet,
    )  # fmt: skip


@app.command()
def export(
    pipeline: Annotated[Path, typer.Argument(help="A fitted pipeline: .skops, or with --trusted .joblib.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .onnx file.")],
    check: Annotated[
        Path | None, typer.Option(help="A folder of images or a table to compare file and pipeline on.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="The column of images of that table, if X is no table.")] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="The largest difference that is accepted.")] = 1e-5,
    include_resize: Annotated[bool, typer.Option("--include-resize", help="Take photos of any size.")] = False,
    trusted: Annotated[bool, typer.Option("--trusted", help="Load files that can run code.")] = False,
) -> None:
    """Write a fitted pipeline, network and head, to one ONNX file that needs onnxruntime and nothing else."""
    from sktransfer import export_command

    export_command.export(
        pipeline, output, check, column, tolerance, typer.echo, include_resize=include_resize, trusted=trusted
    )


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="An .onnx file that sktransfer exported.")],
    sources: Annotated[list[Path], typer.Argument(help="Photos, folders of them, or a table.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A .csv, .parquet, .feather or .npz file; else stdout.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="The table's column of images, if it is not the input's.")] = None,
    root: Root = None,
    every_class: Annotated[bool, typer.Option("--every-class", help="A column for each class.")] = False,
    jobs: Jobs = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Predict photos or the rows of a table with an exported file; exits with 1 if a row could not be predicted."""
    from sktransfer import export_command

    failed = export_command.predict(
        model, sources, output, column, root, jobs, typer.echo, every_class=every_class, progress=not quiet
    )
    raise typer.Exit(1 if failed else 0)


def _check_choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{option} must be one of {', '.join(allowed)}. Got {value!r} instead.")


def _check_engine(engine: str | None, address: str | None, shard: str, file: str | None) -> None:
    if engine is None:
        if address is not None:
            raise ValueError(f"--address is of a cluster of --engine ray, spark or dask. Got {address!r} without one.")
        return
    _check_choice("--engine", engine, ("ray", "spark", "dask"))
    if file is not None:
        raise ValueError(f"--engine writes a folder of parts. Got the file {file!r} instead; pass -o DIR/.")
    if shard != "1/1":
        raise ValueError(f"--engine shares out the parts by itself. Got --shard {shard} beside it; leave it out.")


cache_app = typer.Typer(help="The embeddings kept on disk.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
app.add_typer(models_app, name="models")
CacheFolder = Annotated[
    Path | None, typer.Option("--cache-dir", help="Where they are kept; SKTRANSFER_CACHE_DIR or the user's own.")
]


@cache_app.command()
def info(cache_dir: CacheFolder = None) -> None:
    """Say how many embeddings are kept, of which backbones, and in how many bytes."""
    from sktransfer.cache import cache_info, locate_cache
    from sktransfer.sizes import format_bytes

    found = cache_info(cache_dir or "auto") if locate_cache(cache_dir or "auto").is_dir() else None
    if found is None or not found.entries:
        typer.echo(f"No embeddings in {locate_cache(cache_dir or 'auto')}.")
        return
    size, bound = format_bytes(found.bytes), format_bytes(found.max_bytes)
    typer.echo(f"{found.entries} embeddings in {size} (bound: {bound}) at {found.folder}\n")
    frame = found.backbones.drop(columns=["hits", "misses"])
    frame["bytes"] = frame["bytes"].map(format_bytes)
    frame["used"] = frame["used"].dt.strftime("%Y-%m-%d")
    typer.echo(frame.to_string(index=False))


@cache_app.command()
def prune(
    max_size: Annotated[str | None, typer.Option(help="Shrink to this size, for example 2GB.")] = None,
    unused_for: Annotated[float | None, typer.Option(min=0, help="Remove what was not used for so many days.")] = None,
    cache_dir: CacheFolder = None,
) -> None:
    """Remove the embeddings used longest ago, down to the bound or a given size, and give the disk its space back."""
    from sktransfer.cache import open_cache
    from sktransfer.sizes import format_bytes, parse_bytes

    cache = open_cache(cache_dir or "auto")
    target = parse_bytes(max_size, "--max-size") if max_size is not None else cache.info().max_bytes
    removed = cache.prune(target, None if unused_for is None else unused_for * 86400)
    cache.warn(stacklevel=1)
    typer.echo(f"{removed} embeddings removed; {format_bytes(cache.info().bytes)} are left.")


@cache_app.command()
def clear(cache_dir: CacheFolder = None) -> None:
    """Remove every embedding."""
    from sktransfer.cache import cache_info, clear_cache

    clear_cache(cache_dir or "auto")
    left = cache_info(cache_dir or "auto")
    typer.echo(f"{left.entries} embeddings are left in {left.folder}.")
    raise typer.Exit(1 if left.entries else 0)


@cache_app.command()
def forget(
    images: Annotated[list[Path], typer.Argument(help="Files, or folders of images; they may be gone already.")],
    cache_dir: CacheFolder = None,
) -> None:
    """Remove the embeddings of some images, for every backbone, and overwrite what they leave on the disk."""
    from sktransfer.cache import open_cache
    from sktransfer.digests import digest_bytes
    from sktransfer.tables import find_images

    places = [path for entry in images for path in ([entry / name for name in find_images(entry)] if entry.is_dir()
              else [entry])]  # fmt: skip
    digests = [digest_bytes(path.read_bytes()) for path in places if path.is_file()]
    cache = open_cache(cache_dir or "auto")
    removed = cache.forget(digests, [str(path.absolute()) for path in places])
    cache.warn(stacklevel=1)
    typer.echo(f"{removed} embeddings of {len(places)} images removed.")


@app.command()
def doctor() -> None:
    """Say what this installation can run on, and what is wrong with it."""
    from sktransfer.diagnosis import diagnose

    lines, healthy = diagnose()
    typer.echo("\n".join(lines))
    raise typer.Exit(0 if healthy else 1)


def main() -> None:
    """Entry point: an error that we raised is one line and exit code 1, without a traceback."""
    from sktransfer.exceptions import SktransferError

    # A run that is asked to end leaves nothing half-written; warnings are lines for people, without Python's source.
    terminate, form = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)), warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"sktransfer: {message}\n"
    try:
        app()
    except (SktransferError, OSError, TypeError, ValueError) as error:
        typer.echo(f"sktransfer: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("sktransfer: interrupted", err=True)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, terminate)
        warnings.formatwarning = form


if __name__ == "__main__":
    main()

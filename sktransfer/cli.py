"""The command ``sktransfer``."""

from __future__ import annotations

import sys
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


@app.command()
def extract(
    folder: Annotated[Path, typer.Argument(help="Folder of images; folders inside it are searched too.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .parquet, .csv, .feather or .npz file.")],
    backbone: Backbone = "default",
    layer: Annotated[list[str] | None, typer.Option(help="Where the network is cut; several are joined.")] = None,
    pooling: Annotated[str | None, typer.Option(help="avg, max, gem or flatten.")] = None,
    preprocessing: Annotated[str | None, typer.Option(help="imagenet, tf or caffe, if the file states none.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    broken_images: Annotated[str, typer.Option(help="error, nan or zero.")] = "error",
    labels_from_folders: Annotated[bool, typer.Option(help="Add the first folder's name as column `label`.")] = False,
    jobs: Jobs = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Embed every image under a folder into a table: one row an image, its relative path as the index."""
    import pandas as pd

    from sktransfer.extractor import PretrainedFeatureExtractor
    from sktransfer.tables import check_output, find_images, write_table

    check_output(output)
    paths = find_images(folder)
    extractor = PretrainedFeatureExtractor(
        backbone,
        layer=layer[0] if layer and len(layer) == 1 else layer or None,
        pooling=pooling,
        preprocessing=preprocessing,
        device=device,
        broken_images=broken_images,
        root=folder,
        n_jobs=jobs,
        verbose=not quiet,
    )
    embeddings = extractor.fit_transform(paths)
    frame = pd.DataFrame(embeddings, index=pd.Index(paths, name="path"), columns=extractor.get_feature_names_out())
    if labels_from_folders:
        frame.insert(0, "label", [path.partition("/")[0] if "/" in path else "" for path in paths])
    write_table(frame, output)
    typer.echo(f"{len(frame)} images, {embeddings.shape[1]} features each, written to {output}.", err=True)


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

    try:
        app()
    except (SktransferError, OSError, TypeError, ValueError) as error:
        typer.echo(f"sktransfer: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("sktransfer: interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()

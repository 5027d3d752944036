"""The command ``sktransfer``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Images in, embeddings out, any scikit-learn estimator on top.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Backbone = Annotated[str, typer.Option(help="A registered name or the path of an .onnx file.")]
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
    layer: Annotated[str | None, typer.Option(help="Where the network is cut.")] = None,
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
        layer=layer,
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

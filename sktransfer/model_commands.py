"""``sktransfer models``: which backbones there are, what they are, and whether they are what they should be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

    from sktransfer.backbones import Backbone
    from sktransfer.quantization import QuantizationCard

models_app = typer.Typer(help="The backbones: registered names, files, and what was fetched.", no_args_is_help=True)

Reference = Annotated[str, typer.Argument(help="A registered name, a file, hf:owner/repo or a URL.")]
Table = Annotated[Path | None, typer.Option("-o", "--output", help="Also write a .csv or .parquet file.")]


@models_app.command("list")
def list_models(
    on_disk: Annotated[bool, typer.Option("--on-disk", help="Only those on this machine.")] = False,
    output: Table = None,
) -> None:
    """List the registered backbones, and what else was fetched."""
    from sktransfer.backbones import list_backbones
    from sktransfer.hub import list_references
    from sktransfer.sizes import format_bytes

    frame = list_backbones()
    _write(frame, output, "name")
    if on_disk:
        frame = frame[frame["on_disk"]]
    shown = frame[["name", "aliases", "license"]].assign(
        size=frame["bytes"].map(format_bytes),
        on_disk=frame["on_disk"].map({True: "yes", False: ""}),
        d=frame["n_features"],
        GMACs=frame["macs"].map(lambda macs: f"{macs / 1e9:.2f}", na_action="ignore"),
        top1=frame["top1"],
    )
    echo_table(shown)
    for remote in list_references():
        typer.echo(f"{remote.reference}: {remote.path}")


@models_app.command()
def show(reference: Reference) -> None:
    """Say all that is stated of a backbone, and where."""
    from sktransfer.backbones import load_backbone
    from sktransfer.hub import find_reference, is_remote_reference
    from sktransfer.registry import is_registered, resolve_alias

    if is_registered(resolve_alias(reference)):
        _echo_pairs(_describe_entry(reference))
    elif is_remote_reference(reference) and find_reference(reference) is None:
        typer.echo(f"{reference} is not on this machine; `sktransfer models pull {reference}` fetches it.")
        raise typer.Exit(1)
    else:
        _echo_pairs(_describe_backbone(load_backbone(reference)))


def _describe_entry(name: str) -> dict[str, object]:
    from sktransfer.backbones import place_entry
    from sktransfer.registry import find_entry, models_folder
    from sktransfer.sizes import format_bytes
    from sktransfer.verification import REFERENCE_NAME

    entry = find_entry(name)
    place = place_entry(entry)
    stated = {True: "the embedding of a reference image", False: "digest only"}
    accuracy = ", ".join(f"{k} {v} %" for k, v in (("top-1", entry.top1), ("top-5", entry.top5)) if v is not None)
    return {
        "name": entry.name,
        "aliases": ", ".join(entry.aliases),
        "architecture": f"{entry.architecture} ({entry.family})",
        "source": entry.source + (f" at {entry.revision}" if entry.revision else ""),
        "file": f"{place} ({'on this machine' if place.is_file() else 'not on this machine'})",
        "size": f"{format_bytes(entry.bytes)} ({entry.bytes} bytes)",
        "SHA-256": entry.sha256,
        "licence": entry.license,
        "preprocessing": entry.preprocessing,
        "preprocessing page": entry.preprocessing_page,
        "default layer": entry.layer or "penultimate, found from the graph",
        "features": entry.n_features,
        "MACs": "not stated" if entry.macs is None else f"{entry.macs / 1e9:.2f} G",
        "MACs page": entry.macs_page,
        "accuracy (ImageNet)": accuracy or "not stated",
        "accuracy page": entry.accuracy_page,
        "card": stated[(models_folder() / entry.name / REFERENCE_NAME).is_file()],
        "note": entry.note,
    }


def _describe_backbone(backbone: Backbone) -> dict[str, object]:
    from sktransfer.finetune.card import describe_card
    from sktransfer.finetune.card import read_card as read_finetuning
    from sktransfer.network import describe_file
    from sktransfer.quantization import read_card

    metadata = describe_file(backbone.path)["metadata"]
    card, tuned = read_card(metadata), read_finetuning(metadata)
    return {
        "name": backbone.name,
        "source": backbone.source,
        "file": backbone.path,
        "SHA-256": backbone.digest,
        "licence": backbone.license,
        "preprocessing": backbone.preprocessing
        or 'not stated; pass preprocessing="imagenet", "tf", "caffe" or your own',
        "default layer": backbone.layer or "penultimate, found from the graph",
        "fine-tuned": "" if tuned is None else describe_card(tuned),
        "card": "none" if card is None else f"int8 of {card.name} (SHA-256 {card.digest}); {_describe_distance(card)}",
    }


def _describe_distance(card: QuantizationCard) -> str:
    return (
        f"embeddings move by {card.distance:.3f} of their length (median; at most {card.max_distance:.3f}), "
        f"calibrated on {card.n_images} images"
    )


def _echo_pairs(pairs: dict[str, object]) -> None:
    width = max(map(len, pairs))
    for key, value in pairs.items():
        if value not in (None, ""):
            typer.echo(f"{key:<{width}}  {value}")


@models_app.command()
def pull(references: Annotated[list[str], typer.Argument(help="Registered names, hf:owner/repo, URLs.")]) -> None:
    """Fetch backbones to this machine and check their digests."""
    from sktransfer.backbones import find_backbone
    from sktransfer.cache import open_cache

    for reference in references:
        backbone = find_backbone(reference, open_cache(), progress=True)
        typer.echo(f"{backbone.name}: {backbone.path} (SHA-256 {backbone.digest})")


@models_app.command()
def verify(
    references: Annotated[list[str] | None, typer.Argument(help="All on this machine if left out.")] = None,
) -> None:
    """Read every byte again, run the network, and compare its embedding of a reference image with its card."""
    from sktransfer.backbones import list_backbones
    from sktransfer.exceptions import SktransferError
    from sktransfer.hub import list_references
    from sktransfer.verification import verify_backbone

    frame = list_backbones()
    known = [*frame.loc[frame["on_disk"], "name"], *(remote.reference for remote in list_references())]
    failed = False
    for reference in references or known:
        try:
            found = verify_backbone(reference)
        except SktransferError as error:
            failed = True
            typer.echo(f"{reference}: FAILED. {error}")
        else:
            distance = "" if found.distance is None else f" (relative distance {found.distance:.0e})"
            typer.echo(f"{reference}: {_VERDICTS[found.checked]}{distance}")
    raise typer.Exit(1 if failed else 0)


_VERDICTS = {
    "embedding": "digest and embedding of the reference image are those on the card",
    "digest only": "the digest is the registered one and it runs; no embedding is on its card (digest only)",
    "runs": "it runs; no card states what it should give",
}


@models_app.command()
def layers(
    reference: Reference,
    preprocessing: Annotated[str | None, typer.Option(help="imagenet, tf or caffe, if the file states none.")] = None,
    every: Annotated[bool, typer.Option("--all", help="The ends of all blocks, not only the named layers.")] = False,
    output: Table = None,
) -> None:
    """List where a backbone can be cut: name for `layer=`, shape, features, and share of its MACs up to there."""
    import pandas as pd

    from sktransfer.backbones import find_backbone, resolve_preprocessing
    from sktransfer.cache import open_cache
    from sktransfer.costs import count_macs, list_layers
    from sktransfer.network import Network, load_model

    cache = open_cache()
    backbone = find_backbone(reference, cache, progress=True)
    resolved = resolve_preprocessing(backbone, preprocessing, cache)
    network = Network(load_model(backbone.path, weights=False), backbone.path, resolved)
    total = count_macs(network, network.model.graph.node)
    rows = [
        {
            "layer": row.name,
            "alias": ", ".join(row.aliases),
            "shape": " × ".join(map(str, row.shape)),
            "pooling": row.pooling or "",
            "features": row.n_features,
            "MACs": row.macs,
            "share": f"{row.macs / max(total, 1):.1%}",
        }
        for row in list_layers(network)
    ]
    frame = pd.DataFrame(rows)
    _write(frame, output, "layer")
    shown = frame if every or not (frame["alias"] != "").any() else frame[frame["alias"] != ""]
    typer.echo(f"{backbone.name}: {total / 1e9:.2f} G MACs for one image of {resolved.crop[0]} × {resolved.crop[1]}\n")
    echo_table(shown.drop(columns="MACs"))
    if len(shown) < len(frame):
        typer.echo(f"\n{len(frame) - len(shown)} more with --all.")


@models_app.command()
def export(
    source: Annotated[str, typer.Argument(help="timm:<model>, or torchvision:<model>[@<weights>].")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .onnx file to write.")],
    opset: Annotated[int | None, typer.Option(help="ONNX opset; the exporter's own by default.")] = None,
) -> None:
    """Write a PyTorch model as ONNX, with its preprocessing inside. Needs sktransfer[torch]."""
    from sktransfer.backbones import load_backbone
    from sktransfer.conversion import export_backbone

    typer.echo(f"Fetching, exporting and comparing {source}, which may take a minute…", err=True)
    path = export_backbone(source, output, opset=opset)
    typer.echo(f"{path} (SHA-256 {load_backbone(path).digest})")


@models_app.command()
def quantize(
    reference: Reference,
    folder: Annotated[Path, typer.Argument(help="A folder of typical photos, 50 or more.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The .onnx file to write.")] = None,
    preprocessing: Annotated[str | None, typer.Option(help="imagenet, tf or caffe, if the file states none.")] = None,
) -> None:
    """Make an int8 twin of a backbone, faster on the CPU, and say how far its embeddings are from the original's."""
    from sktransfer.quantization import make_twin
    from sktransfer.tables import find_images

    images = find_images(folder)
    twin = make_twin(reference, images, preprocessing=preprocessing, root=folder, output=output, verbose=True)
    if twin.complaint:
        typer.echo(twin.complaint)
        raise typer.Exit(1)
    typer.echo(f"{twin.backbone.path} (SHA-256 {twin.backbone.digest})")
    typer.echo(f"{twin.speedup:.2f} times as fast as float32 on this machine; {_describe_distance(twin.card)}.")


@models_app.command()
def accept(
    reference: Reference,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take what the source of a fetched reference has now, after showing both digests."""
    from sktransfer.hub import accept_change, fetch_change
    from sktransfer.registry import is_registered, resolve_alias

    if is_registered(resolve_alias(reference)):
        typer.echo(f"{reference} is pinned to its registered SHA-256; there is nothing to accept.")
        raise typer.Exit(1)
    change = fetch_change(reference, progress=True)
    for name in sorted({*change.old, *change.new}):
        old, new = change.old.get(name, "none"), change.new.get(name, "none")
        typer.echo(f"{name}\n  recorded  {old}\n  now       {new}{'' if old != new else '  (the same)'}")
    if dict(change.old) == dict(change.new):
        typer.echo("Nothing has changed.")
        return
    if not yes:
        typer.confirm("Embeddings made with the former are not found for the latter. Take it?", abort=True)
    typer.echo(f"{accept_change(change).path} is what {reference} means from now on.")


def echo_table(frame: pd.DataFrame) -> None:
    """Texts to the left, numbers to the right."""
    columns = []
    for name in frame.columns:
        values, numeric = frame[name], frame[name].dtype.kind in "if"
        cells = [str(name), *("" if value != value else str(value) for value in values)]  # noqa: PLR0124
        width = max(map(len, cells))
        columns.append([cell.rjust(width) if numeric else cell.ljust(width) for cell in cells])
    for row in zip(*columns, strict=True):
        typer.echo("  ".join(row).rstrip())


def _write(frame: pd.DataFrame, output: Path | None, index: str) -> None:
    from sktransfer.writers import check_output, write_table

    if output is not None:
        check_output(output)
        write_table(frame.set_index(index), output)

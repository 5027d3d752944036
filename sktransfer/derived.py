"""Files made from a backbone: what they state of their origin, and where they are kept."""

from __future__ import annotations

import json
from pathlib import Path

from sktransfer.backbones import Backbone
from sktransfer.digests import digest_file
from sktransfer.network import METADATA_KEY, METADATA_PREFIX
from sktransfer.outputs import replacing
from sktransfer.sources import store_folder


def check_output(path: Path) -> Path:
    """Refuse, before any work, an ``output`` that could not be written."""
    if path.suffix != ".onnx" or not path.parent.is_dir():
        raise ValueError(f"output must be the path of an .onnx file in an existing folder. Got {str(path)!r} instead.")
    return path


def describe_origin(original: Backbone, what: str) -> dict[str, str]:
    """Metadata of a file that is `what` ("int8") of `original`, whose preprocessing is known."""
    assert original.preprocessing is not None
    entries = {
        METADATA_KEY: json.dumps(original.preprocessing.to_dict()),
        f"{METADATA_PREFIX}source": f"{what} of {original.name} ({original.source})",
        f"{METADATA_PREFIX}license": original.license,
    }
    return entries if original.layer is None else {**entries, f"{METADATA_PREFIX}layer": original.layer}


def install(path: Path, target: Path | None, kind: str) -> Path:
    """Copy a file to where it is kept: `target`, or a place of its own among the fetched backbones, under `kind`."""
    if target is None:
        target = store_folder() / kind / digest_file(path)[:16] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        temporary.write_bytes(path.read_bytes())
    return target

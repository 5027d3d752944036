"""Write the reference embedding of an embedded backbone, which ``sktransfer models verify`` compares with.

    python models/reference.py models/tiny-v1

The network is run by onnx's own reference evaluator, which is slow and shares no code with onnxruntime, on pixels that
are resized and normalised here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from PIL import Image

from sktransfer.verification import REFERENCE_NAME, make_reference_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    model = onnx.load(folder / "model.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    stated = json.loads(metadata["sktransfer.preprocessing"])
    side = stated["resize"]
    image = Image.fromarray(make_reference_image())
    image = image.resize((side * image.width // image.height, side), Image.Resampling.BILINEAR)
    left = (image.width - side) // 2
    pixels = np.asarray(image.crop((left, 0, left + side, side)), dtype=np.float32)
    x = (pixels * stated["scale"] - np.array(stated["mean"])) / np.array(stated["std"])
    x = x.transpose(2, 0, 1)[None].astype(np.float32)
    (embedding,) = ReferenceEvaluator(model).run(["features"], {model.graph.input[0].name: x})
    vector = np.asarray(embedding)[0].tolist()
    text = json.dumps({"image": "sktransfer.verification.make_reference_image", "embedding": vector})
    (folder / REFERENCE_NAME).write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""Which input size suits the embedded backbone's embedding?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_input_size

The network ends in global pooling, so that one set of weights takes any size.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

import sktransfer
from benchmarks.bench_quality import accuracy, tasks
from benchmarks.measure import write_markdown

SIZES = ((64, 64), (80, 80), (96, 96), (112, 112), (128, 128), (110, 96), (128, 112))  # resize, crop


def main() -> None:
    data = list(tasks())
    model = onnx.load(sktransfer.load_backbone("tiny-v1").path)
    rows = []
    for resize, crop in SIZES:
        for axis in (2, 3):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = crop
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tiny.onnx"
            onnx.save(model, path)
            preprocessing = sktransfer.Preprocessing((crop, crop), resize, mean=(0.5,) * 3, std=(0.5,) * 3)
            vectors = [sktransfer.extract(X, path, preprocessing=preprocessing, layer="features") for _, X, *_ in data]
        scores = [accuracy(X, y, groups) for X, (_, _, y, groups) in zip(vectors, data, strict=True)]
        rows.append([f"{resize}, {crop}", *(f"{score:.3f}" for score in scores)])
    write_markdown(
        "input_size",
        "Which input size suits the embedded backbone's embedding?",
        "python -m benchmarks.bench_input_size",
        ["resize, crop", *(name for name, *_ in data)],
        rows,
        "Accuracy over five folds of StandardScaler + LogisticRegression(C=0.01, max_iter=300).",
    )


if __name__ == "__main__":
    main()

"""How long does a new process take to the first vector, and how much of that is not ours?

    python -m benchmarks.bench_start

New processes in alternation: one imports scikit-learn and onnxruntime and opens a session on the embedded backbone's
graph, ready in a file; one imports sktransfer and embeds a photo, its cache empty; one finds the photo in the cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sklearn.datasets import load_sample_images

from benchmarks.measure import alternate, spread, write_markdown
from sktransfer.extraction import plan_extraction

ROUNDS = 15

FLOOR = """
import sys
import sklearn.linear_model, sklearn.pipeline
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""
OURS = """
import sys
import sklearn.linear_model, sklearn.pipeline
from sktransfer import PretrainedFeatureExtractor
PretrainedFeatureExtractor(device="cpu").fit_transform([sys.argv[1]])
"""


def run(code: str, argument: Path, cache: str) -> None:
    environment = os.environ | {"SKTRANSFER_CACHE_DIR": cache}
    subprocess.run([sys.executable, "-c", code, str(argument)], env=environment, check=True)


def run_cold(photo: Path) -> None:
    with tempfile.TemporaryDirectory() as cache:
        run(OURS, photo, cache)


def main() -> None:
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        model, photo, warm = Path(folder) / "graph.onnx", Path(folder) / "photo.jpg", str(Path(folder) / "warm")
        model.write_bytes(plan_extraction("default").graph.build_model().SerializeToString())
        Image.fromarray(load_sample_images().images[0]).save(photo)
        os.utime(photo, (1e9, 1e9))
        run(OURS, photo, warm)
        seconds = alternate(
            {
                "import scikit-learn and onnxruntime, open a session": lambda: run(FLOOR, model, warm),
                "import sktransfer, embed a photo": lambda: run_cold(photo),
                "the same, from the cache": lambda: run(OURS, photo, warm),
            },
            ROUNDS,
        )
    floor = next(iter(seconds.values()))
    rows = [
        [name, spread(values), spread([ours / theirs for ours, theirs in zip(values, floor, strict=True)])]
        for name, values in seconds.items()
    ]
    write_markdown(
        "start",
        "How long does a new process take to the first vector, and how much of that is not ours?",
        "python -m benchmarks.bench_start",
        ["a new process that…", "seconds", "÷ the first"],
        rows,
        f"Whole processes, Python's own start included; the embedded backbone; {ROUNDS} alternating rounds: median "
        "(smallest–largest).",
    )


if __name__ == "__main__":
    main()

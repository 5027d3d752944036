"""Where does int8 pay: how much faster, how far from float32, and at what accuracy?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_int8

Each backbone is quantised on every eighth of the clothing photos, then both run in alternation: the forward pass
alone over ready pixels, and `extract` from the JPEG files. Accuracy is that of benchmarks/bench_quality.py, split by
the person who took the photo. Beside them what two decisions are worth: weights of 7 bits (the distance with 8), and
operands of the normalisation as long as a line (the speed without).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
from joblib import cpu_count

import sktransfer.quantization
from benchmarks.bench_quality import accuracy, tasks
from benchmarks.measure import alternate, assets_folder, spread, write_markdown
from sktransfer.devices import CPU
from sktransfer.extraction import plan_extraction
from sktransfer.images import decode_content
from sktransfer.network import Network
from sktransfer.quantization import MAX_DISTANCE, MIN_SPEEDUP, make_twin
from sktransfer.session import EmbeddingSession

BACKBONES = ("tiny-v1", "mobilenetv1_0.25_128", "squeezenet1.1", "mobilenetv2_features", "resnet18_layer3",
             "resnet50v2_stage3")  # fmt: skip
ROUNDS = 5
TIMED = 60  # photos of a round


def forward(backbone: object, pixels: np.ndarray) -> Callable[[], None]:
    session = EmbeddingSession(plan_extraction(backbone, device="cpu").graph, CPU)

    def run() -> None:
        with ThreadPoolExecutor(cpu_count()) as pool:
            list(pool.map(lambda row: session.run(row[None]), pixels))

    return run


def short_operands_forward(backbone: object, pixels: np.ndarray) -> Callable[[], None]:
    with mock.patch.object(Network, "is_quantized", new=False):
        return forward(backbone, pixels)


def distance_with_8_bits(backbone: object, paths: list[str], output: Path) -> float:
    names = {"WEIGHT_BITS": 8, "MIN_SPEEDUP": 0.0, "MAX_DISTANCE": np.inf}
    with mock.patch.multiple(sktransfer.quantization, **names):
        return make_twin(backbone, paths, output=output).card.distance


def divide(slow: list[float], fast: list[float]) -> str:
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def measure(name: str, paths: list[str], labels: np.ndarray, groups: np.ndarray) -> list[str]:
    backbone = sktransfer.load_backbone(name if name == "tiny-v1" else assets_folder() / "models" / name)
    with tempfile.TemporaryDirectory() as folder:
        found = make_twin(backbone, paths[::8], output=Path(folder) / "int8.onnx")
        if found.complaint:
            return [name, f"{found.speedup:.2f}: float32 stays", "–", f"{found.card.distance:.3f}", *"–––––"]
        crop = backbone.preprocessing.resize_and_crop
        pixels = np.stack([crop(decode_content(Path(path).read_bytes(), None)) for path in paths[:TIMED]])
        both = {"float32": backbone, "int8": found.backbone}
        embeddings = {key: sktransfer.extract(paths, one) for key, one in both.items()}
        alone = alternate(
            {key: forward(one, pixels) for key, one in both.items()}
            | {"short": short_operands_forward(found.backbone, pixels)},
            ROUNDS,
        )
        timed = paths[:TIMED]
        files = alternate(
            {key: lambda one=one: sktransfer.extract(timed, one, cache_dir=None) for key, one in both.items()}, ROUNDS
        )
        with_8_bits = distance_with_8_bits(backbone, paths[::8], Path(folder) / "8.onnx")
    distances = np.linalg.norm(embeddings["int8"] - embeddings["float32"], axis=1)
    distances /= np.linalg.norm(embeddings["float32"], axis=1)
    scores = [accuracy(embeddings[key], labels, groups) for key in both]
    ratios = [divide(seconds["float32"], seconds["int8"]) for seconds in (alone, files)]
    figures = (np.median(distances), np.quantile(distances, 0.99), *scores, with_8_bits)
    return [name, *ratios, *(f"{figure:.3f}" for figure in figures), divide(alone["float32"], alone["short"])]


def main() -> None:
    _, paths, labels, groups = next(iter(tasks()))
    rows = [measure(name, paths, labels, groups) for name in BACKBONES]
    write_markdown(
        "int8",
        "Where does int8 pay: how much faster, how far from float32, and at what accuracy?",
        "python -m benchmarks.bench_int8",
        ["backbone", "forward, int8 ÷ float32", "from files, int8 ÷ float32", "distance, median", "distance, 99 %",
         "accuracy, float32", "accuracy, int8", "distance with 8-bit weights", "forward without long operands"],
        rows,
        f"Images a second, one thread a core, {TIMED} photos, {ROUNDS} alternating rounds: median (smallest–largest). "
        f"Distances over {len(paths)} photos, in lengths of the float32 embedding. Accuracy: clothing, 17 kinds, five "
        f"folds by person. Float32 stays below {MIN_SPEEDUP} times "
        f"the speed and beyond a distance of {MAX_DISTANCE}. This processor has AVX2 and no VNNI: its multiplications "
        "of 8-bit integers (two instructions for 32 products, float32 one for 8) are at most twice as fast.",
    )  # fmt: skip


if __name__ == "__main__":
    main()

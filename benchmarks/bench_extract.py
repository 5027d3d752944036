"""How close does `extract` come to the ideal packing of decoding and forward passes on all cores?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_extract

In one run, alternating: decoding alone on all cores, the best bare onnxruntime loop over the same preprocessed arrays
(threads x batch x workers tried first), and `extract` from the JPEG files.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
import onnxruntime as ort
from joblib import cpu_count

import sktransfer
from benchmarks.measure import alternate, assets_folder, clothing_photos, spread, write_markdown
from sktransfer.images import decode_content
from sktransfer.preprocessing import Preprocessing

MODELS = ("mobilenetv1_0.25_128", "squeezenet1.1", "mobilenetv2_features", "resnet18_layer3")
ROUNDS = 5
CORES = cpu_count()


def decode(path: str, preprocessing: Preprocessing) -> np.ndarray:
    return preprocessing.resize_and_crop(decode_content(Path(path).read_bytes(), None))


def decode_all(paths: list[str], preprocessing: Preprocessing) -> list[np.ndarray]:
    with ThreadPoolExecutor(CORES) as pool:
        return list(pool.map(lambda path: decode(path, preprocessing), paths))


def headless(path: str) -> bytes:
    """The file's own graph up to `features`: onnxruntime runs the classifier too where it is there."""
    model = onnx.load(path)
    return onnx.utils.Extractor(model).extract_model([model.graph.input[0].name], ["features"]).SerializeToString()


def bare_loop(model: bytes, arrays: np.ndarray, workers: int, threads: int, batch: int):
    """Onnxruntime over ready float arrays, up to the features."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    starts = range(0, len(arrays), batch)

    def run() -> None:
        with ThreadPoolExecutor(workers) as pool:
            batches = ({name: arrays[start : start + batch]} for start in starts)
            list(pool.map(lambda feeds: session.run(["features"], feeds), batches))

    return run


def best_bare_loop(model: bytes, arrays: np.ndarray):
    settings = [(CORES, 1, 1), (CORES, 1, 8), (1, CORES, 1), (1, CORES, 32)]
    trials = {setting: bare_loop(model, arrays[:200], *setting) for setting in settings}
    seconds = alternate(trials, 3)
    best = min(seconds, key=lambda setting: min(seconds[setting]))
    return bare_loop(model, arrays, *best), "{} workers × {} threads × batch {}".format(*best)


def measure(name: str, paths: list[str]) -> list[object]:
    folder = assets_folder() / "models" / name
    preprocessing = sktransfer.load_backbone(folder).preprocessing
    pixels = np.stack(decode_all(paths, preprocessing))
    arrays = (pixels * np.float32(preprocessing.scale) - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)
    arrays = np.ascontiguousarray(arrays.transpose(0, 3, 1, 2))
    forward, setting = best_bare_loop(headless(str(folder / "model.onnx")), arrays)
    sktransfer.extract(paths[:10], folder)
    seconds = alternate(
        {
            "decode": lambda: decode_all(paths, preprocessing),
            "forward": forward,
            "extract": lambda: sktransfer.extract(paths, folder, cache_dir=None),
        },
        ROUNDS,
    )
    rates = {key: len(paths) / statistics.median(values) for key, values in seconds.items()}
    rows = zip(seconds["decode"], seconds["forward"], seconds["extract"], strict=True)
    shares = [(decoded + passed) / extracted for decoded, passed, extracted in rows]
    return [name, *(f"{rates[key]:.0f}" for key in ("decode", "forward", "extract")), spread(shares), setting]


def main() -> None:
    paths = clothing_photos()
    rows = [measure(name, paths) for name in MODELS]
    write_markdown(
        "extract",
        "How close does `extract` come to the ideal packing of decoding and forward passes?",
        "python -m benchmarks.bench_extract",
        ["backbone", "decode alone, images/s", "forward alone, images/s", "extract, images/s",
         "extract ÷ ideal packing", "best bare loop"],
        rows,
        f"{len(paths)} JPEG files of about 400×533 pixels, all cores, {ROUNDS} alternating rounds: medians, and for "
        "the ratio median (smallest–largest) over the rounds. Ideal packing: 1 ÷ (1/decode + 1/forward). A forward "
        "pass here is the bare onnxruntime loop over float arrays that are ready in memory, through the graph up to "
        "its features, with the best setting of four.",
    )  # fmt: skip


if __name__ == "__main__":
    main()

"""Is `extract` as fast as onnxruntime and the decoder allow, from JPEG files on all cores?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_extract

In one run, alternating: decoding alone, the best bare onnxruntime loop over pixels that are ready in memory (threads x
batch x workers tried first), a bare loop from the files (no library of ours: Pillow, and the same uint8 graph, one
thread a core, one image a run), and `extract`, without a cache and with an empty one. Last, what share of a core's
float32 rate (a matrix product) the forward pass reaches.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
from joblib import cpu_count
from threadpoolctl import threadpool_limits

import sktransfer
from benchmarks.measure import alternate, assets_folder, clothing_photos, decode, spread, write_markdown
from sktransfer.costs import count_macs
from sktransfer.extraction import plan_extraction
from sktransfer.graph import INPUT_NAME, OUTPUT_NAME
from sktransfer.network import Network, load_model
from sktransfer.preprocessing import Preprocessing

BACKBONES = ("tiny-v1", "mobilenetv1_0.25_128", "squeezenet1.1", "mobilenetv2_features", "resnet18_layer3",
             "resnet50v2_stage3")  # fmt: skip
CHEAP = BACKBONES[:3]  # where the cache's share could be seen
CORES = cpu_count()
MATRIX = 2048  # rows and columns of the product that a core's rate is taken from

Pixels = np.ndarray


def open_session(model: bytes, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def in_threads(function: Callable[[object], object], items, workers: int = CORES) -> list:
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))


def forward_loop(model: bytes, pixels: Pixels, workers: int, threads: int, batch: int) -> Callable[[], object]:
    session = open_session(model, threads)
    batches = [{INPUT_NAME: pixels[start : start + batch]} for start in range(0, len(pixels), batch)]
    return lambda: in_threads(lambda feeds: session.run([OUTPUT_NAME], feeds), batches, workers)


def best_forward_loop(model: bytes, pixels: Pixels) -> tuple[Callable[[], object], str]:
    settings = [(CORES, 1, 1), (CORES, 1, 8), (1, CORES, 1), (1, CORES, 32)]
    trials = {setting: forward_loop(model, pixels[:200], *setting) for setting in settings}
    seconds = alternate(trials, 3)
    best = min(seconds, key=lambda setting: min(seconds[setting]))
    return forward_loop(model, pixels, *best), "{} × {} × {}".format(*best)


def file_loop(model: bytes, paths: list[str], p: Preprocessing) -> Callable[[], Pixels]:
    session = open_session(model)

    def embed(path: str) -> Pixels:
        return session.run([OUTPUT_NAME], {INPUT_NAME: decode(path, p)[None]})[0]

    return lambda: np.concatenate(in_threads(embed, paths))


def extract_with_empty_cache(paths: list[str], backbone: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sktransfer.extract(paths, backbone, cache_dir=folder)


def core_rate() -> float:
    """float32 multiply-accumulates a second of one core, in the BLAS that NumPy brings."""
    a = np.random.default_rng(0).random((MATRIX, MATRIX), dtype=np.float32)
    with threadpool_limits(1):
        seconds = alternate({"product": lambda: a @ a}, 7)["product"]
    return MATRIX**3 / min(seconds)


def measure(name: str, paths: list[str], rounds: int, rate: float) -> list[object]:
    backbone = sktransfer.load_backbone(name if name == "tiny-v1" else assets_folder() / "models" / name)
    graph = plan_extraction(backbone, device="cpu", cache_dir=None).graph
    p, model = graph.preprocessing, graph.build_model().SerializeToString()
    pixels = np.stack(in_threads(lambda path: decode(path, p), paths))
    forward, setting = best_forward_loop(model, pixels)
    from_files = file_loop(model, paths, p)
    np.testing.assert_array_equal(from_files(), sktransfer.extract(paths, backbone, cache_dir=None))
    candidates = {
        "decode": lambda: in_threads(lambda path: decode(path, p), paths),
        "forward": forward,
        "bare": from_files,
        "extract": lambda: sktransfer.extract(paths, backbone, cache_dir=None),
    }
    if name in CHEAP:
        candidates["cached"] = lambda: extract_with_empty_cache(paths, backbone)
    seconds = alternate(candidates, rounds)
    rates = {key: len(paths) / statistics.median(values) for key, values in seconds.items()}
    ideal = [decoded + passed for decoded, passed in zip(seconds["decode"], seconds["forward"], strict=True)]
    network = Network(load_model(graph.path), graph.path, p)
    macs = count_macs(network, network.ancestors(cut.tensor for cut in graph.cuts))
    return [
        name,
        *(f"{rates[key]:.0f}" for key in ("decode", "forward", "bare", "extract")),
        *(ratio(floor, seconds["extract"]) for floor in (seconds["bare"], ideal)),
        ratio(seconds["extract"], seconds["cached"]) if "cached" in seconds else "–",
        f"{rates['forward'] * macs / CORES / rate:.2f}",
        setting,
    ]


def ratio(floor: list[float], values: list[float]) -> str:
    return spread([a / b for a, b in zip(floor, values, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=None, help="fewer photos, for a try")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    paths, rate = clothing_photos()[: arguments.photos], core_rate()
    rows = [measure(name, paths, arguments.rounds, rate) for name in BACKBONES]
    write_markdown(
        "extract",
        "Is `extract` as fast as onnxruntime and the decoder allow, from JPEG files on all cores?",
        "python -m benchmarks.bench_extract",
        ["backbone", "decode alone, images/s", "forward alone", "bare loop from files", "extract",
         "extract ÷ bare loop", "extract ÷ ideal packing", "extract with an empty cache ÷ without",
         "forward ÷ the cores' peak", "best forward loop: workers × threads × batch"],
        rows,
        f"{len(paths)} JPEG files of about 400×533 pixels, {CORES} cores, {arguments.rounds} alternating rounds: "
        "medians, and for ratios median (smallest–largest) over the rounds. The bare loop uses no library of ours but "
        "the uint8 graph itself: Pillow, one thread a core, one image a run; its vectors are the same to the bit. "
        "Ideal packing: 1 ÷ (1/decode + 1/forward), both in the bare loop's way. A core's peak is the best of seven "
        f"float32 products of {MATRIX}×{MATRIX} matrices on one thread, {rate / 1e9:.0f} G products a second.",
    )  # fmt: skip


if __name__ == "__main__":
    main()

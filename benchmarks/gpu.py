"""Does CUDA give the CPU's vectors, how fast, and what holds it back?

    python -m benchmarks.gpu

Runs unattended. Correctness first: vectors on CUDA against the CPU's, as a relative distance. Then, for each network
in float32 and float16, images a second of: a bare onnxruntime CUDA loop whose pixels lie on the device already;
decoding on all cores; `extract` from uint8 arrays and from JPEG files; and torch in float16, channels last, compiled
with CUDA graphs, from the same arrays and (through a DataLoader) the same files. Last, what options would change.

Without a GPU it says so and exits 0. With torch and torchvision there, ResNet-50 and MobileNetV2 with random weights
are exported and measured; the embedded backbone always is.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from joblib import cpu_count
from PIL import Image

import sktransfer
from benchmarks.measure import alternate, spread, write_markdown
from sktransfer import Preprocessing
from sktransfer.conversion import export_module
from sktransfer.devices import CPU, Device, resolve_device
from sktransfer.extraction import plan_extraction
from sktransfer.graph import INPUT_NAME, OUTPUT_NAME, EmbeddingGraph
from sktransfer.images import decode_content
from sktransfer.session import choose_batch

ROUNDS = 5
N_ARRAYS, N_FILES = 8192, 2048
TOLERANCE = {"float32": 5e-3, "float16": 3e-2}  # TF32 convolutions and float16 keep 10 bits of the mantissa
OPTIONS = [
    {"cudnn_conv_algo_search": search, "prefer_nhwc": nhwc, "enable_cuda_graph": graph}
    for search in ("HEURISTIC", "EXHAUSTIVE", "DEFAULT") for nhwc in ("0", "1") for graph in ("0", "1")
]  # fmt: skip


def networks(folder: Path) -> Iterator[tuple[str, Any, Any]]:
    """Name, backbone, and the same network in torch where it is installed."""
    yield "tiny-v1", "tiny-v1", None
    try:
        import torch
        import torchvision
    except Exception as error:
        print(f"ResNet-50 and MobileNetV2 are not measured: {error}")
        return
    for name in ("resnet50", "mobilenet_v2"):
        torch.manual_seed(0)
        module = torchvision.models.get_model(name, weights=None).eval()
        setattr(module, "fc" if name == "resnet50" else "classifier", torch.nn.Identity())
        preprocessing = Preprocessing(crop=(224, 224), resize=(224, 224))  # arrays of that size are taken as they are
        yield name, export_module(module, (224, 224), preprocessing, folder / f"{name}.onnx"), module


def make_photos(n: int, height: int, width: int) -> np.ndarray:
    """Smooth random photos, all different: uint8 (n, height, width, 3)."""
    small = np.random.default_rng(0).integers(0, 256, (n, 7, 9, 3), dtype=np.uint8)
    enlarge = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(image).resize((width, height), enlarge)) for image in small])


def write_files(folder: Path, n: int) -> list[str]:
    """JPEG files of 400x533 pixels."""
    paths = [str(folder / f"{index}.jpg") for index in range(n)]
    for path, image in zip(paths, make_photos(n, 400, 533), strict=True):
        Image.fromarray(image).save(path, quality=90)
    return paths


def bare_loop(graph: EmbeddingGraph, device: Device, n: int, size: int) -> Callable[[], None]:
    """Onnxruntime alone, over a batch that is on the device already and goes nowhere."""
    providers = [(name, dict(options)) for name, options in device.providers]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph.build_model().SerializeToString(), options, providers=providers)
    memory, number = ("cpu", 0) if device.is_cpu else ("cuda", device.gpu or 0)
    pixels = np.random.default_rng(0).integers(0, 256, (size, *graph.preprocessing.crop, 3), dtype=np.uint8)
    vectors = ort.OrtValue.ortvalue_from_shape_and_type((size, graph.n_features), np.float32, memory, number)
    binding = session.io_binding()
    binding.bind_ortvalue_input(INPUT_NAME, ort.OrtValue.ortvalue_from_numpy(pixels, memory, number))
    binding.bind_ortvalue_output(OUTPUT_NAME, vectors)

    def run() -> None:
        for _ in range(-(-n // size)):
            session.run_with_iobinding(binding)

    run()
    return run


def decode_all(paths: list[str], preprocessing: Preprocessing) -> None:
    def decode(path: str) -> None:
        preprocessing.resize_and_crop(decode_content(Path(path).read_bytes(), None))

    with ThreadPoolExecutor(cpu_count()) as pool:
        list(pool.map(decode, paths))


def compiled_torch(module: Any, preprocessing: Preprocessing, size: int) -> Callable[[Any], Any]:
    """float16, channels last, compiled with CUDA graphs: uint8 (size, h, w, 3) -> vectors, both on the host."""
    import torch

    network = module.cuda().half().to(memory_format=torch.channels_last)
    mean = torch.tensor(preprocessing.mean, device="cuda").half()[:, None, None]
    factor = (preprocessing.scale / torch.tensor(preprocessing.std, device="cuda")).half()[:, None, None]
    shift = -mean / torch.tensor(preprocessing.std, device="cuda").half()[:, None, None]

    @torch.compile(mode="max-autotune")
    def embed(pixels):
        return network(pixels.permute(0, 3, 1, 2).half() * factor + shift).float()

    def run(pixels: Any) -> Any:
        with torch.inference_mode():
            return embed(pixels.cuda(non_blocking=True)).cpu()

    for _ in range(3):
        run(torch.zeros((size, *preprocessing.crop, 3), dtype=torch.uint8))
    return run


def torch_from_arrays(run: Callable[[Any], Any], arrays: np.ndarray, size: int) -> None:
    import torch

    pinned = torch.empty((size, *arrays.shape[1:]), dtype=torch.uint8).pin_memory()
    for start in range(0, len(arrays) - size + 1, size):
        pinned.copy_(torch.from_numpy(arrays[start : start + size]))
        run(pinned)


def torch_from_files(run: Callable[[Any], Any], paths: list[str], preprocessing: Preprocessing, size: int) -> None:
    import torch

    class Photos(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            return preprocessing.resize_and_crop(Image.open(paths[index]).convert("RGB"))

    loader = torch.utils.data.DataLoader(
        Photos(), size, num_workers=cpu_count(), pin_memory=True, drop_last=True, multiprocessing_context="fork"
    )
    for pixels in loader:
        run(pixels)


def measure(
    name: str, backbone: Any, module: Any, precision: str, device: Device, arrays: np.ndarray, paths: list[str],
    rounds: int = ROUNDS,
) -> list[str]:  # fmt: skip
    """One line of the table."""
    options: dict[str, Any] = {"device": device.name, "precision": precision, "cache_dir": None}
    expected = sktransfer.extract(paths[:32], backbone, device="cpu", cache_dir=None)
    vectors = sktransfer.extract(paths[:32], backbone, **options)
    distance = float(np.max(np.linalg.norm(vectors - expected, axis=1) / np.linalg.norm(expected, axis=1)))
    verdict = "ok" if distance <= TOLERANCE[precision] else "DIFFERS"
    graph = plan_extraction(backbone, device=device.name, precision=precision).graph
    size, crop = choose_batch(graph), graph.preprocessing.crop
    ready = arrays if crop == arrays.shape[1:3] else make_photos(len(arrays), *crop)
    as_they_are = Preprocessing(**{**graph.preprocessing.to_dict(), "resize": crop})
    candidates: dict[str, Callable[[], object]] = {
        "bare": bare_loop(graph, device, len(ready), size),
        "decode": lambda: decode_all(paths, graph.preprocessing),
        "arrays": lambda: sktransfer.extract(ready, backbone, preprocessing=as_they_are, **options),
        "files": lambda: sktransfer.extract(paths, backbone, **options),
    }
    if module is not None and precision == "float16":
        run = compiled_torch(module, graph.preprocessing, size)
        candidates["torch arrays"] = lambda: torch_from_arrays(run, ready, size)
        candidates["torch files"] = lambda: torch_from_files(run, paths, graph.preprocessing, size)
    seconds = alternate(candidates, rounds)
    counts = {key: len(paths) if key in ("decode", "files", "torch files") else len(ready) for key in seconds}
    rates = {key: [counts[key] / second for second in values] for key, values in seconds.items()}

    def ratio(key: str, floor: Callable[[int], float]) -> str:
        return spread([rate / floor(index) for index, rate in enumerate(rates[key])])

    shares = [ratio("arrays", lambda i: rates["bare"][i]),
              ratio("files", lambda i: min(rates["bare"][i], rates["decode"][i]))]  # fmt: skip
    for key, peer in (("arrays", "torch arrays"), ("files", "torch files")):
        shares += [ratio(key, rates[peer].__getitem__) if peer in rates else "–"]
    shown = [f"{median(rates[key]):.0f}" if key in rates else "–" for key in
             ("bare", "decode", "arrays", "files", "torch arrays", "torch files")]  # fmt: skip
    return [name, precision, str(size), f"{distance:.1e} {verdict}", *shown, *shares]


def measure_options(
    name: str, backbone: Any, precision: str, device: Device, n: int, rounds: int = 3
) -> list[list[str]]:
    """Seconds until the first batch is done, and images a second after it, for every combination of OPTIONS."""
    graph = plan_extraction(backbone, device=device.name, precision=precision).graph
    size, rows = choose_batch(graph), []
    for options in OPTIONS:
        settings = tuple(({"device_id": str(device.gpu or 0)} | options).items())
        special = (
            device if device.is_cpu else Device(device.name, (("CUDAExecutionProvider", settings), CPU.providers[0]))
        )
        started = time.perf_counter()
        try:
            bare_loop(graph, special, size, size)
            first = time.perf_counter() - started
            seconds = alternate({"bare": bare_loop(graph, special, n, size)}, rounds)["bare"]
        except Exception as error:
            rows.append([name, precision, *options.values(), "–", f"failed: {str(error).splitlines()[0][:80]}"])
        else:
            rows.append([name, precision, *options.values(), f"{first:.1f}", f"{n / median(seconds):.0f}"])
    return rows


def card_limits() -> str:
    """Rates of the card itself: float16 matrix products, and copies from pinned memory."""
    try:
        import torch
    except Exception as error:
        return f"The card's own rates were not measured: {error}."
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    host = torch.empty(2**28, dtype=torch.uint8).pin_memory()

    def timed(function: Callable[[], object]) -> float:
        function()
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(10):
            function()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / 10

    flops, copied = 2 * 8192**3 / timed(lambda: a @ a), 2**28 / timed(lambda: host.cuda(non_blocking=True))
    return f"The card itself: {flops / 1e12:.0f} TFLOP/s in float16, {copied / 1e9:.1f} GB/s from pinned memory."


def card() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown card"
    except OSError:
        return "unknown card"


def main() -> None:
    try:
        device = resolve_device("cuda")
    except sktransfer.DeviceError as error:
        print(f"No GPU was measured. {error}")
        return
    with tempfile.TemporaryDirectory() as folder:
        arrays, paths = make_photos(N_ARRAYS, 224, 224), write_files(Path(folder), N_FILES)
        rows, settings = [], []
        for name, backbone, module in networks(Path(folder)):
            for precision in ("float32", "float16"):
                rows.append(measure(name, backbone, module, precision, device, arrays, paths))
                settings += measure_options(name, backbone, precision, device, N_FILES)
    write_markdown(
        "gpu",
        "Does CUDA give the CPU's vectors, how fast, and what holds it back?",
        "python -m benchmarks.gpu",
        ["network", "precision", "batch", "largest distance to the CPU", "bare loop, images/s", "decode",
         "extract, arrays", "extract, files", "torch, arrays", "torch, files", "arrays ÷ bare",
         "files ÷ min(bare, decode)", "arrays ÷ torch", "files ÷ torch"],
        rows,
        f"{card()}. {card_limits()} {N_ARRAYS} uint8 arrays of the network's size, {N_FILES} JPEG files of 400×533 "
        f"pixels, {cpu_count()} cores, {ROUNDS} alternating rounds: medians, and for ratios median (smallest–largest).",
    )  # fmt: skip
    write_markdown(
        "gpu_options",
        "Which of onnxruntime's options for CUDA pay?",
        "python -m benchmarks.gpu",
        [
            "network",
            "precision",
            "cuDNN search",
            "NHWC",
            "CUDA graph",
            "seconds to the first batch",
            "images/s after it",
        ],
        settings,
        f"{card()}. The bare loop of gpu.md.",
    )


if __name__ == "__main__":
    main()

"""Does CUDA give the CPU's vectors, and how fast?

    python -m benchmarks.gpu

Runs unattended. Correctness first: every backbone's vectors on CUDA against the CPU's, as a relative distance; then
images a second from arrays and from JPEG bytes, against a bare onnxruntime CUDA loop over the same uint8 graph. Without
a GPU it says so and exits 0. Backbones come from SKTRANSFER_ASSETS where it is set; the embedded one is always there.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

import sktransfer
from benchmarks.measure import alternate, spread, write_markdown
from sktransfer.extraction import plan_extraction
from sktransfer.session import open_session, resolve_device

ROUNDS = 5
TOLERANCE = 5e-3  # TF32 convolutions keep 10 bits of the mantissa


def backbones() -> dict[str, object]:
    found: dict[str, object] = {"tiny-v1": "tiny-v1"}
    assets = os.environ.get("SKTRANSFER_ASSETS")
    if assets:
        found |= {path.parent.name: path.parent for path in sorted(Path(assets).glob("models/*/model.onnx"))}
    return found


def photos(n: int) -> list[np.ndarray]:
    """Smooth random photos of 400x533 pixels, all different."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (n, 7, 9, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(image).resize((533, 400), Image.Resampling.BICUBIC)) for image in small]


def encode(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def measure(name: str, backbone: object, device: str, arrays: list[np.ndarray], rounds: int = ROUNDS) -> list[str]:
    """One line of the table."""
    files = [encode(image) for image in arrays]
    n_check = min(32, len(arrays))
    expected = sktransfer.extract(arrays[:n_check], backbone, device="cpu", cache_dir=None)
    vectors = sktransfer.extract(arrays[:n_check], backbone, device=device, cache_dir=None)
    distance = np.linalg.norm(vectors - expected, axis=1) / np.linalg.norm(expected, axis=1)
    plan = plan_extraction(backbone, device=device)
    session = open_session(plan.graph, plan.device)
    ready = np.stack([plan.graph.preprocessing.resize_and_crop(Image.fromarray(image)) for image in arrays])

    def bare() -> None:
        for start in range(0, len(ready), 64):
            session.run(ready[start : start + 64], pad_to=64)

    seconds = alternate(
        {
            "bare": bare,
            "arrays": lambda: sktransfer.extract(ready, backbone, device=device, cache_dir=None),
            "files": lambda: sktransfer.extract(files, backbone, device=device, cache_dir=None),
        },
        rounds,
    )
    rates = [f"{len(arrays) / statistics.median(seconds[key]):.0f}" for key in ("bare", "arrays", "files")]
    shares = [a / b for a, b in zip(seconds["bare"], seconds["arrays"], strict=True)]
    verdict = "ok" if distance.max() <= TOLERANCE else "DIFFERS"
    return [name, f"{distance.max():.1e} {verdict}", *rates, spread(shares)]


def card() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown card"


def main() -> None:
    try:
        device = resolve_device("cuda")
    except sktransfer.DeviceError as error:
        print(f"No GPU was measured. {error}")
        return
    arrays = photos(2048)
    rows = [measure(name, backbone, device.name, arrays) for name, backbone in backbones().items()]
    write_markdown(
        "gpu",
        "Does CUDA give the CPU's vectors, and how fast?",
        "python -m benchmarks.gpu",
        ["backbone", "largest relative distance to the CPU", "bare loop, images/s", "extract from arrays, images/s",
         "extract from JPEG, images/s", "arrays ÷ bare loop"],
        rows,
        f"{card()}. {len(arrays)} images of 400×533 pixels, batches of 64, {ROUNDS} alternating rounds.",
    )  # fmt: skip


if __name__ == "__main__":
    main()

"""How fast is `extract` beside what a user would pick instead, on the same weights, pixels and files?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_peers [--photos N] [--rounds N]

In one run a backbone, alternating: forward passes over arrays in memory, then from JPEG files to an array of vectors,
caches off. Every peer gets the best of its settings in a trial, and its vectors are compared with ours first.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.measure import alternate, assets_folder, clothing_photos, decode, spread, write_markdown

# Everything else is imported where it is used: fastembed's worker processes import this file again as they start.

INSTALL = """Install the peers first, torch before the others, in its build for the CPU:
    pip install torch --index-url https://download.pytorch.org/whl/cpu
    pip install transformers loguru mmh3 py-rust-stemmers requests diskcache skops model2vec
    pip install --no-deps timm embetter fastembed
(--no-deps: fastembed asks for onnxruntime, which must not lie beside onnxruntime-gpu, and timm for torchvision.)"""
PACKAGES = ("torch", "fastembed", "embetter", "transformers", "timm")
MODELS = ("squeezenet1.1", "mobilenetv2_features", "resnet50v2_stage3")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CHECKED = 32  # photos whose vectors are compared: a full batch of every setting
TRIAL = 64  # photos that a setting is tried on
TRIAL_ROUNDS = 1
SLOW = 40  # photos for a peer that embeds one image a forward pass
TOLERANCE = 1e-3  # relative distance to our vectors, from the same pixels
NETWORKS = ((1, 1), (1, 8), (CORES, 8), (CORES, 32))  # torch threads, images a forward pass
COMPILED_NETWORKS = ((1, 8), (CORES, 8))  # each of them is compiled for a minute
LOADER_WORKERS = (0, 1, 2)
EAGER, COMPILED, FROZEN = "torch eager", "torch.compile", "torch.compile, freezing"

Run = Callable[[int], np.ndarray]  # vectors of the first n photos


@dataclass
class Peer:
    """What is compared with sktransfer; `prepare` gives its settings."""

    name: str
    prepare: Callable[[], dict[str, Run]]
    limit: int = sys.maxsize  # photos it is measured on
    same_pixels: bool = True  # else it resizes by itself, and the distance is reported, not required
    normalised: bool = False  # it returns unit vectors


@dataclass
class Photos:
    """Data set for torch's DataLoader: what a user writes with Pillow and numpy."""

    paths: list[str]
    preprocessing: object

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return normalise(decode(self.paths[index], self.preprocessing), self.preprocessing)


class Task:
    """One backbone and the photos."""

    def __init__(self, name: str, paths: list[str]) -> None:
        import onnx
        import onnx.utils

        import sktransfer

        self.name, self.paths, self.folder = name, paths, assets_folder() / "models" / name
        model = onnx.load(self.folder / "model.onnx")
        cut = onnx.utils.Extractor(model).extract_model([model.graph.input[0].name], ["features"])
        self.model = cut.SerializeToString()  # without what other outputs need, which onnxruntime would run too
        self.preprocessing = sktransfer.load_backbone(self.folder).preprocessing
        self.pixels = np.stack([decode(path, self.preprocessing) for path in paths])
        self.network = functools.cache(functools.partial(Network, self))


class Network:
    """A torch module for one number of threads and one batch size; a ragged rest runs uncompiled."""

    def __init__(self, task: Task, kind: str, threads: int, batch: int) -> None:
        import torch

        from benchmarks.torch_twin import make_twin

        self.batch = batch
        self.eager = self.module = make_twin(task.model).to(memory_format=torch.channels_last)
        if kind != EAGER:
            torch.set_num_threads(threads)  # inductor writes it into its kernels
            self.module = torch.compile(self.eager, fullgraph=True, dynamic=False)
            # As an option of torch.compile, freezing reaches inductor but not dynamo, and is slower.
            with torch._inductor.config.patch(freezing=kind == FROZEN):
                self(torch.zeros(batch, *task.preprocessing.crop, 3))

    def __call__(self, images) -> np.ndarray:
        """Vectors of a tensor (n, height, width, 3), which is (n, 3, height, width) in channels_last."""
        import torch

        module = self.module if len(images) == self.batch else self.eager
        with torch.inference_mode():
            return module(images.permute(0, 3, 1, 2)).numpy()


def normalise(pixels: np.ndarray, preprocessing) -> np.ndarray:
    scaled = pixels * np.float32(preprocessing.scale)
    return (scaled - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)


def spell(text: str, run: Callable[..., np.ndarray], settings: Iterable[tuple]) -> dict[str, Run]:
    """Every setting in words, and `run` with it."""
    return {text.format(*setting): functools.partial(run, *setting) for setting in settings}


def our_forward(task: Task) -> Run:
    from sktransfer.extraction import plan_extraction
    from sktransfer.session import open_session

    plan = plan_extraction(task.folder, device="cpu", cache_dir=None)
    session = open_session(plan.graph, plan.device)

    def run(n: int) -> np.ndarray:
        with ThreadPoolExecutor(CORES) as pool:
            return np.concatenate(list(pool.map(lambda i: session.run(task.pixels[i : i + 1]), range(n))))

    return run


def torch_forward(task: Task, arrays: np.ndarray, kind: str) -> dict[str, Run]:
    import torch

    def run(workers: int, threads: int, size: int, n: int) -> np.ndarray:
        network = task.network(kind, threads, size)
        batches = torch.from_numpy(arrays[:n]).split(size)
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            return np.concatenate(list(pool.map(network, batches)))

    networks = NETWORKS if kind == EAGER else COMPILED_NETWORKS
    settings = ((CORES // threads, threads, size) for threads, size in networks)
    return spell("{} workers × {} threads × batch {}", run, settings)


def torch_loader(task: Task, kind: str) -> dict[str, Run]:
    import torch
    from torch.utils.data import DataLoader

    def run(workers: int, network: tuple[int, int], n: int) -> np.ndarray:
        threads, size = network
        module = task.network(kind, threads, size)
        torch.set_num_threads(threads)
        photos = Photos(task.paths[:n], task.preprocessing)
        return np.concatenate([module(images) for images in DataLoader(photos, size, num_workers=workers)])

    settings = itertools.product(LOADER_WORKERS, NETWORKS if kind == EAGER else COMPILED_NETWORKS)
    return spell("{0} loader workers, {1[0]} threads, batch {1[1]}", run, settings)


def fastembed(task: Task, scratch: Path, parallel: int | None) -> dict[str, Run]:
    from fastembed import ImageEmbedding

    (scratch / "model.onnx").write_bytes(task.model)
    shutil.copyfile(task.folder / "preprocessor_config.json", scratch / "preprocessor_config.json")
    known = "Qdrant/resnet50-onnx"  # it takes no other names; all files are ours
    embedding = ImageEmbedding(known, specific_model_path=str(scratch), providers=["CPUExecutionProvider"])

    def run(size: int, n: int) -> np.ndarray:
        return np.stack(list(embedding.embed(task.paths[:n], batch_size=size, parallel=parallel)))

    return spell("batch {}", run, [(1,), (8,), (32,)])


def transformers(task: Task) -> dict[str, Run]:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, pipeline
    from transformers.modeling_outputs import BaseModelOutput
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    class Wrapped(PreTrainedModel):
        config_class, main_input_name = PreTrainedConfig, "pixel_values"

        def forward(self, pixel_values, **_):
            return BaseModelOutput(last_hidden_state=self.twin(pixel_values))

    wrapped = Wrapped(PreTrainedConfig())
    wrapped.twin = task.network(EAGER, CORES, 32).eager
    processor = CLIPImageProcessorPil(**json.loads((task.folder / "preprocessor_config.json").read_text("utf-8")))
    embed = pipeline("image-feature-extraction", model=wrapped, image_processor=processor, device="cpu")

    def run(workers: int, size: int, n: int) -> np.ndarray:
        torch.set_num_threads(CORES)
        return np.concatenate(embed(task.paths[:n], return_tensors=True, batch_size=size, num_workers=workers))

    return spell("{} loader workers, batch {}", run, itertools.product(LOADER_WORKERS, (1, 8, 32)))


def import_embetter() -> tuple[type, type]:
    """Timm imports torchvision, of which embetter uses nothing once its transform is replaced: stubs will do."""
    parts = ("", ".datasets", ".models.feature_extraction", ".ops.misc", ".transforms", ".transforms.functional")
    missing = importlib.util.find_spec("torchvision") is None
    stubs = {f"torchvision{part}": mock.MagicMock() for part in parts if missing}
    sys.modules.update(stubs)
    try:
        import timm  # noqa: F401 -- embetter hides it if this fails
        from embetter.vision import ImageLoader, TimmEncoder
    finally:
        for name in stubs:
            del sys.modules[name]
    return ImageLoader, TimmEncoder


def embetter(task: Task) -> dict[str, Run]:
    import torch
    from sklearn.pipeline import make_pipeline

    from benchmarks.torch_twin import make_twin

    loader, encoder_class = import_embetter()
    p, encoder = task.preprocessing, object.__new__(encoder_class)  # its own __init__ downloads a network
    encoder.model = make_twin(task.model)
    encoder.transform_img = lambda image: (
        torch.from_numpy(normalise(p.resize_and_crop(image), p)).permute(2, 0, 1).contiguous()
    )

    def run(n: int) -> np.ndarray:
        torch.set_num_threads(CORES)
        return make_pipeline(loader(), encoder).fit_transform(task.paths[:n])

    return {f"{CORES} threads, one image a forward pass": run}


def choose(settings: dict[str, Run], n: int) -> tuple[str, Run]:
    """The setting that is fastest on n photos, as two trials predict, of which one shows the start of its workers."""
    sizes = (min(n, CHECKED), min(n, TRIAL))
    few, more = (
        alternate({key: functools.partial(run, size) for key, run in settings.items()}, TRIAL_ROUNDS) for size in sizes
    )
    grown = (n - sizes[0]) / max(sizes[1] - sizes[0], 1)
    predicted = {key: min(few[key]) + grown * (min(more[key]) - min(few[key])) for key in settings}
    best = min(predicted, key=predicted.__getitem__)
    return best, settings[best]


def compare(peer: Peer, vectors: np.ndarray, reference: np.ndarray) -> str:
    """Distance to our vectors, in words."""
    norms = np.linalg.norm(reference, axis=1)
    if peer.normalised:
        return f"cosine {np.median((vectors * reference).sum(axis=1) / norms):.5f}"
    distance = np.median(np.linalg.norm(vectors - reference, axis=1) / norms)
    if peer.same_pixels and not distance <= TOLERANCE:
        raise SystemExit(f"{peer.name} is {distance:.1e} away from sktransfer's vectors: nothing was measured.")
    return f"{distance:.0e}"


def measure_part(head: list[str], ours: Run, peers: list[Peer], n: int, rounds: int) -> tuple[list, dict[str, float]]:
    """Rows of the table, and the median seconds a photo of every candidate that ran."""
    us, reference, failed = "sktransfer", ours(min(n, CHECKED)), []
    runs, limits, facts = {us: ours}, {us: n}, {us: (f"{CORES} threads, one image a run", "–")}
    for peer in peers:
        try:
            setting, run = choose(peer.prepare(), min(n, peer.limit))
            facts[peer.name] = setting, compare(peer, run(len(reference)), reference)
            runs[peer.name], limits[peer.name] = run, min(n, peer.limit)
        except Exception as error:  # a peer that does not run is a row of the table
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:150].replace("|", "/")
            failed.append([*head, peer.name, f"not run: {reason}", "–", "–", "–"])
    seconds = alternate({key: functools.partial(run, limits[key]) for key, run in runs.items()}, rounds)
    each = {key: [value / limits[key] for value in values] for key, values in seconds.items()}
    medians = {key: statistics.median(values) for key, values in each.items()}
    rows = []
    for key, (setting, difference) in facts.items():
        ratios = [theirs / mine for theirs, mine in zip(each[key], each[us], strict=True)]
        rows.append([*head, key, setting, f"{1 / medians[key]:.0f}", "1" if key == us else spread(ratios), difference])
    for row in rows + failed:
        print(*row, sep=" | ", flush=True)
    return rows + failed, medians


def measure(task: Task, rounds: int, scratch: Path) -> list[list[str]]:
    import sktransfer

    def ours(n: int) -> np.ndarray:
        return sktransfer.extract(task.paths[:n], task.folder, cache_dir=None, device="cpu")

    n, arrays = len(task.paths), normalise(task.pixels, task.preprocessing)
    kinds = [Peer(kind, functools.partial(torch_forward, task, arrays, kind)) for kind in (EAGER, COMPILED, FROZEN)]
    forward, seconds = measure_part([task.name, "forward"], our_forward(task), kinds, n, rounds)
    compiled = min(COMPILED, FROZEN, key=lambda kind: seconds.get(kind, math.inf))
    own = functools.partial(Peer, same_pixels=False)
    peers = [
        *(Peer(f"{kind} + DataLoader", functools.partial(torch_loader, task, kind)) for kind in (EAGER, compiled)),
        own("fastembed", lambda: fastembed(task, scratch, None), normalised=True),
        own(f"fastembed, parallel={CORES}", lambda: fastembed(task, scratch, CORES), normalised=True),
        own("transformers pipeline", lambda: transformers(task)),
        Peer("embetter", lambda: embetter(task), limit=SLOW),
    ]
    return forward + measure_part([task.name, "files"], ours, peers, n, rounds)[0]


def installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(INSTALL)
    paths, rows = clothing_photos()[: arguments.photos], []
    for name in MODELS:
        with tempfile.TemporaryDirectory() as scratch:
            rows += measure(Task(name, paths), arguments.rounds, Path(scratch))
    write_markdown(
        "peers",
        "How fast is `extract` beside what a user would pick instead?",
        f"python -m benchmarks.bench_peers --photos {len(paths)} --rounds {arguments.rounds}",
        ["backbone", "part", "candidate", "setting", "images/s", "sktransfer ÷ it", "distance to sktransfer's vectors"],
        rows,
        f"{', '.join(map(installed, PACKAGES))}. {len(paths)} JPEG files of about 400×533 pixels, {arguments.rounds} "
        "alternating rounds: median images/s; the ratio is ours to theirs in images/s, above 1 where sktransfer is "
        "faster, as median (smallest–largest) over the rounds. Every peer runs with the best of its settings in a "
        f"trial on {TRIAL} photos, everything loaded and compiled before. `forward`: from arrays in memory, uint8 for "
        "sktransfer, whose graph normalises them, and normalised float32 in channels_last for torch. `files`: from "
        "JPEG files to an array of vectors, caches off. All torch modules hold the backbone's weights, batch "
        "normalisations folded as by onnxruntime, in channels_last but for embetter. Compiled ones take full batches "
        "of one size; the ragged rest runs eagerly. fastembed and transformers resize and crop by themselves; "
        "fastembed returns unit vectors, hence the cosine. embetter embeds one image a forward pass, records "
        f"gradients, and is measured on the first {SLOW} photos and scaled. Distance: median of ‖theirs − ours‖ ÷ "
        f"‖ours‖ over {CHECKED} photos. A run includes the start of a peer's worker processes, 0.2 to 0.4 s for a "
        "DataLoader and more for fastembed's: with few photos that counts against settings with workers.",
    )


if __name__ == "__main__":
    main()

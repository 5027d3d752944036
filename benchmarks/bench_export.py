"""What does one decoded photo cost through an exported file, beside the bare run of its network?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_export [--rounds 9]

One photo at a time, as pixels of the network's size, one thread. The floor is the embedding graph alone in
onnxruntime. Beside it the exported file of several heads, fitted on 300 photos of 17 kinds of clothes, and
``Pipeline.predict_proba`` of the same pipeline on the same pixels, without a cache. The last column is the share of a
budget of 1.1 times the floor plus 0.2 ms that the file needs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pandas as pd
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from benchmarks.measure import alternate, assets_folder, write_markdown
from sktransfer import PretrainedFeatureExtractor, TransferLogisticRegression, export_onnx, load_backbone
from sktransfer.extraction import plan_extraction
from sktransfer.graph import INPUT_NAME

BACKBONES = ("mobilenetv1_0.25_128", "mobilenetv2_features", "resnet18_layer3")
RUNS = 40  # photos in a round
HEADS = {
    "LogisticRegression": [StandardScaler(), LogisticRegression(max_iter=1000)],
    "TransferLogisticRegression": [TransferLogisticRegression(scaler=StandardScaler())],
    "PCA, LogisticRegression": [StandardScaler(), PCA(64), LogisticRegression(max_iter=1000)],
    "MLPClassifier, 100 units": [StandardScaler(), MLPClassifier(max_iter=60)],
    "GradientBoosting, 20 rounds": [GradientBoostingClassifier(n_estimators=20, max_features=0.05)],
    "calibrated LinearSVC, 3 folds": [StandardScaler(), CalibratedClassifierCV(LinearSVC(), cv=3)],
    "calibrated SVC, 3 folds": [StandardScaler(), CalibratedClassifierCV(SVC(), cv=3)],
}


def open_file(model: bytes | Path) -> ort.InferenceSession:
    """One thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(name: str, photos: list[str], labels: np.ndarray, folder: Path, rounds: int) -> list[list[str]]:
    """Lines of the table for one backbone."""
    backbone = assets_folder() / "models" / name
    graph = plan_extraction(backbone, cache_dir=None).graph
    floor = open_file(graph.build_model().SerializeToString())
    geometry = load_backbone(backbone).preprocessing
    from PIL import Image

    pixels = [geometry.resize_and_crop(Image.open(path).convert("RGB")) for path in photos[:RUNS]]
    candidates = {"floor": lambda: [floor.run(None, {INPUT_NAME: one[None]}) for one in pixels]}
    for head, steps in HEADS.items():
        pipeline = make_pipeline(PretrainedFeatureExtractor(backbone), *steps).fit(photos, labels)
        export_onnx(pipeline, folder / f"{head}.onnx", check=photos[:20])
        session = open_file(folder / f"{head}.onnx")
        pipeline.set_params(pretrainedfeatureextractor__cache_dir=None, pretrainedfeatureextractor__n_jobs=1)
        candidates[head] = lambda s=session: [s.run(None, {"image": one[None]}) for one in pixels]
        candidates[f"{head} in Python"] = lambda p=pipeline: [p.predict_proba([one]) for one in pixels]
    seconds = alternate(candidates, rounds)
    each = {key: [1000 * value / RUNS for value in values] for key, values in seconds.items()}
    base = statistics.median(each["floor"])
    rows = [[name, "floor: the network alone", format_range(each["floor"]), "–", "–", "–"]]
    for head in HEADS:
        shares = [f / (1.1 * (b + 0.2)) for f, b in zip(each[head], each["floor"], strict=True)]
        more = statistics.median(each[head]) - base
        rows.append([name, head, format_range(each[head]), f"{more:+.2f}", f"{statistics.median(shares):.2f}",
                     format_range(each[f"{head} in Python"])])  # fmt: skip
    return rows


def format_range(values: list[float]) -> str:
    """Median, smallest and largest milliseconds."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore", ConvergenceWarning)
    table = pd.read_csv(assets_folder() / "datasets" / "clothing" / "images.csv").sample(300, random_state=0)
    photos = [str(assets_folder() / "datasets" / "clothing" / "images" / f"{name}.jpg") for name in table["image"]]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for backbone in BACKBONES:
            rows += measure(backbone, photos, table["label"].to_numpy(object), Path(name), rounds)
    header = ["backbone", "head", "file, ms (range)", "more than the floor, ms", "share of 1.1 × (floor + 0.2 ms)",
              "Pipeline.predict_proba, ms (range)"]  # fmt: skip
    notes = f"One photo a run, one thread, 17 classes; medians of {rounds} rounds of {RUNS} photos, in alternation."
    question = "What does one decoded photo cost through an exported file, beside the bare run of its network?"
    write_markdown("export", question, "python -m benchmarks.bench_export", header, rows, notes)


if __name__ == "__main__":
    main()

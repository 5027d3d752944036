"""Which backbone, cut where: does a score that trains nothing put candidates in the order of a full grid search?

Nearly, and the best is the best in both. Of four cuts of the embedded backbone, on 240 digits on photographs, LogME and
a tuned, cross-validated classifier agree: two layers together (accuracy 0.51), "stage4", "stage3", "stage2" (0.37). On
300 of them "stage4" and "stage3" change places in the search, by less than the spread over its folds. On 2 cores the
scores take 0.1 s, with intervals and the speeds of the networks 2 s, the grid search 3 s; the embeddings are computed
once for both. The search grows with the grid of its head, the ranking does not.

    python examples/choose_backbone.py

With SKTRANSFER_ASSETS set to a folder with models/ and datasets/pacs (see CONTRIBUTING.md), three ImageNet networks on
real photos are compared as well.
"""

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import weightedtau
from sklearn.datasets import load_digits, load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sktransfer import PretrainedFeatureExtractor, extract, logme_score, prefetch, rank_backbones

N_IMAGES = 240
CANVAS, DIGIT = 64, 36  # pixels
LAYERS = ["stage2", "stage3", "stage4", ["stage3", "stage4"]]
C = [0.001, 0.01, 0.1]
NETWORKS = ["mobilenetv1_0.25_128", "squeezenet1.1", "mobilenetv2_features"]


def make_photos(n_images):
    """Digits somewhere on dark patches of two photographs."""
    rng = np.random.default_rng(0)
    digits, backgrounds = load_digits(), load_sample_images().images
    photos = []
    for pixels in digits.images[:n_images]:
        background = backgrounds[rng.integers(2)]
        top, left = (rng.integers(size - CANVAS) for size in background.shape[:2])
        photo = background[top : top + CANVAS, left : left + CANVAS] // 3
        digit = Image.fromarray((pixels / 16 * 255).astype(np.uint8)).resize((DIGIT, DIGIT))
        y, x = rng.integers(CANVAS - DIGIT + 1, size=2)
        region = photo[y : y + DIGIT, x : x + DIGIT]
        region[:] = np.maximum(region, np.asarray(digit)[:, :, None])
        photos.append(photo)
    return photos, digits.target[:n_images]


def search(photos, labels, backbones, layers):
    """The exact answer: a classifier for every candidate, tuned and cross-validated."""
    steps = [("extractor", PretrainedFeatureExtractor()), ("scale", StandardScaler())]
    pipeline = Pipeline([*steps, ("head", LogisticRegression(max_iter=300))])
    grid = {"extractor__backbone": backbones, "extractor__layer": layers, "head__C": C}
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    results = GridSearchCV(pipeline, grid, cv=folds, refit=False, error_score="raise").fit(photos, labels).cv_results_
    table = pd.DataFrame({"backbone": results["param_extractor__backbone"], "layer": results["param_extractor__layer"]})
    table["layer"] = [" + ".join(layer) if isinstance(layer, list) else layer for layer in table["layer"]]
    table["accuracy"], table["sd"] = results["mean_test_score"], results["std_test_score"]
    return table.loc[table.groupby(["backbone", "layer"], sort=False)["accuracy"].idxmax()]


def compare(photos, labels, backbones, layers):
    """Both orders side by side, and the seconds of each."""
    seconds, clock = {}, time.perf_counter()
    for layer in layers:
        prefetch(photos, backbones, layer=layer)
    seconds["embeddings, for both"], clock = time.perf_counter() - clock, time.perf_counter()
    ranked = rank_backbones(photos, labels, backbones, layers=layers)
    seconds["ranking with speeds and intervals"], clock = time.perf_counter() - clock, time.perf_counter()
    for backbone in backbones:
        for layer in layers:
            logme_score(extract(photos, backbone, layer=layer), labels)
    seconds["the scores alone"], clock = time.perf_counter() - clock, time.perf_counter()
    exact = search(photos, labels, backbones, layers)
    seconds["grid search"] = time.perf_counter() - clock
    table = ranked[["backbone", "layer", "logme", "low", "high"]].merge(exact, on=["backbone", "layer"])
    table["backbone"] = [Path(reference).name for reference in table["backbone"]]
    table["place"] = table["accuracy"].rank(ascending=False, method="min").astype(int)
    tau = weightedtau(table["logme"], table["accuracy"]).statistic
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(f"Weighted tau of the two orders (1 is the same order): {tau:.2f}")
    print(", ".join(f"{name}: {value:.1f} s" for name, value in seconds.items()), end="\n\n")
    return table, seconds


def compare_all():
    found = [compare(*make_photos(N_IMAGES), ["tiny-v1"], LAYERS)]
    assets = Path(os.environ.get("SKTRANSFER_ASSETS", ""))
    folder = assets / "datasets" / "pacs" / "photo"
    if os.environ.get("SKTRANSFER_ASSETS") and folder.is_dir():
        photos = sorted(folder.glob("*/*"))
        backbones = ["tiny-v1", *(str(assets / "models" / name) for name in NETWORKS)]
        labels = np.array([photo.parent.name for photo in photos])
        found.append(compare(list(map(str, photos)), labels, backbones, ["penultimate"]))
    return found


def main():
    with threadpool_limits(1):  # small problems: a second thread costs more than it brings
        return compare_all()


if __name__ == "__main__":
    main()

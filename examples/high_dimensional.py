"""Hundreds of features and few images: does it pay to reduce an embedding before the classifier?

Not for accuracy, here: a head that regularises itself (LDA with shrinkage) reads ten digits on photographs best from
all 448 features of three layers (about 0.68). 128 components of PCA or 250 features chosen by an L1 penalty cost about
0.05, 32 features about 0.2; before a logistic regression the loss is smaller, and there is no gain either. Two more
layers bring more than any reducer: "penultimate" alone, 256 features, reaches about 0.57.
"""

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits, load_sample_images
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectFromModel, SelectKBest
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from sktransfer import PretrainedFeatureExtractor, cache_info

N_IMAGES = 400
CANVAS, DIGIT = 64, 36  # pixels
LAYERS = ["stage2", "stage3", "penultimate"]  # 64, 128 and 256 features
REDUCERS = {
    "none": "passthrough",
    "PCA(32)": PCA(32, svd_solver="covariance_eigh"),
    "PCA(128)": PCA(128, svd_solver="covariance_eigh"),
    "SelectKBest(32)": SelectKBest(k=32),
    "SelectKBest(128)": SelectKBest(k=128),
    "L1, C=0.03": SelectFromModel(LinearSVC(C=0.03, penalty="l1", dual=False, random_state=0)),
    "L1, C=0.1": SelectFromModel(LinearSVC(C=0.1, penalty="l1", dual=False, random_state=0)),
}


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


def tabulate(search, n_features):
    """One line for each candidate; `change` is the difference, fold by fold, to all features of all layers."""
    folds = np.stack([search.cv_results_[f"split{fold}_test_score"] for fold in range(search.n_splits_)], axis=1)
    table = pd.DataFrame({"layers": ["all three"] * len(REDUCERS) + ["penultimate"], "reducer": [*REDUCERS, "none"]})
    table["features"] = n_features
    for name, scores in (("accuracy", folds), ("change", folds - folds[0])):
        table[name], table[f"sd of {name}"] = scores.mean(axis=1), scores.std(axis=1)
    return table


def main():
    photos, labels = make_photos(N_IMAGES)
    before = cache_info().misses
    steps = [
        ("embed", PretrainedFeatureExtractor()),
        ("scale", StandardScaler()),
        ("reduce", "passthrough"),
        ("classify", LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")),
    ]
    pipeline = Pipeline(steps)
    grid = [{"embed__layer": [LAYERS], "reduce": list(REDUCERS.values())}, {"embed__layer": ["penultimate"]}]
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    search = GridSearchCV(pipeline, grid, cv=folds, refit=False, error_score="raise").fit(photos, labels)
    candidates = [clone(pipeline).set_params(**params) for params in search.cv_results_["params"]]
    table = tabulate(search, [candidate.fit(photos, labels)[-1].n_features_in_ for candidate in candidates])
    print(f"{len(photos)} photos, {search.n_splits_} folds, {len(table)} candidates")
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(f"Images through the network: {cache_info().misses - before}, once for each choice of layers")
    return table


if __name__ == "__main__":
    main()

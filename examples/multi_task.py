"""Does every question about a photo need its own trip through the network?

No. Digit, colour and background of 500 photos come from one embedding each, through `MultiOutputClassifier` (accuracy
about 0.46, 1.00 and 1.00), and a second estimator regresses the digit's position on the same 500 embeddings, with no
further pass. It does that badly (R² about 0.34), since "penultimate" is an average over positions. One more pass that
keeps the map flat reaches about 0.94: what an embedding has averaged away, no head brings back.
"""

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeCV
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import KFold, cross_validate
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer import PretrainedFeatureExtractor, cache_info

N_IMAGES = 500
CANVAS, DIGIT = 64, 36  # pixels
COLOURS = {"white": (255, 255, 255), "yellow": (255, 230, 60), "cyan": (80, 230, 255)}
TARGETS = ["digit", "colour", "background"]


def make_photos(n_images):
    """Coloured digits somewhere on dark patches of two photographs, and a frame of what is known of each."""
    rng = np.random.default_rng(0)
    digits, backgrounds = load_digits(), load_sample_images().images
    photos, facts = [], []
    for pixels, label in zip(digits.images[:n_images], digits.target, strict=False):
        background, colour = rng.integers(2), rng.choice(list(COLOURS))
        top, left = (rng.integers(size - CANVAS) for size in backgrounds[background].shape[:2])
        photo = backgrounds[background][top : top + CANVAS, left : left + CANVAS] // 3
        digit = Image.fromarray((pixels / 16 * 255).astype(np.uint8)).resize((DIGIT, DIGIT))
        y, x = rng.integers(CANVAS - DIGIT + 1, size=2)
        region = photo[y : y + DIGIT, x : x + DIGIT]
        region[:] = np.maximum(region, np.asarray(digit)[:, :, None] / 255 * COLOURS[colour])
        photos.append(photo)
        facts.append((label, colour, ("temple", "flower")[background], x))
    return photos, pd.DataFrame(facts, columns=[*TARGETS, "x"])


def score_column(column):
    """Accuracy of one of the targets."""
    return make_scorer(lambda y_true, y_pred: accuracy_score(np.asarray(y_true)[:, column], y_pred[:, column]))


def main():
    photos, facts = make_photos(N_IMAGES)
    folds = KFold(5, shuffle=True, random_state=0)
    answers, before = [], cache_info().misses

    def note(target, features, metric, scores):
        answers.append((target, features, metric, scores.mean(), scores.std(), cache_info().misses - before))

    # Three questions to one estimator. MultiOutputClassifier fits one head for each column.
    facts[TARGETS] = facts[TARGETS].astype(str)
    heads = MultiOutputClassifier(LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
    pipeline = make_pipeline(PretrainedFeatureExtractor(), heads)
    scoring = {target: score_column(column) for column, target in enumerate(TARGETS)}
    scores = cross_validate(pipeline, photos, facts[TARGETS], scoring=scoring, cv=folds, error_score="raise")
    for target in TARGETS:
        note(target, "penultimate", "accuracy", scores[f"test_{target}"])

    # A fourth, numeric one to another estimator: the same embeddings first, then ones that keep the place of things.
    for layer, pooling in (("penultimate", None), ("last_map", "flatten")):
        extractor = PretrainedFeatureExtractor(layer=layer, pooling=pooling)
        pipeline = make_pipeline(extractor, StandardScaler(), RidgeCV(np.logspace(0, 5, 6)))
        scores = cross_validate(pipeline, photos, facts["x"], cv=folds, error_score="raise")
        note("x of the digit", layer, "R²", scores["test_score"])

    columns = ["target", "layer", "metric", "mean", "sd", "images through the network so far"]
    table = pd.DataFrame(answers, columns=columns)
    print(f"{len(photos)} photos, {folds.get_n_splits()} folds")
    print(table.to_string(index=False, float_format="{:.3f}".format))
    return table


if __name__ == "__main__":
    main()

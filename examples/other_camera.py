"""The photos to come look different from the labelled ones: what can be had without labels of theirs?

Digits on dark patches of a photograph, all labelled; and digits by another camera, which is brighter, warmer and
blurred, on another photograph, without a label. A classifier that is fitted on the first ones alone is right about
three in ten of the others; with `method="auto"` about six in ten, and `report_`, which has no labels of the target
either, notices the difference. Simpler methods are slightly better still here: which one is best differs from task to
task, and the score without labels does not always know. Fifty labels of the target would. On other photos by the
first camera "auto" leaves the classifier as it is: a classifier cannot tell them from the labelled ones.

    python examples/other_camera.py
"""

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits, load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sktransfer import AdaptedClassifier, PretrainedFeatureExtractor

N_IMAGES = 1000  # half of them labelled
CANVAS, DIGIT = 64, 44  # pixels
METHODS = ("auto", "standardize", "coral", "subspace", ["standardize", "pseudo"])


def photograph(images, scene, rng):
    """Digits in the middle of dark patches of a scene."""
    photos = []
    for pixels in images:
        top, left = (rng.integers(size - CANVAS) for size in scene.shape[:2])
        photo = scene[top : top + CANVAS, left : left + CANVAS] // 3
        digit = np.asarray(Image.fromarray((pixels / 16 * 255).astype(np.uint8)).resize((DIGIT, DIGIT)))
        edge = (CANVAS - DIGIT) // 2
        region = photo[edge : edge + DIGIT, edge : edge + DIGIT]
        region[:] = np.maximum(region, digit[:, :, None])
        photos.append(photo)
    return photos


def take_with_other_camera(photo):
    """Brighter, warmer, blurred."""
    pixels = np.clip(photo * [0.7, 0.55, 0.35] + [80, 50, 20], 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1)))


def main():
    digits, (temple, flower), rng = load_digits(), load_sample_images().images, np.random.default_rng(0)
    half = N_IMAGES // 2
    labelled = photograph(digits.images[:half], temple, rng)
    like_them = photograph(digits.images[half:N_IMAGES], temple, rng)
    others = [take_with_other_camera(photo) for photo in photograph(digits.images[half:N_IMAGES], flower, rng)]
    y, truth = digits.target[:half], digits.target[half:N_IMAGES]
    domains = np.repeat([1, -1], [half, len(others)])
    known = np.concatenate([y, np.full(len(others), -1)])

    rows = []
    for name, photos in (("the same camera", like_them), ("another camera", others)):
        for method in ("source only", *METHODS):
            head = LogisticRegression(max_iter=1000)
            if method != "source only":
                head = AdaptedClassifier(head, method)
            pipeline = make_pipeline(PretrainedFeatureExtractor(layer="stage3"), head)
            if method == "source only":
                pipeline.fit(labelled, y)
            else:
                pipeline.fit(labelled + photos, known, adaptedclassifier__sample_domain=domains)
            report = getattr(head if method == "source only" else pipeline[-1], "report_", None)
            score = np.nan if report is None else report.adapted_score
            rows.append((name, str(method), pipeline.score(photos, truth), score))
            if method == "auto":
                print(f"{name}:\n{report}\n")
    table = pd.DataFrame(rows, columns=["target", "method", "accuracy", "score without labels"])
    print(table.round(2).to_string(index=False))
    return table


if __name__ == "__main__":
    main()

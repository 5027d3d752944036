"""Few labels of a task, many of a related one: how many labels does the source save?

Two thirds of them with few, none with many. 20 labels of tilted digits on one photograph, and a source that has seen
718 upright ones on another, are worth 64 labels without a source (accuracy 0.48, with `source_weight` and `C` chosen
by cross-validation), 40 are worth 84, and 80 are worth 116. From 160 on the gain, 0.01 to 0.02, is about its spread
over the draws. What does not help:

- `warm_start=True` from the source: the loss has one minimum, so the result is that of embeddings from scratch.
- The source as it is (0.40). With 20 labels and more every head that is pulled to it is better.
- A weight that is not chosen. With one label a digit no fold can be left out, so the defaults are taken, and
  `source_weight=1` is too weak (0.28, worse than the source). 100 is better there (0.46), and with 320 labels
  worse than no source (0.74 and 0.75; chosen, 0.77).
- Pixels: a logistic regression on them stays between 0.12 and 0.15; ten digits are 0.10 by chance.

    python examples/few_labels.py [-o few_labels.png]
"""

import argparse
from copy import deepcopy

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, LearningCurveDisplay, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sktransfer import PretrainedFeatureExtractor, TransferLogisticRegression, cache_info

N_IMAGES = 1797  # two fifths of them for the source
PER_CLASS = (1, 2, 4, 8, 16, 32)  # labels of the target; the rest of its photos are for testing
N_DRAWS = 4
N_FOLDS = 3
CANVAS, DIGIT, TILT = 64, 36, 20  # pixels, pixels, degrees
LAYERS = ["stage2", "stage3", "penultimate"]
SCRATCH = {"C": [0.1, 1, 10]}
STYLES = {"warm start": (0, (2, 3)), "source alone": ":"}  # of lines in the plot
TRANSFER = {"C": [0.1, 10], "source_weight": [1, 10, 100, 1000]}


def make_photos(images, background, tilt, rng):
    """Digits somewhere on dark patches of a photograph."""
    photos = []
    for pixels in images:
        top, left = (rng.integers(size - CANVAS) for size in background.shape[:2])
        photo = background[top : top + CANVAS, left : left + CANVAS] // 3
        digit = Image.fromarray((pixels / 16 * 255).astype(np.uint8)).resize((DIGIT, DIGIT)).rotate(tilt)
        y, x = rng.integers(CANVAS - DIGIT + 1, size=2)
        region = photo[y : y + DIGIT, x : x + DIGIT]
        region[:] = np.maximum(region, np.asarray(digit)[:, :, None])
        photos.append(photo)
    return photos


def make_tasks():
    """Source: upright digits on a temple. Target: other digits, tilted, on a flower."""
    digits, (temple, flower), rng = load_digits(), load_sample_images().images, np.random.default_rng(0)
    images, labels = digits.images[:N_IMAGES], digits.target[:N_IMAGES]
    rows = train_test_split(np.arange(len(labels)), train_size=0.4, stratify=labels, random_state=0)
    photos = [make_photos(images[rows[0]], temple, 0, rng), make_photos(images[rows[1]], flower, TILT, rng)]
    return [(shown, labels[part]) for shown, part in zip(photos, rows, strict=True)]


def draw_rows(labels, draw):
    """Rows to train on for each number of labels, the fewer among the more, and rows to test on."""
    order = pd.Series(labels).sample(frac=1, random_state=draw)
    numbers = order.groupby(order)
    return [numbers.head(size).index for size in PER_CLASS], order.drop(numbers.head(PER_CLASS[-1]).index).index


def choose(estimator, grid, X, y):
    """Fit an estimator with parameters from a grid; with one label a class no fold can be left out: its defaults."""
    n_folds = min(N_FOLDS, np.bincount(y).min())
    if n_folds < 2:
        return estimator.fit(X, y)
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=0)
    search = GridSearchCV(estimator, grid, scoring="neg_log_loss", cv=folds, error_score="raise")
    return search.fit(X, y).best_estimator_


def fit_all(source, pixels, X, y):
    """Every way to a classifier of the target, with the features that it takes."""
    scratch = choose(LogisticRegression(max_iter=1000), SCRATCH, X, y)
    warm = deepcopy(source).set_params(C=scratch.C, warm_start=True, max_iter=1000)
    return {
        "pixels": (choose(LogisticRegression(max_iter=1000), SCRATCH, pixels, y), "pixels"),
        "embeddings": (scratch, "embeddings"),
        "warm start": (warm.fit(X, y), "embeddings"),
        "chosen weight": (choose(TransferLogisticRegression(source), TRANSFER, X, y), "embeddings"),
        "weight 100": (TransferLogisticRegression(source, source_weight=100).fit(X, y), "embeddings"),
        "source alone": (source, "embeddings"),
    }


def learn(source, features, labels):
    """Accuracy of every way, by draw and number of labels, on the rows trained on and on the rows for testing."""
    found = []
    for draw in range(N_DRAWS):
        sizes, test = draw_rows(labels, draw)
        for train in sizes:
            heads = fit_all(source, features["pixels"][train], features["embeddings"][train], labels[train])
            for method, (head, kind) in heads.items():
                scores = [head.score(features[kind][rows], labels[rows]) for rows in (train, test)]
                found.append((method, len(train), draw, *scores))
    return pd.DataFrame(found, columns=["method", "labels", "draw", "train", "test"])


def count_saved(means):
    """How many labels the embeddings alone need for what the source reaches, read off between the points."""
    scratch, labels = np.maximum.accumulate(means["embeddings"]), np.log(means.index)
    return np.exp(np.interp(means["chosen weight"], scratch, labels)).round().astype(int)


def plot(scores, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for method, rows in scores.groupby("method", sort=False):
        train, test = (rows.pivot(index="labels", columns="draw", values=part) for part in ("train", "test"))
        display = LearningCurveDisplay(
            train_sizes=train.index.to_numpy(), train_scores=train.to_numpy(), test_scores=test.to_numpy()
        )
        style = {"linestyle": STYLES.get(method, "-"), "marker": "o", "markersize": 4}
        display.plot(axes, score_type="test", line_kw=style, fill_between_kw={"alpha": 0.15})
        display.lines_[0].set_label(method)
    sizes = train.index.to_numpy()
    axes.set(xscale="log", xlabel="Labels of the target, 10 digits", ylabel="Accuracy")
    axes.set_xticks(sizes, sizes)
    axes.set_title(f"Tilted digits on another photograph (mean ± sd of {N_DRAWS} draws)")
    axes.minorticks_off()
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=110)


def main(output=None):
    before = cache_info().misses
    (source_photos, source_labels), (photos, labels) = make_tasks()
    embed = make_pipeline(PretrainedFeatureExtractor(layer=LAYERS), StandardScaler())
    source = make_pipeline(embed, LogisticRegression(C=0.01)).fit(source_photos, source_labels)
    grey = np.stack(photos).reshape(-1, CANVAS // 4, 4, CANVAS // 4, 4, 3).mean((2, 4, 5)) / 255
    features = {"pixels": grey.reshape(len(grey), -1), "embeddings": source[:-1].transform(photos)}
    with threadpool_limits(1):  # small problems: a second thread costs more than it brings
        scores = learn(source[-1], features, labels)
    tables = scores.pivot_table(
        index="labels", columns="method", values="test", sort=False, aggfunc=["mean", "std"], dropna=False
    )
    means, spreads = tables["mean"], tables["std"]
    print(means.assign(worth=count_saved(means)).to_string(float_format="{:.3f}".format))
    print(spreads.to_string(float_format="{:.3f}".format))
    print(f"Images through the network: {cache_info().misses - before} of {len(source_photos) + len(photos)}")
    if output:
        try:
            plot(scores, output)
        except ImportError:
            print("The plot is left out: pip install matplotlib")
    return means, spreads


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", default="few_labels.png", help="where to write the plot")
    main(**vars(parser.parse_args()))

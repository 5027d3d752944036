"""How much does adaptation bring where photos look different, and what does it cost where they do not?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_adaptation

PACS: seven classes as art paintings, cartoons, photos and sketches; every pair is a task, with labels for the first
kind only. Then tasks in which there is little or nothing to adapt: the other half of the same domain, the same under a
colour cast, clothing photographed by other people, small photos made darker and paler. The classifier is
``LogisticRegression(max_iter=1000)`` throughout; source only is that one on the embeddings as they are.
"""

from __future__ import annotations

import io
import itertools
import warnings
from collections import defaultdict

import joblib
import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import sktransfer
from benchmarks.measure import RESULTS, assets_folder, write_markdown
from sktransfer import AdaptedClassifier

BACKBONES = ("tiny-v1", "mobilenetv2_features", "inception_v3_mixed8")
DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
METHODS = {
    "auto": "auto",
    "standardize": "standardize",
    "coral": "coral",
    "subspace": "subspace",
    "importance": "importance",
    "ot": "ot",
    "pseudo": "pseudo",
    "standardize + coral": ["standardize", "coral"],
    "standardize + subspace": ["standardize", "subspace"],
    "standardize + ot": ["standardize", "ot"],
    "standardize + pseudo": ["standardize", "pseudo"],
    "standardize + subspace + pseudo": ["standardize", "subspace", "pseudo"],
}
CLASSES = (10, 25, 50)  # of the small photos
LOSS = 0.01  # of accuracy: more counts as harm


def load_pacs():
    """Return paths, classes and domains."""
    folder = assets_folder() / "datasets" / "pacs"
    paths = sorted(path for path in folder.glob("*/*/*") if path.suffix in {".jpg", ".png"})
    return paths, np.array([path.parent.name for path in paths]), np.array([path.parent.parent.name for path in paths])


def cast(path):
    """Another light and another lens: darker, warmer, a little out of focus."""
    pixels = np.asarray(ImageEnhance.Brightness(Image.open(path).convert("RGB")).enhance(0.8)) * [1.15, 1.0, 0.75]
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1)))


def load_small():
    """Return photos of 64 pixels and classes for training, and for the test as they are and paler."""
    folder = assets_folder() / "pretrain"
    train = pd.read_parquet(folder / "tiny_imagenet_train_0.parquet")
    test = pd.read_parquet(folder / "tiny_imagenet_val.parquet")
    classes = sorted(test.wnid.unique())[::4]
    train, test = (table[table.wnid.isin(classes)] for table in (train, test))
    train = train.groupby("wnid").head(30)
    opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in [*train.image, *test.image]]
    paler = [ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(0.7)).enhance(0.6) for image in opened]
    paler = [np.asarray(image.filter(ImageFilter.GaussianBlur(0.5))) for image in paler[len(train) :]]
    pixels = [np.asarray(image) for image in opened]
    labels = train.wnid.to_numpy(str), test.wnid.to_numpy(str)
    return pixels[: len(train)], labels[0], pixels[len(train) :], paler, labels[1]


def far_tasks(embed):
    """Yield name, source, target: the twelve pairs."""
    paths, y, domain = load_pacs()
    X = embed(paths)
    for source, target in itertools.permutations(DOMAINS, 2):
        a, b = domain == source, domain == target
        yield f"{source} → {target}", (X[a], y[a]), (X[b], y[b])


def near_tasks(embed):
    """Yield group, source, target: little or nothing to adapt."""
    rng = np.random.default_rng(0)
    paths, y, domain = load_pacs()
    X, recoloured = embed(paths), embed([cast(path) for path in paths])
    for name, _ in itertools.product(DOMAINS, range(3)):
        rows = rng.permutation(np.flatnonzero(domain == name))
        a, b = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        yield "the same domain", (X[a], y[a]), (X[b], y[b])
        yield "a colour cast", (X[a], y[a]), (recoloured[b], y[b])
    yield from clothing_tasks(embed, rng)
    train, known, test, paler, labels = load_small()
    train, test, paler = embed(train), embed(test), embed(paler)
    for size, _ in itertools.product(CLASSES, range(4)):
        chosen = rng.permutation(np.unique(known))[:size]
        a, b = np.isin(known, chosen), np.isin(labels, chosen)
        yield f"other photos, {size} classes", (train[a], known[a]), (test[b], labels[b])
        yield f"paler photos, {size} classes", (train[a], known[a]), (paler[b], labels[b])


def clothing_tasks(embed, rng):
    table = pd.read_csv(assets_folder() / "datasets" / "clothing" / "images.csv")
    folder = assets_folder() / "datasets" / "clothing" / "images"
    X, y, people = embed([folder / f"{name}.jpg" for name in table.image]), table.label.to_numpy(str), table.sender_id
    for _ in range(10):
        a = people.isin(rng.permutation(people.unique())[: int(0.6 * people.nunique())]).to_numpy()
        b = ~a & np.isin(y, y[a])
        yield "clothing by other people", (X[a], y[a]), (X[b], y[b])


def adapt(method, source, target):
    """Return accuracy of the source only and adapted, the AUC between the domains, and whether it looks harmful."""
    (X, y), (Z, truth) = source, target
    labels = np.concatenate([y.astype(object), np.full(len(Z), None)])
    domains = np.repeat([1, -1], [len(X), len(Z)])
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier = LogisticRegression(max_iter=1000)
        alone = classifier.fit(X, y).score(Z, truth)
        adapted = AdaptedClassifier(classifier, method).fit(np.concatenate([X, Z]), labels, sample_domain=domains)
    accuracy = float(np.mean(adapted.predict(Z) == truth))
    return alone, accuracy, adapted.report_.domain_auc, adapted.report_.harmful


def summarise(name, results):
    """One row: means over the tasks; gains with their standard error, worst and best."""
    alone, adapted, auc, flagged = np.array(results, dtype=float).T
    gains = adapted - alone
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    return [
        name, f"{auc.mean():.2f}", f"{alone.mean():.3f}", f"{adapted.mean():.3f}", f"{gains.mean():+.3f} ± {error:.3f}",
        f"{gains.min():+.2f} … {gains.max():+.2f}", f"{int((gains < -LOSS).sum())} of {len(gains)}",
        f"{int(flagged.sum())}",
    ]  # fmt: skip


def plot(far):
    """Draw every pair's accuracy by method."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(BACKBONES), figsize=(12, 4.5), sharey=True, layout="constrained")
    for ax, backbone in zip(axes, BACKBONES, strict=True):
        columns = {"source only": [pair[0] for pair in far[backbone]["auto"]]}
        columns |= {name: [pair[1] for pair in far[backbone][name]] for name in METHODS}
        for height, values in enumerate(reversed(columns.values())):
            ax.plot(values, [height] * len(values), "o", color="C0", alpha=0.35, markersize=4)
            ax.plot(np.mean(values), height, "|", color="C3", markersize=16, markeredgewidth=2.5)
        ax.axvline(np.mean(columns["source only"]), color="0.6", linewidth=0.8)
        ax.set(title=backbone, xlabel="accuracy on the target", xlim=(0, 1))
        ax.set_yticks(range(len(columns)), list(columns)[::-1])
    figure.suptitle("PACS: twelve pairs of domains (dots) and their mean (bars)")
    figure.savefig(RESULTS / "adaptation.png", dpi=120)


def main():
    rows, far = [], {}
    for backbone in BACKBONES:
        model = backbone if backbone == "tiny-v1" else str(assets_folder() / "models" / backbone)
        embed = lambda images, model=model: sktransfer.extract(images, model, verbose=True)  # noqa: E731
        tasks = list(far_tasks(embed))
        run = joblib.Parallel(n_jobs=2, verbose=5)
        done = run(joblib.delayed(adapt)(method, a, b) for method in METHODS.values() for _, a, b in tasks)
        far[backbone] = {name: done[i * len(tasks) : (i + 1) * len(tasks)] for i, name in enumerate(METHODS)}
        rows += [summarise(f"{backbone}: PACS, {name}", far[backbone][name]) for name in METHODS]
        near = list(near_tasks(embed))
        groups = defaultdict(list)
        for (group, *_), result in zip(near, run(joblib.delayed(adapt)("auto", a, b) for _, a, b in near), strict=True):
            groups[group].append(result)
        rows += [summarise(f"{backbone}: {group}, auto", results) for group, results in groups.items()]
    plot(far)
    write_markdown(
        "adaptation",
        "How much does adaptation bring where photos look different, and what does it cost where they do not?",
        "python -m benchmarks.bench_adaptation",
        ["task, method", "AUC between the domains", "source only", "adapted", "gain ± standard error", "worst … best",
         "loses more than 0.01", "called harmful by `report_`"],
        rows,
        "![accuracies](adaptation.png)\n\nMean accuracy on the target rows, whose labels were not given. There are 50 "
        "classes of small photos, so that the four draws of 50 are one and the same task.",
    )  # fmt: skip


if __name__ == "__main__":
    main()

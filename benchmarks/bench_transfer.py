"""How many labels does a source save, on photos by people it has not seen?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_transfer

Clothing, 17 kinds, split by the person who took the photo: half of the people are the source, with all their labels;
the others are the target, with k labels a kind. A hundred draws of people and labels; the rest of the target's photos
are the test.
"""

from __future__ import annotations

from collections import defaultdict

import joblib
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import sktransfer
from benchmarks.measure import RESULTS, assets_folder, write_markdown
from sktransfer import TransferLogisticRegression

BACKBONES = ("tiny-v1", "mobilenetv2_features", "inception_v3_mixed8")
LABELS = (1, 2, 5, 10)  # a kind
DRAWS = 100
GAMES = 5  # on the source's own people, to choose source_weight
SOURCE_C = 0.01
CS = (0.001, 0.01, 0.1, 1.0)  # from scratch, the best in hindsight
WEIGHTS = (1.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 10_000.0)
TOL = 1e-2
METHODS = ("source alone", "from scratch", "warm start", "pulled to the source", "pulled, weight by cross-validation")


def divide(rng, people):
    """Mark the photos of a random half of the people: about half of the photos."""
    counts = pd.Series(people).value_counts()
    chosen, taken = [], 0
    for person in rng.permutation(counts.index.to_numpy()):
        if taken + counts[person] <= 0.5 * len(people):
            chosen.append(person)
            taken += counts[person]
    return np.isin(people, chosen)


def label(rng, rows, y, k):
    """Return k rows a kind, at most half of those there are, and the rest."""
    few = [rng.permutation(rows[y[rows] == kind]) for kind in np.unique(y[rows])]
    few = np.concatenate([photos[: min(k, max(1, len(photos) // 2))] for photos in few])
    return few, np.setdiff1d(rows, few)


def pull(source, X, y, weight):
    return TransferLogisticRegression(source, C=np.inf, source_weight=weight, tol=TOL).fit(X, y)


def choose_weight(rng, X, y, people):
    """Return the weight that does best, over all k, when half of the source's people play the target."""
    scores = defaultdict(list)
    for _ in range(GAMES):
        first = divide(rng, people)
        source = TransferLogisticRegression(C=SOURCE_C, tol=TOL).fit(X[first], y[first])
        for k in LABELS:
            few, rest = label(rng, np.flatnonzero(~first), y, k)
            for weight in WEIGHTS:
                scores[weight].append(pull(source, X[few], y[few], weight).score(X[rest], y[rest]))
    return max(WEIGHTS, key=lambda weight: np.mean(scores[weight]))


def warm_start(source, X, y):
    """Begin at the source and converge, as scikit-learn's warm_start does."""
    head = LogisticRegression(C=SOURCE_C, warm_start=True, max_iter=1000)
    head.coef_, head.intercept_, head.classes_ = source.coef_.copy(), source.intercept_.copy(), source.classes_
    return head.fit(X, y)


def draw(seed, X, y, people):
    """Return (k, method) -> accuracy on the target's other photos; from scratch once for each C."""
    rng, result = np.random.default_rng(seed), {}
    with threadpool_limits(1):
        of_source = divide(rng, people)
        scaled = StandardScaler().fit(X[of_source]).transform(X)
        source = TransferLogisticRegression(C=SOURCE_C, tol=TOL).fit(scaled[of_source], y[of_source])
        chosen = choose_weight(rng, scaled[of_source], y[of_source], people[of_source])
        for k in LABELS:
            few, rest = label(rng, np.flatnonzero(~of_source), y, k)
            known, labels = scaled[few], y[few]
            heads = {"source alone": source, "pulled to the source": pull(source, known, labels, chosen)}
            heads |= {("from scratch", C): TransferLogisticRegression(C=C, tol=TOL).fit(known, labels) for C in CS}
            if set(labels) == set(source.classes_):
                heads["warm start"] = warm_start(source, known, labels)
            folds = min(k, 3, np.unique(labels, return_counts=True)[1].min())
            if folds > 1:
                heads["pulled, weight by cross-validation"] = GridSearchCV(
                    TransferLogisticRegression(source, C=np.inf, tol=TOL), {"source_weight": WEIGHTS},
                    cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
                ).fit(known, labels)  # fmt: skip
            result |= {(k, name): head.score(scaled[rest], y[rest]) for name, head in heads.items()}
            result[k, "weight"] = chosen
    return result


def summarise(draws):
    """Return (k, method) -> accuracies; from scratch with the C that is best in hindsight."""
    table = pd.DataFrame(draws)
    for k in LABELS:
        best = max(CS, key=lambda C: table[k, ("from scratch", C)].mean())
        table[k, "from scratch"] = table[k, ("from scratch", best)]
    return table


def describe(values):
    values = values.dropna()
    if values.empty:
        return "–"
    return f"{values.mean():.3f} ± {1.96 * values.std() / len(values) ** 0.5:.3f}"


def tabulate(name, table):
    for k in LABELS:
        pulled = table[k, "pulled to the source"]
        accuracies = [describe(table[k, m]) if (k, m) in table else "–" for m in METHODS]
        gains = [describe(pulled - table[k, method]) for method in METHODS[:2]]
        yield [name, k, *accuracies, *gains, f"{table[k, 'weight'].median():.0f}"]


def plot(tables):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(tables), figsize=(4.2 * len(tables), 4), sharey=True, layout="constrained")
    styles = dict(zip(METHODS, ("0.5", "tab:blue", "tab:cyan", "tab:red", "tab:orange"), strict=True))
    for axis, (name, table) in zip(axes, tables.items(), strict=True):
        for method, color in styles.items():
            found = [k for k in LABELS if (k, method) in table and table[k, method].notna().any()]
            mean = np.array([table[k, method].mean() for k in found])
            error = np.array([1.96 * table[k, method].std() / table[k, method].count() ** 0.5 for k in found])
            axis.plot(found, mean, "o-", color=color, label=method, markersize=4, linewidth=1.5)
            axis.fill_between(found, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
        axis.set(title=name, xscale="log", xticks=LABELS, xticklabels=LABELS, xlabel="labels a kind, of the target")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, photos by other people")
    axes[-1].legend(fontsize=8, loc="lower right")
    figure.savefig(RESULTS / "transfer.png", dpi=110)


def main() -> None:
    folder = assets_folder()
    photos = pd.read_csv(folder / "datasets" / "clothing" / "images.csv")
    paths = [str(folder / "datasets" / "clothing" / "images" / f"{name}.jpg") for name in photos["image"]]
    y, people = photos["label"].to_numpy(), photos["sender_id"].to_numpy()
    tables = {}
    for name in BACKBONES:
        X = sktransfer.extract(paths, name if name == "tiny-v1" else folder / "models" / name).astype(np.float64)
        draws = joblib.Parallel(2, verbose=1)(joblib.delayed(draw)(seed, X, y, people) for seed in range(DRAWS))
        tables[name] = summarise(draws)
    plot(tables)
    write_markdown(
        "transfer",
        "How many labels does a source save, on photos by people it has not seen?",
        "python -m benchmarks.bench_transfer",
        ["backbone", "labels a kind", *METHODS, "pulled − source alone", "pulled − from scratch", "median weight"],
        [row for name, table in tables.items() for row in tabulate(name, table)],
        f"""Accuracy, mean over {DRAWS} draws ± 1.96 standard errors; differences are taken draw by draw. Draws share
photos, so that the errors are those of drawing people and labels again from these 184 people, not from all people.
Embeddings are standardised with the source's mean and deviation. The source is a logistic regression (C={SOURCE_C}) on
all labels of its people. *From scratch* has for each k the C of {", ".join(map(str, CS))} that is best in hindsight.
*Warm start* is `LogisticRegression(C={SOURCE_C}, warm_start=True)` begun at the source's weights: being convex, it
forgets them. *Pulled* is `TransferLogisticRegression(source, C=inf)`; its `source_weight` was chosen without the
target, one for all k, by {GAMES} games of the same kind among the source's own people (it says how alike people are,
not how many labels there are), or by cross-validation on the target's k labels (three folds; two for k = 2, none
for k = 1). ![accuracy over labels a kind](transfer.png)""",
    )


if __name__ == "__main__":
    main()

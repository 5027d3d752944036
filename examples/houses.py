"""The price of houses from a table and a photo of their front: do the photos help?

A little, if at all. The numbers alone reach an R² of 0.76 of log(price) with a ridge; the photos alone 0.2 with the
default backbone and 0.3 to 0.4 with ImageNet networks, so they do show some of the price. But both together gain only
0.00, 0.02 and 0.03, with intervals that contain 0 (just: -0.001 to 0.062 with the best of three backbones), and take
at most 2 points off a mean error of 31 %. Boosting says the same, and is worse throughout: 535 houses are few. And a
column that matters need not help: shuffled photos cost 0.1 of R², but they mostly repeat what area and zipcode say.

    python examples/houses.py FOLDER [--backbone NAME] [-o houses.png]

FOLDER is the Houses data set of Ahmed and Moustafa (2016), arXiv:1609.08399,
https://github.com/emanhamed/Houses-dataset: HousesInfo.txt, and the photos beside it or in images/.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import t
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.inspection import permutation_importance
from sklearn.linear_model import RidgeCV
from sklearn.metrics import make_scorer, mean_absolute_percentage_error
from sklearn.model_selection import GroupKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from sktransfer import cache_info, duplicate_groups, make_image_block

NUMBERS = ["bedrooms", "bathrooms", "area", "zipcode"]
N_FOLDS = 5
N_SHUFFLES = 20  # of a column, for its importance
ESTIMATORS = {
    "ridge": make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 11))),
    "boosting": HistGradientBoostingRegressor(max_iter=150, learning_rate=0.05, random_state=0),
}


def price_error(y, predicted):
    return mean_absolute_percentage_error(np.exp(y), np.exp(predicted))


SCORES = {"R²": "r2", "MAPE": make_scorer(price_error)}  # of log(price), of the price


def read_table(folder):
    """Line i of the text file is house i."""
    table = pd.read_csv(folder / "HousesInfo.txt", sep=r"\s+", names=[*NUMBERS, "price"])
    place = "images/" if (folder / "images").is_dir() else ""
    return table.assign(frontal=[f"{place}{house}_frontal.jpg" for house in range(1, len(table) + 1)])


def make_groups(table, folder):
    """Rows with the same photo or the same numbers, directly or through others: listed again, or as good as."""
    photo = duplicate_groups(table["frontal"], root=folder)
    numbers = table.groupby(NUMBERS).ngroup() + photo.max() + 1
    n_nodes = numbers.max() + 1
    graph = coo_array((np.ones(len(table)), (photo, numbers)), shape=(n_nodes, n_nodes))
    return connected_components(graph, directed=False)[1][photo]


def make_folds(groups, n_repeats):
    repeats = [GroupKFold(N_FOLDS, shuffle=True, random_state=repeat) for repeat in range(n_repeats)]
    return [fold for folds in repeats for fold in folds.split(groups, groups=groups)]


def make_features(folder, backbone):
    """What each candidate sees; a photo that cannot be read is an error, as every house has one."""
    numbers = [
        (FunctionTransformer(np.log), ["area"]),
        ("passthrough", ["bedrooms", "bathrooms"]),
        (OneHotEncoder(min_frequency=5, handle_unknown="infrequent_if_exist", sparse_output=False), ["zipcode"]),
    ]
    photos = [(make_image_block(backbone, n_components=32, root=folder, broken_images="error"), "frontal")]
    columns = {"numbers": numbers, "photos": photos, "both": numbers + photos}
    return {name: make_column_transformer(*chosen) for name, chosen in columns.items()}


def compare(gains, folds):
    """Mean of the gains and its 95 % interval, corrected as in Nadeau and Bengio (2003).

    The folds share most of their training rows, so the variance counts 1/n + n_test/n_train times, not 1/n.
    """
    n, ratio = len(folds), np.mean([len(test) / len(train) for train, test in folds])
    half = t.ppf(0.975, n - 1) * gains.std() * np.sqrt(1 / n + ratio)
    return pd.DataFrame({"both - numbers": gains.mean(), "low": gains.mean() - half, "high": gains.mean() + half})


def explain(pipeline, table, target, fold):
    """What a shuffled column of the raw table, photos included, costs the prediction of one fold."""
    train, test = fold
    pipeline.fit(table.iloc[train], target.iloc[train])
    X, y = table[["frontal", *NUMBERS]].iloc[test], target.iloc[test]
    drops = permutation_importance(pipeline, X, y, scoring="r2", n_repeats=N_SHUFFLES, random_state=0)
    return pd.DataFrame({"loss of R²": drops.importances_mean, "sd": drops.importances_std}, X.columns)


def plot(answers, gains, intervals, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, 2, height_ratios=[3, 2]).T
    titles = {"R²": "R² of log(price): higher is better", "MAPE": "Mean relative error of the price: lower is better"}
    for score, hint, (above, below) in zip(titles, ("photos help →", "← photos help"), panels, strict=True):
        for place, estimator in enumerate(ESTIMATORS):
            found = answers.loc[score].loc[estimator]
            bars = above.bar(np.arange(3) + 0.4 * place, found["mean"], 0.38, yerr=found["sd"], capsize=3, alpha=0.7)
            above.bar_label(bars, fmt="{:.2f}", label_type="center", padding=-28)
            mean, low, high = intervals.loc[score].loc[estimator]
            below.plot(gains[score][estimator], [place + 0.25] * len(gains), "|", color="grey")
            below.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=4)
        above.set(title=titles[score], xticks=np.arange(3) + 0.2, xticklabels=found.index)
        above.legend(above.containers[1::2], ESTIMATORS, title="± sd over folds")
        below.axvline(0, color="black", linewidth=1, zorder=0)
        gained = intervals.loc[score]["both - numbers"]
        below.set_yticks(range(len(gained)), [f"{name}\n{gain:+.3f}" for name, gain in gained.items()])
        below.locator_params(axis="x", nbins=6)
        below.set(title="both − numbers: folds (|), mean, 95 % interval", xlabel=hint, ylim=(1.6, -0.4))
    figure.savefig(path, dpi=110)


def main(folder, backbone="default", output=None, n_repeats=5):
    folder = Path(folder)
    table = read_table(folder)
    target, groups = np.log(table["price"]), make_groups(table, folder)
    folds, features = make_folds(groups, n_repeats), make_features(folder, backbone)
    found = {}
    for (estimator, last), (name, columns) in product(ESTIMATORS.items(), features.items()):
        pipeline = make_pipeline(columns, last)
        result = cross_validate(pipeline, table, target, cv=folds, scoring=SCORES, error_score="raise")
        found |= {(score, estimator, name): result[f"test_{score}"] for score in SCORES}
    scores = pd.DataFrame(found)[list(SCORES)].rename_axis(columns=["score", "estimator", "features"])
    answers = pd.DataFrame({"mean": scores.mean(), "sd": scores.std()})
    gains = scores.xs("both", axis=1, level=2) - scores.xs("numbers", axis=1, level=2)
    intervals = compare(gains, folds)
    passes = cache_info().misses
    weights = explain(make_pipeline(features["both"], ESTIMATORS["ridge"]), table, target, folds[0])
    print(f"{len(table)} houses, {len(set(groups))} groups that share no photo and no numbers, {len(folds)} folds\n")
    print(*(frame.round(3).to_string() for frame in (answers, intervals, weights)), sep="\n\n")
    print(f"\nForward passes that the importances cost: {cache_info().misses - passes}")
    if output:
        plot(answers, gains, intervals, output)
    return answers, intervals, weights


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--backbone", default="default")
    parser.add_argument("-o", "--output", help="where to write the plot")
    main(**vars(parser.parse_args()))

"""A network is trained, saved and loaded for another task: does its fit keep what it has learnt?

No. `fit` of a loaded MLPClassifier draws new weights: it is exactly as good as a network that has never seen anything
(0.84 with 40 labels of a scanner that has slipped by 12°). `warm_start=True` begins at the old weights, but compares
with the losses of the source, sees no improvement, and stops after one epoch (0.85). Three lines that keep it (0.90):

    source = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))  # or joblib.load(path)
    head = TransferMLPClassifier(source, source_weight=0.1)
    head.fit(X, y)

Its hidden layers alone, under a new last layer, are worth less here (`transfer="features"`, 0.86), the sizes of its
layers and its parameters nothing (`transfer="structure"`, 0.84). The head is itself a source: for 10 labels of a
scanner that slips on to 20°, the way over the first target (0.81) is better than that from the source alone (0.77),
and a fresh network is worse (0.69). A source helps where labels are few and its task is near: with 20 labels at 24°
the fresh network (0.78) is no worse than the one from the source (0.77).

A joblib file runs whatever its author put into it, so load only those of people you trust; a skops file can be
inspected before anything in it runs.
"""

from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import joblib
import pandas as pd
from scipy.ndimage import rotate
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from sktransfer import TransferMLPClassifier

N_IMAGES = 1797  # the first half for the source, the second for both targets
TILTS = {"source": 0, "target": 12, "later": 20}  # degrees: the scanner slips, and slips again
N_LABELS = {"target": 40, "later": 10}
N_DRAWS = 5
SOURCE_WEIGHT = 0.1
NETWORK = MLPClassifier((32,), learning_rate_init=0.01, tol=1e-3, max_iter=1000, random_state=0)


def write_tasks(folder):
    """One CSV file a task: 64 columns of pixels from 0 to 1, and the digit."""
    digits = load_digits()
    half = N_IMAGES // 2
    for task, tilt in TILTS.items():
        rows = slice(0, half) if task == "source" else slice(half, N_IMAGES)
        images = rotate(digits.images[rows] / 16, tilt, axes=(1, 2), reshape=False, order=1)
        table = pd.DataFrame(images.reshape(-1, 64).round(3), columns=digits.feature_names)
        table.assign(digit=digits.target[rows]).to_csv(folder / f"{task}.csv", index=False)


def read_task(folder, task):
    table = pd.read_csv(folder / f"{task}.csv")
    return table.drop(columns="digit"), table["digit"]


def draw_labels(folder, task, draw):
    """X and y of a few labelled rows of a task, and of all others to test on."""
    X, y = read_task(folder, task)
    parts = train_test_split(X, y, train_size=N_LABELS[task], stratify=y, random_state=draw)
    return parts[::2], parts[1::2]


def load_with_skops(path):
    """Load what is in a skops file, after a look at which of its types skops does not know as harmless."""
    import skops.io

    unknown = skops.io.get_untrusted_types(file=path)
    print(f"In {path.name}, to be trusted or not: {', '.join(unknown)}")
    return skops.io.load(path, trusted=unknown)


def save_and_load(network, folder):
    """The network by way of a joblib file, and of a skops file where skops is installed."""
    joblib.dump(network, folder / "source.joblib")
    loaded = {"joblib": joblib.load(folder / "source.joblib")}
    try:
        import skops.io

        skops.io.dump(network, folder / "source.skops")
        loaded["skops"] = load_with_skops(folder / "source.skops")
    except ImportError:
        print("The line of skops is left out: pip install skops")
    return loaded


def fit_head(source, transfer, X, y):
    """The right way: a head that knows its source, and leaves it as it is."""
    head = TransferMLPClassifier(source, transfer=transfer, source_weight=SOURCE_WEIGHT, random_state=0)
    return head.fit(X, y)


def fit_all(loaded, X, y):
    """Every way to a network for a few labels; copies, since `fit` changes what it is called on."""
    source = loaded["joblib"]
    networks = {"source alone": source, "fresh network": clone(source).fit(X, y)}
    for name, network in loaded.items():
        networks[f"{name}: load, fit"] = deepcopy(network).fit(X, y)
    networks["warm_start=True"] = deepcopy(source).set_params(warm_start=True).fit(X, y)
    for kind in ("structure", "features", "parameters"):
        networks[f'transfer="{kind}"'] = fit_head(source, kind, X, y)
    return networks


def main():
    found = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder)
        loaded = save_and_load(clone(NETWORK).fit(*read_task(folder, "source")), folder)
        for draw in range(N_DRAWS):
            few, test = draw_labels(folder, "target", draw)
            networks = fit_all(loaded, *few)
            found += [("target", way, network.score(*test), network.n_iter_) for way, network in networks.items()]
            first = networks['transfer="parameters"']
            few, test = draw_labels(folder, "later", draw)
            chain = {
                "fresh network": clone(NETWORK).fit(*few),
                "source → later": fit_head(loaded["joblib"], "parameters", *few),
                "source → target → later": fit_head(first, "parameters", *few),
            }
            found += [("later", way, network.score(*test), network.n_iter_) for way, network in chain.items()]
    scores = pd.DataFrame(found, columns=["task", "way", "accuracy", "epochs"]).groupby(["task", "way"], sort=False)
    table = scores["accuracy"].agg(["mean", "std"]).assign(epochs=scores["epochs"].median())
    print(table.to_string(float_format="{:.3f}".format))
    return table


if __name__ == "__main__":
    main()

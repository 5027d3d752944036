"""Many processes, one forward pass for each distinct image, whoever dies."""

import itertools
import json
import os
import random
import shutil
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import encode, photo
from counting import CountingExtractor
from joblib import parallel_config
from sklearn.ensemble import StackingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sktransfer.claims
from sktransfer import Preprocessing, extract
from sktransfer.cache import close_all, locate_cache, open_cache
from sktransfer.database import FILE_NAME

fork_only = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
N = 60


@pytest.fixture
def counted(counting_log):
    """Rows that reach onnxruntime.InferenceSession.run, over all processes since the last call."""
    sktransfer.release_sessions()  # those opened before do not count

    def count():
        rows = [int(line) for line in counting_log.read_text().split()]
        counting_log.write_text("")
        return sum(rows)

    return count


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = [folder / f"{i}.png" for i in range(N)]
    for i, path in enumerate(paths):
        path.write_bytes(encode(photo(i)))
    return np.array([str(path) for path in paths], dtype=object), np.arange(N) % 3


@pytest.fixture
def pipeline(own_backbone_file):
    extractor = CountingExtractor(own_backbone_file)
    return make_pipeline(extractor, StandardScaler(), LogisticRegression(max_iter=20))


GRID = {"logisticregression__C": [0.01, 0.1, 1.0, 10.0]}


@pytest.fixture(autouse=True)
def _few_iterations():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(
    ("backend", "n_jobs"),
    [("loky", 1), ("loky", 2), ("threading", 2), ("multiprocessing", 2),
     *(pytest.param(backend, 4, marks=pytest.mark.slow) for backend in ("loky", "threading", "multiprocessing"))],
)  # fmt: skip
def test_a_grid_search_costs_one_pass_an_image_and_the_next_none(pipeline, data, workers, counted, backend, n_jobs):
    for expected in (N, 0):
        with parallel_config(backend=backend):
            GridSearchCV(pipeline, GRID, cv=5, n_jobs=n_jobs, error_score="raise").fit(*data)
        assert counted() == expected


def test_the_same_with_half_the_bound(pipeline, data, counted, monkeypatch):
    GridSearchCV(pipeline, GRID, cv=5, error_score="raise").fit(*data)
    working_set = (locate_cache() / FILE_NAME).stat().st_size
    close_all()
    (locate_cache() / FILE_NAME).unlink()
    monkeypatch.setenv("SKTRANSFER_CACHE_SIZE", str(working_set // 2))
    counted()
    for expected in (N, 0):
        GridSearchCV(pipeline, GRID, cv=5, error_score="raise").fit(*data)
        open_cache().close()
        assert counted() == expected


def stack(pipeline):
    return StackingClassifier([("a", pipeline), ("b", pipeline)], final_estimator=LogisticRegression(), cv=3)


@pytest.mark.parametrize(
    "use",
    [
        lambda p, X, y: cross_validate(p, X, y, return_train_score=True, error_score="raise"),
        lambda p, X, y: HalvingGridSearchCV(p, GRID, cv=3, error_score="raise", min_resources=20).fit(X, y),
        lambda p, X, y: learning_curve(p, X, y, error_score="raise", shuffle=True, random_state=0),
        lambda p, X, y: stack(p).fit(X, y).predict(X),
        pytest.param(lambda p, X, y: permutation_test_score(p, X, y, n_permutations=3), marks=pytest.mark.slow),
        pytest.param(
            lambda p, X, y: cross_val_score(GridSearchCV(p, GRID, cv=3), X, y, cv=3, error_score="raise"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["cross_validate", "halving", "learning_curve", "stacking", "permutation", "nested"],
)
def test_whatever_asks_the_cost_is_one_pass_an_image(pipeline, data, counted, use):
    X, y = data
    use(pipeline, X, y)
    assert counted() == N
    use(pipeline, X, y)
    assert counted() == 0


def test_memory_of_the_pipeline_may_lie_on_top(pipeline, data, counted, tmp_path):
    pipeline.memory = str(tmp_path / "memory")
    GridSearchCV(pipeline, GRID, cv=5, error_score="raise").fit(*data)
    assert counted() == N


def test_a_grid_over_backbones_and_layers_costs_one_pass_for_each(pipeline, data, counted, own_backbone_file):
    grid = {"countingextractor__layer": ["pooled", "last_relu", None], **GRID}
    GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(*data)
    assert counted() == 2 * N  # None is the pooled layer
    grid = {"countingextractor__backbone": [own_backbone_file, "default"]}
    GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(*data)
    assert counted() == N


def test_workers_report_to_the_bar_of_the_parent(pipeline, data, workers, counted, capfd):
    pipeline.set_params(countingextractor__verbose=True)
    GridSearchCV(pipeline, GRID, cv=5, n_jobs=2, error_score="raise").fit(*data)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("images: 100%") >= 1
    last = err.strip().splitlines()[-1]
    assert "cached=60, passes=0" in last
    assert f"workers={20 * N - N} cached, {N} passes" in last
    assert err.count("images:") <= 3  # one bar, of the final fit


# -- processes that die -------------------------------------------------------------------------------------------


def run_forked(work):
    """Start `work` in a forked child; returns its process id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            warnings.simplefilter("error", sktransfer.CacheWarning)
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def wait_for(pids):
    return {pid: os.waitpid(pid, 0)[1] for pid in pids}


@fork_only
def test_a_claim_dies_with_its_process(backbone_file, photos, tmp_path, counted):
    expected = extract(photos, backbone_file, cache_dir=None)

    def hang():
        sktransfer.embedding.decoding = lambda *args: time.sleep(60)
        extract(photos, backbone_file, n_jobs=1)

    pid = run_forked(hang)
    deadline = time.time() + 10
    while time.time() < deadline and not claims():
        time.sleep(0.01)
    assert claims() > 0
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    started = time.monotonic()
    np.testing.assert_array_equal(extract(photos, backbone_file), expected)
    assert time.monotonic() - started < 5
    assert claims() == 0


@fork_only
def test_a_stopped_process_holds_its_claims_for_a_limited_time(backbone_file, photos, monkeypatch):
    monkeypatch.setattr(sktransfer.claims, "CLAIM_SECONDS", 0.3)
    expected = extract(photos, backbone_file, cache_dir=None)

    def hang():
        sktransfer.embedding.decoding = lambda *args: time.sleep(60)
        extract(photos, backbone_file, n_jobs=1)

    pid = run_forked(hang)
    try:
        while not claims():
            time.sleep(0.01)
        os.kill(pid, signal.SIGSTOP)
        np.testing.assert_array_equal(extract(photos, backbone_file), expected)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def claims():
    store = open_cache()._open()
    return store.database.connection.execute("SELECT count(*) FROM claims").fetchone()[0]


def kill_one_of_four(images, backbone, random_state):
    """Four processes embed the same images, one is killed at a random instant; returns the survivors' statuses."""
    close_all()
    pids = []
    for seed in range(4):
        order = np.random.default_rng([random_state, seed]).permutation(len(images))
        pids.append(run_forked(lambda order=order: extract([images[i] for i in order], backbone, n_jobs=2)))
    generator = random.Random(random_state)
    time.sleep(generator.uniform(0, 0.25))
    victim = pids.pop(generator.randrange(4))
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    return wait_for(pids)


def clear_folder():
    close_all()
    for path in locate_cache().glob("*"):
        if path.is_file():
            path.unlink()


@fork_only
@pytest.mark.parametrize("n_runs", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_nothing_is_lost_or_wrong_when_a_process_is_killed(backbone_file, n_runs):
    images = [encode(photo(seed)) for seed in range(150)]
    expected = extract(images, backbone_file, cache_dir=None)
    sktransfer.release_sessions()
    for random_state in range(n_runs):
        clear_folder()
        assert set(kill_one_of_four(images, backbone_file, random_state).values()) == {0}
        before = sktransfer.session.forward_passes()
        np.testing.assert_array_equal(extract(images, backbone_file), expected)
        assert sktransfer.session.forward_passes() == before
        sktransfer.release_sessions()


@fork_only
@pytest.mark.slow
def test_eight_processes_with_overlapping_images(backbone_file, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9000, 32, 32, 3), dtype=np.uint8)
    expected = extract(images, backbone_file, cache_dir=None)
    sktransfer.release_sessions()

    def work(part):
        mine = slice(1000 * part, 1000 * part + 2000)
        found = extract(images[mine], backbone_file, n_jobs=1)
        report = {"wrong": int((found != expected[mine]).any(axis=1).sum())}
        report["passes"] = sktransfer.session.forward_passes()
        (tmp_path / f"{part}.json").write_text(json.dumps(report))

    statuses = wait_for([run_forked(lambda part=part: work(part)) for part in range(8)])
    reports = [json.loads((tmp_path / f"{part}.json").read_text()) for part in range(8)]
    assert set(statuses.values()) == {0}
    assert sum(report["wrong"] for report in reports) == 0
    assert sum(report["passes"] for report in reports) == 9000
    assert sum(report["passes"] > 0 for report in reports) > 4  # the work was shared


@fork_only
@pytest.mark.parametrize("n_runs", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_processes_that_create_the_file_at_the_same_time(backbone_file, photos, cache_folder, n_runs):
    for _ in range(n_runs):
        shutil.rmtree(cache_folder, ignore_errors=True)
        close_all()
        start = time.monotonic() + 0.05

        def work(start=start):
            while time.monotonic() < start:
                pass
            extract(photos, backbone_file, n_jobs=1)

        assert set(wait_for([run_forked(work) for _ in range(6)]).values()) == {0}


@fork_only
def test_a_forked_child_inherits_memory_and_opens_its_own_file(backbone_file, photos):
    expected = extract(photos, backbone_file)

    def work():
        before = sktransfer.session.forward_passes()
        np.testing.assert_array_equal(extract(photos, backbone_file), expected)
        assert sktransfer.session.forward_passes() == before
        extract([photo(100)], backbone_file)

    assert set(wait_for([run_forked(work)]).values()) == {0}
    assert extract([*photos, photo(100)], backbone_file).shape == (7, 8)
    assert sktransfer.cache_info().entries == 7


@fork_only
def test_ctrl_c_returns_soon_and_keeps_what_is_finished(backbone_file, tmp_path):
    resize, calls, (started, begin) = Preprocessing.resize_and_crop, itertools.count(), os.pipe()

    def slow(*args):
        if next(calls) == 40:
            os.write(begin, b"!")
        time.sleep(0.05)
        return resize(*args)

    def work():
        Preprocessing.resize_and_crop, before = slow, sktransfer.session.forward_passes()
        with pytest.raises(KeyboardInterrupt):
            extract(np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3), np.uint8), backbone_file, n_jobs=2)
        counts = sktransfer.session.forward_passes() - before, sktransfer.cache_info().entries
        (tmp_path / "counts.json").write_text(json.dumps(counts))

    pid = run_forked(work)
    os.close(begin)
    with open(started, "rb") as pipe:
        assert pipe.read(1)
    os.kill(pid, signal.SIGINT)
    sent = time.monotonic()
    assert wait_for([pid]) == {pid: 0}
    assert time.monotonic() - sent < 2
    passes, entries = json.loads((tmp_path / "counts.json").read_text())
    assert 0 < passes < 400
    assert entries == passes
    assert Path(backbone_file).exists()

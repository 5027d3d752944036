"""Real clusters of Ray, Spark and Dask on this machine: the bits of one process, whoever dies. Slow."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import IMAGENET, encode, photo, save_backbone, small_classifier
from counting import CountingExtractor
from dying import DyingPreprocessing
from joblib import parallel_config
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import sktransfer
from sktransfer import extract
from sktransfer.distributed import extract_dataframe, extract_dataset

pytestmark = [
    pytest.mark.slow,
    # What the engines warn of is about themselves and each other.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Spark (local mode|version) does.* support stage-level scheduling:UserWarning"),
    pytest.mark.filterwarnings("ignore:Spark session is not provided:UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
WORKER = re.compile("ray::(call|IDLE)|pyspark.worker|spawn_main")  # in the command line of a process that does parts
N_PHOTOS, N_BROKEN, N_ROWS = 600, 20, 5000


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Photos, a backbone, and the environment of all workers, which they keep as it is when they start."""
    folder = tmp_path_factory.mktemp("shared")
    for seed in range(N_PHOTOS):
        (folder / f"{seed}.png").write_bytes(encode(photo(seed)))
    for seed in range(N_BROKEN):
        (folder / f"{seed}.jpg").write_bytes(b"broken")
    save_backbone(folder / "small", small_classifier())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COUNTING_LOG", str(folder / "rows.log"))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(Path(__file__).parent), *sys.path])))
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")  # starts in half the time
        yield folder


@pytest.fixture(scope="module")
def rows():
    """5,000 references to 600 photos, some to broken files, some empty."""
    numbers = np.random.default_rng(0).integers(N_PHOTOS + 2 * N_BROKEN, size=N_ROWS)
    files = [f"{i}.png" for i in range(N_PHOTOS)] + [f"{i}.jpg" for i in range(N_BROKEN)] + [None] * N_BROKEN
    return pd.DataFrame({"id": np.arange(N_ROWS), "photo": pd.Series([files[n] for n in numbers], dtype=object)})


@pytest.fixture(scope="module")
def expected(shared, rows):
    """Array of one process, and its report."""
    options = {"root": shared, "missing_images": "nan", "broken_images": "nan", "cache_dir": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sktransfer.ImageReadWarning)
        return extract(rows["photo"], shared / "small" / "model.onnx", **options, return_report=True)


@pytest.fixture
def extractor(shared, tmp_path):
    """For the workers, with a cache of the test's own."""
    return CountingExtractor(str(shared / "small" / "model.onnx"), root=shared, cache_dir=tmp_path / "cache", n_jobs=1)


def check(found, expected):
    """Columns of pyarrow, sorted by id, against the array of one process and its report."""
    array, report = expected
    assert found["id"].to_pylist() == list(range(N_ROWS))
    vectors = [np.full(8, np.nan) if vector is None else vector for vector in found["small"].to_pylist()]
    np.testing.assert_array_equal(np.array(vectors, np.float32), array)
    failed = {row: reason for row, reason in enumerate(found["photo_error"].to_pylist()) if reason is not None}
    assert failed == dict(zip(report["row"], report["reason"], strict=True))
    assert [row for row, vector in enumerate(found["small"].to_pylist()) if vector is None] == list(failed)


# -- frames -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_ray():
    ray, data = pytest.importorskip("ray"), pytest.importorskip("ray.data")
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    data.DataContext.get_current().enable_progress_bars = False
    yield data
    ray.shutdown()


@contextlib.contextmanager
def open_dask():
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs="ERROR")
    with cluster, distributed.Client(cluster) as client:
        yield client


@contextlib.contextmanager
def open_spark():
    builder = pytest.importorskip("pyspark.sql").SparkSession.builder.master("local-cluster[2,1,1024]")
    for name in ("spark.ui.enabled", "spark.ui.showConsoleProgress"):
        builder = builder.config(name, "false")
    session = builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", "200").getOrCreate()
    yield session
    session.stop()


def start(open_cluster):
    """A fixture of a cluster that all tests share."""

    @pytest.fixture(scope="module")
    def cluster(shared):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_cluster() as opened:
                yield opened

    return cluster


ray_data, dask_client, spark = start(open_ray), start(open_dask), start(open_spark)


def use_ray(data, rows, extractor):
    dataset = extract_dataset(data.from_pandas(rows).repartition(20), "photo", extractor, concurrency=2, batch_size=100)
    return pa.concat_tables(sys.modules["ray"].get(dataset.to_arrow_refs()))


def use_dask(client, rows, extractor):
    from dask.dataframe import from_pandas

    found = extract_dataframe(from_pandas(rows, npartitions=8), "photo", extractor).compute()
    vectors = found[[f"small_{i}" for i in range(8)]].to_numpy()
    found["small"] = [vector if vector.sum() == vector.sum() else None for vector in vectors]
    return pa.Table.from_pandas(found)


def use_spark(session, rows, extractor):
    frame = session.createDataFrame([(int(i), name) for i, name in rows.to_numpy()], "id long, photo string")
    return extract_dataframe(frame.repartition(8), "photo", extractor).toArrow()


ENGINES = pytest.mark.parametrize(
    ("cluster", "use"), [("ray_data", use_ray), ("dask_client", use_dask), ("spark", use_spark)]
)


@ENGINES
def test_two_workers_give_the_array_of_one_process_and_its_failures(request, cluster, use, rows, expected, extractor):
    check(use(request.getfixturevalue(cluster), rows, extractor).sort_by("id"), expected)


@ENGINES
def test_a_worker_that_is_killed_costs_nothing(request, cluster, use, rows, expected, extractor, tmp_path):
    (tmp_path / "armed").touch()
    size = {"crop": (32, 32), "resize": 36, "mean": IMAGENET["image_mean"], "std": IMAGENET["image_std"]}
    extractor.set_params(preprocessing=DyingPreprocessing(**size, armed=str(tmp_path / "armed")))
    check(use(request.getfixturevalue(cluster), rows, extractor).sort_by("id"), expected)
    assert not (tmp_path / "armed").exists()


@pytest.mark.parametrize(("cluster", "engine"), [("ray_data", "ray"), ("dask_client", "dask"), ("spark", "spark")])
def test_the_recipe_of_the_page_runs(request, cluster, engine, rows, expected, shared, tmp_path):
    request.getfixturevalue(cluster)
    (tmp_path / "photos").symlink_to(shared)
    rows.to_parquet(tmp_path / "listings.parquet")
    code = re.search(rf"```python {engine}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[1]
    exec(compile(code.replace("/data/", f"{tmp_path}/"), PAGE.name, "exec"), {})
    found = pd.concat(map(pd.read_parquet, sorted((tmp_path / f"features-{engine}").glob("*.parquet"))))
    assert sorted(found["id"]) == list(range(N_ROWS))
    assert found["photo_error"].notna().sum() == len(expected[1])


# -- searches -----------------------------------------------------------------------------------------------------


@pytest.fixture
def joblib_as_it_was():
    """Ray puts its own pool under that of joblib's backend "multiprocessing", for all that come behind."""
    from joblib.pool import PicklingPool

    bases = PicklingPool.__bases__
    yield
    PicklingPool.__bases__ = bases


@pytest.mark.usefixtures("joblib_as_it_was")
@pytest.mark.parametrize(("backend", "cluster"), [("dask", "dask_client"), ("ray", "ray_data"), ("spark", "spark")])
def test_a_search_costs_one_pass_an_image(request, shared, extractor, own_backbone_file, backend, cluster):
    request.getfixturevalue(cluster)
    extractor.set_params(backbone=own_backbone_file)  # whose session no worker has open
    register(backend)
    paths, log = np.array([f"{seed}.png" for seed in range(60)], dtype=object), shared / "rows.log"
    log.write_text("")
    search = GridSearchCV(make_pipeline(extractor, LogisticRegression()), {"logisticregression__C": [0.1, 1.0]}, cv=3)
    with parallel_config(backend, n_jobs=2):
        search.set_params(error_score="raise").fit(paths, np.arange(60) % 3)
    assert sum(map(int, log.read_text().split())) == 60


def register(backend):
    if backend == "ray":
        from ray.util.joblib import register_ray

        register_ray()
    elif backend == "spark":
        pytest.importorskip("joblibspark").register_spark()


# -- the command --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command(shared, rows):
    """Starts ``sktransfer extract`` on the rows without broken photos, which would be tried again by every run."""
    rows[~rows["photo"].str.endswith(".jpg", na=False)].to_csv(shared / "t.csv", index=False)

    def start(output, *arguments):
        line = [sys.executable, "-m", "sktransfer.cli", "extract", shared / "t.csv", "-o", f"{output}/"]
        line += ["--column", "photo", "--root", shared, "--missing-images", "nan", "--part-rows", "100"]
        line += ["--cache-dir", f"{output}-cache", "--progress", "json", *arguments]
        started.append(
            subprocess.Popen(list(map(str, line)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    started = []
    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def one(command, shared):
    """The files that one process writes."""
    assert finish(command(shared / "one"))[0] == 0
    return list_bytes(shared / "one")


def finish(process):
    """Exit code, what is on stdout, and the last line of progress."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, json.loads([line for line in err.splitlines() if line.startswith("{")][-1])


def list_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wait_for_parts(folder, n):
    """Inode and time of the parts, once there are so many."""
    deadline, found = time.monotonic() + 60, {}
    while len(found) < n and time.monotonic() < deadline:
        time.sleep(0.01)
        found = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("part-*")}
    return found


@pytest.mark.parametrize(("engine", "module"), [("ray", "ray"), ("spark", "pyspark"), ("dask", "distributed")])
def test_the_command_goes_on_when_a_worker_is_killed(command, one, tmp_path, engine, module):
    psutil, _ = pytest.importorskip("psutil"), pytest.importorskip(module)
    process = command(tmp_path / "out", "--engine", engine)
    wait_for_parts(tmp_path / "out", 3)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if WORKER.search(" ".join(child.as_dict(["cmdline"])["cmdline"] or ""))]
    max(workers, key=lambda worker: worker.cpu_times().user).kill()
    status, out, progress = finish(process)
    assert (status, out, progress["done"]) == (0, "", progress["total"])
    assert list_bytes(tmp_path / "out") == one
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_a_command_that_is_killed_and_restarted_does_only_the_unfinished_parts(command, one, tmp_path, dask_client):
    arguments = tmp_path / "out", "--engine", "dask", "--address", dask_client.scheduler.address
    process = command(*arguments)
    wait_for_parts(tmp_path / "out", 5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = wait_for_parts(tmp_path / "out", 5)
    assert len(finished) < 40
    status, _, progress = finish(command(*arguments))
    again = wait_for_parts(tmp_path / "out", len(one) - 2)
    assert {name: again[name] for name in finished} == finished
    assert (status, progress["done"] < progress["total"]) == (0, False)
    assert list_bytes(tmp_path / "out") == one

"""The workers of Ray, Spark and Dask: the same bits as in one process, whoever dies."""

import contextlib
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import encode, photo, save_backbone, small_classifier
from sklearn.pipeline import make_pipeline

import sktransfer.distributed
from sktransfer import BackboneError, MissingExtraError, PretrainedFeatureExtractor, extract
from sktransfer.distributed import extract_dataframe, extract_dataset, parts
from sktransfer.distributed.batches import plan_batches
from sktransfer.distributed.workers import Workers
from sktransfer.jobs import MANIFEST

FOLDER = Path(sktransfer.distributed.__file__).parent


@pytest.fixture
def extractor(backbone_file):
    return PretrainedFeatureExtractor(backbone_file, n_jobs=1)


def embed(extractor, cells, column="photo"):
    """Embeddings (NaN for null), which are null, and reasons."""
    batch = plan_batches(extractor, column)
    return read(batch.embed(pd.DataFrame({column: pd.Series(cells, dtype=object)})), batch.backbone, column)


def read(columns, name, column="photo"):
    """Array of the vectors, NaN for null; which are null; reasons."""
    vectors, reasons = pa.array(columns[name].to_pylist()), columns[f"{column}_error"].to_pylist()
    d = max(len(vector) for vector in vectors.to_pylist() if vector is not None)
    array = [[np.nan] * d if vector is None else vector for vector in vectors.to_pylist()]
    return np.array(array, np.float32), [vector is None for vector in vectors.to_pylist()], reasons


# -- one batch ----------------------------------------------------------------------------------------------------


def test_a_batch_is_embedded_as_by_extract(extractor, photo_files, backbone_file):
    vectors, null, reasons = embed(extractor, photo_files)
    np.testing.assert_array_equal(vectors, extract(photo_files, backbone_file))
    assert (any(null), any(reasons)) == (False, False)


@pytest.mark.parametrize(
    ("policy", "is_null", "value"), [("error", True, np.nan), ("nan", False, np.nan), ("zero", False, 0)]
)
def test_no_row_is_dropped_and_the_policy_says_what_stands_for_an_image(extractor, photo_files, policy, is_null, value):
    extractor.set_params(missing_images=policy, broken_images=policy)
    vectors, null, reasons = embed(extractor, [photo_files[0], b"broken", None, photo_files[1]])
    np.testing.assert_array_equal(vectors[[1, 2]], np.full((2, 8), value))
    assert null == [False, is_null, is_null, False]
    assert reasons == [None, "Pillow recognises no image format in its content", "empty cell", None]
    assert not np.isnan(vectors[[0, 3]]).any()


def test_each_kind_of_failure_has_its_own_policy(extractor, photo_files):
    extractor.set_params(missing_images="zero")
    assert embed(extractor, [photo_files[0], b"broken", None])[1] == [False, True, False]


def test_of_several_images_in_a_cell_those_that_fail_are_left_out(extractor, photo_files, backbone_file):
    vectors, null, reasons = embed(extractor, [[photo_files[0], b"broken", photo_files[1]], [b"broken"]])
    np.testing.assert_array_equal(vectors[:1], extract([photo_files[:2]], backbone_file))
    assert null == [False, True]
    assert all("no image format" in reason for reason in reasons)


def test_several_columns_have_names_of_their_own(extractor, photo_files):
    batch = plan_batches(extractor, ["front", "kitchen"])
    rows = pa.table({"front": photo_files[:2], "i": [2**60 + 1, None], "kitchen": photo_files[2:4]})
    found = batch.append(rows)
    new = ["front_small", "front_error", "kitchen_small", "kitchen_error"]
    assert found.column_names == ["front", "i", "kitchen", *new]
    assert str(found.schema.field("front_small").type) == "list<item: float>"
    assert found.select(rows.column_names) == rows


def test_a_batch_without_rows_has_the_columns(extractor):
    found = plan_batches(extractor, "photo").embed(pd.DataFrame({"photo": []}))
    assert {name: len(array) for name, array in found.items()} == {"small": 0, "photo_error": 0}


def test_parameters_travel_and_weights_do_not(extractor, photo_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extractor.set_params(backbone="small/model.onnx", root=".", cache_dir="here").fit(photo_files)
    batch = plan_batches(extractor, "photo")
    monkeypatch.chdir("/")
    assert batch.embed(pd.DataFrame({"photo": ["photo0.png"]}))["photo_error"].to_pylist() == [None]
    batch = plan_batches(PretrainedFeatureExtractor(), "photo")
    assert len(pickle.dumps(batch)) < 1000


def test_a_worker_refuses_another_embedding(extractor, photo_files, backbone_file):
    batch = pickle.loads(pickle.dumps(plan_batches(extractor.fit(photo_files), "photo")))
    save_backbone(Path(backbone_file).parent, small_classifier(1))
    with pytest.raises(BackboneError, match=r"must be the planned one, small \(graph .*\). Got small"):
        batch.embed(pd.DataFrame({"photo": photo_files}))
    with pytest.raises(BackboneError, match=r"the backbone's file, or the version of sktransfer, is another one here"):
        plan_batches(extractor, "photo")


@pytest.mark.parametrize(
    ("change", "column", "message"),
    [
        ({"add_indicator": True}, "photo", "add_indicator must be False: photo_error says where there is no image"),
        ({}, [], r"image_column must be a name or a list of names. Got \[\] instead"),
        ({"broken_images": "drop"}, "photo", 'broken_images must be "error", "nan" or "zero"'),
    ],
)
def test_what_does_not_fit_is_refused_before_the_work(extractor, change, column, message):
    with pytest.raises(ValueError, match=message):
        plan_batches(extractor.set_params(**change), column)


def test_a_pipeline_is_no_extractor(extractor):
    with pytest.raises(TypeError, match="must be a PretrainedFeatureExtractor. Got a Pipeline instead"):
        plan_batches(make_pipeline(extractor), "photo")


def test_names_in_the_way_and_names_that_are_not_there_are_named(extractor):
    batch = plan_batches(extractor, "photo")
    with pytest.raises(ValueError, match=r"Got 'photo' instead of one of \['foto'\]"):
        batch.refuse_taken(["foto"])
    with pytest.raises(ValueError, match="Rename 'small'"):
        batch.refuse_taken(["photo", "small"])


def test_the_page_has_recipes_that_compile_and_links_that_lead_somewhere():
    page = FOLDER.parent.parent / "docs" / "scale.md"
    blocks = re.findall(r"```python (.*?)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert [language for language, code in blocks if compile(code, page.name, "exec")] == [
        "ray",
        "spark",
        "dask",
        "no-run",
    ]
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


# -- engines that are not there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["pyspark", "dask"])
def test_a_frame_of_an_engine_that_is_not_installed_names_the_extra(extractor, engine, monkeypatch):
    monkeypatch.setitem(sys.modules, engine, None)
    frame = type("DataFrame", (), {"__module__": f"{engine}.sql"})()
    with pytest.raises(MissingExtraError, match=rf'pip install "sktransfer\[{engine.removeprefix("py")}\]"'):
        extract_dataframe(frame, "photo", extractor)


def test_a_dataset_without_ray_names_the_extra(extractor, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "sktransfer\[ray\]"'):
        extract_dataset(None, "photo", extractor)


def test_a_frame_of_anything_else_is_refused(extractor):
    with pytest.raises(TypeError, match=r"of Spark or of Dask. Got a pandas\.\S*DataFrame instead"):
        extract_dataframe(pd.DataFrame(), "photo", extractor)


def test_no_engine_is_imported_unless_it_is_asked_for():
    code = (
        "import sys, sktransfer.distributed.parts; print([n for n in ('ray', 'pyspark', 'dask') if n  in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_every_adapter_is_thin():
    adapters = [path for path in FOLDER.glob("*_*.py") if not path.name.startswith("__")]
    assert len(adapters) == 6
    assert [path.name for path in adapters if len(path.read_text("utf-8").splitlines()) >= 80] == []


# -- parts, on threads that play workers --------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """Twenty rows; some cells are empty."""
    (tmp_path / "photos").mkdir()
    for seed in range(10):
        (tmp_path / "photos" / f"{seed}.png").write_bytes(encode(photo(seed)))
    names = [f"{i % 10}.png" if i % 7 else None for i in range(20)]
    pd.DataFrame({"id": range(20), "photo": names}).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


@pytest.fixture
def run(run_command, table, backbone_file):
    def call(output, *arguments):
        options = ["--column", "photo", "--root", table.parent / "photos", "--backbone", backbone_file]
        options += ["--missing-images", "nan", "--part-rows", 4]
        return run_command("extract", table, "-o", output, *options, *arguments)

    return call


@pytest.fixture
def threads(monkeypatch):
    """An engine of two threads in place of Dask; returns the parts in the order in which they were handed in."""
    numbers = []

    @contextlib.contextmanager
    def open_threads(address, needs):
        with ThreadPoolExecutor(2) as pool:
            yield Workers(lambda f, *a: numbers.append(a[-1]) or pool.submit(f, *a), lambda: 1)

    monkeypatch.setitem(parts._OPEN, "dask", open_threads)
    return numbers


def list_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_parts_of_an_engine_have_the_bytes_of_one_process(run, threads, tmp_path):
    assert run(f"{tmp_path}/one/")[0] == 0
    status, out, err = run(f"{tmp_path}/many/", "--engine", "dask", "--progress", "json")
    assert (status, out, threads) == (0, "", [0, 1, 2, 3, 4])
    assert '"done": 17, "total": 17, "cached": 17' in err
    assert list_files(tmp_path / "many") == list_files(tmp_path / "one")


def test_only_unfinished_parts_are_handed_out(run, threads, tmp_path):
    assert run(f"{tmp_path}/out/")[0] == 0
    for name in (MANIFEST, "part-000001.parquet", "part-000003.parquet"):
        (tmp_path / "out" / name).unlink()
    kept = (tmp_path / "out" / "part-000002.parquet").stat()
    assert "3 parts of them by an earlier run" in run(f"{tmp_path}/out/", "--engine", "dask")[2]
    assert threads == [1, 3]
    assert (tmp_path / "out" / "part-000002.parquet").stat() == kept
    assert (tmp_path / "out" / MANIFEST).exists()
    run(f"{tmp_path}/out/", "--engine", "dask")
    assert threads == [1, 3]


def test_policies_are_those_of_one_process(run, threads, table, tmp_path):
    (table.parent / "photos" / "3.png").write_bytes(b"broken")
    status, _, err = run(f"{tmp_path}/out/", "--engine", "dask")
    assert (status, "Row 3, column 'photo' ('3.png') could not be read" in err) == (1, True)
    assert "Pass --broken-images nan or zero to keep such rows" in err
    status, _, err = run(f"{tmp_path}/out/", "--engine", "dask", "--broken-images", "nan", "--max-failures", 1)
    assert "Stopped after 2 images that could not be read, more than --max-failures 1" in err
    status, _, err = run(f"{tmp_path}/out/", "--engine", "dask", "--broken-images", "nan")
    assert (status, err.count("  Row ")) == (1, 2)


def test_a_part_that_fails_is_one_sentence_when_the_others_are_done(run, threads, tmp_path, monkeypatch):
    write_part = parts.write_part

    def fail(job, folder, number, progress):
        if number in (1, 2):
            raise OSError(f"no space for {number}\nand more lines")
        return write_part(job, folder, number, progress)

    monkeypatch.setattr(parts, "write_part", fail)
    status, out, err = run(f"{tmp_path}/out/", "--engine", "dask", "-q")
    sentence = "2 of 5 parts could not be written; the same command tries them again. Part 1: no space for 1\n"
    assert (status, out, err) == (1, "", f"sktransfer: {sentence}")
    assert sorted(path.stem for path in (tmp_path / "out").glob("p*")) == [f"part-00000{i}" for i in (0, 3, 4)]


def test_a_worker_without_the_shared_folder_says_so(run, threads, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "JOB", "elsewhere")
    _, _, err = run(f"{tmp_path}/out/", "--engine", "dask", "-q")
    assert "5 of 5 parts could not be written" in err
    assert f"{tmp_path}/out must be a folder that all workers share" in err


@pytest.mark.parametrize(
    ("output", "arguments", "message"),
    [
        (
            "x.csv",
            ["--engine", "ray"],
            "writes a folder of parts. Got the file '.*x.csv' instead; pass -o DIR/",
        ),
        ("out/", ["--engine", "ray", "--shard", "1/2"], "Got --shard 1/2 beside it; leave it out"),
        ("out/", ["--engine", "flink"], "--engine must be one of ray, spark, dask. Got 'flink' instead"),
        (
            "out/",
            ["--address", "x:1"],
            "of a cluster of --engine ray, spark or dask. Got 'x:1' without one",
        ),
    ],
)
def test_options_that_do_not_fit_an_engine_are_one_line(run, tmp_path, output, arguments, message):
    status, out, err = run(f"{tmp_path}/{output}", *arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert re.search(message, err)


@pytest.mark.parametrize(("engine", "module"), [("ray", "ray"), ("spark", "pyspark"), ("dask", "distributed")])
def test_an_engine_that_is_not_installed_names_the_extra(run, tmp_path, engine, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    status, _, err = run(f"{tmp_path}/out/", "--engine", engine, "-q")
    assert (status, f'pip install "sktransfer[{engine}]"' in err) == (1, True)


def test_views_travel_with_the_extractor(backbone_file, photo_files):
    extractor = PretrainedFeatureExtractor(backbone_file, views="flip").fit(photo_files)
    table = pa.table({"photo": photo_files})
    found = np.array(plan_batches(extractor, "photo").append(table)["small"].to_pylist(), dtype=np.float32)
    np.testing.assert_array_equal(found, extractor.transform(photo_files))
    with pytest.raises(BackboneError, match="views must be those seen by fit, 'flip'. Got 'center' instead"):
        plan_batches(extractor.set_params(views="center"), "photo")

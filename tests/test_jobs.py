"""``sktransfer extract`` and ``sktransfer check`` on tables: columns kept, parts, shards, kills, failures."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import encode, photo

from sktransfer import extract
from sktransfer.jobs import JOB, MANIFEST
from sktransfer.session import forward_passes
from sktransfer.writers import METADATA_KEY


@pytest.fixture
def folder(tmp_path):
    """Ten photos."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(10):
        (folder / f"{seed}.png").write_bytes(encode(photo(seed)))
    return folder


@pytest.fixture
def run(run_command, folder, backbone_file):
    def call(table, *arguments, columns=("photo",)):
        named = [argument for column in columns for argument in ("--column", column)]
        options = ["--root", folder, "--backbone", backbone_file, "--quiet", "-j", "1"]
        return run_command("extract", table, *named, *options, *arguments)

    return call


@pytest.fixture
def table(tmp_path):
    """Ten rows; the last column says where the photo is."""
    rows = [f'{i:03d},{i * 1.5},"a, b",{i}.png' for i in range(10)]
    (tmp_path / "table.csv").write_text("id,price,text,photo\n" + "\n".join(rows) + "\n", "utf-8")
    return tmp_path / "table.csv"


@pytest.fixture
def vectors(folder, backbone_file):
    return extract([str(folder / f"{seed}.png") for seed in range(10)], backbone_file)


def test_a_csv_keeps_its_other_columns_as_they_are_written(run, table, tmp_path, vectors):
    assert run(table, "-o", tmp_path / "out.csv")[0] == 0
    lines = (tmp_path / "out.csv").read_text("utf-8").splitlines()
    assert lines[0] == "id,price,text,photo," + ",".join(f"small_{i}" for i in range(8))
    assert lines[2].startswith('001,1.5,"a, b",1.png,')
    found = pd.read_csv(tmp_path / "out.csv")
    np.testing.assert_allclose(found.filter(like="small_"), vectors, rtol=1e-6)


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_tables_in_arrow_formats_keep_types_and_state_what_they_are(run, table, tmp_path, vectors, suffix, folder):
    status, out, err = run(table, "-o", tmp_path / f"out.{suffix}")
    assert (status, out) == (0, "")
    assert "10 rows, 8 features each" in err
    read = pq.read_table if suffix == "parquet" else lambda path: pa.ipc.open_file(path).read_all()
    found = read(tmp_path / f"out.{suffix}")
    assert [str(found.schema.field(name).type) for name in ("id", "price")] == ["int64", "double"]
    np.testing.assert_array_equal(found.to_pandas().filter(like="small_"), vectors)
    stated = json.loads(found.schema.metadata[METADATA_KEY])
    assert stated["backbone"] == "small"
    assert len(stated["backbone_sha256"]) == len(stated["graph_digest"]) == 64
    assert stated["preprocessing"]["crop"] == [32, 32]
    assert stated["versions"]["pillow"] == PIL.__version__
    if suffix == "parquet":
        assert pd.read_parquet(tmp_path / "out.parquet")["id"].dtype == "int64"


def test_arrow_types_survive_with_holes_in_them(run, tmp_path):
    columns = {
        "n": pa.array([1, None, 3], pa.int32()),
        "when": pa.array([0, 1, None], pa.timestamp("ms")),
        "kind": pa.array(["a", None, "a"]).dictionary_encode(),
        "photo": pa.array(["0.png", "1.png", None]),
        "tags": pa.array([["x"], [], None]),
    }
    pq.write_table(pa.table(columns), tmp_path / "in.parquet", row_group_size=2)
    assert (
        run(tmp_path / "in.parquet", "-o", tmp_path / "out.parquet", "--missing-images", "nan", "--indicator")[0] == 0
    )
    found = pq.read_table(tmp_path / "out.parquet")
    for name, column in columns.items():
        assert found.column(name).to_pylist() == column.to_pylist()
    assert found.column("photo_missing").to_pylist() == [0, 0, 1]
    assert np.isnan(found.column("small_0").to_pylist()[2])


def test_images_inside_a_parquet_file_are_read_and_not_copied(run, tmp_path, folder, vectors):
    images = [{"bytes": (folder / f"{i}.png").read_bytes(), "path": None} for i in range(10)]
    pq.write_table(pa.table({"image": images, "label": list(range(10))}), tmp_path / "in.parquet", row_group_size=3)
    assert run(tmp_path / "in.parquet", "-o", tmp_path / "parts", "--part-rows", 4, columns=["image"])[0] == 0
    found = pd.read_parquet(tmp_path / "parts")
    assert found.columns[0] == "label"
    np.testing.assert_array_equal(found.iloc[:, 1:], vectors)


def test_several_columns_lists_and_half_precision(run, tmp_path, vectors):
    frame = pd.DataFrame({"front": ["0.png", "1.png"], "kitchen": ["2.png", None]})
    frame.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    options = ["--missing-images", "zero", "--layout", "list", "--dtype", "float16", "--format", "parquet"]
    assert run(tmp_path / "t.tsv", "-o", tmp_path / "out.pq", *options, columns=["front", "kitchen"])[0] == 0
    found = pq.read_table(tmp_path / "out.pq")
    assert found.column_names == ["front", "kitchen", "front_small", "kitchen_small"]
    assert str(found.schema.field("front_small").type) == "fixed_size_list<element: halffloat>[8]"
    np.testing.assert_array_equal(found.column("front_small").to_pylist(), vectors[:2].astype(np.float16))
    np.testing.assert_array_equal(found.column("kitchen_small").to_pylist()[1], np.zeros(8))


def test_npz_holds_the_other_columns_as_texts(run, table, tmp_path, vectors):
    assert run(table, "-o", tmp_path / "out.npz")[0] == 0
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["embeddings"], vectors)
        assert arrays["id"][1] == "001"


def test_empty_cells_are_an_error_before_the_work_or_no_failure(run, table, tmp_path):
    table.write_text(table.read_text("utf-8").replace("3.png", ""), "utf-8")
    before = forward_passes()
    status, _, err = run(table, "-o", tmp_path / "out.csv")
    assert status == 1
    assert "Row 3, column 'photo' is empty. Pass --missing-images nan to keep such rows" in err
    assert forward_passes() == before
    status, _, err = run(table, "-o", tmp_path / "out.csv", "--missing-images", "nan")
    assert status == 0
    assert (
        pd.read_csv(tmp_path / "out.csv").filter(like="small_").isna().all(axis=1).tolist()
        == [False] * 3 + [True] + [False] * 6
    )


def test_broken_images_write_nothing_or_are_listed_with_status_1(run, table, folder, tmp_path):
    (folder / "3.png").write_bytes(b"broken")
    status, _, err = run(table, "-o", tmp_path / "out.csv")
    assert status == 1
    assert "Row 3, column 'photo' ('3.png') could not be read: Pillow recognises no image format" in err
    assert "Pass --broken-images nan or zero to keep such rows" in err
    assert not (tmp_path / "out.csv").exists()
    options = ["--broken-images", "nan", "--report", tmp_path / "failures.csv"]
    status, _, err = run(table, "-o", tmp_path / "out.csv", *options)
    assert status == 1
    assert "  Row 3, column 'photo' ('3.png') could not be read" in err
    assert len(pd.read_csv(tmp_path / "out.csv")) == 10
    assert pd.read_csv(tmp_path / "failures.csv")["row"].tolist() == [3]


def test_the_wrong_root_is_named_whatever_the_policy(run_command, table, backbone_file, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    options = ["--column", "photo", "--root", tmp_path / "elsewhere", "--backbone", backbone_file]
    for output in (tmp_path / "out.csv", f"{tmp_path}/out/"):
        status, _, err = run_command("extract", table, "-o", output, *options, "--broken-images", "nan")
        assert status == 1
        assert f"10 of 10 images could not be read (root='{tmp_path}/elsewhere')" in err
    assert not (tmp_path / "out" / MANIFEST).exists()


@pytest.mark.parametrize("content", ["[]", '{"job": "other"}', "{}"])
def test_a_folder_with_a_strange_job_is_refused(run, table, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOB).write_text(content)
    status, _, err = run(table, "-o", f"{tmp_path}/out/")
    assert (status, "It is of another run. Choose another folder" in err) == (1, True)


def test_max_failures_stops_the_run(run, table, folder, tmp_path):
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(b"broken")
    options = ["--broken-images", "nan", "--part-rows", 2, "--max-failures", 1]
    status, _, err = run(table, "-o", tmp_path / "out.csv", *options)
    assert status == 1
    assert "Stopped after 2 images that could not be read, more than --max-failures 1" in err


def test_parts_are_kept_and_a_part_with_failures_is_tried_again(run, table, folder, tmp_path, vectors):
    content = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(b"broken")
    options = ["--part-rows", 4, "--broken-images", "nan"]
    assert run(table, "-o", f"{tmp_path}/out/", *options)[0] == 1
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert len(first) == 3
    (folder / "3.png").write_bytes(content)
    status, _, err = run(table, "-o", f"{tmp_path}/out/", *options)
    assert status == 0
    assert "2 parts of them by an earlier run" in err
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert [name for name in again if again[name] != first[name]] == ["part-000000.parquet"]
    np.testing.assert_array_equal(pd.read_parquet(tmp_path / "out").filter(like="small_"), vectors)


def test_broken_parts_are_not_written_where_that_is_an_error(run, table, folder, tmp_path):
    (folder / "3.png").write_bytes(b"broken")
    status, _, err = run(table, "-o", f"{tmp_path}/out/", "--part-rows", 4)
    assert (status, "Row 3, column 'photo'" in err) == (1, True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        JOB,
        *(f"part-00000{i}.parquet" for i in (1, 2)),
    ]


def test_shards_share_the_parts_and_the_last_one_writes_the_manifest(run, table, tmp_path, vectors):
    for shard in ("2/2", "1/2"):
        assert not (tmp_path / "out" / MANIFEST).exists()
        assert run(table, "-o", f"{tmp_path}/out/", "--part-rows", 3, "--shard", shard)[0] == 0
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text("utf-8"))
    assert [part["rows"] for part in manifest["parts"]] == [3, 3, 3, 1]
    assert (manifest["rows"], manifest["failures"]) == (10, [])
    np.testing.assert_array_equal(pd.read_parquet(tmp_path / "out").filter(like="small_"), vectors)


def test_shards_of_a_file_are_stretches_of_rows(run, table, tmp_path):
    for i in (1, 2, 3):
        assert run(table, "-o", tmp_path / f"{i}.csv", "--shard", f"{i}/3")[0] == 0
    rows = [pd.read_csv(tmp_path / f"{i}.csv")["id"].tolist() for i in (1, 2, 3)]
    assert rows == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]


def test_parts_of_another_run_are_refused(run, table, tmp_path):
    assert run(table, "-o", f"{tmp_path}/out/")[0] == 0
    status, _, err = run(table, "-o", f"{tmp_path}/out/", "--dtype", "float16")
    assert status == 1
    assert "must be empty or hold parts of the same table, backbone and options" in err


def test_a_dry_run_counts_and_writes_nothing(run, table, folder, tmp_path, backbone_file):
    extract([str(folder / f"{seed}.png") for seed in range(4)], backbone_file)
    table.write_text(table.read_text("utf-8").replace("9.png", "8.png"), "utf-8")
    status, out, _ = run(table, "-o", f"{tmp_path}/out/", "--dry-run")
    assert status == 0
    facts = {line[:14].strip(): line[15:] for line in out.splitlines()}
    assert facts["rows"] == "10"
    assert facts["images"].startswith("10, 9 of them")
    assert facts["to be computed"].startswith(f"{9 - int(facts['in the cache'])} with small on cpu")
    assert "images/s" in facts["time"]
    assert not (tmp_path / "out").exists()


def test_progress_as_json_ends_with_everything_done(run_command, table, folder, tmp_path, backbone_file):
    options = ["--column", "photo", "--root", folder, "--backbone", backbone_file, "--progress", "json"]
    status, _, err = run_command("extract", table, "-o", tmp_path / "out.csv", *options)
    last = json.loads([line for line in err.splitlines() if line.startswith("{")][-1])
    assert (status, last["done"], last["total"], last["failed"]) == (0, 10, 10, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--column", "foto"], "--column must name a column of .*table.csv. Got 'foto' instead of 'id', 'price'"),
        ([], "A table needs --column NAME"),
        (["--column", "photo", "--shard", "3/2"], "--shard must be i/n with 1 <= i <= n. Got '3/2' instead"),
        (["--column", "photo", "--layout", "rows"], "--layout must be one of columns, list. Got 'rows' instead"),
        (["--column", "photo", "--layout", "list"], 'layout "list" needs the format parquet or feather'),
        (["--column", "photo", "--labels-from-folders"], "--labels-from-folders needs a folder"),
    ],
)
def test_options_that_do_not_fit_are_one_line(run_command, table, tmp_path, arguments, message):
    status, out, err = run_command("extract", table, "-o", tmp_path / "out.csv", *arguments)
    assert (status, out) == (1, "")
    assert re.search(message, err)
    assert err.count("\n") == 1


def test_a_column_in_the_way_of_a_new_one_is_named(run, table, tmp_path):
    table.write_text(table.read_text("utf-8").replace("price", "small_3"), "utf-8")
    assert "Rename 'small_3'" in run(table, "-o", tmp_path / "out.csv")[2]


def test_check_names_what_is_wrong_and_saves_a_line_an_image(run_command, table, folder, tmp_path):
    (folder / "3.png").write_bytes((folder / "2.png").read_bytes())
    options = ["--column", "photo", "--root", folder, "--quiet"]
    status, out, _ = run_command("check", table, *options)
    assert (status, out) == (0, "10 images in 10 rows: 0 cannot be read, 0 cells are empty, 1 are copies of others.\n")
    (folder / "4.png").write_bytes(b"broken")
    status, out, _ = run_command("check", table, *options, "-o", tmp_path / "report.csv")
    assert (status, out[:43]) == (1, "  Row 4, column 'photo' ('4.png') could not")
    report = pd.read_csv(tmp_path / "report.csv")
    assert report["duplicate_of"].tolist()[3] == 2
    assert run_command("check", folder, "--quiet")[0] == 1


KILLED = """
import os, sys, threading, time
threading.Thread(target=lambda: (time.sleep({delay}), os.kill(os.getpid(), 9)), daemon=True).start()
sys.argv = ["sktransfer", *{arguments!r}]
from sktransfer.cli import main
main()
"""


def kill_and_restart(table, folder, backbone, tmp_path, n_kills, part_rows):
    """Bytes of a folder of parts: of an undisturbed run, and of one that was killed at random moments."""
    arguments = ["extract", str(table), "--column", "photo", "--root", str(folder), "--backbone", backbone, "--quiet"]
    arguments += ["--part-rows", str(part_rows), "-j", "1"]
    found = []
    for name, kills in (("whole", 0), ("killed", n_kills)):
        output = tmp_path / name
        environment = {**os.environ, "SKTRANSFER_CACHE_DIR": str(tmp_path / f"cache-{name}")}
        delays = [*np.random.default_rng(0).uniform(0.8, 3.0, kills).tolist(), 600.0]
        codes = []
        for delay in delays:
            code = KILLED.format(delay=delay, arguments=[*arguments, "-o", f"{output}/"])
            codes.append(subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode)
        assert codes[-1] == 0
        found.append(({path.name: path.read_bytes() for path in output.iterdir()}, codes))
    return found


@pytest.mark.slow
def test_a_run_killed_at_20_random_moments_ends_with_the_same_bytes(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(3000):
        (folder / f"{seed}.png").write_bytes(encode(photo(seed)))
    pd.DataFrame({"photo": [f"{seed}.png" for seed in range(3000)]}).to_csv(tmp_path / "t.csv", index=False)
    (whole, _), (killed, codes) = kill_and_restart(tmp_path / "t.csv", folder, "default", tmp_path, 20, 100)
    assert codes.count(-signal.SIGKILL) >= 10
    assert len(whole) == 32
    assert killed == whole


def test_a_killed_run_leaves_a_temporary_file_that_the_next_one_removes(run, table, tmp_path):
    (tmp_path / "out").mkdir()
    assert run(table, "-o", f"{tmp_path}/out/", "--part-rows", 4)[0] == 0
    (tmp_path / "out" / "part-000000.parquet").rename(tmp_path / "out" / ".part-000000-abc.parquet")
    (tmp_path / "out" / "part-000001.parquet").write_bytes(b"half")
    (tmp_path / "out" / JOB).write_bytes(b"")
    for name in (MANIFEST, "part-000001.parquet", "part-000002.parquet"):
        (tmp_path / "out" / name).unlink()
    assert run(table, "-o", f"{tmp_path}/out/", "--part-rows", 4)[0] == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [JOB, MANIFEST, *(f"part-00000{i}.parquet" for i in range(3))]
    assert len(pd.read_parquet(tmp_path / "out")) == 10


def test_a_row_longer_than_the_header_is_refused(run, table, tmp_path):
    table.write_text("photo,k\n0.png,a,b\n1.png,c,d\n", "utf-8")
    assert "its rows have more cells than its header" in run(table, "-o", tmp_path / "out.csv")[2]


@pytest.mark.parametrize("output", ["out.parquet", "out.feather", "out.npz", "out/"])
def test_a_part_without_any_photo_has_the_types_of_the_others(run, tmp_path, output):
    photos = ["", "", "0.png", "1.png", "", ""]
    (tmp_path / "t.csv").write_text("i,photo\n" + "".join(f"{i},{p}\n" for i, p in enumerate(photos)), "utf-8")
    options = ["--part-rows", 2, "--missing-images", "nan"]
    assert run(tmp_path / "t.csv", "-o", f"{tmp_path}/{output}", *options)[0] == 0
    if not output.endswith("npz"):
        read = pd.read_feather if output.endswith("feather") else pd.read_parquet
        found = read(tmp_path / output)
        assert found["photo"].isna().tolist() == [True, True, False, False, True, True]
        assert found["small_0"].isna().tolist() == [True, True, False, False, True, True]


def test_dictionaries_that_differ_from_part_to_part_are_written_as_values(run, tmp_path):
    with pq.ParquetWriter(tmp_path / "in.parquet", pa.schema([("photo", "string"), ("c", DICTIONARY)])) as writer:
        for i in range(3):
            column = pa.array([f"{i}a", f"{i}b"]).dictionary_encode()
            writer.write_table(pa.table({"photo": ["0.png", "1.png"], "c": column.cast(DICTIONARY)}))
    assert run(tmp_path / "in.parquet", "-o", tmp_path / "out.feather", "--part-rows", 2)[0] == 0
    assert pd.read_feather(tmp_path / "out.feather")["c"].tolist() == ["0a", "0b", "1a", "1b", "2a", "2b"]


DICTIONARY = pa.dictionary(pa.int32(), pa.string())


def test_shards_with_other_options_do_not_mix_in_a_folder(run, table, tmp_path, folder):
    assert run(table, "-o", f"{tmp_path}/out/", "--part-rows", 4, "--shard", "1/2")[0] == 0
    status, _, err = run(table, "-o", f"{tmp_path}/out/", "--part-rows", 5, "--shard", "2/2")
    assert (status, "It is of another run" in err) == (1, True)
    assert "new or an empty folder" in run(table, "-o", f"{folder}/")[2]


def test_the_remedy_for_a_broken_part_goes_on_in_the_same_folder(run, table, folder, tmp_path):
    (folder / "3.png").write_bytes(b"broken")
    assert run(table, "-o", f"{tmp_path}/out/", "--part-rows", 4)[0] == 1
    status, _, err = run(table, "-o", f"{tmp_path}/out/", "--part-rows", 4, "--broken-images", "nan")
    assert (status, "2 parts of them by an earlier run" in err) == (1, True)
    assert len(pd.read_parquet(tmp_path / "out")) == 10


def test_a_folder_is_written_by_one_process_a_shard(run, table, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".shard-1-of-1.lock"):
        assert "Another one is at this shard" in run(table, "-o", f"{tmp_path}/out/")[2]


@pytest.mark.parametrize(
    "options", [["-o", "t.csv"], ["-o", "o.csv", "--report", "t.csv"], ["-o", "o.csv", "--report", "o.csv"]]
)
def test_no_file_is_written_over_another_one(run, table, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    table.rename(tmp_path / "t.csv")
    status, _, err = run("t.csv", *options)
    assert (status, "must be different" in err) == (1, True)


def test_a_share_without_rows_and_columns_of_one_name_are_refused(run, table, tmp_path):
    assert "this share none of them" in run(table, "-o", tmp_path / "out.csv", "--shard", "1/99")[2]
    pq.write_table(
        pa.table([pa.array(["0.png"]), pa.array([1]), pa.array([2])], ["photo", "x", "x"]), tmp_path / "d.parquet"
    )
    assert "has 'x' more than once" in run(tmp_path / "d.parquet", "-o", tmp_path / "out.csv")[2]


def test_empty_lines_of_a_table_with_one_column_are_rows(run, tmp_path):
    (tmp_path / "t.csv").write_text("photo\n0.png\n\n1.png\n", "utf-8")
    assert run(tmp_path / "t.csv", "-o", tmp_path / "out.csv", "--missing-images", "zero")[0] == 0
    assert len(pd.read_csv(tmp_path / "out.csv")) == 3


def test_a_name_that_is_not_utf8_costs_nothing(run_command, folder, tmp_path, backbone_file):
    os.rename(folder / "3.png", os.fsencode(folder) + b"/bad\xff.png")
    for output in ("out.csv", "out.parquet"):
        assert run_command("extract", folder, "-o", tmp_path / output, "--backbone", backbone_file, "-q")[0] == 0
    assert pd.read_parquet(tmp_path / "out.parquet").index[-1] == "bad\\xff.png"
    assert run_command("check", folder, "--quiet")[0] == 0

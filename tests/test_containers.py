"""What X may be: every container, every kind of cell, several images in a cell."""

import base64
import contextlib
import gzip
import io
import zipfile

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from conftest import encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_sample_images
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline

from sktransfer import ImageReadError, ImageReadWarning, PretrainedFeatureExtractor, check_images, extract
from sktransfer.session import forward_passes


def test_one_photo_in_every_form_gives_one_vector(embed, photo_files, photos, tmp_path):
    content, path = (tmp_path / "photo0.png").read_bytes(), photo_files[0]
    text = base64.b64encode(content).decode()
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a/b.png", content)
    (tmp_path / "mit Leerzeichen.png").write_bytes(content)
    forms = [
        path, tmp_path / "photo0.png", content, memoryview(content), Image.fromarray(photos[0]), photos[0],
        {"bytes": content, "path": "gone.png"}, {"bytes": None, "path": path}, text, f"data:image/png;base64,{text}",
        f"{tmp_path}/photos.zip::a/b.png", f"file://{path}", (tmp_path / "mit Leerzeichen.png").as_uri(),
        io.BytesIO(content),
    ]  # fmt: skip
    vectors = embed(forms, cache_dir=None)
    assert (vectors == vectors[0]).all()
    np.testing.assert_array_equal(embed(forms), vectors)


def test_the_eight_orientations_of_one_photo_are_as_near_as_saving_them_again_lets_them():
    upright = Image.fromarray(load_sample_images().images[0])
    undo = [None, 0, 3, 1, 5, 2, 6, 4]  # Image.Transpose that stores `upright` under orientations 1 to 8
    files = []
    for orientation, transpose in enumerate(undo, start=1):
        exif = Image.Exif()
        exif[274] = orientation
        stored = upright if transpose is None else upright.transpose(Image.Transpose(transpose))
        files.append(encode(stored, "JPEG", quality=95, exif=exif))
    vectors = extract(files)
    assert (np.linalg.norm(vectors - vectors[0], axis=1) <= 1e-2 * np.linalg.norm(vectors[0])).all()


CONTAINERS = {
    "list": list,
    "tuple": tuple,
    "object array": lambda cells: np.array([*cells, None], dtype=object)[:-1],
    "2-D object array": lambda cells: np.array([*cells, None], dtype=object)[:-1, None],
    "Series": lambda cells: pd.Series(cells, dtype=object),
    "Series[string]": lambda cells: pd.Series(cells, dtype="string"),
    "Series[str]": lambda cells: pd.Series(cells, dtype="str"),
    "Series[pyarrow]": lambda cells: pd.Series(cells, dtype=pd.ArrowDtype(pa.string())),
    "Series[category]": lambda cells: pd.Series(cells, dtype="category"),
    "frame": lambda cells: pd.DataFrame({"photo": cells}, index=[f"row {i}" for i in range(len(cells))], dtype=object),
    "frame[pyarrow]": lambda cells: pd.DataFrame({"photo": pd.array(cells, dtype=pd.ArrowDtype(pa.string()))}),
    "frame[category]": lambda cells: pd.DataFrame({"photo": pd.Categorical(cells)}),
    "polars Series": lambda cells: pl.Series("photo", cells, dtype=pl.String),
    "polars frame": lambda cells: pl.DataFrame({"photo": pl.Series(cells, dtype=pl.String)}),
    "polars category": lambda cells: pl.DataFrame({"photo": pl.Series(cells, dtype=pl.Categorical)}),
}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.sampled_from("vvvvvbme"), min_size=1, max_size=9),
    container=st.sampled_from(sorted(CONTAINERS)),
    fill=st.sampled_from(["nan", "zero"]),
)
def test_any_mix_of_cells_in_any_container_keeps_rows_order_indicator_and_names(
    backbone_file, photo_files, kinds, container, fill
):
    cells = [{"v": photo_files[row % 6], "b": f"/no/{row}.png", "m": None, "e": ""}[k] for row, k in enumerate(kinds)]
    extractor = PretrainedFeatureExtractor(
        backbone_file, missing_images=fill, broken_images=fill, add_indicator=True, n_jobs=1
    )
    X = CONTAINERS[container](cells)
    extractor.fit(X)
    broken = kinds.count("b")
    if len(kinds) - kinds.count("m") - kinds.count("e") > 1 and 2 * broken > kinds.count("v") + broken:
        with pytest.raises(ImageReadError, match="is this the right folder"):
            extractor.transform(X)
        return
    with pytest.warns(ImageReadWarning) if broken else contextlib.nullcontext():
        found = extractor.transform(X)
    expected = np.full((len(kinds), 8), np.nan if fill == "nan" else 0.0, dtype=np.float32)
    whole = extract(photo_files, backbone_file)
    for row, kind in enumerate(kinds):
        expected[row] = whole[row % 6] if kind == "v" else expected[row]
    np.testing.assert_array_equal(found[:, :8], expected)
    np.testing.assert_array_equal(found[:, 8], [kind != "v" for kind in kinds])
    name = "photo" if "frame" in container or container.startswith("polars") else "image"
    assert extractor.get_feature_names_out().tolist() == [*(f"small_{i}" for i in range(8)), f"{name}_missing"]


def test_a_list_in_a_cell_is_the_mean_of_its_images(embed, photo_files):
    whole = embed(photo_files).astype(np.float64)
    cells = [photo_files[0], photo_files[:3], (photo_files[4],), [photo_files[1], None, photo_files[1]]]
    expected = np.stack([whole[0], whole[:3].mean(axis=0), whole[4], whole[1]]).astype(np.float32)
    np.testing.assert_array_equal(embed(cells), expected)
    np.testing.assert_array_equal(embed(pd.Series(cells)), expected)
    np.testing.assert_array_equal(embed(pd.DataFrame({"photos": cells})), expected)
    lists = [[cell] if isinstance(cell, str) else [c for c in cell if c] for cell in cells]
    np.testing.assert_array_equal(embed(pl.DataFrame({"photos": lists})), expected)
    np.testing.assert_array_equal(embed(pd.Series(lists, dtype=pd.ArrowDtype(pa.list_(pa.string())))), expected)


def test_an_image_in_several_lists_is_run_once(embed, photo_files):
    before = forward_passes()
    embed([photo_files, photo_files[:2], photo_files[0], [photo_files[0]] * 3])
    assert forward_passes() - before == 6


def test_an_empty_list_is_a_missing_cell(embed, photo_files):
    with pytest.raises(ImageReadError, match=r"Row 1 is empty \(1 more row too\). Pass missing_images"):
        embed([photo_files, [], [None, ""]])
    found = embed([photo_files, [], [None, ""]], missing_images="nan", add_indicator=True)
    np.testing.assert_array_equal(found[:, 8], [0, 1, 1])
    assert np.isnan(found[1:, :8]).all()


def test_a_broken_image_in_a_list_is_reported_and_left_out_of_the_mean(embed, photo_files):
    cells = [photo_files[:2], [photo_files[2], "gone.png"], ["lost.png"], photo_files[4]]
    with pytest.raises(
        ImageReadError, match=r"Row 1 \('gone.png'\) could not be read.* \(1 more row failed\)"
    ) as error:
        embed(cells)
    assert [(failure.row, failure.reference) for failure in error.value.failures] == [
        (1, "'gone.png'"),
        (2, "'lost.png'"),
    ]
    with pytest.warns(ImageReadWarning, match="Row 1"):
        found = embed(cells, broken_images="zero", add_indicator=True)
    np.testing.assert_array_equal(found[1, :8], embed([photo_files[2]])[0])
    np.testing.assert_array_equal(found[:, 8], [0, 0, 1, 0])
    assert not found[2, :8].any()


def test_lists_in_one_of_several_columns_fill_their_block(embed, photo_files):
    frame = pd.DataFrame({"front": photo_files[:2], "rooms": [photo_files[2:4], None]})
    found = embed(frame, missing_images="nan", add_indicator=True)
    whole = embed(photo_files)
    np.testing.assert_array_equal(found[:, :8], whole[:2])
    np.testing.assert_array_equal(found[0, 8:16], whole[2:4].mean(axis=0, dtype=np.float64).astype(np.float32))
    np.testing.assert_array_equal(found[:, 16:], [[0, 0], [0, 1]])


@pytest.mark.parametrize(
    "X", [[["a.jpg", ["b.jpg"]]], [["a.jpg", 3]], pd.DataFrame({"p": [["a.jpg", [1, 2]]]}), pd.Series([["a.jpg", 1.5]])]
)
def test_a_list_of_anything_but_images_is_refused(embed, X):
    with pytest.raises(TypeError, match=r"Row 0.* of X must be an image or a list of images. Got a list with a"):
        embed(X)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pd.DataFrame({"photo": [np.nan, np.nan]}),
        lambda: pd.DataFrame({"photo": [pd.NA, pd.NA]}, dtype="string"),
        lambda: pd.DataFrame({"photo": [pd.NaT, pd.NaT]}),
        lambda: pd.Series([np.nan, np.nan]),
        lambda: np.array([np.nan, np.nan]),
        lambda: pl.DataFrame({"photo": [None, None]}),
        lambda: pl.Series([float("nan"), None]),
    ],
)
def test_a_column_without_any_image_is_missing_and_no_table_of_numbers(embed, make):
    found = embed(make(), missing_images="nan", add_indicator=True)
    assert np.isnan(found[:, :8]).all()
    np.testing.assert_array_equal(found[:, 8], [1, 1])


def test_images_and_paths_of_hugging_face_frames(embed, photo_files, photos):
    structs = [{"bytes": encode(photos[0]), "path": "a.png"}, {"bytes": None, "path": photo_files[1]}, None]
    arrow = pa.array(structs, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    expected = embed([*photo_files[:2], None], missing_images="zero")
    frames = [
        pd.DataFrame({"image": structs}),
        pd.DataFrame({"image": pd.Series(arrow.to_pandas())}),
        pd.DataFrame({"image": pd.arrays.ArrowExtensionArray(arrow)}),
        pl.DataFrame({"image": pl.from_arrow(arrow)}),
    ]
    for frame in frames:
        np.testing.assert_array_equal(embed(frame, missing_images="zero"), expected)


@pytest.mark.parametrize("column", ["photo", ["photo"]])
def test_a_block_of_numbers_and_photos_survives_empty_and_broken_cells(backbone_file, photo_files, column):
    frame = pd.DataFrame({"area": [1.0, np.nan, 3.0, 4.0], "photo": [photo_files[0], None, "gone.png", photo_files[1]]})
    extractor = PretrainedFeatureExtractor(
        backbone_file, missing_images="nan", broken_images="nan", add_indicator=True, n_jobs=1
    )
    block = make_column_transformer((make_pipeline(extractor, SimpleImputer()), column), (SimpleImputer(), ["area"]))
    with pytest.warns(ImageReadWarning, match=r"Row 2, column 'photo' \('gone.png'\)"):
        found = block.fit_transform(frame)
    assert found.shape == (4, 10)
    np.testing.assert_array_equal(found[:, 8], [0, 1, 1, 0])
    np.testing.assert_allclose(found[1, :8], extract(photo_files[:2], backbone_file).mean(axis=0), rtol=1e-6)
    assert "pipeline__photo_missing" in block.get_feature_names_out()


def test_one_opened_image_in_many_cells_is_decoded_once_and_left_whole(embed):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    for image_format in ("PNG", "JPEG"):
        image = Image.open(io.BytesIO(encode(noise, image_format)))
        vectors = embed([image] * 12, n_jobs=4, cache_dir=None)
        np.testing.assert_array_equal(vectors, np.repeat(embed([encode(noise, image_format)]), 12, axis=0))
        assert image.size == (300, 300)


def test_one_row_obeys_the_policy_however_many_images_it_has(embed):
    frame = pd.DataFrame({"a": ["gone.jpg"], "b": ["gone.jpg"]})
    for X in (frame, [["gone.jpg", "lost.jpg"]]):
        with pytest.warns(ImageReadWarning, match=r"\(1 more image failed\)"):
            assert np.isnan(embed(X, broken_images="nan")).all()


class Nowhere:
    def __fspath__(self):
        raise RuntimeError("no path")


@pytest.mark.parametrize(
    "cell",
    [
        "https://127.0.0.1:1/\udcff.jpg",
        "file:///\udcff",
        Nowhere(),
        {"bytes": b"junk", "path": pd.NA},
        {"bytes": np.frombuffer(b"junk", np.uint8), "path": None},
        {"url": "a.jpg"},
        gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(bytes(2**10)))),
        open(__file__, encoding="utf-8"),  # noqa: SIM115
    ],
)
def test_an_odd_cell_costs_its_own_row(embed, photo_files, cell, monkeypatch):
    monkeypatch.setattr("sktransfer.locations.ATTEMPTS", 1)
    monkeypatch.setattr("sktransfer.images.MAX_BYTES", 1000)
    with pytest.warns(ImageReadWarning, match="Row 1 "):
        found = embed([photo_files[0], cell, photo_files[1]], broken_images="nan")
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), [False, True, False])
    assert check_images([cell])["reason"].notna().all()


@pytest.mark.parametrize(
    "cell", [{"bytes": float("nan"), "path": None}, {"bytes": None, "path": ""}, np.array([]), pd.Series([])]
)
def test_an_empty_dict_array_or_series_in_a_cell_is_missing(embed, photo_files, cell):
    column = pd.Series([photo_files[0], None], dtype=object)
    column.iat[1] = cell
    assert np.isnan(embed(column, missing_images="nan")[1]).all()


def test_groups_of_a_frame_and_tables_of_arrow_are_taken(embed, photo_files):
    frame = pd.DataFrame({"id": [0, 0, 1], "p": photo_files[:3]})
    expected = embed([photo_files[:2], photo_files[2]])
    for cells in (frame.groupby("id")["p"].unique(), frame.groupby("id")["p"].agg(list)):
        np.testing.assert_array_equal(embed(cells), expected)
    np.testing.assert_array_equal(embed([pl.Series(photo_files[:2]), photo_files[2]]), expected)
    np.testing.assert_array_equal(embed(pa.table({"p": photo_files[:3]})), embed(photo_files[:3]))
    np.testing.assert_array_equal(embed(pa.chunked_array([photo_files[:3]])), embed(photo_files[:3]))


def test_flattened_images_may_be_of_nullable_types(embed, rng):
    flat = rng.integers(0, 256, (3, 16))
    frame = pd.DataFrame(flat).astype("Int64")
    np.testing.assert_array_equal(embed(frame, image_shape=(4, 4)), embed(flat, image_shape=(4, 4)))
    with pytest.raises(ValueError, match="must all have the same number of values"):
        embed([[1, 2, 3, 4], [1, 2]], image_shape=(2, 2))


def test_a_generator_is_to_be_made_a_list(embed, photo_files):
    with pytest.raises(TypeError, match=r"Got a generator instead; pass list\(X\)"):
        embed(path for path in photo_files)

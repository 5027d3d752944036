"""What teams with tables use around the extractor: check_images, duplicate_groups, make_image_block."""

import numpy as np
import pandas as pd
import pytest
from conftest import encode
from PIL import Image
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_sample_images
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline

from sktransfer import check_images, duplicate_groups, extract, make_image_block
from sktransfer.session import forward_passes


def test_every_image_has_a_line_with_size_digest_and_the_first_copy(photo_files, photos, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes((tmp_path / "photo1.png").read_bytes())
    (tmp_path / "broken.png").write_bytes(b"broken")
    report = check_images([photo_files[0], photo_files[1], str(copy), None, "broken.png", photos[0]], root=tmp_path)
    assert report["row"].tolist() == [0, 1, 2, 3, 4, 5]
    assert report["reason"].tolist()[:4] == [None, None, None, "empty cell"]
    assert report["reason"][4] == "Pillow recognises no image format in its content"
    assert report["missing"].tolist() == [False] * 3 + [True] + [False] * 2
    assert report["duplicate_of"].fillna(-1).tolist() == [-1, -1, 1, -1, -1, -1]
    assert report.loc[0, ["width", "height"]].tolist() == [52, 40]
    assert report["size"][2] == copy.stat().st_size
    assert report["digest"][1] == report["digest"][2] != report["digest"][0]


def test_lists_and_several_columns_are_checked_cell_by_cell(photo_files):
    frame = pd.DataFrame({"front": [photo_files[0], None], "rooms": [[photo_files[1], "gone.png"], [photo_files[0]]]})
    report = check_images(frame)
    lines = report[["row", "column"]].to_numpy().tolist()
    assert lines == [[0, "front"], [0, "rooms"], [0, "rooms"], [1, "front"], [1, "rooms"]]
    assert report["reason"].tolist()[2].startswith("no such file")
    assert report["duplicate_of"][4] == 0


def test_checking_runs_no_network_and_reads_a_place_once(photo_files, monkeypatch):
    import sktransfer.locations

    read, places = sktransfer.locations.read_place, []
    monkeypatch.setattr(sktransfer.locations, "read_place", lambda place: places.append(place) or read(place))
    before = forward_passes()
    assert len(check_images(photo_files * 3)) == 18
    assert (forward_passes() - before, sorted(places)) == (0, sorted(photo_files))


def test_a_root_that_is_no_folder_is_refused(photo_files, tmp_path):
    with pytest.raises(ValueError, match="root must be an existing folder"):
        check_images(photo_files, root=tmp_path / "none")


def test_compressed_and_resized_photos_are_in_the_group_of_their_original():
    china, flower = load_sample_images().images
    originals = [Image.fromarray(image[top : top + 200, 100:360]) for image in (china, flower) for top in (0, 200)]
    images = [encode(image) for image in originals]
    images += [encode(image, "JPEG", quality=80) for image in originals]
    images += [encode(image.resize((130, 100)), "JPEG") for image in originals]
    assert duplicate_groups(images).tolist() == [0, 1, 2, 3] * 3
    assert duplicate_groups(images, distance=0).tolist() == list(range(12))


def test_rows_are_linked_by_any_of_their_photos_and_through_others(photos):
    frame = pd.DataFrame({"front": [photos[0], photos[1], photos[2], None], "back": [photos[3], photos[0], None, None]})
    assert duplicate_groups(frame, distance=0).tolist() == [0, 0, 1, 2]
    lists = pd.Series([[photos[0], photos[1]], [photos[1], photos[2]], [photos[2]], [photos[3]], []])
    assert duplicate_groups(lists, distance=0).tolist() == [0, 0, 0, 1, 2]


def test_rows_without_a_readable_photo_are_alone(photos):
    assert duplicate_groups([None, "gone.png", None, "gone.png"]).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"distance must lie in 0\.\.2. Got 3 instead"):
        duplicate_groups(photos, distance=3)


@pytest.fixture
def houses(photo_files):
    """Twenty rows, some without a photo, one with a file that is gone."""
    photos = [photo_files[row % 6] if row % 5 else None for row in range(20)]
    photos[7] = "gone.png"
    return pd.DataFrame({"area": np.arange(20.0), "photo": photos})


@pytest.mark.filterwarnings("ignore::sktransfer.ImageReadWarning")
@pytest.mark.parametrize("column", ["photo", ["photo"]])
@pytest.mark.parametrize("output", [None, "default", "pandas"])
def test_a_block_gives_components_and_one_flag(houses, photo_files, backbone_file, column, output):
    block = make_image_block(backbone_file, n_components=3, n_jobs=1)
    transformer = make_column_transformer((block, column), ("passthrough", ["area"])).set_output(transform=output)
    found = np.asarray(transformer.fit_transform(houses))
    missing = np.array([row % 5 == 0 or row == 7 for row in range(20)])
    assert found.shape == (20, 5)
    np.testing.assert_array_equal(found[:, 3], missing)
    filled = [photo_files[0] if gone else path for path, gone in zip(houses["photo"], missing, strict=True)]
    embeddings = extract(filled, backbone_file)
    embeddings[missing] = embeddings[~missing].mean(axis=0)
    expected = PCA(3, random_state=0).fit_transform(embeddings)
    np.testing.assert_allclose(found[:, :3], expected, atol=1e-4 * np.abs(expected).max())
    names = transformer.get_feature_names_out().tolist()
    assert names == [
        "pipeline__pca0",
        "pipeline__pca1",
        "pipeline__pca2",
        "pipeline__photo_missing",
        "passthrough__area",
    ]


@pytest.mark.filterwarnings("ignore::sktransfer.ImageReadWarning")
def test_a_block_is_tuned_and_cloned_like_any_pipeline(houses, backbone_file):
    block = make_image_block(backbone_file, n_jobs=1)
    pipeline = make_pipeline(make_column_transformer((block, "photo"), ("passthrough", ["area"])), Ridge())
    grid = {"columntransformer__pipeline__reduce__components__pca__n_components": [1, 2]}
    before = forward_passes()
    search = GridSearchCV(clone(pipeline), grid, cv=GroupKFold(2), error_score="raise")
    search.fit(houses, houses["area"], groups=np.arange(20) % 4)
    assert forward_passes() - before == 6
    assert np.isfinite(search.predict(houses[["area", "photo"]].iloc[:1])).all()


def test_flags_of_several_columns_stay_out_of_the_components(photo_files, backbone_file):
    frame = pd.DataFrame({"front": photo_files, "back": [*photo_files[:5], None]})
    block = make_image_block(backbone_file, n_components=2, n_jobs=1)
    found = block.fit_transform(frame)
    assert found.shape == (6, 4)
    np.testing.assert_array_equal(found[:, 2:], [[0, 0]] * 5 + [[0, 1]])
    assert block.get_feature_names_out().tolist() == ["pca0", "pca1", "front_missing", "back_missing"]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # PCA divides by a variance of zero
def test_a_fold_without_any_photo_is_all_mean(backbone_file):
    frame = pd.DataFrame({"photo": [None, None, None]})
    found = make_image_block(backbone_file, n_components=1).fit_transform(frame)
    np.testing.assert_array_equal(found, [[0, 1]] * 3)


def test_the_flag_of_a_block_is_no_option():
    with pytest.raises(TypeError, match="add_indicator must not be given"):
        make_image_block(add_indicator=False)

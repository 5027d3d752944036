"""scikit-learn's own checks, on a view of 2-D rows as strips of pixels."""

import pytest
from conftest import save_backbone, small_classifier
from sklearn.utils.estimator_checks import check_estimator

from sktransfer import PretrainedFeatureExtractor


class StripExtractor(PretrainedFeatureExtractor):
    """Sees each 2-D row as a strip one pixel high; nothing else differs."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.one_d_array = False
        tags.input_tags.string = False
        return tags

    def _flat_shape(self, n_features):
        return (1, n_features)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    path = str(save_backbone(tmp_path_factory.mktemp("conformance"), small_classifier()))
    return check_estimator(StripExtractor(path, pixel_range=(-10, 10)), on_fail=None, on_skip=None)


def test_more_than_forty_checks_ran_and_none_failed(outcomes):
    failed = [
        (outcome["check_name"], repr(outcome["exception"])) for outcome in outcomes if outcome["status"] == "failed"
    ]
    passed = [outcome for outcome in outcomes if outcome["status"] == "passed"]
    assert failed == []
    assert len(passed) > 40


def test_only_checks_of_absent_libraries_were_skipped(outcomes):
    skipped = {outcome["check_name"] for outcome in outcomes if outcome["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}

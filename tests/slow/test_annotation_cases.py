"""All cases of tests/annotation_cases.py, in both formats, by all entry points."""

import pytest

from tests.annotation_cases import CASES
from tests.test_annotation_cases import check, weights, without_pictures  # noqa: F401

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("lvis", [False, True], ids=["coco", "lvis"])
@pytest.mark.parametrize("name", CASES)
def test_a_case(name, lvis, tmp_path, weights, capsys):  # noqa: F811
    check(CASES[name], tmp_path, lvis, weights, capsys)

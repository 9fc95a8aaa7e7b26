"""What the tests of training share."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2.mini_lvis.datasets import register_mini_lvis
from eql_d2.mini_lvis.generator import MiniLVISSpec

SPEC = MiniLVISSpec(num_categories=7, num_train_images=30, num_val_images=6, max_image_count=20, min_val_images=2)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The training and the test set of a MiniLVIS of seven categories, registered under a name of its own."""
    name = "eql_d2_test_engine"
    register_mini_lvis(name, SPEC, tmp_path_factory.mktemp("datasets") / "mini")
    yield f"{name}_train", f"{name}_val"
    for split in ("train", "val"):
        DatasetCatalog.remove(f"{name}_{split}")
        MetadataCatalog.remove(f"{name}_{split}")

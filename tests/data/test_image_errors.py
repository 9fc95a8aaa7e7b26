"""Missing and broken image files, read in this process and in workers."""

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import read_image
from PIL import Image
from torch.utils.data import DataLoader

from eql_d2.data.image_errors import ExplainedMapper, UnreadableImage

BROKEN = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "no image": lambda path: path.write_text("<html>404</html>"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:400]),
    "of another size": lambda path: Image.new("RGB", (31, 32)).save(path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture
def dataset_dict(tmp_path):
    path = tmp_path / "7.png"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return {"file_name": str(path), "image_id": 7, "height": 32, "width": 32, "annotations": []}


@pytest.fixture
def mapper():
    return ExplainedMapper(DatasetMapper(get_cfg(), True))


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_image_is_named(dataset_dict, mapper, how, num_workers, tmp_path):
    BROKEN[how](tmp_path / "7.png")
    loader = DataLoader([dataset_dict], num_workers=num_workers, collate_fn=lambda batch: mapper(batch[0]))
    with pytest.raises(UnreadableImage, match=r"^image 7, .*7\.png, cannot be used: .+ Mend the file") as error:
        next(iter(loader))
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)


def test_a_good_image_is_mapped_and_opened_once(dataset_dict, mapper, monkeypatch):
    opened = []
    of_pillow = Image.open
    monkeypatch.setattr(Image, "open", lambda *args: opened.append(args) or of_pillow(*args))
    assert mapper(dataset_dict)["image"].shape[0] == 3
    assert len(opened) == 1


def test_sixteen_bits_are_refused_by_the_mapper_alone(dataset_dict, mapper):
    Image.fromarray(np.full((32, 32), 4000, np.uint16)).save(dataset_dict["file_name"])
    with pytest.raises(UnreadableImage, match="more than 8 bits"):
        mapper(dataset_dict)
    assert read_image(dataset_dict["file_name"], "RGB").max() == 255

"""Reading what evaluations save, and drawing it beside ground truth with `eql-d2 results`."""

import json

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from PIL import Image

from eql_d2.cli import main
from eql_d2.evaluation.lvis_evaluation import LongTailLVISEvaluator
from eql_d2.evaluation.saved_predictions import read_detections

NAME = "eql_d2_test_saved_predictions"


def instances():
    found = Instances((64, 80))
    found.pred_boxes = Boxes(torch.tensor([[4.0, 4.0, 34.0, 34.0], [40.0, 30.0, 60.0, 50.0]]))
    found.scores, found.pred_classes = torch.tensor([0.5, 0.25]), torch.tensor([1, 0])
    return found


@pytest.fixture
def dataset(tmp_path):
    """An LVIS-format file with an image of two objects, to be registered as `NAME`."""
    Image.fromarray(np.full((64, 80, 3), 90, dtype=np.uint8)).save(tmp_path / "7.png")
    image = {"id": 7, "file_name": "7.png", "height": 64, "width": 80}
    boxes = [[4, 4, 30, 30], [40, 30, 20, 20]]
    path = tmp_path / "annotations.json"
    path.write_text(
        json.dumps(
            {
                "images": [{**image, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
                "annotations": [
                    {
                        "id": i + 1,
                        "image_id": 7,
                        "category_id": i + 1,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                        "segmentation": [],
                    }
                    for i, box in enumerate(boxes)
                ],
                "categories": [{"id": i + 1, "name": f"c{i}", "frequency": "r"} for i in range(2)],
            }
        )
    )
    yield [NAME, str(path), str(tmp_path)]
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def save_as_lvis(folder, dataset):
    from eql_d2.data.registration import register_dataset

    register_dataset(*dataset)
    evaluator = LongTailLVISEvaluator(NAME, output_dir=str(folder))
    evaluator.process([{"image_id": 7}], [{"instances": instances()}])
    evaluator.evaluate()


def save_as_detectron2(folder, dataset):
    folder.mkdir(parents=True)
    results = instances_to_coco_json(instances(), 7)
    torch.save([{"image_id": 7, "instances": results}], folder / "instances_predictions.pth")


@pytest.mark.parametrize("save", [save_as_lvis, save_as_detectron2])
def test_both_forms_are_read(save, dataset, tmp_path):
    save(tmp_path / "inference", dataset)
    found = read_detections(tmp_path / "inference", {7: None})[7]
    assert torch.equal(found.boxes, instances().pred_boxes.tensor)
    assert found.scores.tolist() == [0.5, 0.25] and found.classes.tolist() == [1, 0]
    assert read_detections(tmp_path / "inference", {8: None}) == {}


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"no predictions at {tmp_path}"):
        read_detections(tmp_path, {})
    torch.save([{"image_id": 7}], tmp_path / "whole.pth")
    (tmp_path / "instances_predictions.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:200])
    with pytest.raises(ValueError, match="half-written"):
        read_detections(tmp_path, {})


def test_the_tool_draws_a_run(dataset, tmp_path, capsys):
    run, output = tmp_path / "run", tmp_path / "drawn"
    save_as_detectron2(run / "inference" / NAME, dataset)
    config = {
        "DATASETS": {"REGISTER": [dataset], "TRAIN": [NAME], "TEST": [NAME]},
        "MODEL": {"ROI_HEADS": {"NUM_CLASSES": 2}, "ROI_BOX_HEAD": {"CLS_LOSS": {"COUNTS_FILE": ""}}},
        "OUTPUT_DIR": str(run),
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["results", str(run), "--output", str(output)]) == 0
    assert [p.name for p in output.iterdir()] == ["000_image_7.png"]
    assert Image.open(output / "000_image_7.png").size == (960, 384)
    assert "drew 1 images" in capsys.readouterr().out

    (tmp_path / "7.png").write_text("no image")
    assert main(["results", str(run), "--output", str(output)]) == 1
    assert "error: none of 1 images" in capsys.readouterr().err

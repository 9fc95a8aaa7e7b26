"""What a run makes of annotation files as people have them: by the training tool, its --eval-only, and the counting.

Here a few of each kind; `pytest -m slow` tries all of them in both formats.
"""

import logging
import re
from argparse import Namespace
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2.cli import main as command
from eql_d2.drawing.picture import PredictionPicture
from eql_d2.engine import Trainer, launch, load_config
from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.main import main
from tests.annotation_cases import (
    CASES,
    FAR,
    Case,
    all_of,
    each,
    first,
    named,
    one_crowd,
    rotated_categories,
    text_image_ids,
    write,
)

BASE = str(Path(__file__).parents[1] / "configs" / "MiniLVIS" / "Base-MiniLVIS.yaml")
TRAIN, VAL = "eql_d2_case_train", "eql_d2_case_val"
SMALL = (
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", 3),
    *("MODEL.ROI_HEADS.NAME", "EQLROIHeads", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8),
    *("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 4),
    *("INPUT.MIN_SIZE_TRAIN", (48,), "INPUT.MIN_SIZE_TEST", 48, "MODEL.RPN.POST_NMS_TOPK_TEST", 5),
    *("SOLVER.MAX_ITER", 1, "SOLVER.IMS_PER_BATCH", 3, "TEST.DETECTIONS_PER_IMAGE", 5),
)


def run(folder: Path, eval_only: bool, overrides=(), weights="") -> str:
    """The log of a run of the training tool on the files of a folder."""
    output = folder / ("evaluated" if eval_only else "trained")
    register = [[name, str(folder / f"{split}.json"), str(folder / "images")] for name, split in NAMED.items()]
    given = (*SMALL, "DATASETS.REGISTER", register, "DATASETS.TRAIN", (TRAIN,), "DATASETS.TEST", (VAL,))
    opts = [str(word) for word in (*given, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", output, *overrides)]
    try:
        launch.run(main, Namespace(config_file=BASE, resume=False, eval_only=eval_only, opts=opts))
    finally:
        forget()
    return (output / "log.txt").read_text()


NAMED = {TRAIN: "train", VAL: "val"}


def forget():
    for name in NAMED:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def outcome(call, error: str | None, capsys):
    """What ``call`` returns; where an error is expected its one line is compared, and None returned."""
    capsys.readouterr()
    if error is None:
        return call()
    with pytest.raises(SystemExit) as stopped:
        call()
    said = re.findall("^error: (.*)$", capsys.readouterr().err, re.MULTILINE)
    assert stopped.value.code == 1 and len(said) == 1 and re.search(error, said[0]), said
    return None


def count(folder: Path) -> None:
    """`eql-d2 counts`, which ends with the code of its process."""
    code = command(["counts", str(folder / "train.json"), str(folder / "counts.json")])
    if code:
        raise SystemExit(code)


def check(case: Case, folder: Path, lvis: bool, weights, capsys) -> None:
    write(case, folder, lvis)
    log = outcome(lambda: run(folder, False, case.overrides), case.train, capsys)
    for line in case.logged:
        assert re.search(line, log), (line, log)
    outcome(lambda: run(folder, True, case.overrides, weights), case.evaluate, capsys)
    outcome(lambda: count(folder), case.counts, capsys)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A checkpoint of the model, as of another tool: without names of classes."""
    folder = tmp_path_factory.mktemp("weights")
    counts = '{"image_count": [3, 2, 1], "instance_count": [3, 2, 1], "num_images": 3}'
    (folder / "counts.json").write_text(counts)
    key = "MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE"
    model = Trainer.build_model(load_config(BASE, [*SMALL, key, str(folder / "counts.json")]))
    LongTailCheckpointer(model, str(folder)).save("model")
    return str(folder / "model.pth")


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # an earlier test's captured output is closed
    monkeypatch.setattr(PredictionPicture, "_draw", lambda *args: None)  # takes longer than all the rest


ALL_AT_ONCE = all_of(
    each("images", coco_url="", flickr_url=None),
    one_crowd,
    each("annotations", iscrowd=lambda a: a["iscrowd"] or None, id=lambda a: f"a{a['id']}"),
    lambda data: data["annotations"][1].update(FAR),
    lambda data: data["annotations"][2].update(image_id=77),
    each("categories", id=lambda c: float(c["id"])),
    text_image_ids,
)
# What works, at once, and the errors of one kind each.
REPRESENTATIVE = {
    "all at once": Case(
        ALL_AT_ONCE,
        all_of(ALL_AT_ONCE, rotated_categories),
        files=named(lambda _, name: f"..\\images\\{name}"),
        logged=(
            r"train\.json: numbered 3 images",
            r"train\.json: clipped 1 of 6",
            r"val\.json: left out 1 of 6",
            "1 of 5 objects of .* are crowd regions",
            "another order: matched by name",
        ),
    ),
    **{
        name: CASES[name]
        for name in ("val other name", "no masks", "one without mask", "rle", "all crowd", "val empty", "missing image")
    },
}


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_a_case_of_each_kind(name, tmp_path, weights, capsys):
    check(REPRESENTATIVE[name], tmp_path, name == "all at once", weights, capsys)


@pytest.mark.parametrize("name", ["val image cut", "val image of 16 bits"])
def test_an_image_of_a_test_set(name, tmp_path, weights, capsys):
    write(CASES[name], tmp_path, lvis=False)
    outcome(lambda: run(tmp_path, True, weights=weights), CASES[name].evaluate, capsys)


def test_a_clean_file_logs_not_one_line_more(tmp_path, weights):
    write(Case(), tmp_path, lvis=True)
    log = run(tmp_path, True, weights=weights)
    assert not re.search(r"eql_d2\.(data|engine\.dataset_checks)", log), log


def test_a_model_that_detects_nothing_has_0_everywhere(tmp_path, weights):
    write(Case(), tmp_path, lvis=False)
    log = run(tmp_path, True, ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0), weights)
    table = re.search(r"bbox on \S+:\n(.*)\n.*\n(.*)", log)
    metrics = dict(zip(*([cell.strip() for cell in row.split("|")[1:-1]] for row in table.groups())))
    assert float(metrics["AP"]) == float(metrics["APr"]) == 0


@pytest.mark.parametrize(
    "overrides, error",
    [
        (("MODEL.WEIGHTS", ""), "MODEL.WEIGHTS is '': there is no trained model"),
        (("MODEL.ROI_MASK_HEAD.NUM_CONV", 2), "of its .* parameters are not among their .*mask_head"),
        (("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False), "parameters .* another shape there: .*bbox_pred"),
    ],
)
def test_an_evaluation_of_a_model_with_random_parts(overrides, error, tmp_path, weights, capsys):
    write(Case(), tmp_path, lvis=False)
    outcome(lambda: run(tmp_path, True, overrides, weights), error, capsys)


@pytest.mark.parametrize(
    "change, error", [(rotated_categories, None), (first("categories", name="cow"), r"has the class 'cow'.*model\.pth")]
)
def test_the_classes_of_a_checkpoint_on_another_machine(change, error, tmp_path, weights, capsys):
    """The training set is not there; the model says what its classes are."""
    import torch

    write(Case(None, change), tmp_path, lvis=False)
    (tmp_path / "train.json").unlink()
    content = {**torch.load(weights), "thing_classes": ["cat", "dog", "owl"]}
    torch.save(content, tmp_path / "model.pth")
    counts = tmp_path / "counts.json"
    counts.write_text('{"image_count": [3, 2, 1], "instance_count": [3, 2, 1], "num_images": 3}')
    overrides = ("MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE", counts)
    log = outcome(lambda: run(tmp_path, True, overrides, tmp_path / "model.pth"), error, capsys)
    assert error or "another order: matched by name" in log

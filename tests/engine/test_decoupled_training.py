"""Training in two stages, and with image labels, the whole way on a small MiniLVIS."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from eql_d2.engine import Trainer
from eql_d2.errors import InputError
from eql_d2.modeling import LongTailFastRCNNOutputLayers

ROOT = Path(__file__).parents[2]
NODE = "MODEL.ROI_BOX_HEAD.CLS_LOSS"
CLS_WEIGHT = "roi_heads.box_predictor.cls_score.weight"
BODY = ["backbone", "proposal_generator", "roi_heads.box_head"]


@pytest.fixture
def make_cfg(tiny_cfg, datasets):
    def make(*overrides):
        return tiny_cfg(
            *("DATASETS.TRAIN", (datasets[0],), "DATASETS.TEST", ()),
            *(f"{NODE}.COUNTS_FILE", ""),
            *("SOLVER.MAX_ITER", 3, "SOLVER.WARMUP_ITERS", 0, "SOLVER.IMS_PER_BATCH", 2),
            *overrides,
        )

    return make


@pytest.fixture
def first_stage(make_cfg, tmp_path):
    """A checkpoint of a softmax model whose batch norms have seen some images."""
    torch.manual_seed(1)
    model = build_model(make_cfg())
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(norm.running_mean, std=0.1)
    path = tmp_path / "first_stage.pth"
    torch.save({"model": model.state_dict(), "iteration": 7}, path)
    return str(path)


def train(cfg, resume=False):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def test_only_the_classifier_moves_and_it_starts_anew(make_cfg, first_stage):
    """cRT: the state after training, statistics of batch norm included, is the first stage's but for two layers."""
    cfg = make_cfg(
        *("MODEL.WEIGHTS", first_stage, "MODEL.FREEZE", [*BODY, "*.bbox_pred"], "MODEL.NEW_CLASSIFIER", True),
        *("SOLVER.BASE_LR", 1e-5),
        *("DATALOADER.SAMPLER_TRAIN", "ClassAwareSampler"),
    )
    torch.manual_seed(3)
    trainer = train(cfg)
    assert trainer.start_iter == 0
    before, after = torch.load(first_stage)["model"], trainer.model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {CLS_WEIGHT, CLS_WEIGHT.replace("weight", "bias")}
    torch.manual_seed(3)
    fresh = build_model(make_cfg()).state_dict()[CLS_WEIGHT]
    assert 0 < (after[CLS_WEIGHT] - fresh).abs().max() < 0.01 < (before[CLS_WEIGHT] - fresh).abs().max()

    cfg.SOLVER.MAX_ITER = 5  # and resumed it goes on with its own classifier, without the first stage
    cfg.MODEL.WEIGHTS = "gone.pth"
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    assert all(torch.equal(value, after[name]) for name, value in resumed.model.state_dict().items())


def test_learnable_weight_scaling_learns_one_factor_a_logit(make_cfg, first_stage):
    freeze = [*BODY, "*.cls_score", "*.bbox_pred"]
    key = "MODEL.ROI_BOX_HEAD.CLS_SCALE"
    trainer = train(make_cfg("MODEL.WEIGHTS", first_stage, "MODEL.FREEZE", freeze, key, True))
    before, after = torch.load(first_stage)["model"], trainer.model.state_dict()
    scale = after.pop("roi_heads.box_predictor.cls_scale")
    assert scale.shape == (8,) and (scale != 1).any()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("weights", ["", "output/first/model_final.pth"])
def test_frozen_parts_need_the_weights_of_a_first_stage(make_cfg, weights):
    trainer = Trainer(make_cfg("MODEL.WEIGHTS", weights, "MODEL.FREEZE", BODY))
    message = f"MODEL.FREEZE .*MODEL.WEIGHTS is '{weights}'.* OUTPUT_DIR 'output/first"
    with pytest.raises(InputError, match=message):
        trainer.resume_or_load(resume=False)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("unchecked", ["ignore", "equalize"])
def test_training_with_image_labels(make_cfg, datasets, workers, unchecked):
    """The categories that each image of each batch was checked for reach the loss, from whichever worker."""
    cfg = make_cfg(
        *(f"{NODE}.NAME", "EqualizationLoss", f"{NODE}.EqualizationLoss.TAIL.GROUPS", "r"),
        *(f"{NODE}.EqualizationLoss.UNCHECKED", unchecked, f"{NODE}.IMAGE_LABELS", True),
        *("DATALOADER.NUM_WORKERS", workers),
    )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    batches, masks = [], []
    (predictor,) = (m for m in trainer.model.modules() if isinstance(m, LongTailFastRCNNOutputLayers))
    trainer.model.register_forward_pre_hook(lambda model, args: batches.append(args[0]))
    trainer.model.register_forward_hook(lambda *args: masks.append(predictor.checked))
    trainer.train()
    images = {image["image_id"]: image for image in DatasetCatalog.get(datasets[0])}
    assert len(batches) == 3
    for batch, mask in zip(batches, masks):
        for image, row in zip(batch, mask):
            original = images[image["image_id"]]
            found = {a["category_id"] for a in original["annotations"]}
            assert set(row.nonzero().flatten().tolist()) == found | {i - 1 for i in original["neg_category_ids"]}


def test_two_processes_train_a_frozen_model_with_image_labels(make_cfg, datasets, first_stage, tmp_path):
    """Frozen parameters get no gradient that DistributedDataParallel would wait for, and batch norms stay alike."""
    metadata = MetadataCatalog.get(datasets[0])
    metadata.prepare()
    cfg = make_cfg(
        *("DATASETS.REGISTER", [["mine", metadata.json_file, metadata.image_root]], "DATASETS.TRAIN", ("mine",)),
        *("DATALOADER.SAMPLER_TRAIN", "ClassAwareSampler"),
        *("MODEL.WEIGHTS", first_stage, "MODEL.FREEZE", [*BODY, "*.bbox_pred"]),
        *(f"{NODE}.NAME", "SigmoidFocalLoss", f"{NODE}.START_ITER", 2, f"{NODE}.IMAGE_LABELS", True),
    )
    (tmp_path / "config.yaml").write_text(cfg.dump())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "tools/train_net.py", "--num-gpus", "2", "--dist-url", url]
    arguments = ["--config-file", str(tmp_path / "config.yaml")]
    subprocess.run([*command, *arguments], check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    before = torch.load(first_stage)["model"]
    after = torch.load(tmp_path / "output" / "model_final.pth")["model"]
    assert after.pop("roi_heads.box_predictor.cls_loss.steps_of_SigmoidFocalLoss") == 3
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {CLS_WEIGHT, CLS_WEIGHT.replace("weight", "bias")}

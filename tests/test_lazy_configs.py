"""The LazyConfigs are the same models as their YAML files, and train."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from eql_d2 import ClassFrequencies, get_config_file
from eql_d2.engine import load_config
from eql_d2.engine.optimizer import clipped_sgd
from eql_d2.engine.settings import settings_of
from eql_d2.engine.trainer import Trainer
from eql_d2.losses import EqualizedFocalLoss
from eql_d2.modeling import LongTailFCOS

LAZY = Path(get_config_file("Base-RCNN-FPN.yaml")).parent / "lazy"
PAIRS = {
    "mini_lvis_eql.py": "MiniLVIS/eql_faster_rcnn.yaml",
    "lvis_v1_eql_mask_rcnn_R_50_FPN.py": "LVISv1/eql_mask_rcnn_R_50_FPN_1x.yaml",
}


@pytest.fixture
def counts(tmp_path):
    """Counts of 90 categories, so that MiniLVIS need not be made."""
    path = tmp_path / "counts.json"
    ClassFrequencies(range(1, 91), range(1, 91), num_images=100).save(path)
    return str(path)


def load_pair(name, counts):
    lazy = LazyConfig.load(str(LAZY / name))
    opts = ["MODEL.DEVICE", "cpu"]
    if "mini" in name:
        lazy.model.roi_heads.box_predictor.cls_loss.frequencies = ClassFrequencies.from_counts_file(counts)
        opts += ["MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE", counts]
    return lazy, load_config(get_config_file(PAIRS[name]), opts)


def inputs(size, num_classes):
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10, 60, 60], [50, 40, 90, 90]]))
    instances.gt_classes = torch.tensor([0, num_classes - 1])
    instances.gt_masks = BitMasks(torch.ones(2, size, size, dtype=torch.bool))
    image = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0)) * 255
    return [{"image": image, "instances": instances, "height": size, "width": size}]


@pytest.mark.parametrize("name", PAIRS)
def test_same_model_as_the_yaml(name, counts, monkeypatch):
    lazy_cfg, cfg = load_pair(name, counts)
    model = build_model(cfg)
    with monkeypatch.context() as patch:  # it gets the other's weights: no time for random ones
        for method in ("normal_", "uniform_"):
            patch.setattr(torch.Tensor, method, lambda self, *args, **kwargs: self)
        lazy = instantiate(lazy_cfg.model)
    weights = model.state_dict()
    assert {k: v.shape for k, v in lazy.state_dict().items()} == {k: v.shape for k, v in weights.items()}
    trained = {k for k, p in model.named_parameters() if p.requires_grad}
    assert {k for k, p in lazy.named_parameters() if p.requires_grad} == trained
    lazy.load_state_dict(weights)

    batch = inputs(96, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    outputs = []
    for m in (lazy, model):
        torch.manual_seed(0)
        with EventStorage(), torch.no_grad():
            losses = m(batch)
        m.eval()
        m.roi_heads.box_predictor.test_score_thresh = 0.05  # fewer candidates for NMS
        with torch.no_grad():
            detections = m(batch)[0]["instances"]
        outputs.append((losses, detections.scores, detections.pred_boxes.tensor))
    assert len(outputs[0][0]) == (5 if cfg.MODEL.MASK_ON else 4)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)


def test_image_labels_reach_the_loss(counts):
    cfg, _ = load_pair("mini_lvis_eql.py", counts)
    cfg.train.device = "cpu"
    predictor = cfg.model.roi_heads.box_predictor
    predictor.image_labels, predictor.cls_loss.unchecked = True, "equalize"
    model = Trainer.build_model(cfg)
    (image,) = inputs(96, 90)
    with EventStorage():
        model([{**image, "checked_categories": [3, 88]}])
    assert model.roi_heads.box_predictor.checked.nonzero().tolist() == [[0, 3], [0, 88]]
    with EventStorage(), pytest.raises(ValueError, match="get_checked_dataset_dicts"):
        model([image])


@pytest.mark.parametrize("name", PAIRS)
def test_same_optimizer_as_the_yaml(name, counts):
    lazy_cfg, cfg = load_pair(name, counts)
    model = torch.nn.ModuleDict({"cls_score": torch.nn.Linear(2, 2), "norm": torch.nn.BatchNorm2d(2)})
    model = torch.nn.ModuleDict({"box": model})
    lazy_cfg.optimizer.params.model = model
    ours, theirs = instantiate(lazy_cfg.optimizer), Trainer.build_optimizer(cfg, model)
    ignored = ("params", "foreach", "initial_lr")
    for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k not in ignored} == {
            k: v for k, v in other.items() if k not in ignored
        }
    schedule = instantiate(lazy_cfg.lr_multiplier)
    scheduler = Trainer.build_lr_scheduler(cfg, theirs)
    assert lazy_cfg.train.max_iter == cfg.SOLVER.MAX_ITER
    for i in (0, 10, 49, 50, 700, cfg.SOLVER.MAX_ITER - 1):
        assert schedule(i / cfg.SOLVER.MAX_ITER) == pytest.approx(scheduler._multiplier(i / cfg.SOLVER.MAX_ITER)), i


def test_gradients_are_clipped():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = clipped_sgd([parameter], clip_norm=1.0, lr=1.0)
    parameter.grad = torch.tensor([30.0, 40.0])
    optimizer.step()
    torch.testing.assert_close(parameter.data, torch.tensor([-0.6, -0.8]))


def test_fcos():
    cfg = LazyConfig.load(str(LAZY / "lvis_v1_efl_fcos_R_50_FPN.py"))
    run = settings_of(cfg)
    assert (run.num_classes, run.detections_per_image, run.score_threshold) == (1203, 300, 0.0001)
    assert run.keys["num_classes"] == "model.num_classes"
    cfg.model.num_classes = 7
    model = instantiate(cfg.model).train()
    assert type(model) is LongTailFCOS and type(model.cls_loss) is EqualizedFocalLoss
    with EventStorage():
        losses = model(inputs(96, 7))
    assert losses.keys() == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    assert all(loss.isfinite() for loss in losses.values())

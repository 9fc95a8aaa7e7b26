"""Image labels on their way from the batch to the loss, against loops over images, RoIs and categories."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from eql_d2.losses import CLS_LOSS_REGISTRY, EqualizationLoss
from eql_d2.modeling import LongTailFastRCNNOutputLayers
from eql_d2.modeling.image_labels import tell_image_labels

NODE = "MODEL.ROI_BOX_HEAD.CLS_LOSS"
K = 7
RARE = {0, 1, 2}  # of the fixture `frequencies`
CHECKED = [[0, 3, 5], [1, 4]]  # of the two images of `batched_inputs`


@pytest.fixture
def batch(batched_inputs):
    for image, checked in zip(batched_inputs, CHECKED):
        image["checked_categories"] = checked
    return batched_inputs


@pytest.fixture
def build(tiny_cfg):
    def build(loss, *overrides):
        torch.manual_seed(0)
        return build_model(tiny_cfg(f"{NODE}.NAME", loss, f"{NODE}.IMAGE_LABELS", True, *overrides))

    return build


def predictors(model):
    return [m for m in model.modules() if isinstance(m, LongTailFastRCNNOutputLayers)]


def bce(z, y):
    return math.log1p(math.exp(-z if y else z))


def reference(images, weight):
    """(1 / R) sum of w BCE; ``images`` are (logits, labels), ``weight(i, label, j)`` is w of category j in image i."""
    total, R = 0.0, 0
    for i, (logits, labels) in enumerate(images):
        for z, label in zip(logits.tolist(), labels.tolist()):
            R += 1
            for j in range(K):
                total += bce(z[j], j == label) * (1 if j == label else weight(i, label, j))
    return total / R


def is_checked(i, label, j):
    return j in CHECKED[i]


def is_checked_and_not_spared(i, label, j):
    return j in CHECKED[i] and not (label < K and j in RARE)


def spared_where_unchecked(i, label, j):
    """Section 4.2 of the EQL paper."""
    return not (label < K and j in RARE) or j in CHECKED[i]


@pytest.mark.parametrize(
    "loss, overrides, weight",
    [
        ("SigmoidCrossEntropy", [], is_checked),
        ("EqualizationLoss", ["UNCHECKED", "ignore"], is_checked_and_not_spared),
        ("EqualizationLoss", ["UNCHECKED", "equalize"], spared_where_unchecked),
    ],
)
def test_the_loss_against_loops(build, loss, overrides, weight):
    rule = ["TAIL.GROUPS", "r"] if loss == "EqualizationLoss" else []
    keys = [*overrides, *rule]
    keys[::2] = [f"{NODE}.{loss}.{key}" for key in keys[::2]]
    (predictor,) = predictors(build(loss, *keys))
    # In both images an own category that the image was not checked for (6, 2), and background.
    labels = torch.tensor([0, 6, 7, 3]), torch.tensor([2, 7, 1])
    images = [(torch.randn(len(x), K), x) for x in labels]
    proposals = []
    for logits, labels in images:
        proposals.append(Instances((50, 50)))
        proposals[-1].proposal_boxes = Boxes(torch.tensor([[5.0, 5, 20, 20]]).repeat(len(labels), 1))
        proposals[-1].gt_boxes = proposals[-1].proposal_boxes
        proposals[-1].gt_classes = labels
    logits = torch.cat([logits for logits, _ in images]).requires_grad_()
    deltas = torch.zeros(len(logits), predictor.bbox_pred.out_features)
    predictor.checked = torch.zeros(2, K, dtype=torch.bool)
    for row, checked in zip(predictor.checked, CHECKED):
        row[checked] = True
    with EventStorage():
        value = predictor.losses((logits, deltas, None), proposals)["loss_cls"]
    assert value.item() == pytest.approx(reference(images, weight), rel=1e-6)
    value.backward()
    own = torch.cat([labels for _, labels in images])
    rows = torch.arange(len(own))[own < K]
    assert (logits.grad[rows, own[rows]] < 0).all()  # a positive takes part, checked or not
    for i, (start, labels) in enumerate(((0, images[0][1]), (4, images[1][1]))):
        for r, label in enumerate(labels.tolist()):
            takes_part = [j == label or bool(weight(i, label, j)) for j in range(K)]
            assert (logits.grad[start + r] != 0).tolist() == takes_part


@pytest.mark.parametrize("loss", sorted(name for name, cls in CLS_LOSS_REGISTRY if cls.uses_negatives))
def test_the_model_tells_every_stage_of_every_topology(build, topology, batch, loss, monkeypatch):
    head, overrides = topology
    model = tell_image_labels(build(loss, "MODEL.ROI_HEADS.NAME", head, *overrides))
    stages = predictors(model)
    seen = []
    for p in stages:
        compute = p.cls_loss.compute

        def watched(logits, rois, compute=compute):
            seen.append((rois.gt_classes, rois.negatives))
            return compute(logits, rois)

        monkeypatch.setattr(p.cls_loss, "compute", watched)
    with EventStorage():
        losses = model(batch)
    assert all(value.isfinite() for value in losses.values())
    assert len(seen) == len(stages)
    for gt_classes, negatives in seen:
        assert negatives.shape == (len(gt_classes), K)
        half = len(gt_classes) // 2  # as many RoIs of either image
        for r, (label, row) in enumerate(zip(gt_classes.tolist(), negatives.tolist())):
            checked = CHECKED[r >= half]
            assert [j for j in range(K) if row[j]] == sorted({*checked, *([label] if label < K else [])})


def test_each_batch_replaces_the_last_and_evaluation_needs_no_labels(build, batch):
    model = tell_image_labels(build("SigmoidCrossEntropy"))
    (predictor,) = predictors(model)
    for images in (batch, batch[::-1], batch[:1]):
        with EventStorage():
            model(images)
        told = [row.nonzero().flatten().tolist() for row in predictor.checked]
        assert told == [image["checked_categories"] for image in images]
    for image in batch:
        del image["checked_categories"]
    with EventStorage(), pytest.raises(ValueError, match="have no 'checked_categories'.*get_checked_dataset_dicts"):
        model(batch)
    with torch.no_grad():
        assert len(model.eval()(batch)) == 2


def test_a_model_that_is_not_told_says_so(build, batch):
    with EventStorage(), pytest.raises(ValueError, match="was not told.*tell_image_labels"):
        build("SigmoidCrossEntropy")(batch)


def test_a_batch_without_images(build):
    (predictor,) = predictors(build("EqualizationLoss", f"{NODE}.EqualizationLoss.UNCHECKED", "equalize"))
    logits, deltas = torch.zeros(0, K, requires_grad=True), torch.zeros(0, 4)
    with EventStorage():
        losses = predictor.losses((logits, deltas, None), [])
    assert losses["loss_cls"] == 0 and losses["loss_cls"].requires_grad


def test_without_the_key_nothing_is_told(tiny_cfg, batched_inputs):
    model = build_model(tiny_cfg(f"{NODE}.NAME", "SigmoidCrossEntropy"))
    assert not tell_image_labels(model)._forward_pre_hooks
    with EventStorage():
        model(batched_inputs)


def test_all_or_nothing_known_are_other_losses(build, batch, tiny_cfg):
    def value(model, checked=()):
        for image in batch:
            image["checked_categories"] = list(checked)
        torch.manual_seed(0)
        with EventStorage():
            return tell_image_labels(model)(batch)["loss_cls"]

    def without_labels(loss):
        torch.manual_seed(0)
        return value(build_model(tiny_cfg(f"{NODE}.NAME", loss)))

    everything = range(K)
    assert torch.equal(value(build("EqualizationLoss"), everything), without_labels("EqualizationLoss"))
    equalized = build("EqualizationLoss", f"{NODE}.EqualizationLoss.UNCHECKED", "equalize")
    torch.testing.assert_close(value(equalized, everything), without_labels("SigmoidCrossEntropy"))
    torch.testing.assert_close(value(equalized), without_labels("EqualizationLoss"))


@pytest.mark.parametrize("loss", ["", "SoftmaxCrossEntropy", "ClassBalancedLoss"])
def test_a_softmax_loss_is_refused(build, loss):
    base = [f"{NODE}.ClassBalancedLoss.BASE", "softmax"]
    with pytest.raises(ValueError, match=f"IMAGE_LABELS is True, but {loss or 'SoftmaxCrossEntropy'} .*a sigmoid loss"):
        build(loss, *base)


def test_section_4_2_needs_the_labels(tiny_cfg):
    cfg = tiny_cfg(f"{NODE}.NAME", "EqualizationLoss", f"{NODE}.EqualizationLoss.UNCHECKED", "equalize")
    with pytest.raises(ValueError, match="EqualizationLoss is set to go by .* checked for: set .*IMAGE_LABELS True"):
        build_model(cfg)


def test_in_a_loop_of_ones_own_too(frequencies):
    loss = EqualizationLoss(K, frequencies=frequencies, unchecked="equalize")
    with pytest.raises(ValueError, match="EqualizationLoss as it is set needs negatives"):
        loss(torch.zeros(2, K), torch.tensor([0, K]))
    with pytest.raises(ValueError, match="unchecked must be 'ignore' or 'equalize', got 'all'"):
        EqualizationLoss(K, frequencies=frequencies, unchecked="all")


def test_no_host_sync_on_the_way(build):
    """On the meta device a value that is looked at raises."""
    (predictor,) = predictors(build("SigmoidCrossEntropy").to("meta"))
    predictor.checked = torch.zeros(2, K, dtype=torch.bool, device="meta")
    known = predictor._known_categories([range(3), range(5)], torch.zeros(8, dtype=torch.int64, device="meta"))
    assert known.shape == (8, K) and known.dtype == torch.bool and known.device.type == "meta"

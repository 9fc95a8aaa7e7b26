import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from eql_d2.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy
from eql_d2.modeling import LongTailFastRCNNOutputLayers
from eql_d2.modeling.fast_rcnn import log_classification_stats

K = 3


def make_predictor(cls_loss, num_classes=K):
    return LongTailFastRCNNOutputLayers(
        16,
        box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
        num_classes=num_classes,
        cls_loss=cls_loss,
    )


def test_works_without_a_config_and_reports_no_objects():
    predictor = make_predictor(SigmoidCrossEntropy(K))
    proposals = [Instances((50, 50)), Instances((50, 50))]
    for p in proposals:
        p.proposal_boxes = Boxes(torch.rand(4, 4).cumsum(1) * 10)
        p.gt_classes = torch.full((4,), K)
    with EventStorage():
        losses = predictor.losses(predictor(torch.randn(8, 16)), proposals)
    assert losses["loss_box_reg"] == 0 and losses["loss_cls"] > 0


@pytest.mark.parametrize("num_images", [0, 1])
def test_no_proposals_give_zero_loss_with_gradients(num_images):
    predictor = make_predictor(SigmoidCrossEntropy(K))
    proposals = []
    for _ in range(num_images):
        p = Instances((50, 50))
        p.proposal_boxes, p.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0, dtype=torch.int64)
        proposals.append(p)
    with EventStorage():
        losses = predictor.losses(predictor(torch.randn(0, 16)), proposals)
    total = sum(losses.values())
    assert total == 0
    total.backward()
    assert all((p.grad == 0).all() for p in predictor.parameters())


def test_loss_of_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="5 classes, the box predictor 3"):
        make_predictor(SigmoidCrossEntropy(5))


def test_logits_of_another_width_are_refused():
    with pytest.raises(ValueError, match="takes 3 logits per RoI, got 4"):
        SigmoidCrossEntropy(K)(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))


def stats(loss, logits, gt_classes):
    with EventStorage() as storage:
        log_classification_stats(loss, torch.tensor(logits), torch.tensor(gt_classes))
        return {key.split("/")[1]: value for key, (value, _) in storage.latest().items()}


def test_accuracy_of_a_sigmoid_loss():
    """Background is where no score exceeds 0.5; the accuracy on foreground is over the K classes."""
    logits = [
        [2.0, -1, -1],  # class 0, right
        [-1.0, -2, -3],  # class 0 by order, but called background: missed
        [-1.0, -1, -4],  # background, right
        [-9.0, -9, 1],  # class 2 on background: wrong
    ]
    result = stats(SigmoidCrossEntropy(K), logits, [0, 0, K, K])
    assert result == {"cls_accuracy": 0.5, "fg_cls_accuracy": 1.0, "false_negative": 0.5}


def test_accuracy_of_a_softmax_loss():
    logits = [[2.0, 0, 0, 1], [1.0, 0, 0, 2], [0.0, 0, 0, 1]]
    result = stats(SoftmaxCrossEntropy(K), logits, [0, 0, K])
    assert result == pytest.approx({"cls_accuracy": 2 / 3, "fg_cls_accuracy": 1.0, "false_negative": 0.5})

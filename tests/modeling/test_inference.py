"""Our post-processing against Detectron2's own, to the last bit."""

import inspect
from types import SimpleNamespace

import pytest
import torch
import torchvision
from detectron2.layers import batched_nms
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, fast_rcnn
from detectron2.structures import Boxes, ImageList, Instances

from eql_d2.losses import SigmoidCrossEntropy
from eql_d2.modeling import LongTailCascadeROIHeads, LongTailFastRCNNOutputLayers, inference
from eql_d2.modeling.inference import EncodedBoxes, fast_rcnn_inference, nms_by_class
from eql_d2.modeling.tta import LongTailRCNNWithTTA

IMAGE = (120, 160)  # height, width
TRANSFORM = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))


def distinct_scores(R, K):
    """(R, K + 1) scores in (0, 1) without ties; many are small, as a detector's."""
    scores = (torch.randperm(R * (K + 1)) + 0.5) / (R * (K + 1))
    return (scores**3).view(R, K + 1)


def random_boxes(R, C):
    """(R, 4C) boxes of any size, some of which leave the image."""
    corners = torch.rand(R, C, 2, 2) * torch.tensor([200.0, 150.0]) - 20
    return torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=2).view(R, 4 * C)


def clustered_boxes(R, C):
    """(R, 4C) boxes around three objects: NMS drops nearly all."""
    objects = torch.tensor([[10.0, 10, 60, 60], [50, 40, 120, 110], [90, 5, 150, 50]])
    boxes = objects[torch.randint(0, 3, (R,))][:, None] + torch.randn(R, C, 4)
    return boxes.view(R, 4 * C)


def assert_same(ours, stock):
    """Both: lists of Instances and of one tensor for each."""
    for (a, rows), (b, stock_rows) in zip(zip(*ours), zip(*stock), strict=True):
        assert a.image_size == b.image_size
        for x, y in (
            (a.pred_boxes.tensor, b.pred_boxes.tensor),
            (a.scores, b.scores),
            (a.pred_classes, b.pred_classes),
            (rows, stock_rows),
        ):
            assert x.dtype == y.dtype and torch.equal(x, y)


def check(boxes, scores, *, thresh=1e-4, nms_thresh=0.5, topk=100):
    arguments = boxes, scores, [IMAGE] * len(boxes), thresh, nms_thresh, topk
    copies = [b.clone() for b in boxes], [s.clone() for s in scores]
    ours = fast_rcnn_inference(*arguments)
    assert_same(ours, fast_rcnn.fast_rcnn_inference(*arguments))
    for given, copy in zip((boxes, scores), copies):
        assert all(torch.equal(g.nan_to_num(), c.nan_to_num()) for g, c in zip(given, copy))
    return ours


@pytest.fixture
def stable_stock(monkeypatch):
    """Detectron2 with its final sort made stable."""

    def batched_nms_vanilla(boxes, scores, idxs, iou_threshold):
        is_kept = torch.zeros_like(scores, dtype=torch.bool)
        for class_id in idxs.unique():
            of_class = torch.where(idxs == class_id)[0]
            keep = torchvision.ops.nms(boxes[of_class], scores[of_class], iou_threshold)
            is_kept[of_class[keep]] = True
        keep = torch.where(is_kept)[0]
        return keep[scores[keep].sort(descending=True, stable=True)[1]]

    monkeypatch.setattr(torchvision.ops.boxes, "_batched_nms_vanilla", batched_nms_vanilla)


@pytest.fixture
def prefixes(monkeypatch):
    """The sizes of the prefixes that were tried, but for the last where that was all candidates."""
    sizes, floor = [], inference._floor
    monkeypatch.setattr(inference, "_floor", lambda s, size: sizes.append(size) or floor(s, size))
    return sizes


@pytest.mark.parametrize("thresh", [-1, 0, 1e-4, 0.5, 1])
@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("make_boxes", [random_boxes, clustered_boxes])
def test_equals_stock(make_boxes, agnostic, thresh):
    """Few and many candidates; several images at once."""
    K = 12
    images = (7, 120, 0, 200)
    boxes = [make_boxes(R, 1 if agnostic else K) for R in images]
    scores = [distinct_scores(R, K) for R in images]
    for topk in (-1, 0, 1, 100, 300):
        check(boxes, scores, thresh=thresh, topk=topk)


@pytest.mark.parametrize("nms_thresh", [-1, 0, 0.3, 0.5, 0.9, 1])
def test_any_nms_threshold(nms_thresh):
    boxes, scores = clustered_boxes(200, 9), distinct_scores(200, 9)
    boxes[:50] = random_boxes(50, 9)
    for rows in (100, 200):
        check([boxes[:rows]], [scores[:rows]], nms_thresh=nms_thresh)


def test_one_class():
    check([random_boxes(1500, 1)], [distinct_scores(1500, 1)])


def test_no_images_and_no_rois():
    assert fast_rcnn_inference([], [], [], 0.1, 0.5, 10) == ([], [])
    check([torch.zeros(0, 4), torch.zeros(0, 20)], [torch.zeros(0, 6), torch.zeros(0, 6)])


@pytest.mark.parametrize("agnostic", [True, False])
def test_rows_that_are_not_finite_are_left_out(agnostic):
    R, K = 300, 8
    boxes, scores = random_boxes(R, 1 if agnostic else K), distinct_scores(R, K)
    for i, value in enumerate([float("nan"), float("inf"), -float("inf")]):
        boxes[10 + i, i] = boxes[20 + i, -1] = value
        scores[30 + i, i] = scores[40 + i, -1] = value  # the last column is background
    _, (rows,) = check([boxes], [scores], topk=-1)
    assert rows.max() < R - 12  # counted without those left out, as in Detectron2
    check([boxes[:60]], [scores[:60]])
    check([boxes[10:13]], [scores[10:13]])


@pytest.mark.parametrize("levels", [1, 4, 50])
@pytest.mark.parametrize("topk", [-1, 1, 30, 300])
@pytest.mark.parametrize("make_boxes", [random_boxes, clustered_boxes])
def test_equal_scores_in_stocks_order(stable_stock, make_boxes, topk, levels):
    scores = torch.randint(1, levels + 1, (200, 13)) / levels
    for agnostic in (True, False):
        check([make_boxes(200, 1 if agnostic else 12)], [scores], topk=topk)


def test_few_candidates_in_stocks_order_without_any_patch():
    scores = torch.randint(1, 5, (80, 13)) / 4
    check([random_boxes(80, 12)], [scores])


def test_prefix_grows_until_enough_survive(prefixes):
    """One object and two classes: two survive."""
    R, K = 1000, 2
    boxes = torch.tensor([[10.0, 10, 60, 60]]).repeat(R, 1) + torch.rand(R, 4)
    scores = distinct_scores(R, K)
    (result,), _ = check([boxes], [scores], thresh=0, topk=5)
    assert len(result) == 2 and prefixes == [20, 80, 320, 1280]

    prefixes.clear()
    lowest = scores[:, :K].flatten().topk(60).indices[30:] // K  # others, lower, complete them
    boxes[lowest] = random_boxes(len(lowest), 1)
    (result,), _ = check([boxes], [scores], thresh=0, topk=5)
    assert len(result) == 5 and prefixes == [20, 80]


def test_floor_is_reached_by_as_many_as_asked():
    for R, K in ((1, 3), (7, 5), (64, 5), (100, 30)):
        scores = distinct_scores(R, K)[:, :-1]
        for size in (1, 3, R * K // 3 or 1, R * K):
            assert (scores >= inference._floor(scores, size)).sum() >= size


def test_nothing_below_the_threshold_joins_a_prefix():
    """Candidates of one class fill too few groups, so that the floor is below the threshold."""
    R, K = 1600, 4
    scores = distinct_scores(R, K) / 2
    scores[:, 0] += 0.5
    boxes = random_boxes(R, K)
    boxes[:, :4] = clustered_boxes(R, 1)
    assert inference._floor(scores[:, :-1], 400) < 0.5
    (result,), _ = check([boxes], [scores], thresh=0.5, topk=100)
    assert len(result) < 100


@pytest.mark.parametrize("num_candidates", [999, 1000, 1001])
def test_nms_rounds_as_stocks_variant_of_that_size(num_candidates):
    """Boxes whose IoUs are 0.5 to the last bits: an offset to the coordinates flips some."""
    K = 9
    x = torch.rand(num_candidates // 2 + 1, 1, 1) * 100
    pair = torch.tensor([[0.0, 0, 20, 10], [0, 0, 10, 10]]) + x
    boxes = pair.view(-1, 4)[:num_candidates]
    classes = (torch.arange(num_candidates) // 2) % K
    scores = torch.zeros(num_candidates, K + 1)
    scores[torch.arange(num_candidates), classes] = distinct_scores(num_candidates, 0)[:, 0]
    check([boxes], [scores], thresh=0, topk=-1)
    check([boxes], [scores], thresh=0, topk=100)
    boxes = boxes.clamp(max=120)
    best = scores.amax(dim=1)
    by_loop = torchvision.ops.boxes._batched_nms_vanilla(boxes, best, classes, 0.5)
    by_offset = torchvision.ops.boxes._batched_nms_coordinate_trick(boxes, best, classes, 0.5)
    assert len(by_loop) != len(by_offset)  # so that the wrong variant would show


@pytest.mark.parametrize(
    "device, limit", [("cpu", inference._LOOP_ABOVE_ON_CPU), ("meta", inference._LOOP_ABOVE_ON_GPU)]
)
def test_torchvision_switches_where_we_do(monkeypatch, device, limit):
    """Torchvision tells the CPU from all other devices."""
    for name in ("vanilla", "coordinate_trick"):
        monkeypatch.setattr(torchvision.ops.boxes, f"_batched_nms_{name}", lambda *_, name=name: name)
    chosen = []
    for n in (limit // 4, limit // 4 + 1):
        boxes = torch.zeros(n, 4, device=device)
        chosen.append(batched_nms(boxes, boxes[:, 0], boxes[:, 0], 0.5))
    assert chosen == ["coordinate_trick", "vanilla"]


@pytest.mark.parametrize("nms_thresh", [-1, 0, 0.5])
def test_quadrants_keep_classes_apart(stable_stock, nms_thresh):
    """Also where boxes touch the axes, have no area, or are inside out."""
    corners = torch.randint(0, 4, (400, 4)) * torch.rand(400, 1).round(decimals=1)
    classes = torch.randint(0, 11, (400,))
    scores = torch.rand(400)
    ours = nms_by_class(corners, scores, classes, nms_thresh)
    stock = torchvision.ops.boxes._batched_nms_vanilla(corners, scores, classes, nms_thresh)
    assert torch.equal(ours, stock)


def awkward_deltas(R, C):
    """(R, 4C) deltas and (R, 4) proposals of all magnitudes, with rows that overflow or are not finite."""
    proposals, deltas = random_boxes(R, 1), torch.randn(R, 4 * C)
    deltas[: R // 2] *= 10 ** (torch.rand(R // 2, 1) * 50 - 10).clamp(max=38)
    proposals[: R // 4] *= 10 ** (torch.rand(R // 4, 1) * 50 - 10).clamp(max=37)
    proposals[:20] = 0
    for i, value in enumerate([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e30]):
        for j in range(8):  # each of dx, dy, dw, dh of the first and of the last box
            deltas[R // 2 + 8 * i + j] = 0
            deltas[R // 2 + 8 * i + j, j - 4] = value
        proposals[R // 2 + 50 + i, i % 4] = value
    return deltas, proposals


@pytest.mark.parametrize("weights", [(10.0, 10.0, 5.0, 5.0), (1.0, 1e-3, 1e3, 1e-30)])
def test_encoded_boxes_are_finite_where_the_decoded_are(weights):
    for clamp in (TRANSFORM.scale_clamp, 80.0, 100.0, 1000.0):
        transform = Box2BoxTransform(weights, scale_clamp=clamp)
        deltas, proposals = awkward_deltas(1000, 3)
        finite = transform.apply_deltas(deltas, proposals).isfinite().all(dim=1)
        assert 50 < finite.sum() < 950
        assert torch.equal(EncodedBoxes(transform, deltas, proposals).rows_are_finite(), finite)


def test_usual_deltas_are_decoded_only_where_asked_for():
    decoded = []

    def apply_deltas(deltas, boxes):
        decoded.append(deltas.numel())
        return TRANSFORM.apply_deltas(deltas, boxes)

    spy = SimpleNamespace(weights=TRANSFORM.weights, scale_clamp=TRANSFORM.scale_clamp, apply_deltas=apply_deltas)
    R, K = 200, 20
    boxes = EncodedBoxes(spy, torch.randn(R, 4 * K) * 9, random_boxes(R, 1) * 10)
    fast_rcnn_inference([boxes], [distinct_scores(R, K)], [IMAGE], 0, 0.5, 20)
    assert len(decoded) == 1 and decoded[0] < 4 * 2 * 80  # 80 candidates, by the floor a few more


def make_predictor(K, **kwargs):
    predictor = LongTailFastRCNNOutputLayers(
        16,
        box2box_transform=TRANSFORM,
        num_classes=K,
        cls_loss=SigmoidCrossEntropy(K),
        test_score_thresh=1e-4,
        test_topk_per_image=100,
        **kwargs,
    )
    torch.nn.init.normal_(predictor.cls_score.weight)
    return predictor.eval()


def make_proposals(*boxes):
    return [Instances(IMAGE, proposal_boxes=Boxes(b)) for b in boxes]


@pytest.mark.parametrize("agnostic", [True, False])
def test_predictor_equals_stock(agnostic):
    K = 20
    predictor = make_predictor(K, cls_agnostic_bbox_reg=agnostic)
    deltas, awkward = awkward_deltas(300, 1 if agnostic else K)
    proposals = make_proposals(awkward, torch.zeros(0, 4), random_boxes(150, 1), clustered_boxes(20, 1))
    logits = torch.randn(470, K) * 2 - 3
    deltas = torch.cat([deltas, torch.randn(170, deltas.shape[1])])
    deltas[460:] = float("nan")
    predictions = logits, deltas, torch.zeros(470, 16)
    stock = FastRCNNOutputLayers.inference(predictor, predictions, proposals)
    assert all((len(d) > 50) == (len(p) > 0) for d, p in zip(stock[0], proposals))
    assert_same(predictor.inference(predictions, proposals), stock)
    assert predictor.inference(tuple(p[:0] for p in predictions), []) == ([], [])


def test_traced_predictor_follows_its_input():
    """In a trace the number of candidates would be frozen, so it holds Detectron2's post-processing."""
    predictor = make_predictor(5, cls_agnostic_bbox_reg=False).requires_grad_(False)

    def detect(features, boxes):
        (d,), _ = predictor.inference(predictor(features), make_proposals(boxes))
        return d.pred_boxes.tensor, d.scores, d.pred_classes

    traced = torch.jit.trace(detect, (torch.randn(400, 16), random_boxes(400, 1)), check_trace=False)
    features, boxes = torch.randn(400, 16) * 3, clustered_boxes(400, 1)
    for ours, theirs in zip(detect(features, boxes), traced(features, boxes), strict=True):
        assert torch.equal(ours, theirs)


def test_cascade_equals_stock(tiny_cfg, batched_inputs):
    cfg = tiny_cfg(
        "MODEL.ROI_HEADS.NAME",
        "LongTailCascadeROIHeads",
        "MODEL.RPN.POST_NMS_TOPK_TEST",
        400,
        "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME",
        "SigmoidCrossEntropy",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        1e-4,
        "TEST.DETECTIONS_PER_IMAGE",
        30,
    )
    model = build_model(cfg).eval()
    for predictor in model.roi_heads.box_predictor:
        torch.nn.init.normal_(predictor.cls_score.weight, std=0.1)
        torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.05)
    with torch.no_grad():
        images = ImageList.from_tensors([x["image"] / 255 for x in batched_inputs])
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features)
        assert min(map(len, proposals)) * 7 > 1000  # beyond torchvision's switch
        ours = model.roi_heads._forward_box(features, proposals)
        stock = CascadeROIHeads._forward_box(model.roi_heads, features, proposals)
    assert [len(d) for d in ours] == [30, 30]
    assert_same((ours, [d.scores for d in ours]), (stock, [d.scores for d in stock]))


@pytest.mark.parametrize("num_boxes", [0, 5, 2000])
def test_merging_of_augmented_images_equals_stock(tiny_cfg, num_boxes):
    tta = SimpleNamespace(cfg=tiny_cfg("TEST.DETECTIONS_PER_IMAGE", 50))
    boxes = random_boxes(num_boxes, 1)
    scores, classes = list(torch.rand(num_boxes)), list(torch.randint(0, 7, (num_boxes,)))
    ours, stock = (
        [cls._merge_detections(tta, boxes, scores, classes, IMAGE)]
        for cls in (LongTailRCNNWithTTA, GeneralizedRCNNWithTTA)
    )
    assert_same((ours, [ours[0].scores]), (stock, [stock[0].scores]))


def test_test_time_augmentation_equals_stock(tiny_cfg, batched_inputs):
    cfg = tiny_cfg("TEST.AUG.MIN_SIZES", [64, 96], "TEST.DETECTIONS_PER_IMAGE", 50)
    model = build_model(cfg).eval()
    inputs = [{**x, "image": x["image"].byte()} for x in batched_inputs]
    with torch.no_grad():
        ours, stock = (
            [output["instances"] for output in cls(cfg, model)(inputs)]
            for cls in (LongTailRCNNWithTTA, GeneralizedRCNNWithTTA)
        )
    assert all(len(d) == 50 for d in ours)
    assert_same((ours, [d.scores for d in ours]), (stock, [d.scores for d in stock]))


@pytest.mark.parametrize(
    "function, parameters",
    [
        (fast_rcnn.fast_rcnn_inference, "boxes scores image_shapes score_thresh nms_thresh topk_per_image"),
        (
            fast_rcnn.fast_rcnn_inference_single_image,
            "boxes scores image_shape score_thresh nms_thresh topk_per_image",
        ),
        (FastRCNNOutputLayers.inference, "self predictions proposals"),
        (CascadeROIHeads._forward_box, "self features proposals targets"),
        (CascadeROIHeads._run_stage, "self features proposals stage"),
        (CascadeROIHeads._create_proposals_from_boxes, "self boxes image_sizes"),
        (GeneralizedRCNNWithTTA._merge_detections, "self all_boxes all_scores all_classes shape_hw"),
    ],
)
def test_signatures_of_what_we_override_or_call(function, parameters):
    """Detectron2's private names: where one changes, our copy of it must be looked at."""
    assert list(inspect.signature(function).parameters) == parameters.split()


@pytest.mark.parametrize(
    "ours, stock",
    [
        (inference.fast_rcnn_inference, fast_rcnn.fast_rcnn_inference),
        (inference.fast_rcnn_inference_single_image, fast_rcnn.fast_rcnn_inference_single_image),
        (LongTailFastRCNNOutputLayers.inference, FastRCNNOutputLayers.inference),
        (LongTailCascadeROIHeads._forward_box, CascadeROIHeads._forward_box),
        (LongTailRCNNWithTTA._merge_detections, GeneralizedRCNNWithTTA._merge_detections),
    ],
)
def test_ours_take_the_same_arguments(ours, stock):
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(stock).parameters)

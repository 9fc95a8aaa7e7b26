"""Detectron2's post-processing of box predictions, exact and fast with many categories.

Stock Detectron2 decodes a box for each proposal and category, then runs NMS on all that pass the score
threshold: at LVIS settings up to 1.2 million candidates for 300 detections. But NMS keeps or drops a candidate by
looking only at candidates of its category with higher scores. So among the candidates that reach some score it
keeps those that it would keep among all, and some thousand of the highest suffice for the best 300.

The detections are those of Detectron2, bit for bit. Only where kept scores are equal, Detectron2 leaves their order,
and so which of them come last within the limit, to an unstable sort; here that sort is stable.

Shape shorthand:

    R: number of RoIs of one image
    K: number of foreground categories
    C: number of boxes of an RoI: K (class-specific regression) or 1 (class-agnostic)
    N: number of candidates, pairs of an RoI and a category
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torchvision
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torchvision.ops import nms

from eql_d2.losses.fused import blocks_of_rows

# The first NMS takes this many times as many candidates as detections are wanted, each further one as many times more.
GROWTH = 4

# Torchvision's batched_nms takes the categories apart by an offset to their coordinates, or, for more numbers in
# `boxes` than this, by a loop over them. The offset rounds, which can flip an IoU at the threshold.
_LOOP_ABOVE_ON_CPU = 4_000
_LOOP_ABOVE_ON_GPU = 100_000 if tuple(map(int, torchvision.__version__.split(".")[:2])) >= (0, 22) else 20_000


class DecodedBoxes:
    """Boxes of R RoIs, as the tensor that Detectron2's function takes.

    Args:
        tensor: (R, 4C) absolute x1, y1, x2, y2.
    """

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __getitem__(self, rows: torch.Tensor) -> "DecodedBoxes":
        return DecodedBoxes(self.tensor[rows])

    def rows_are_finite(self) -> torch.Tensor:
        """(R,) bool: whether all C boxes of the RoI are finite."""
        return rows_are_finite(self.tensor)

    def take(self, rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """(N, 4) boxes of the pairs of an RoI and a category."""
        return _take(self.tensor, rows, classes)


class EncodedBoxes:
    """Boxes of R RoIs, decoded only where they are asked for: the others cost neither time nor memory.

    Args:
        transform (Box2BoxTransform): what decodes the deltas.
        deltas: (R, 4C).
        proposals: (R, 4) the boxes that the deltas refer to.
    """

    def __init__(self, transform, deltas: torch.Tensor, proposals: torch.Tensor):
        self.transform = transform
        self.deltas = deltas
        self.proposals = proposals

    def __getitem__(self, rows: torch.Tensor) -> "EncodedBoxes":
        return EncodedBoxes(self.transform, self.deltas[rows], self.proposals[rows])

    def rows_are_finite(self) -> torch.Tensor:
        """(R,) bool: whether all C boxes of the RoI are finite once decoded.

        Decided by :meth:`_bound`, far below fp32's largest number (3.4e38). A row that it does not clear may be finite
        still (a delta of -inf shrinks a width to 0, one of +inf is clamped), so such rows are decoded.
        """
        finite = self._bound() < 1e37
        unsure = ~finite
        if unsure.any():
            finite[unsure] = rows_are_finite(self.transform.apply_deltas(self.deltas[unsure], self.proposals[unsure]))
        return finite

    def _bound(self) -> torch.Tensor:
        """(R,) float64: no number in the decoding of the RoI's boxes exceeds twice this; NaN where an input is.

        With |delta| <= d, |proposal| <= p, |weight| >= w and dw, dh <= c after Detectron2's clamp, a proposal's
        width is at most 2p and its centre 2p, so that
        |x1| = |dx / wx * width + centre - exp(dw) * width / 2| <= p (2d / w + 2 + e^c).
        Taking p >= 1 bounds dx / wx too, and the rounding of ten operations is far below the factor 34 that is left.
        """
        d = torch.maximum(self.deltas.amax(dim=1), -self.deltas.amin(dim=1)).double()
        p = self.proposals.double().abs().amax(dim=1).clamp(min=1)
        w = min(abs(weight) for weight in self.transform.weights)
        return p * (2 * d / w + 2 + math.exp(min(self.transform.scale_clamp, 700)))

    def take(self, rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """(N, 4) boxes of the pairs of an RoI and a category."""
        return self.transform.apply_deltas(_take(self.deltas, rows, classes), self.proposals[rows])


class Candidates(NamedTuple):
    """N pairs of an RoI and a category, by RoI, then by category, unless selected otherwise."""

    boxes: torch.Tensor  # (N, 4) fp32, clipped to the image
    scores: torch.Tensor  # (N,)
    rows: torch.Tensor  # (N,) int64 in [0, R)
    classes: torch.Tensor  # (N,) int64 in [0, K)

    def select(self, indices: torch.Tensor) -> "Candidates":
        return Candidates(*(field[indices] for field in self))


def fast_rcnn_inference(
    boxes: list[torch.Tensor | EncodedBoxes],
    scores: list[torch.Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[torch.Tensor]]:
    """In place of the function of this name in ``detectron2.modeling.roi_heads.fast_rcnn``.

    Args:
        boxes: (Ri, 4) or (Ri, 4K) for each image, decoded or :class:`EncodedBoxes`.
        scores: (Ri, K + 1) for each image, background last.
        image_shapes: (height, width) of each image, in pixels.
        score_thresh: detections score above it.
        nms_thresh: of two boxes of one category with a higher IoU, the one with the lower score is dropped.
        topk_per_image: the most detections of an image; below 0: no limit.

    Returns:
        Instances with ``pred_boxes``, ``scores`` and ``pred_classes``, by falling score, and the (n,) indices of their
        RoIs. As in Detectron2, RoIs with a box or a score that is not finite are left out first, and not counted.
    """
    results = [
        fast_rcnn_inference_single_image(*image, score_thresh, nms_thresh, topk_per_image)
        for image in zip(boxes, scores, image_shapes)
    ]
    return [instances for instances, _ in results], [rows for _, rows in results]


def fast_rcnn_inference_single_image(
    boxes: torch.Tensor | EncodedBoxes,
    scores: torch.Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, torch.Tensor]:
    """:func:`fast_rcnn_inference` of one image."""
    candidates = DecodedBoxes(boxes) if isinstance(boxes, torch.Tensor) else boxes
    valid = candidates.rows_are_finite() & rows_are_finite(scores)
    if not valid.all():
        candidates, scores = candidates[valid], scores[valid]
    best = _best_candidates(candidates, scores[:, :-1], image_shape, score_thresh, nms_thresh, topk_per_image)
    result = Instances(image_shape)
    result.pred_boxes = Boxes(best.boxes)
    result.scores = best.scores
    result.pred_classes = best.classes
    return result, best.rows


def dense_inference_single_image(
    boxes: list[EncodedBoxes],
    logits: list[torch.Tensor],
    scores_of: Callable[[int, slice], torch.Tensor],
    image_shape: tuple[int, int],
    score_thresh: float,
    topk_candidates: int,
    nms_thresh: float,
    topk_per_image: int,
) -> Instances:
    """In place of ``inference_single_image`` of Detectron2's RetinaNet and FCOS.

    Scores are made and searched in blocks of anchors, so that few of the Ri x K are ever kept.

    Args:
        boxes: of Ri anchors, for each level.
        logits: (Ri, C) for each level.
        scores_of: level and anchors of it -> (r, K) scores.
        image_shape: (height, width) of the image, in pixels.
        score_thresh: detections score above it.
        topk_candidates: the most candidates of a level.
        nms_thresh: of two boxes of one category with a higher IoU, the one with the lower score is dropped.
        topk_per_image: the most detections of an image; below 0: no limit.

    Returns:
        Instances with ``pred_boxes``, not clipped to the image, ``scores`` and ``pred_classes``, by falling score.
    """
    levels = []
    for level, (of_level, z) in enumerate(zip(boxes, logits, strict=True)):
        scores, rows, classes = best_pairs(partial(scores_of, level), z, score_thresh, topk_candidates)
        levels.append((of_level.take(rows, classes), scores, rows, classes))
    candidates = Candidates(*(torch.cat(field) for field in zip(*levels)))
    limit = _LOOP_ABOVE_ON_CPU if candidates.scores.device.type == "cpu" else _LOOP_ABOVE_ON_GPU
    nms_of_many = batched_nms if 4 * len(candidates.scores) <= limit else nms_by_class
    keep = nms_of_many(candidates.boxes, candidates.scores, candidates.classes, nms_thresh)
    best = candidates.select(keep[:topk_per_image] if topk_per_image >= 0 else keep)
    return Instances(image_shape, pred_boxes=Boxes(best.boxes), scores=best.scores, pred_classes=best.classes)


def best_pairs(
    scores_of: Callable[[slice], torch.Tensor], logits: torch.Tensor, score_thresh: float, size: int
) -> tuple[torch.Tensor, ...]:
    """The ``size`` highest scores above the threshold, by falling score, equal ones by row, then by category.

    Args:
        scores_of: rows of the logits -> (r, K) scores.
        logits: (R, C).

    Returns:
        (n,) scores, rows and categories.
    """
    nothing = logits.new_zeros(0, dtype=torch.int64)
    best: tuple[torch.Tensor, ...] = (scores_of(slice(0, 0)).flatten(), nothing, nothing)
    floor = None  # what is below it is not among the highest
    for place in blocks_of_rows(logits):
        scores = scores_of(place)
        passes = scores > score_thresh
        if floor is not None:
            passes &= scores >= floor
        if int(passes.count_nonzero()) > size:
            passes &= scores >= _floor(scores, size)
        rows, classes = passes.nonzero(as_tuple=True)
        found = scores[rows, classes], rows + place.start, classes
        best = tuple(torch.cat(pair) for pair in zip(best, found))
        if len(best[0]) > size:
            highest = best[0].argsort(descending=True, stable=True)[:size]
            best = tuple(field[highest] for field in best)
            floor = best[0][-1]
    highest = best[0].argsort(descending=True, stable=True)
    return tuple(field[highest] for field in best)


def _best_candidates(boxes, scores, image_shape, score_thresh, nms_thresh, topk) -> Candidates:
    """What NMS keeps of the (R, K) scores above the threshold, by falling score, at most ``topk`` of it."""
    passes = scores > score_thresh
    num_candidates = int(passes.count_nonzero())  # a sum would turn them all into int64
    on_cpu = scores.device.type == "cpu"
    if 4 * num_candidates <= (_LOOP_ABOVE_ON_CPU if on_cpu else _LOOP_ABOVE_ON_GPU):
        # Few, and the offset depends on all their coordinates.
        candidates = _candidates(boxes, scores, passes, image_shape)
        keep = batched_nms(candidates.boxes, candidates.scores, candidates.classes, nms_thresh)
        return candidates.select(keep[:topk] if topk >= 0 else keep)
    size = max(GROWTH * topk, 1) if topk >= 0 else num_candidates
    while True:
        highest = passes & (scores >= _floor(scores, size)) if size < num_candidates else passes
        candidates = _candidates(boxes, scores, highest, image_shape)
        keep = nms_by_class(candidates.boxes, candidates.scores, candidates.classes, nms_thresh)
        if 0 <= topk <= len(keep):
            return candidates.select(keep[:topk])
        if len(candidates.scores) == num_candidates:
            return candidates.select(keep)
        size *= GROWTH


def _floor(scores: torch.Tensor, size: int) -> torch.Tensor:
    """A number that at least ``size`` of the (R, K) scores reach, and seldom many more do.

    It is the ``size``-th highest of the maxima of groups of scores: eight times fewer to search through. Whatever
    reaches it is taken, so that equal scores are never parted: among them NMS prefers the first.
    """
    num_groups = len(scores) // 8
    if num_groups * scores.shape[1] >= size:
        # The rows of a group are far apart: proposals come sorted, so that neighbours often are of one object.
        scores = scores[: 8 * num_groups].view(8, num_groups, -1).amax(dim=0)
    return scores.flatten().topk(size, sorted=False).values.min()


def _candidates(boxes, scores, mask, image_shape) -> Candidates:
    rows, classes = mask.nonzero(as_tuple=True)
    taken = Boxes(boxes.take(rows, classes))
    taken.clip(image_shape)
    return Candidates(taken.tensor, scores[rows, classes], rows, classes)


def nms_by_class(boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, nms_thresh: float) -> torch.Tensor:
    """Torchvision's ``batched_nms`` in its variant that loops over the classes, with a stable final sort.

    Most calls are on a few boxes, where a call costs more than its work, so that one call takes four classes: each
    moves to its own quadrant by a change of sign, which does not round, and cannot meet the others there.

    Args:
        boxes: (N, 4) fp32.
        scores: (N,) fp32.
        classes: (N,) int64.
        nms_thresh: IoU above which the lower score is dropped.

    Returns:
        Indices of what is kept, by falling score, equal ones by index.
    """
    # Below a threshold of 0 even boxes that do not meet drop each other; a box across an axis is in two quadrants.
    apart = nms_thresh >= 0 and len(boxes) > 0 and bool(boxes.min() >= 0)
    classes_per_call = 4 if apart else 1
    by_class = classes.argsort(stable=True)
    _, rank = classes[by_class].unique_consecutive(return_inverse=True)
    boxes = _move_to_quadrant(boxes[by_class], rank % classes_per_call)
    calls = (rank // classes_per_call).bincount().tolist()
    is_kept = torch.zeros_like(classes, dtype=torch.bool)
    for indices, b, s in zip(*(x.split(calls) for x in (by_class, boxes, scores[by_class]))):
        is_kept[indices[nms(b, s, nms_thresh)]] = True
    keep = is_kept.nonzero()[:, 0]
    return keep[scores[keep].argsort(descending=True, stable=True)]


def _move_to_quadrant(boxes: torch.Tensor, quadrant: torch.Tensor) -> torch.Tensor:
    """(N, 4) boxes without negative coordinates, mirrored on the axes that (N,) numbers in [0, 4) say."""
    mirror_x, mirror_y = quadrant % 2 == 1, quadrant >= 2
    mirror = torch.stack([mirror_x, mirror_y, mirror_x, mirror_y], dim=1)
    return torch.where(mirror, -boxes[:, [2, 3, 0, 1]], boxes)


def rows_are_finite(x: torch.Tensor) -> torch.Tensor:
    """(R, D) -> (R,) bool: whether all D numbers are finite, without the (R, D) temporaries of ``isfinite``.

    Minimum and maximum are NaN where any number is.
    """
    return x.amin(dim=1).isfinite() & x.amax(dim=1).isfinite()


def _take(x: torch.Tensor, rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(R, 4C) -> (N, 4)."""
    x = x.reshape(len(x), x.shape[1] // 4, 4)
    return x[rows, classes if x.shape[1] > 1 else 0]

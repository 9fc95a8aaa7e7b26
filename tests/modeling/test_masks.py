"""Masks that are not pasted: RLEs byte for byte those of Detectron2 and pycocotools, and a tensor for who wants one."""

import copy
import pickle

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st

from eql_d2.evaluation.predictions import ImagePredictions
from eql_d2.modeling.masks import PastedMasks, UnpastedMasks, mask_rles

SIZE = (60, 80)


def stock_rles(masks, boxes, size):
    pasted = paste_masks_in_image(masks, boxes, size)
    rles = [pycocotools.mask.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0] for mask in pasted]
    return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in rles]


def random_boxes(n, size, generator):
    """Some of them reach to the borders, cover the whole image, or are thinner than a pixel."""
    limit = torch.tensor([size[1], size[0]])
    corners = (torch.rand(n, 2, 2, generator=generator) * 1.4 - 0.2).clamp(0, 1) * limit
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    boxes[::7, 2:] = torch.minimum(boxes[::7, :2] + 0.3, limit.float())
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(0, 40),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    sharp=st.sampled_from([0.5, 3.0, 1e4]),
    resolution=st.sampled_from([1, 7, 28]),
)
def test_rles_are_those_of_stock(seed, n, size, sharp, resolution):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(n, size, generator)
    masks = (torch.randn(len(boxes), resolution, resolution, generator=generator) * sharp).sigmoid()
    assert mask_rles(masks, boxes, size) == stock_rles(masks, boxes, size)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_full_empty_and_whole_image(value):
    """Runs that join at the border of a column, and an RLE that starts or ends inside of the mask."""
    h, w = SIZE
    boxes = torch.tensor([[0, 0, w, h], [10, 0, 20, h], [0, 5, w, 6], [w - 1.5, h - 1.5, w, h], [0, 0, 1, 1]]).float()
    masks = torch.full((len(boxes), 28, 28), value)
    assert mask_rles(masks, boxes, SIZE) == stock_rles(masks, boxes, SIZE)


def test_a_threshold_that_reaches_out_of_the_box_is_refused():
    with pytest.raises(ValueError, match=r"at least 0\.5"):
        mask_rles(torch.ones(1, 28, 28), torch.tensor([[0.0, 0, 9, 9]]), SIZE, threshold=0.4)


@pytest.fixture
def masks():
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(6, SIZE, generator)
    return PastedMasks(torch.rand(len(boxes), 28, 28, generator=generator), boxes, SIZE)


def test_it_is_the_tensor_for_who_asks(masks):
    expected = paste_masks_in_image(masks._masks, masks._boxes, SIZE)
    assert masks.rles() == stock_rles(masks._masks, masks._boxes, SIZE) and not masks.is_pasted
    assert len(masks) == len(expected) and masks.shape == expected.shape and masks.dtype == torch.bool
    assert (np.asarray(masks) == expected.numpy()).all() and torch.equal(
        masks.float().sum((1, 2)), expected.sum((1, 2))
    )
    assert torch.equal(torch.stack([masks, masks])[1], expected) and torch.equal(masks[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(masks, expected, strict=True))
    assert torch.equal(masks.to(torch.uint8), expected.to(torch.uint8))
    assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(masks)))[1], expected[1])


@pytest.mark.parametrize("item", [slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True, True, False])])
def test_instances_can_be_chosen_before_anything_is_pasted(masks, item):
    masks = masks[:5]
    chosen = masks[item]
    assert isinstance(chosen, PastedMasks) and not chosen.is_pasted
    assert torch.equal(chosen.tensor, masks.tensor[item])
    both = Instances.cat([Instances(SIZE, pred_masks=chosen.to("cpu")), Instances(SIZE, pred_masks=masks)])
    assert torch.equal(both.pred_masks, torch.cat([chosen.tensor, masks.tensor]))


def test_a_models_masks_are_those_of_the_stock_head(tiny_cfg, topology, batched_inputs):
    """The tensor for users, and the RLEs of the evaluation, in another size than the model saw."""
    name, overrides = topology
    cfg = tiny_cfg("MODEL.ROI_HEADS.NAME", name, "MODEL.MASK_ON", True, *overrides)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    batched_inputs[0].update(height=77, width=131)
    with torch.no_grad():
        images = model.preprocess_image(batched_inputs)
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features)
        stock, _ = super(type(model.roi_heads).__mro__[1], model.roi_heads).forward(images, features, proposals)
        stock = model._postprocess(stock, batched_inputs, images.image_sizes)
        ours = model(batched_inputs)
    for a, b, image in zip(ours, stock, batched_inputs, strict=True):
        a, b = a["instances"], b["instances"]
        assert len(a) and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        packed = ImagePredictions.pack(a, 1)
        assert not a.pred_masks.is_pasted
        expected = ImagePredictions.pack(b, 1)
        assert packed.mask_counts == expected.mask_counts and packed.mask_size == [image["height"], image["width"]]
        assert torch.equal(a.pred_masks.tensor, b.pred_masks)


def test_other_thresholds_are_stock(masks):
    unpasted = UnpastedMasks(masks._masks[:, None])
    boxes = Boxes(masks._boxes)
    for threshold in (-1, 0.3):
        expected = paste_masks_in_image(masks._masks, boxes, SIZE, threshold=threshold)
        assert torch.equal(unpasted.to_bitmasks(boxes, *SIZE, threshold=threshold).tensor, expected.bool())


def test_before_the_postprocessing_it_is_the_mask_heads_tensor(masks):
    """As `model.inference(..., do_postprocess=False)` gives it."""
    tensor = masks._masks[:, None]
    unpasted = UnpastedMasks(tensor)
    assert unpasted.shape == tensor.shape and torch.equal(unpasted[:, 0], tensor[:, 0])
    assert torch.equal(torch.flip(unpasted, [3]), tensor.flip(3)) and torch.equal(unpasted[1:3].tensor, tensor[1:3])

"""Pasting: two images by hand, properties of any images, the drawing law, and the stream of a run."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, Instances
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from eql_d2.data.copy_paste import CopyPasteMapper, ImageCache, drawing_law, pasted
from eql_d2.data.seeding import seeded
from eql_d2.data.train_loader import TrainLoader
from eql_d2.engine.yaml_parts import copy_paste_mapper


def rectangle(x0, y0, x1, y1, category):
    outline = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    box = {"bbox": [x0, y0, x1, y1], "bbox_mode": BoxMode.XYXY_ABS}
    return {**box, "segmentation": [list(map(float, outline[0]))], "category_id": category, "iscrowd": 0}


@pytest.fixture
def two_images(tmp_path):
    """8 x 8 pixels. First: all 10; objects of category 0 at columns 0 to 3, of 1 at the lower right corner. Second: all
    200; an object of category 2 over columns 2 to 5 of the upper half."""
    for name, grey in (("a", 10), ("b", 200)):
        Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / f"{name}.png")
    common = {"height": 8, "width": 8}
    first = {**common, "file_name": str(tmp_path / "a.png"), "image_id": 1, "neg_category_ids": [3, 7],
             "annotations": [rectangle(0, 0, 4, 8, 0), rectangle(6, 6, 8, 8, 1)]}  # fmt: skip
    second = {**common, "file_name": str(tmp_path / "b.png"), "image_id": 2, "neg_category_ids": [],
              "annotations": [rectangle(2, 0, 6, 4, 2)]}  # fmt: skip
    return [first, second]


def mapper_with(augmentations=(), **arguments):
    return DatasetMapper(
        is_train=True,
        augmentations=list(augmentations),
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
        **arguments,
    )


def a_paste_mapper(images, sources=None, augmentations=(), **arguments):
    arguments = {"max_objects": 1, **arguments}
    return CopyPasteMapper(mapper_with(augmentations), sources or images, **arguments)


def call(mapper, image, seed):
    with seeded(seed):
        return mapper(image)


def test_two_images_by_hand(two_images):
    first, second = two_images
    mapper = a_paste_mapper([first], [second])
    results = [call(mapper, {**first, "checked_categories": [0, 1, 2]}, seed) for seed in range(20)]
    numbers = {len(r["instances"]) for r in results}
    assert numbers == {2, 3}  # none or one pasted
    plain = next(r for r in results if len(r["instances"]) == 2)
    assert (plain["image"] == 10).all() and plain["neg_category_ids"] == [3, 7]
    result = next(r for r in results if len(r["instances"]) == 3)
    expected = torch.full((8, 8), 10)
    expected[:4, 2:6] = 200
    assert torch.equal(result["image"], expected.expand(3, 8, 8).to(torch.uint8))
    instances = result["instances"]
    assert instances.gt_classes.tolist() == [0, 1, 2]
    left = torch.zeros(8, 8, dtype=torch.bool)
    left[:, :4] = True
    left[:4, 2:4] = False
    assert torch.equal(instances.gt_masks.tensor[0], left)
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 4, 8], [6, 6, 8, 8], [2, 0, 6, 4]]
    assert result["neg_category_ids"] == [7]  # category 2 is LVIS's 3
    assert result["checked_categories"] == [0, 1, 2]


def test_a_covered_object_has_the_box_of_what_is_left_or_is_dropped(two_images):
    first, second = two_images
    second["annotations"] = [rectangle(0, 0, 8, 7, 2)]  # leaves the lowest row: 1 of 8 and 1 of 2
    covered = {**first, "checked_categories": [0, 1, 2]}
    for min_visible, classes in ((0.1, [0, 1, 2]), (0.2, [1, 2]), (0.6, [2])):
        mapper = a_paste_mapper([first], [second], min_visible=min_visible)
        results = [call(mapper, covered, seed) for seed in range(8)]
        result = next(r for r in results if 2 in r["instances"].gt_classes)
        assert result["instances"].gt_classes.tolist() == classes
        assert result["checked_categories"] == classes  # one that is dropped is no longer all marked
        boxes = dict(zip(classes, result["instances"].gt_boxes.tensor.tolist(), strict=True))
        assert boxes.get(0, [0, 7, 4, 8]) == [0, 7, 4, 8] and boxes.get(1, [6, 7, 8, 8]) == [6, 7, 8, 8]


def test_with_nothing_to_paste_it_is_the_other_mapper(two_images):
    augmentations = [T.ResizeScale(0.5, 2.0, 12, 12), T.FixedSizeCrop((12, 12)), T.RandomFlip()]
    plain, paste = mapper_with(augmentations), a_paste_mapper(two_images, augmentations=augmentations, max_objects=0)
    for seed in range(5):
        expected, found = call(plain, two_images[0], seed), call(paste, two_images[0], seed)
        assert torch.equal(expected["image"], found["image"])
        assert torch.equal(expected["instances"].gt_boxes.tensor, found["instances"].gt_boxes.tensor.double())
        assert torch.equal(expected["instances"].gt_masks.tensor.bool(), found["instances"].gt_masks.tensor)


def test_the_drawing_law():
    images = [
        {"annotations": [rectangle(0, 0, 1, 1, c) for c in categories]} for categories in ([0] * 6, [0, 1, 1], [2])
    ]
    images[2]["annotations"].append({**rectangle(0, 0, 1, 1, 2), "iscrowd": 1})
    places, probability = drawing_law(images, 1.0)
    assert places == [*((0, i) for i in range(6)), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert probability.tolist() == pytest.approx([1 / 21] * 7 + [1 / 6] * 2 + [1 / 3])  # each category a third
    assert drawing_law(images, 0.0)[1].tolist() == pytest.approx([1 / 10] * 10)
    weights = np.array([7**-2.0] * 7 + [2**-2.0] * 2 + [1])
    np.testing.assert_allclose(drawing_law(images, 2.0)[1], weights / weights.sum())


def test_what_is_pasted_follows_the_law(two_images):
    """0, 1 or 2 pasted: of two of one category the lower one is covered, so of two 1 or 1.5 are seen."""
    first, second = two_images
    sources = [{**first, "annotations": [rectangle(0, 0, 1, 1, 0)] * 3}, second]
    mapper = a_paste_mapper([first], sources, max_objects=2, strength=1.0, min_visible=0.0)
    target, drawn, n = {**first, "annotations": []}, [], 3000
    with seeded(0):
        for _ in range(n):
            drawn += mapper(target)["instances"].gt_classes.tolist()
    assert abs(len(drawn) / n - (0 + 1 + 1.5) / 3) < 0.04
    assert abs(drawn.count(2) / len(drawn) - 0.5) < 0.03


SIZES = st.tuples(st.integers(2, 9), st.integers(2, 9))


@st.composite
def scenes(draw):
    """An image with objects, pieces of other sizes, and a least visible share."""
    height, width = draw(SIZES)
    seed = draw(st.integers(0, 10**6))
    rng = torch.Generator().manual_seed(seed)
    masks = torch.rand(draw(st.integers(0, 3)), height, width, generator=rng) < 0.4
    masks = masks[masks.any(dim=2).any(dim=1)]
    taken = torch.zeros(height, width, dtype=torch.bool)
    for mask in masks:  # disjoint
        mask &= ~taken
        taken |= mask
    masks = masks[masks.flatten(1).any(1)] if len(masks) else masks
    instances = Instances((height, width))
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.arange(len(masks))
    pieces = []
    for number in range(draw(st.integers(0, 4))):
        h, w = draw(SIZES)
        mask = torch.rand(h, w, generator=rng) < draw(st.sampled_from([0.0, 0.2, 1.0]))
        pieces.append((torch.full((3, h, w), 100 + number, dtype=torch.uint8), mask, 50 + number))
    return torch.zeros(3, height, width, dtype=torch.uint8), instances, pieces, draw(st.sampled_from([0.0, 0.3, 1.0]))


@given(scenes())
@hypothesis_settings(max_examples=60)
def test_masks_are_disjoint_boxes_tight_and_nothing_is_outside(scene):
    image, instances, pieces, min_visible = scene
    before = image.clone()
    result, found, dropped = pasted(image, instances, pieces, min_visible)
    assert torch.equal(image, before)
    height, width = image.shape[1:]
    masks = found.gt_masks.tensor
    assert masks.shape == (len(found), height, width) and (masks.sum(0) <= 1).all()
    assert torch.equal(found.gt_boxes.tensor.float(), BitMasks(masks).get_bounding_boxes().tensor.float())
    areas = dict(zip(instances.gt_classes.tolist(), instances.gt_masks.tensor.sum((1, 2)).tolist(), strict=True))
    areas |= {category: int(mask[:height, :width].sum()) for _, mask, category in pieces}
    for category, mask in zip(found.gt_classes.tolist(), masks, strict=True):
        assert mask.sum() >= max(1, min_visible * areas[category])
        if category >= 50:  # its own pixels are where its mask is
            assert (result[:, mask] == category + 50).all()
    assert dropped == {c for c, area in areas.items() if area} - set(found.gt_classes.tolist())
    if min_visible == 0:  # whatever is seen is an object
        for number in range(len(pieces)):
            assert (50 + number in found.gt_classes) == bool((result[0] == 100 + number).any())


def test_the_cache_stays_within_its_memory(two_images):
    names = [image["file_name"] for image in two_images]
    cache = ImageCache(300, "RGB")  # one image is 192 bytes
    first = cache.read(names[0])
    assert cache.read(names[0]) is first and cache.bytes == 192
    cache.read(names[1])
    assert cache.bytes == 192 and cache.read(names[0]) is not first
    none = ImageCache(0, "RGB")
    assert none.read(names[0]).shape == (8, 8, 3) and none.bytes == 0


def take(loader, n):
    return [
        (image["image"].tolist(), image["instances"].gt_boxes.tensor.tolist(), image["instances"].gt_classes.tolist())
        for batch in itertools.islice(iter(loader), n)
        for image in batch
    ]


def test_the_stream_goes_on_where_it_stopped_with_any_number_of_workers_and_any_cache(two_images):
    jitter = [T.ResizeScale(0.5, 2.0, 12, 12), T.FixedSizeCrop((12, 12)), T.RandomFlip()]

    def loader(workers, cache_mb):
        mapper = a_paste_mapper(two_images, augmentations=jitter, max_objects=3, cache_mb=cache_mb)
        return TrainLoader(two_images, mapper=mapper, total_batch_size=2, seed=1, num_workers=workers)

    whole = take(loader(0, 1), 8)
    first, rest = loader(1, 0), loader(0, 1)
    assert take(first, 3) == whole[:6]
    rest.load_state_dict(first.state_dict())
    assert take(rest, 5) == whole[6:]


def test_what_cannot_be_is_refused(tiny_cfg, two_images):
    cfg = tiny_cfg("INPUT.COPY_PASTE.MAX_OBJECTS", 2, "MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "polygon")
    with pytest.raises(ValueError, match="MASK_FORMAT 'bitmask'"):
        copy_paste_mapper(cfg, two_images)
    del two_images[0]["annotations"][0]["segmentation"]
    with pytest.raises(ValueError, match="1 of 3 training objects have no `segmentation`"):
        a_paste_mapper(two_images)
    with pytest.raises(ValueError, match="MIN_VISIBLE"):
        a_paste_mapper(two_images, min_visible=2.0)

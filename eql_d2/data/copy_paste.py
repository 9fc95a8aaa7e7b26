"""Objects of other training images, rare ones most of all, pasted into an image by their masks.

"Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation" (Ghiasi et al., CVPR 2021,
arXiv:2012.07177) pastes a random subset of the objects of one other image, both under large-scale jitter. Here each
object is drawn by itself, from all training images, by the inverse frequency of its category: that is what repeat
factor sampling does for images, without the frequent objects that come along.

Random numbers come from numpy's global generator, which :class:`eql_d2.data.train_loader.TrainLoader` seeds by (seed,
position): what is pasted depends on nothing else.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.data import DatasetFromList, DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances

from eql_d2.data.federated import CHECKED
from eql_d2.data.samplers import SOURCE
from eql_d2.errors import InputError

KEY = "INPUT.COPY_PASTE"


class CopyPasteMapper:
    """A dataset mapper that pastes objects onto what another mapper gives.

    An object keeps the place that the mapper's augmentation, drawn anew for its image, gives it; what lies outside of
    the target is cut. Later ones cover earlier ones. An object that is covered in part has the mask and box of what is
    left, and one of which less than ``min_visible`` is left is no object any more. Nothing is blended.

    The category of a pasted object leaves the image's ``neg_category_ids``; it stays among the ``checked_categories``
    if it was there, since all its objects are still known. That of an object that is dropped, and so no longer marked,
    leaves them.

    Args:
        mapper: Detectron2's, for training, with masks in the format "bitmask", without keypoints and proposals.
        dataset: the images to paste from.
        max_objects: >= 0; how many are pasted is drawn uniformly from 0 to that number.
        strength: >= 0. Each object of category c is drawn with probability ~ n_c^-strength, n_c its number of objects:
            0 draws all objects alike, 1 all categories alike.
        min_visible: in [0, 1], of an object's pixels.
        cache_mb: >= 0, MiB of decoded images to paste from that are kept, in each worker process.
        keep_masks: whether ``gt_masks`` stay in the result.
        dataset_ids: of each dataset, contiguous id -> its own, for ``neg_category_ids``; empty: LVIS's, c + 1.

    Raises:
        InputError: a value out of its range, or objects without masks.
    """

    def __init__(
        self,
        mapper: DatasetMapper,
        dataset: Sequence[dict],
        *,
        max_objects: int,
        strength: float = 1.0,
        min_visible: float = 0.2,
        cache_mb: float = 256.0,
        keep_masks: bool = True,
        dataset_ids: Sequence[Mapping[int, int]] = (),
    ):
        if max_objects < 0 or not 0 <= strength < float("inf") or not 0 <= min_visible <= 1 or cache_mb < 0:
            raise InputError(
                f"{KEY}: expected MAX_OBJECTS >= 0, STRENGTH >= 0, MIN_VISIBLE in [0, 1] and CACHE_MB >= 0, got "
                f"{max_objects}, {strength}, {min_visible} and {cache_mb}"
            )
        self.mapper, self.max_objects, self.min_visible = mapper, max_objects, min_visible
        self.keep_masks, self.dataset_ids = keep_masks, dataset_ids
        self._places, self.probability = drawing_law(dataset, strength)
        self._upper = self.probability.cumsum()
        # Serialized, so that worker processes share it.
        self.dataset = DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset
        self._images = ImageCache(cache_mb * 2**20, mapper.image_format)

    def __call__(self, dataset_dict: dict) -> dict | None:
        mapped = self.mapper(dataset_dict)
        if mapped is None:
            return None
        drawn = np.random.rand(np.random.randint(self.max_objects + 1)) * self._upper[-1]
        objects = np.minimum(np.searchsorted(self._upper, drawn, side="right"), len(self._upper) - 1)
        pieces = [self._piece(*self._places[i]) for i in objects]
        mapped["image"], instances, dropped = pasted(mapped["image"], mapped["instances"], pieces, self.min_visible)
        mapped["instances"] = instances
        self._update_labels(mapped, set(instances.gt_classes.tolist()), dropped)
        if not self.keep_masks:
            mapped["instances"].remove("gt_masks")
        return mapped

    def _piece(self, image: int, place: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """(3, h, w) augmented image, (h, w) bool mask and category of one object."""
        source = self.dataset[image]
        augmented = T.AugInput(self._images.read(source["file_name"]))
        transforms = self.mapper.augmentations(augmented)
        size = augmented.image.shape[:2]
        annotation = copy.deepcopy(source["annotations"][place])
        annotation = detection_utils.transform_instance_annotations(annotation, transforms, size)
        instances = detection_utils.annotations_to_instances([annotation], size, mask_format="bitmask")
        pixels = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        return pixels, instances.gt_masks.tensor[0].bool(), annotation["category_id"]

    def _update_labels(self, mapped: dict, present: set[int], dropped: set[int]) -> None:
        if CHECKED in mapped:
            mapped[CHECKED] = [c for c in mapped[CHECKED] if c not in dropped]
        if "neg_category_ids" in mapped:
            ids = self.dataset_ids[mapped.get(SOURCE, 0)] if self.dataset_ids else {c: c + 1 for c in present}
            there = {ids[c] for c in present}
            mapped["neg_category_ids"] = [i for i in mapped["neg_category_ids"] if i not in there]


def drawing_law(dataset: Sequence[dict], strength: float) -> tuple[list[tuple[int, int]], np.ndarray]:
    """(image, place in its annotations) of all objects, and the probability that each is drawn next.

    Raises:
        InputError: objects without a mask, or no object at all.
    """
    places, categories, without = [], [], 0
    for i in range(len(dataset)):
        for place, annotation in enumerate(dataset[i].get("annotations", ())):
            if annotation.get("iscrowd", 0):
                continue
            without += not annotation.get("segmentation")
            places.append((i, place))
            categories.append(annotation["category_id"])
    if not places or without:
        raise InputError(
            f"{KEY}.MAX_OBJECTS pastes objects by their masks, but {without} of {len(places)} training objects have no "
            f"`segmentation`: add it, or set MAX_OBJECTS 0"
        )
    counts = np.bincount(categories).astype(np.float64)
    weight = counts[categories] ** -strength
    return places, weight / weight.sum()


def pasted(
    image: torch.Tensor,
    instances: Instances,
    pieces: Sequence[tuple[torch.Tensor, torch.Tensor, int]],
    min_visible: float,
) -> tuple[torch.Tensor, Instances, set[int]]:
    """The image with pieces on it, what is then there, and the categories of objects that are no longer.

    Args:
        image: (3, H, W).
        instances: with gt_boxes, gt_classes and, if there are any, gt_masks (BitMasks).
        pieces: image (3, h, w), mask (h, w) bool and category of each; the upper left corners are one.
        min_visible: in [0, 1], the share of an object's pixels in the image that must stay uncovered.
    """
    height, width = image.shape[1:]
    masks = [instances.gt_masks.tensor.bool()] if len(instances) else []
    areas = [mask.sum(dim=(1, 2)) for mask in masks]
    classes, image = instances.gt_classes.tolist(), image.clone()
    for pixels, mask, category in pieces:
        canvas = torch.zeros(height, width, dtype=torch.bool)
        h, w = min(height, mask.shape[0]), min(width, mask.shape[1])
        canvas[:h, :w] = mask[:h, :w]
        if not canvas.any():
            continue
        image[:, :h, :w] = torch.where(canvas[:h, :w], pixels[:, :h, :w], image[:, :h, :w])
        masks = [earlier & ~canvas for earlier in masks] + [canvas[None]]
        areas.append(canvas.sum()[None])
        classes.append(category)
    result = Instances((height, width))
    area = torch.cat(areas) if areas else torch.zeros(0, dtype=torch.int64)
    mask = torch.cat(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool)
    visible = mask.sum(dim=(1, 2))
    boxes = BitMasks(mask).get_bounding_boxes().tensor
    untouched = visible[: len(instances)] == area[: len(instances)]
    boxes[: len(instances)][untouched] = instances.gt_boxes.tensor.to(boxes.dtype)[untouched]
    result.gt_boxes, result.gt_masks = Boxes(boxes), BitMasks(mask)
    result.gt_classes = torch.tensor(classes, dtype=torch.int64)
    kept = (visible >= min_visible * area) & (visible > 0)
    return image, result[kept], set(result.gt_classes[~kept].tolist())


class ImageCache:
    """Decoded images, the last used ones, in so many bytes.

    Args:
        max_bytes: of pixels.
        image_format: Detectron2's ``INPUT.FORMAT``.
    """

    def __init__(self, max_bytes: float, image_format: str):
        self.max_bytes, self.image_format = max_bytes, image_format
        self.bytes = 0
        self._images: OrderedDict[str, np.ndarray] = OrderedDict()

    def read(self, file_name: str) -> np.ndarray:
        """(H, W, 3) uint8, not to be written to."""
        if file_name in self._images:
            self._images.move_to_end(file_name)
            return self._images[file_name]
        image = detection_utils.read_image(file_name, format=self.image_format)
        image.flags.writeable = False
        self._images[file_name] = image
        self.bytes += image.nbytes
        while self.bytes > self.max_bytes:
            self.bytes -= self._images.popitem(last=False)[1].nbytes
        return image

"""Masks of detections as RLEs, without a picture of the image's size for each: only where its box is.

Detectron2 pastes the (M, M) mask of each detection into a picture of its own, which is then encoded: at LVIS's 300
detections of 480 x 640 pixels 92 MB an image, nearly all of it zeros. Shape shorthand: n detections, M the mask
head's resolution (28).
"""

from collections.abc import Iterator

import numpy as np
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, Instances, ROIMasks
from detectron2.utils.memory import retry_if_cuda_oom
from pycocotools.mask import frPyObjects
from torch.nn import functional as F

CHUNK = 1 << 18  # pixels that are sampled at once, at some 16 bytes each
OUTSIDE = -3.0  # a place that no mask reaches, in units of half a mask from its centre
LIKE = 0.25  # heights of one call are within a factor of 2 ** LIKE


class TensorStandIn:
    """An object that all that a tensor is asked for is asked of its ``tensor``, which may not be there before."""

    tensor: torch.Tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, item):
        return self.tensor[item]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.tensor)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.tensor, dtype=dtype, copy=copy)

    def __getattr__(self, name):
        if name.startswith("__") or name == "tensor":  # copy and pickle look for some before there are any fields
            raise AttributeError(name)
        return getattr(self.tensor, name)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function(*map(_tensors, args), **{k: _tensors(v) for k, v in (kwargs or {}).items()})


def _tensors(value):
    if isinstance(value, list | tuple):
        return type(value)(map(_tensors, value))
    return value.tensor if isinstance(value, TensorStandIn) else value


class UnpastedMasks(TensorStandIn, ROIMasks):
    """The mask head's (n, 1, M, M) tensor; ``detector_postprocess`` makes :class:`PastedMasks` of it."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def to_bitmasks(self, boxes: Boxes, height, width, threshold=0.5):
        if torch.jit.is_tracing() or threshold < 0.5:
            return ROIMasks(self.tensor[:, 0]).to_bitmasks(boxes, height, width, threshold)
        return BitMasksToBe(PastedMasks(self.tensor[:, 0], boxes.tensor, (int(height), int(width)), threshold))

    def to(self, *args, **kwargs) -> "UnpastedMasks":
        return UnpastedMasks(self.tensor.to(*args, **kwargs))

    def __getitem__(self, item):
        chosen = self.tensor[item]
        return UnpastedMasks(chosen) if chosen.dim() == 4 else chosen

    @staticmethod
    def cat(masks: list) -> torch.Tensor:
        """For ``Instances.cat``."""
        return torch.cat(_tensors(masks))


class BitMasksToBe(BitMasks):
    """A :class:`BitMasks` whose ``tensor`` is not there yet: what ``detector_postprocess`` puts into ``pred_masks``."""

    def __init__(self, masks: "PastedMasks"):
        self.tensor = masks


class PastedMasks(TensorStandIn):
    """Stands for the (n, H, W) bool tensor of full-size masks, and makes it when anything but an RLE is asked of it.

    All that a tensor can do works: it is pasted by Detectron2's own function then. :meth:`rles` does without.

    Args:
        masks: (n, M, M) scores in [0, 1].
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the image.
        image_size: H, W.
        threshold: a pixel belongs to the mask from this score on.
    """

    def __init__(self, masks: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int], threshold: float = 0.5):
        self._masks, self._boxes, self._image_size, self._threshold = masks, boxes, image_size, threshold
        self._pasted: torch.Tensor | None = None

    def rles(self) -> list[dict]:
        """COCO's compressed RLEs, ``{"size": [H, W], "counts": str}``; those of ``pycocotools.mask.encode``."""
        return mask_rles(self._masks, self._boxes, self._image_size, self._threshold)

    @property
    def tensor(self) -> torch.Tensor:  # type: ignore[override]
        if self._pasted is None:
            paste = retry_if_cuda_oom(paste_masks_in_image)
            self._pasted = paste(self._masks, self._boxes, self._image_size, threshold=self._threshold)
        return self._pasted

    @property
    def is_pasted(self) -> bool:
        return self._pasted is not None

    def to(self, *args, **kwargs):
        """On another device, as yet unpasted, as Detectron2 asks for it; any other ``to`` is that of the tensor."""
        if kwargs or len(args) != 1 or not isinstance(args[0], str | torch.device):
            return self.tensor.to(*args, **kwargs)
        return PastedMasks(self._masks.to(*args), self._boxes.to(*args), self._image_size, self._threshold)

    def cpu(self) -> "PastedMasks":
        return self.to("cpu")

    @staticmethod
    def cat(masks: list) -> torch.Tensor:
        """For ``Instances.cat``."""
        return torch.cat(_tensors(masks))

    def __len__(self) -> int:
        return len(self._masks)

    def __getitem__(self, item):
        one_axis = isinstance(item, slice) or (torch.is_tensor(item) and item.dim() == 1)
        if one_axis and not self.is_pasted:
            return PastedMasks(self._masks[item], self._boxes[item], self._image_size, self._threshold)
        return self.tensor[item]

    def __repr__(self):
        return f"PastedMasks({len(self)} masks of {self._image_size[0]} x {self._image_size[1]} pixels)"


def with_unpasted_masks(instances: list[Instances]) -> list[Instances]:
    """Put :class:`UnpastedMasks` in the place of the mask head's (n, 1, M, M) ``pred_masks``, where there are any."""
    for of_image in instances:
        if of_image.has("pred_masks") and not torch.jit.is_tracing():
            of_image.pred_masks = UnpastedMasks(of_image.pred_masks)
    return instances


def mask_rles(
    masks: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int], threshold: float = 0.5
) -> list[dict]:
    """RLEs of masks pasted into their boxes, byte for byte those of ``paste_masks_in_image`` and ``mask.encode``.

    Each mask is sampled at the pixels of its box alone, several boxes of like size in one call, along the columns,
    as an RLE goes. Beyond a box no score reaches a threshold of 0.5, since there half of it is the zero outside.

    Args:
        masks: (n, M, M) scores in [0, 1], on any device.
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the image.
        image_size: H, W.
        threshold: a pixel belongs to the mask from this score on; at least 0.5.

    Returns:
        n dicts ``{"size": [H, W], "counts": str}``.
    """
    if threshold < 0.5:
        raise ValueError(f"threshold must be at least 0.5, or a mask reaches out of its box; got {threshold}")
    low, high = _windows(boxes, image_size)
    rles: list[dict] = [{}] * len(masks)
    for chosen in _chunks(high - low):
        runs = _runs(masks[chosen], boxes[chosen], low[chosen], high[chosen], image_size, threshold)
        for index, counts in zip(chosen.tolist(), runs):
            rles[index] = {"size": list(image_size), "counts": counts}
    encoded = frPyObjects(rles, *image_size) if rles else []
    return [{"size": list(image_size), "counts": rle["counts"].decode("ascii")} for rle in encoded]


def _windows(boxes: torch.Tensor, image_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 2) first x, y and (n, 2) x, y behind the last, of the pixels that a box may cover, on the host."""
    boxes, limit = boxes.detach().float().cpu(), torch.tensor(image_size[::-1])
    low = (boxes[:, :2].floor() - 1).clamp(min=0).long()
    high = torch.minimum((boxes[:, 2:].ceil() + 1).long(), limit)
    return low, torch.maximum(high, low)


def _chunks(size: torch.Tensor) -> Iterator[torch.Tensor]:
    """Indices of windows of like (n, 2) width and height, which take together some CHUNK pixels."""
    width, height = size.numpy().T
    order = np.lexsort((width, np.log2(height.clip(1)) // LIKE))
    first, columns, rows = 0, 0, 0
    for place, index in enumerate(order):
        columns, rows = max(columns, width[index]), max(rows, height[index])
        if place > first and (place + 1 - first) * columns * rows > CHUNK:
            yield torch.from_numpy(order[first:place])
            first, columns, rows = place, width[index], height[index]
    if len(order):
        yield torch.from_numpy(order[first:])


def _runs(masks, boxes, low, high, image_size: tuple[int, int], threshold: float) -> list[list[int]]:
    """Lengths of the runs of masks that are sampled together, in windows of their largest size."""
    height, width = image_size
    scores = _sampled(masks, boxes, low, high)
    columns, rows = scores.shape[1:]
    flat = (scores >= threshold).cpu().numpy().ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        edges = np.concatenate([[0], edges])
    column, row = np.divmod(edges, rows)
    owner, column = np.divmod(column, columns)
    start = low.numpy()[owner]
    position = (start[:, 0] + column) * height + start[:, 1] + row
    # A run that ends where the next one starts, in a window as high as the image, is one with it.
    joint = (position[1::2][:-1] == position[2::2]) & (owner[1::2][:-1] == owner[2::2])
    keep = np.ones(len(position), dtype=bool)
    keep[1:-1:2][joint] = keep[2::2][joint] = False
    return _lengths(position[keep], owner[keep], len(masks), height * width)


def _lengths(position, owner, n: int, pixels: int) -> list[list[int]]:
    """Lengths of the runs of each of n masks, from where its runs start and end; none behind the last pixel."""
    number = np.bincount(owner, minlength=n)
    last = np.cumsum(number + 2) - 1
    first = last - number - 1
    border = np.zeros(len(position) + 2 * n, dtype=np.int64)
    inner = np.ones(len(border), dtype=bool)
    inner[first] = inner[last] = False
    border[inner], border[last] = position, pixels
    lengths = np.diff(border)
    runs = [lengths[a:b].tolist() for a, b in zip(first, last)]
    return [run if run[-1] or len(run) == 1 else run[:-1] for run in runs]


def _sampled(masks, boxes, low, high) -> torch.Tensor:
    """(n, columns, rows) scores at the pixels of windows, by the arithmetic of Detectron2; 0 behind a window's end.

    The last row is behind the end of all, so that no run of a mask goes on in the next column.
    """
    columns, rows = (high - low).amax(0).tolist()
    low, high = low.to(boxes.device), high.to(boxes.device)
    grid = boxes.new_empty(2, len(masks), columns, rows + 1, dtype=torch.float32)  # x and y apart are read faster
    for axis, length in enumerate((columns, rows + 1)):
        pixel = torch.arange(length, device=boxes.device) + low[:, axis, None]
        start, end = boxes[:, axis, None], boxes[:, axis + 2, None]
        place = (pixel.float() + 0.5 - start) / (end - start) * 2 - 1
        place = torch.where(pixel < high[:, axis, None], place, OUTSIDE)
        grid[axis] = place[:, :, None] if axis == 0 else place[:, None, :]
    masks = masks if masks.dtype.is_floating_point else masks.float()
    return F.grid_sample(masks[:, None], grid.permute(1, 2, 3, 0).to(masks.dtype), align_corners=False)[:, 0]

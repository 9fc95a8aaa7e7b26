"""Section `masks`: from the mask head's scores to RLEs, at LVIS's 300 detections of 480 x 640 pixels."""

import functools

import numpy as np
import pycocotools.mask
import torch
from detectron2.layers import paste_masks_in_image

from eql_d2.modeling.masks import mask_rles

N, SIZE, RESOLUTION = 300, (480, 640), 28


def masks_cases() -> dict:
    return {
        f"{N} masks of {low} to {high} % of the image": functools.partial(masks_variants, low / 100, high / 100)
        for low, high in ((0.1, 1), (1, 5), (5, 30))
    }


def masks_variants(low: float, high: float, device: str = "cpu") -> dict:
    """Detectron2's paste with pycocotools' encode, and ours; smooth blobs in boxes of random aspect."""
    generator = torch.Generator().manual_seed(0)
    area = (low + (high - low) * torch.rand(N, generator=generator)) * SIZE[0] * SIZE[1]
    aspect = torch.exp(torch.randn(N, generator=generator) * 0.4)
    limit = torch.tensor([SIZE[1], SIZE[0]])
    side = torch.minimum(torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1), limit)
    corner = torch.rand(N, 2, generator=generator) * (limit - side)
    boxes = torch.cat([corner, corner + side], 1)
    coarse = torch.randn(N, 1, 6, 6, generator=generator)
    blobs = torch.nn.functional.interpolate(coarse, size=(RESOLUTION, RESOLUTION), mode="bicubic")[:, 0]
    masks, boxes = (3 * blobs + 1).sigmoid().to(device), boxes.to(device)

    def stock():
        pasted = paste_masks_in_image(masks, boxes, SIZE).cpu()
        return [pycocotools.mask.encode(np.array(m[:, :, None], order="F", dtype="uint8"))[0] for m in pasted]

    return {"detectron2": stock, "eql_d2": lambda: mask_rles(masks, boxes, SIZE)}

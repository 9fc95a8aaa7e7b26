"""How evenly the objects of each category lie in their images: the box-counting dimension. Needs no torch."""

import numpy as np

MAX_GRID = 64  # cells along a side of the finest grid, as in FRACAL's code
MIN_OBJECTS = 4  # fewer fill no grid of 2 x 2


def fractal_dimensions(x: np.ndarray, y: np.ndarray, category: np.ndarray, num_classes: int) -> np.ndarray:
    """Box-counting dimension of the objects' centres of each category, in [1, 2].

    Of a category with n objects, N(G) is how many cells of a G x G grid over the image hold one. The dimension is the
    slope of log N over log G by least squares, over G = 1, 2, ... up to sqrt(n), since n objects fill no finer grid,
    and to 64. A point gives 0, a line 1, an area 2; below 1, and with fewer than 4 objects, it counts as 1. From
    "Fractal Calibration for Long-tailed Object Detection" (Alexandridis et al., CVPR 2025, arXiv:2410.11774), by the
    authors' code.

    Deviations: centres on the right and lower border belong to the last cell (there to none); above 2, which chance
    can bring, it is 2.

    Args:
        x, y: (n,) centres, in units of the image's width and height; what lies outside is moved to the border.
        category: (n,) integers in [0, num_classes).

    Returns:
        (num_classes,) float64.
    """
    objects = np.bincount(category, minlength=num_classes)
    grids = np.arange(1, MAX_GRID + 1)
    counted = objects[:, None] >= grids**2  # (K, G)
    filled = np.ones(counted.shape)
    for place, grid in enumerate(grids):
        kept = counted[category, place]
        column, row = (np.clip((v[kept] * grid).astype(np.int64), 0, grid - 1) for v in (x, y))
        cells = np.zeros((num_classes, grid * grid), dtype=bool)
        cells[category[kept], row * grid + column] = True
        filled[:, place] = np.maximum(cells.sum(axis=1), 1)
    slope = _slopes(np.log(grids), np.log(filled), counted)
    return np.where(objects < MIN_OBJECTS, 1.0, np.clip(slope, 1.0, 2.0))


def _slopes(x: np.ndarray, y: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Least-squares slope of each row of (K, G) ``y`` over (G,) ``x``, of the points that are ``used``."""
    number = np.maximum(used.sum(axis=1), 1)
    from_mean = np.where(used, x - (used @ x / number)[:, None], 0)
    spread = (from_mean**2).sum(axis=1)
    return (from_mean * y).sum(axis=1) / np.where(spread > 0, spread, 1)

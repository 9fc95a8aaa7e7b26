"""Objects that reach out of their image, cut to it, as Detectron2 cuts the boxes that it trains on."""

SLACK = 1  # pixel; annotations that are rounded otherwise than the size of their image reach out so far


def reaches_out(annotation: dict, width: int, height: int) -> bool:
    """Whether a box or a polygon reaches out of its image by more than :data:`SLACK`; all numbers are finite."""
    right, low = width + SLACK, height + SLACK
    x, y, w, h = annotation["bbox"]
    if x < -SLACK or y < -SLACK or x + w > right or y + h > low:
        return True
    polygons = annotation.get("segmentation")
    if type(polygons) is list:
        inner = min(right, low)
        for polygon in filter(None, polygons):
            if min(polygon) < -SLACK:
                return True
            if max(polygon) > inner and (max(polygon[::2]) > right or max(polygon[1::2], default=0) > low):
                return True
    return False


def clip(annotation: dict, width: int, height: int) -> bool:
    """Cut the box and the polygons of an object to its image, in place; False where nothing of it lies inside."""
    x, y, w, h = annotation["bbox"]
    left, top, right, low = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if left >= right or top >= low:
        return False
    polygons = annotation.get("segmentation")
    if isinstance(polygons, list) and polygons:
        inside = [part for polygon in polygons if (part := clip_polygon(polygon, width, height))]
        if not inside:
            return False
        annotation["segmentation"] = inside
    annotation["bbox"] = [left, top, right - left, low - top]
    if "area" in annotation:
        annotation["area"] = min(annotation["area"], (right - left) * (low - top))
    return True


def clip_polygon(polygon: list, width: float, height: float) -> list:
    """The part of a polygon x, y, x, y, ... inside of an image (Sutherland and Hodgman); [] if there is none."""
    points = list(zip(polygon[::2], polygon[1::2], strict=False))
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        kept = []
        for before, point in zip(points[-1:] + points[:-1], points, strict=True):
            inside, was_inside = (sign * (p[axis] - limit) >= 0 for p in (point, before))
            if inside != was_inside:
                share = (limit - before[axis]) / (point[axis] - before[axis])
                crossing = [b + share * (p - b) for b, p in zip(before, point, strict=True)]
                crossing[axis] = limit  # not one rounding beside it
                kept.append(tuple(crossing))
            if inside:
                kept.append(point)
        points = kept
    return [coordinate for point in points for coordinate in point]

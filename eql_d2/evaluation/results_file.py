"""Results files in the format of COCO and LVIS, read in pieces, so that gigabytes become arrays and nothing else.

A file is a list of detections: image_id, category_id, score, and bbox (x, y, width, height in pixels) or segmentation
(RLE or polygons). It may also have one detection a line (JSON lines), be compressed by gzip, and have texts for ids.
"""

import gzip
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import orjson

from eql_d2.data.annotations import are_numbers, shown
from eql_d2.data.json_files import GZIP, without_garbage_collection
from eql_d2.errors import InputError
from eql_d2.evaluation.lvis_metrics import Detections
from eql_d2.evaluation.packed_masks import PackedMasks

PIECE = 1 << 20  # bytes that are parsed at once: what becomes of 16 times as many leaves the processor's cache
FIELD = {"bbox": "bbox", "segm": "segmentation"}


def read_results(path, iou_type: str, piece: int = PIECE) -> Detections:
    """The detections of a file, with what they are matched by: boxes, and masks too for "segm".

    Args:
        path: a JSON file.
        iou_type: "bbox" or "segm".
        piece: bytes that are parsed at once.

    Returns:
        them, with ids that are whole numbers, or all texts where the file has one: `named_ids.py` knows whose.

    Raises:
        InputError: no such file, no JSON list, or the first detection that lacks something.
    """
    with without_garbage_collection():
        parts = [_as_arrays(path, results, iou_type) for results in pieces(path, piece)]
    return _joined(parts) if parts else _as_arrays(path, [], iou_type)


def pieces(path, size: int = PIECE) -> Iterator[list]:
    """The entries of a JSON list, or of JSON lines, in a file, some at a time."""
    try:
        with _opened(path) as file:
            text = file.read(size).removeprefix(BOM_UTF8).lstrip()
            if text.startswith(b"["):
                text, cut, lines = text[1:], _complete_entries, False
            elif _is_line(text):
                cut, lines = _complete_lines, True
            else:
                raise InputError(_no_list(path, text))
            while block := file.read(size):
                entries, text = cut(text + block)
                if entries:
                    yield entries
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is cut off or damaged: {error}") from error
    try:
        rest = orjson.loads(b"[" + (_joined_lines(text) + b"]" if lines else text))
    except orjson.JSONDecodeError as error:
        constants = [name for name in (b"NaN", b"Infinity") if name in text]
        hint = f", and it holds {constants[0].decode()}, which no detector may give" if constants else ""
        raise InputError(f"{path} is not a JSON list of detections, or is cut off: {error}{hint}") from error
    if rest:
        yield rest


def _opened(path) -> BinaryIO:
    file = open(path, "rb")
    if file.peek(len(GZIP)).startswith(GZIP):
        file.close()
        return gzip.open(path)  # type: ignore[return-value]
    return file


def _is_line(text: bytes) -> bool:
    """Whether JSON lines start so: with a detection, not with an object that holds everything."""
    first = text.partition(b"\n")[0]
    return text.startswith(b"{") and b'"image_id"' in first and b"[{" not in first.replace(b" ", b"")


def _no_list(path, text: bytes) -> str:
    cure = "; write the list of the detections alone" if text.startswith(b"{") else ""
    return f"{path} must hold a JSON list of detections, and starts with {text[:20].decode(errors='replace')!r}{cure}"


def _complete_lines(text: bytes) -> tuple[list, bytes]:
    """The entries of whole lines, and what is left."""
    whole, _, rest = text.rpartition(b"\n")
    try:
        return orjson.loads(b"[" + _joined_lines(whole) + b"]"), rest
    except orjson.JSONDecodeError:  # the end names what is wrong
        return [], text


def _joined_lines(text: bytes) -> bytes:
    return b",".join(filter(None, map(bytes.strip, text.splitlines())))


def _complete_entries(text: bytes) -> tuple[list, bytes]:
    """The entries that a text, the middle of a list, holds to their ends, and what is left of it.

    It is cut at the last comma behind a closing brace. A comma inside of an entry (of a text, of a list of objects)
    leaves a beginning that is no JSON; then the one before is tried.
    """
    end = len(text)
    while (end := text.rfind(b"}", 0, end)) >= 0:
        behind = text[end + 1 : end + 65].lstrip()
        if behind.startswith(b","):
            try:
                entries = orjson.loads(b"[" + text[: end + 1] + b"]")
            except orjson.JSONDecodeError:
                continue
            return entries, text[text.index(b",", end) + 1 :]
    return [], text


def _as_arrays(path, results: list, iou_type: str) -> Detections:
    try:
        detections = Detections.from_results(results, iou_type)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: {_first_problem(results, iou_type) or error}") from error
    numbers = {"image_id": detections.image_id, "category_id": detections.category_id}
    for name, ids in numbers.items():
        if len(ids) and ids.dtype.kind == "f" and (ids == np.floor(ids)).all():  # 1.0, as some tools write 1
            numbers[name] = ids.astype(np.int64)
        elif len(ids) and ids.dtype.kind not in "iuU":
            raise InputError(f"{path}: {_first_problem(results, iou_type) or f'a `{name}` is no whole number'}")
    masks = detections.segmentation
    packed = None if masks is None else PackedMasks.of(masks)
    odd = not _is_finite(detections) or (masks is not None and packed is None)  # polygons are looked at one by one
    problem = _first_problem(results, iou_type) if odd else None
    if problem:
        raise InputError(f"{path}: {problem}")
    return Detections(**numbers, score=detections.score, box=detections.box, segmentation=packed or masks)


def _is_finite(detections: Detections) -> bool:
    box = detections.box
    return bool(
        detections.score.ndim == 1 and np.isfinite(detections.score).all() and (box is None or np.isfinite(box).all())
    )


def _first_problem(results: list, iou_type: str) -> str | None:
    for result in results:
        if not isinstance(result, dict):
            return f"a detection must be an object, got {shown(result)}"
        for name in ("image_id", "category_id"):
            value: Any = result.get(name)
            if not (isinstance(value, str) or (are_numbers([value]) and float(value).is_integer())):
                return f"a detection must have a whole number as its `{name}`: {shown(result)}"
        if not are_numbers([result.get("score")]):
            return f"a detection must have a finite number as its `score`: {shown(result)}"
        field = FIELD[iou_type]
        if result.get(field) is None:
            other = "segm" if iou_type == "bbox" else "bbox"
            cure = f"; it has what '{other}' needs (--iou-type {other})" if result.get(FIELD[other]) else ""
            return f"iou_type '{iou_type}' needs '{field}' in every detection: {shown(result)}{cure}"
        mask = result.get("segmentation")
        if iou_type == "segm" and not isinstance(mask, list) and not _is_rle(mask):
            return f"a `segmentation` must be polygons, or an RLE with size and counts: {shown(result)}"
        box = result.get("bbox")
        if box is not None and not (isinstance(box, list) and len(box) == 4 and are_numbers(box)):
            return f"a detection must have a `bbox` of four finite numbers x, y, width, height: {shown(result)}"
    return None


def _is_rle(mask) -> bool:
    size = mask.get("size") if isinstance(mask, dict) else None
    is_size = isinstance(size, list) and len(size) == 2 and are_numbers(size)
    return is_size and isinstance(mask.get("counts"), str | list)


def _joined(parts: list[Detections]) -> Detections:
    def of(name: str):
        arrays = [getattr(part, name) for part in parts]
        texts = any(array.dtype.kind == "U" for array in arrays)
        return np.concatenate([array.astype(str) for array in arrays] if texts else arrays)

    with_boxes = all(part.box is not None for part in parts)
    masks: Sequence | None = None
    if all(isinstance(part.segmentation, PackedMasks) for part in parts):
        masks = PackedMasks.joined([part.segmentation for part in parts])  # type: ignore[misc]
    elif all(part.segmentation is not None for part in parts):
        masks = [mask for part in parts for mask in part.segmentation or ()]
    return Detections(of("image_id"), of("category_id"), of("score"), of("box") if with_boxes else None, masks)

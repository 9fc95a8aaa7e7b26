"""The masks of millions of detections in little more memory than their text."""

from collections.abc import Sequence

import numpy as np


class PackedMasks(Sequence):
    """COCO's compressed RLEs, whose counts lie one behind another; each is a dict when it is asked for.

    Args:
        size: (N, 2) height and width of each.
        counts: the texts of all, joined.
        start, stop: (N,) where the text of each begins and ends.
    """

    def __init__(self, size: np.ndarray, counts: bytes, start: np.ndarray, stop: np.ndarray):
        self.size, self._counts, self._start, self._stop = size, counts, start, stop

    @classmethod
    def of(cls, masks: Sequence) -> "PackedMasks | None":
        """None if any of them is no compressed RLE with a size."""
        if not all(map(is_compressed_rle, masks)):
            return None
        counts = [mask["counts"].encode() for mask in masks]
        stop = np.cumsum([len(text) for text in counts], dtype=np.int64)
        start = stop - np.array([len(text) for text in counts], dtype=np.int64)
        size = np.array([mask["size"] for mask in masks], dtype=np.int32).reshape(len(masks), 2)
        return cls(size, b"".join(counts), start, stop)

    @classmethod
    def joined(cls, parts: Sequence["PackedMasks"]) -> "PackedMasks":
        offset = np.cumsum([0, *(len(part._counts) for part in parts[:-1])])
        return cls(
            np.concatenate([part.size for part in parts]),
            b"".join([part._counts for part in parts]),
            np.concatenate([part._start + before for part, before in zip(parts, offset, strict=True)]),
            np.concatenate([part._stop + before for part, before in zip(parts, offset, strict=True)]),
        )

    def __len__(self) -> int:
        return len(self._start)

    def __getitem__(self, index):
        return {"size": self.size[index].tolist(), "counts": self._counts[self._start[index] : self._stop[index]]}

    def select(self, keep: np.ndarray) -> "PackedMasks":
        """Those that (N,) bool ``keep`` says; the text is shared."""
        return PackedMasks(self.size[keep], self._counts, self._start[keep], self._stop[keep])


def is_compressed_rle(mask) -> bool:
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str):
        return False
    size = mask.get("size")
    return isinstance(size, list) and len(size) == 2

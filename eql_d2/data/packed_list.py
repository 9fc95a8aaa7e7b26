"""Dataset dicts as bytes, which worker processes share."""

import io
import pickle
from collections.abc import Iterable

import torch


class Disposable(list):
    """Items that nobody else needs: who packs them lets go of each, which is quick while it is in the cache."""


class PackedList:
    """Each item pickled into one tensor, as Detectron2's serialized list has it, but made without a second copy of all.

    Args:
        items: what to pack. A :class:`Disposable` list has only None when that is done.

    Give the class to Detectron2's ``DatasetFromList`` as ``serialize``.
    """

    def __init__(self, items: Iterable):
        buffer, ends = io.BytesIO(), [0]
        disposable = isinstance(items, Disposable)
        for place, item in enumerate(items):
            pickle.dump(item, buffer, protocol=pickle.HIGHEST_PROTOCOL)
            ends.append(buffer.tell())
            if disposable:
                items[place] = None  # type: ignore[index]
        self._ends = torch.tensor(ends)
        self._bytes = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8) if len(ends) > 1 else torch.empty(0)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int):
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._ends[index : index + 2].tolist()
        return pickle.loads(memoryview(self._bytes[start:end].numpy()))

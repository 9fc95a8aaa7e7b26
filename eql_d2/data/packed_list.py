"""Dataset dicts as bytes, which worker processes share."""

import io
import pickle
from collections.abc import Iterable

import torch


class PackedList:
    """Each item pickled into one tensor, as Detectron2's serialized list has it, but made without a second copy of all.

    Args:
        items: what to pack; to be given to Detectron2's ``DatasetFromList`` as ``serialize``.
    """

    def __init__(self, items: Iterable):
        buffer, ends = io.BytesIO(), [0]
        for item in items:
            pickle.dump(item, buffer, protocol=pickle.HIGHEST_PROTOCOL)
            ends.append(buffer.tell())
        self._ends = torch.tensor(ends)
        self._bytes = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8) if len(ends) > 1 else torch.empty(0)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int):
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._ends[index : index + 2].tolist()
        return pickle.loads(memoryview(self._bytes[start:end].numpy()))

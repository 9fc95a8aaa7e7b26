"""Which training image comes next. Samplers are infinite, the same in every process for a seed, and sharded by rank."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from detectron2.utils import comm
from fvcore.common.registry import Registry
from torch.utils.data import Sampler

from eql_d2.errors import InputError

TRAIN_SAMPLER_REGISTRY = Registry("TRAIN_SAMPLER")
TRAIN_SAMPLER_REGISTRY.__doc__ = """
Samplers for ``DATALOADER.SAMPLER_TRAIN`` besides Detectron2's. Called as ``obj(dataset, seed)`` with dataset dicts,
they give an endless stream of indices that depends only on these and the process's rank.
"""

BLOCK = 1024  # draws made at once; part of what a seed means


@TRAIN_SAMPLER_REGISTRY.register()
class ClassAwareSampler(Sampler):
    """Draws a category, all alike, then one of the images that contain it, all alike, and so on forever.

    So that every category is seen equally often, however few images it has: for a classifier that is trained on frozen
    features (cRT, LWS), "Decoupling Representation and Classifier for Long-Tailed Recognition" (Kang et al., ICLR 2020,
    arXiv:1910.09217), from "Relay Backpropagation for Effective Learning of Deep Convolutional Neural Networks" (Shen
    et al., ECCV 2016, arXiv:1512.05830). An image brings its other objects along, so that frequent categories still
    have more objects.

    Deviation from Shen et al.: images of a category are drawn independently, not in turn from a shuffled list, so that
    the stream has no state but its random one.

    Args:
        dataset_dicts: images with ``annotations``; an image without any but crowd regions is never drawn.
        seed: the same in all processes; None: one that they agree on.

    Raises:
        InputError: no image has an annotation.
    """

    def __init__(self, dataset_dicts: Sequence[dict], seed: int | None = None):
        images = defaultdict(list)  # of each category
        for i in range(len(dataset_dicts)):
            objects = dataset_dicts[i]["annotations"]
            for category in {a["category_id"] for a in objects if not a.get("iscrowd", 0)}:
                images[category].append(i)
        if not images:
            raise InputError(f"ClassAwareSampler: none of the {len(dataset_dicts)} images has an annotation")
        lists = [images[category] for category in sorted(images)]
        self._images = torch.tensor(list(itertools.chain.from_iterable(lists)))
        self._count = torch.tensor([len(images) for images in lists])
        self._start = self._count.cumsum(0) - self._count
        self._seed = comm.shared_random_seed() if seed is None else seed

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._all_indices(), comm.get_rank(), None, comm.get_world_size())

    def _all_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            category = torch.randint(len(self._count), (BLOCK,), generator=generator)
            share = torch.rand(BLOCK, generator=generator, dtype=torch.float64)
            position = self._start[category] + (share * self._count[category]).long()
            yield from self._images[position].tolist()

"""Which training image comes next. Samplers are infinite, the same in every process for a seed, and sharded by rank."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from fvcore.common.registry import Registry
from torch.utils.data import Sampler

from eql_d2.errors import InputError

TRAIN_SAMPLER_REGISTRY = Registry("TRAIN_SAMPLER")
TRAIN_SAMPLER_REGISTRY.__doc__ = """
Samplers for ``DATALOADER.SAMPLER_TRAIN`` besides Detectron2's. Called as ``obj(dataset, seed)`` with dataset dicts,
they give an endless stream of indices that depends only on these and the process's rank. A sampler with
``from_config(cfg)`` is given what that returns as further keyword arguments.
"""

BLOCK = 1024  # draws made at once; part of what a seed means
SOURCE = "dataset_source"  # of a dataset dict: the place of its dataset in DATASETS.TRAIN, as Detic has it
MAX_EPOCH = 100  # a longer epoch, in sizes of the dataset, is a mistake


class EndlessDraws(Sampler):
    """A stream of indices that are drawn with replacement: of one seed the same in all processes, dealt out by rank.

    Args:
        seed: the same in all processes; None: one that they agree on.
    """

    def __init__(self, seed: int | None):
        self._seed = comm.shared_random_seed() if seed is None else seed

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """The next BLOCK indices."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._all_indices(), comm.get_rank(), None, comm.get_world_size())

    def _all_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            yield from self.draw(generator).tolist()


@TRAIN_SAMPLER_REGISTRY.register()
class ClassAwareSampler(EndlessDraws):
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
        for i, categories in enumerate(categories_of_images(dataset_dicts)):
            for category in set(categories):
                images[category].append(i)
        if not images:
            raise InputError(f"ClassAwareSampler: none of the {len(dataset_dicts)} images has an annotation")
        lists = [images[category] for category in sorted(images)]
        self._images = torch.tensor(list(itertools.chain.from_iterable(lists)))
        self._count = torch.tensor([len(images) for images in lists])
        self._start = self._count.cumsum(0) - self._count
        self._num_images = len(dataset_dicts)
        super().__init__(seed)

    def expected_draws(self) -> torch.Tensor:
        """(images,) float64: how often each is drawn, on average, in as many draws as there are images."""
        share = (1 / (len(self._count) * self._count.double())).repeat_interleave(self._count)
        return torch.zeros(self._num_images, dtype=torch.float64).index_add(0, self._images, share) * self._num_images

    def draw(self, generator):
        category = torch.randint(len(self._count), (BLOCK,), generator=generator)
        share = torch.rand(BLOCK, generator=generator, dtype=torch.float64)
        return self._images[self._start[category] + (share * self._count[category]).long()]


@TRAIN_SAMPLER_REGISTRY.register()
class InstanceAwareRepeatFactorSampler(RepeatFactorTrainingSampler):
    """Repeat factor sampling (RFS) by objects as well as by images: IRFS.

    An image is repeated r = max_c r_c times in an epoch, over its categories c, on average, with

        r_c = max(1, sqrt(t / sqrt(f_image,c f_object,c)))

    f_image,c is the share of the images that contain the category, f_object,c its share of all objects. RFS has f_image
    in the place of their geometric mean. From "Instance-Aware Repeat Factor Sampling for Long-Tailed Object Detection"
    (Yaman, Mahmud, Liu, arXiv:2305.08069). On LVIS v1's counts at t = 0.001 the mean r_c of rare categories is 9.66
    (RFS: 5.87).

    Crowd regions are no objects. An epoch is shuffled, as Detectron2's RFS does it.

    Args:
        dataset_dicts: images with ``annotations``.
        seed: the same in all processes; None: one that they agree on.
        threshold: t >= 0, ``DATALOADER.REPEAT_THRESHOLD``; 0 repeats nothing. The authors use LVIS's 0.001.

    Raises:
        InputError: a negative threshold, or an epoch of more than 100 times the dataset.
    """

    def __init__(self, dataset_dicts: Sequence[dict], seed: int | None = None, *, threshold: float):
        if not 0 <= threshold < float("inf"):
            raise InputError(f"the repeat threshold (DATALOADER.REPEAT_THRESHOLD) must be in [0, inf), got {threshold}")
        images = categories_of_images(dataset_dicts)
        in_images = Counter(itertools.chain.from_iterable(map(set, images)))
        objects = Counter(itertools.chain.from_iterable(images))
        frequency = mean_frequency(in_images, objects, len(images))
        self.category_factor = {c: self.factor_of(threshold / f) for c, f in frequency.items()}
        factors = [max((self.category_factor[c] for c in set(image)), default=1.0) for image in images]
        if math.fsum(factors) > MAX_EPOCH * len(factors):
            raise InputError(
                f"{type(self).__name__} would repeat the {len(factors)} images until an epoch is "
                f"{math.fsum(factors) / len(factors):.3g} times as long: lower DATALOADER.REPEAT_THRESHOLD, "
                f"{threshold}"
            )
        super().__init__(torch.tensor(factors, dtype=torch.float64), seed=seed)

    @classmethod
    def from_config(cls, cfg) -> dict:
        return {"threshold": cfg.DATALOADER.REPEAT_THRESHOLD}

    def factor_of(self, rarity: float) -> float:
        """r_c, where ``rarity`` is t / sqrt(f_image,c f_object,c)."""
        return max(1.0, math.sqrt(rarity))


@TRAIN_SAMPLER_REGISTRY.register()
class ExponentialRepeatFactorSampler(InstanceAwareRepeatFactorSampler):
    """IRFS with an exponential: E-IRFS.

        r_c = exp(alpha sqrt(t / sqrt(f_image,c f_object,c)))

    From "Exponentially Weighted Instance-Aware Repeat Factor Sampling for Long-Tailed Object Detection Model Training
    in Unmanned Aerial Vehicles Surveillance Scenarios" (Ahmed et al., IROS 2025, arXiv:2503.21893); the formula and
    alpha = 2 as the same authors restate them in arXiv:2609.38116, equation 1 and 6 with beta = 0.

    Made for few categories: what IRFS repeats 3 times is repeated 400 times at alpha = 2, so t must be far below that
    of RFS where a few images hold a category; their code's default is 0.0001, for 4 categories. Of LVIS's at 0.001 no
    epoch would end, which is an error.

    Deviation: images are repeated, not drawn in proportion to r with replacement, so that an epoch has every image.

    Args:
        dataset_dicts, seed, threshold: as of :class:`InstanceAwareRepeatFactorSampler`.
        alpha: >= 0, ``DATALOADER.REPEAT_ALPHA``; 0 repeats nothing.

    Raises:
        InputError: a negative value, or an epoch of more than 100 times the dataset.
    """

    def __init__(self, dataset_dicts: Sequence[dict], seed: int | None = None, *, threshold: float, alpha: float = 2.0):
        if not 0 <= alpha < float("inf"):
            raise InputError(f"alpha (DATALOADER.REPEAT_ALPHA) must be in [0, inf), got {alpha}")
        self.alpha = alpha
        super().__init__(dataset_dicts, seed, threshold=threshold)

    @classmethod
    def from_config(cls, cfg) -> dict:
        return {**super().from_config(cfg), "alpha": cfg.DATALOADER.REPEAT_ALPHA}

    def factor_of(self, rarity: float) -> float:
        return math.exp(min(self.alpha * math.sqrt(rarity), 700.0))  # beyond, a float is infinite


@TRAIN_SAMPLER_REGISTRY.register()
class MultiDatasetSampler(EndlessDraws):
    """Draws a dataset of ``DATASETS.TRAIN`` by its ratio, then one of its images, and so on forever.

    So that a small dataset beside a large one is seen as often as you want. As in Detic and CenterNet2
    (``DATALOADER.DATASET_RATIO``, ``DATALOADER.USE_RFS``); Detectron2's own ``DATASETS.TRAIN_REPEAT_FACTOR`` repeats
    the images of a dataset instead, so that its share depends on its size. Images are drawn with replacement.

    Args:
        dataset_dicts: images with ``dataset_source``, which :func:`eql_d2.data.loading.load_training_dicts` gives them.
        seed: the same in all processes; None: one that they agree on.
        ratio: >= 0 for each dataset; 2, 1 draws two thirds from the first. Empty: all alike.
        use_rfs: of each dataset, whether its images are drawn by their repeat factors (RFS) within it. Empty: none.
        threshold: of RFS.

    Raises:
        InputError: other numbers of datasets, negative ratios, or images that do not say whose they are.
    """

    def __init__(
        self,
        dataset_dicts: Sequence[dict],
        seed: int | None = None,
        *,
        ratio: Sequence[float] = (),
        use_rfs: Sequence[bool] = (),
        threshold: float = 0.0,
    ):
        images = [dataset_dicts[i] for i in range(len(dataset_dicts))]
        if not all(SOURCE in image for image in images):
            raise InputError(
                f"MultiDatasetSampler draws from several datasets, but the images have no '{SOURCE}', their place in "
                f"DATASETS.TRAIN, which images of one dataset have not: name two or more, or use another sampler"
            )
        source = torch.tensor([image[SOURCE] for image in images])
        count = int(source.max()) + 1
        ratio, use_rfs = ratio or [1.0] * count, use_rfs or [False] * count
        if len(ratio) != count or len(use_rfs) != count or min(ratio) < 0 or sum(ratio) <= 0:
            raise InputError(
                f"DATALOADER.DATASET_RATIO is {list(ratio)} and DATALOADER.USE_RFS {list(use_rfs)}: expected one "
                f"number >= 0, not all 0, and one True or False for each of the {count} datasets of DATASETS.TRAIN"
            )
        weight = torch.zeros(len(images), dtype=torch.float64)
        for place in range(count):
            of_dataset = source == place
            factors = torch.ones(int(of_dataset.sum()), dtype=torch.float64)
            if use_rfs[place]:
                own = [image for image in images if image[SOURCE] == place]
                factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(own, threshold).double()
            weight[of_dataset] = ratio[place] * factors / factors.sum()
        self._upper = weight.cumsum(0)
        super().__init__(seed)

    @classmethod
    def from_config(cls, cfg) -> dict:
        loader = cfg.DATALOADER
        return {"ratio": loader.DATASET_RATIO, "use_rfs": loader.USE_RFS, "threshold": loader.REPEAT_THRESHOLD}

    def expected_draws(self) -> torch.Tensor:
        """(images,) float64: how often each is drawn, on average, in as many draws as there are images."""
        return self._upper.diff(prepend=self._upper.new_zeros(1)) / self._upper[-1] * len(self._upper)

    def draw(self, generator):
        place = torch.rand(BLOCK, generator=generator, dtype=torch.float64) * self._upper[-1]
        return torch.searchsorted(self._upper, place, right=True)


def categories_of_images(dataset_dicts: Sequence[dict]) -> list[list[int]]:
    """Of each image the categories of its objects, one an object; crowd regions are none."""
    return [
        [a["category_id"] for a in dataset_dicts[i]["annotations"] if not a.get("iscrowd", 0)]
        for i in range(len(dataset_dicts))
    ]


def mean_frequency(image_count: Mapping[int, int], instance_count: Mapping[int, int], num_images: int) -> dict:
    """Category -> geometric mean of its share of the images and its share of all objects, in (0, 1].

    Args:
        image_count, instance_count: of each category, > 0.
        num_images: of the dataset.
    """
    total = sum(instance_count.values())
    return {c: math.sqrt(image_count[c] / num_images * instance_count[c] / total) for c in sorted(image_count)}

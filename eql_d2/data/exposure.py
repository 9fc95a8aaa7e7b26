"""What a training sampler shows of each category, before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from torch.utils.data import Sampler

from eql_d2.data.samplers import categories_of_images
from eql_d2.errors import InputError


@dataclass(frozen=True)
class Exposure:
    """Averages over epochs of one sampler, by category.

    Args:
        epoch: draws of an epoch. Of a sampler without epochs, as many as there are images.
        images: (K,) float64, draws of an image that has the category.
        objects: (K,) float64, objects of the category in them.
    """

    epoch: float
    images: torch.Tensor
    objects: torch.Tensor

    @classmethod
    def of(cls, sampler: Sampler, dataset_dicts: Sequence[dict], num_classes: int) -> "Exposure":
        draws = expected_draws(sampler, len(dataset_dicts))
        images, objects = torch.zeros(2, num_classes, dtype=torch.float64)
        for times, categories in zip(draws.tolist(), categories_of_images(dataset_dicts), strict=True):
            for category in categories:
                objects[category] += times
            for category in set(categories):
                images[category] += times
        return cls(float(draws.sum()), images, objects)


def expected_draws(sampler: Sampler, num_images: int) -> torch.Tensor:
    """(images,) float64: how often each image is drawn in an epoch, on average.

    Raises:
        InputError: a sampler that does not say so.
    """
    if isinstance(sampler, TrainingSampler):
        return torch.ones(num_images, dtype=torch.float64)
    if isinstance(sampler, RepeatFactorTrainingSampler):
        return (sampler._int_part + sampler._frac_part).double()
    if not hasattr(sampler, "expected_draws"):
        raise InputError(f"{type(sampler).__name__} has no expected_draws(): what it shows cannot be told beforehand")
    return sampler.expected_draws()

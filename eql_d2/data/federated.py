"""Which categories an image of a federated dataset was checked for (LVIS format).

LVIS's annotators looked in an image for some of the categories only. Those that they found are annotated, those that
they did not find are the image's ``neg_category_ids``, and of those in ``not_exhaustive_category_ids`` some objects are
left unmarked. All other categories may be in the image or not.
"""

from collections.abc import Sequence

import torch
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts

from eql_d2.errors import InputError

KEY = "MODEL.ROI_BOX_HEAD.CLS_LOSS.IMAGE_LABELS"
CHECKED = "checked_categories"  # of a dataset dict and of what a mapper makes of it: contiguous ids
PARTS = ("neg_category_ids", "not_exhaustive_category_ids")


def get_checked_dataset_dicts(
    names: Sequence[str], proposal_files: Sequence[str] | None = None, **kwargs
) -> list[dict]:
    """Detectron2's ``get_detection_dataset_dicts``, with the categories that each image was checked for.

    They are the contiguous ids in ``checked_categories``, a key that Detectron2's mappers hand on to the model.

    Args:
        names: datasets; each may have category ids of its own.
        proposal_files: one a dataset, or None.
        kwargs: further arguments of ``get_detection_dataset_dicts``.

    Raises:
        InputError: a dataset whose images do not say what they were checked for, or name a category that it lacks.
    """
    names = [names] if isinstance(names, str) else names
    files = [None] * len(names) if proposal_files is None else [[f] for f in proposal_files]
    all_images = []
    for name, file in zip(names, files):
        images = get_detection_dataset_dicts(name, proposal_files=file, **kwargs)
        if not any(image.get("neg_category_ids") for image in images):
            raise InputError(
                f"{KEY} is True, but no image of '{name}' lists neg_category_ids, the categories that are known to be "
                f"absent (LVIS format has them): set it to False"
            )
        order = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id")
        for image in images:
            try:
                image[CHECKED] = checked_categories(image, order)
            except KeyError as error:
                raise InputError(
                    f"{KEY} is True, but in image {image['image_id']} of '{name}' {error} is a part that is missing "
                    f"or a category id that the dataset does not have: mend its annotation file, or set it to False"
                ) from error
        all_images += images
    return all_images


def checked_categories(image: dict, order: dict[int, int] | None = None) -> list[int]:
    """Contiguous ids of the categories all of whose objects in the image are known, ascending.

    A category with a crowd region is none of them, as one in ``not_exhaustive_category_ids``.

    Args:
        image: a dataset dict with contiguous ids in ``annotations`` and the dataset's own ids elsewhere.
        order: dataset id -> contiguous id; None: LVIS's, which count from 1.
    """

    def contiguous(key):
        return {i - 1 if order is None else order[i] for i in image[key]}

    found = {a["category_id"] for a in image["annotations"]}
    crowded = {a["category_id"] for a in image["annotations"] if a.get("iscrowd", 0)}
    absent, unfinished = map(contiguous, PARTS)
    return sorted((found | absent) - unfinished - crowded)


def checked_mask(images: Sequence[dict], num_classes: int) -> torch.Tensor:
    """(N, K) bool on the CPU, True where image i of a batch was checked for category j."""
    mask = torch.zeros(len(images), num_classes, dtype=torch.bool)
    for row, image in zip(mask, images):
        row[image[CHECKED]] = True
    return mask

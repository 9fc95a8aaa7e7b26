"""What the datasets of a run are checked for before it starts: that they are fit to use, and of one model's classes."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import contextmanager

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from eql_d2.data.annotations import Annotations, read_annotations, trained_objects
from eql_d2.data.detectron2_sets import take_over
from eql_d2.data.registration import (
    categories_of,
    class_keys,
    datasets_root,
    image_paths,
    is_lvis_format,
    order_classes,
)
from eql_d2.engine.settings import RunSettings
from eql_d2.errors import InputError, did_you_mean

logger = logging.getLogger(__name__)


def check_datasets(run: RunSettings, train: bool) -> None:
    """Each set by itself, then that all are of the same classes, which those of a file are put in order for.

    Args:
        train: whether the training sets are needed, too; else they are only compared with, where they are here.
    """
    found = []
    for name in run.train_sets:
        if train:  # the data loader is about to read it
            found.append((name, check_dataset(run, "train_sets", name)))
        elif name in DatasetCatalog.list():
            found.append((name, MetadataCatalog.get(name).get("thing_classes")))
    for name in run.test_sets:
        found.append((name, check_dataset(run, "test_sets", name)))  # or it shows when training is done
    known = [(name, classes) for name, classes in found if classes is not None]
    for name, classes in known[1:]:
        agree(known[0][1], described(known[0][0]), name, classes)


def check_dataset(run: RunSettings, setting: str, name: str) -> list[str] | None:
    """A dataset must be registered, its annotation file there, and its categories as many as the model's classes.

    What was changed in its file or left out of it is logged. The file of a test set is read, to evaluate by, even where
    the metadata has the categories.

    Args:
        setting: "train_sets" or "test_sets".

    Returns:
        the names of its classes, or None where nothing says.
    """
    key = run.keys[setting]
    if name not in DatasetCatalog.list():
        raise InputError(
            f"dataset '{name}' of {key} is not registered{did_you_mean(str(name), DatasetCatalog.list()) or '.'} "
            f"Register a file of your own by DATASETS.REGISTER"
        )
    metadata = MetadataCatalog.get(name)
    if metadata.get("prepare") is not None:
        metadata.prepare()  # datasets that make themselves (MiniLVIS)
    json_file = metadata.get("json_file")
    if json_file is not None:
        if not PathManager.isfile(json_file):
            raise InputError(
                f"the annotation file of '{name}' ({key}) is not there: {json_file}. Put it there, or set the "
                f"environment variable DETECTRON2_DATASETS (now {datasets_root()}) to the folder of your datasets"
            )
        take_over(name)
    classes, by_file = metadata.get("thing_classes"), metadata.get("registered_by_file", False)
    evaluated = setting == "test_sets"
    if json_file is not None and (evaluated or classes is None or by_file):
        content = read_annotations(PathManager.get_local_path(json_file))
        for note in content.notes:
            logger.warning(note)
        if evaluated:
            check_evaluated(run, name, content)
        else:
            say_crowd_regions(name, json_file, content)
        classes = categories_of(content)[0] if classes is None else classes
    if classes is not None:
        check_num_classes(run, setting, name, len(classes))
    return classes


def check_evaluated(run: RunSettings, name: str, content: Annotations) -> None:
    """What a test set must have beside what every file must."""
    metadata = MetadataCatalog.get(name)
    if not content["images"]:
        raise InputError(f"{metadata.json_file} of '{name}' lists no images (`images` is empty): nothing to evaluate")
    kind = metadata.get("evaluator_type")
    if kind == "lvis" and content["annotations"] and not is_lvis_format(metadata.json_file, content):
        raise InputError(
            f"{metadata.json_file} of '{name}' is evaluated as LVIS's, but no image has neg_category_ids: register it "
            f"by DATASETS.REGISTER, for COCO's metrics"
        )
    if kind in ("lvis", "coco") and content.without_area is not None:
        raise InputError(
            f"{metadata.json_file}: annotation {content.without_area} has no `area`, which AP by size goes by: give "
            f"each object the number of pixels of its mask, or of its box"
        )
    flat = [a["id"] for a in content["annotations"] if a["area"] == 0] if kind == "lvis" else []
    if flat:
        logger.warning(
            "%d of %d objects of %s have an `area` of 0 (id %s first), which LVIS's metrics leave out",
            len(flat),
            len(content["annotations"]),
            described(name),
            flat[0],
        )
    if metadata.get("registered_by_file"):  # a loader of somebody else's may find its images in another way
        try:
            image_paths(content["images"], metadata.image_root)
        except InputError as error:
            raise InputError(f"{metadata.json_file} of '{name}': {error}") from error
    lacking = [a["id"] for a in content["annotations"] if not a.get("segmentation")] if run.mask_on else []
    if lacking:
        raise InputError(
            f"{len(lacking)} of {len(content['annotations'])} objects in {metadata.json_file} of '{name}' have no "
            f"mask, annotation {lacking[0]} first, and the model's masks are evaluated: evaluate a model without "
            f"(MODEL.MASK_ON False), or give these objects a `segmentation`"
        )


def say_crowd_regions(name: str, json_file: str, content: Annotations) -> None:
    """A line on objects that are there and not trained on; an InputError where there are no others."""
    crowds = len(content["annotations"]) - len(trained_objects(json_file, content))
    if crowds:
        logger.warning(
            "%d of %d objects of %s are crowd regions (iscrowd 1), which are not trained on",
            crowds,
            len(content["annotations"]),
            described(name),
        )


def check_num_classes(run: RunSettings, setting: str, name: str, found: int) -> None:
    """The model must have as many classes as the dataset has categories."""
    key = run.keys["num_classes"]
    if run.num_classes not in (None, found):
        raise InputError(
            f"{key} is {run.num_classes}, but '{name}' ({run.keys[setting]}) has {found} categories: set "
            f"{key.rpartition('.')[2]} {found}, or name the right dataset"
        )


def described(name: str) -> str:
    """A dataset in a message, with its file where it has one."""
    json_file = MetadataCatalog.get(name).get("json_file")
    return f"'{name}'" + (f" ({json_file})" if json_file else "")


def agree(classes: Sequence[str], source: str, name: str, own: Sequence[str]) -> None:
    """A dataset must have the model's ``classes``, which ``source`` says; where those of a file, its ``own``, are in
    another order, they are put into this one.
    """
    wanted, found = class_keys(classes), class_keys(own)
    if wanted == found:
        return
    place, expected, got = next(
        (i, *pair) for i, pair in enumerate(zip(classes, own, strict=False)) if pair[0] != pair[1]
    )
    if sorted(wanted) != sorted(found):
        strange = next((c for c, key in zip(own, found) if key not in wanted), got)
        raise InputError(
            f"{described(name)} has the class {strange!r}, which {source} has not: they are no data of one model. Give "
            f"classes that are the same the same `name`"
        )
    if len({*wanted}) < len(wanted) or not MetadataCatalog.get(name).get("registered_by_file"):
        raise InputError(
            f"{described(name)} has the classes of {source} in another order: number {place} is {got!r} in the place "
            f"of {expected!r}. Register its file by DATASETS.REGISTER, which matches classes by name, where all names "
            f"are different"
        )
    order_classes(name, classes)
    logger.warning("%s has the classes of %s in another order: matched by name", described(name), source)


def check_classes_of_model(run: RunSettings, classes: Sequence[str] | None) -> None:
    """The test sets must have the classes that a checkpoint says its model has; those of other tools say nothing."""
    for name in run.test_sets:
        own = MetadataCatalog.get(name).get("thing_classes")
        if classes is not None and own is not None:
            agree(classes, f"the model in {run.weights or run.output_dir}", name, own)


@contextmanager
def explained_dataset_errors(names: Iterable[str]):
    """Where a loader fails on an annotation file that has something wrong in it, say what instead."""
    try:
        yield
    except Exception as error:
        for name in names:
            json_file = MetadataCatalog.get(name).get("json_file")
            if json_file is not None:
                content = read_annotations(PathManager.get_local_path(json_file))
                if not trained_objects(json_file, content):
                    message = f"{json_file} of '{name}' has no object that can be used: nothing to train on"
                    raise InputError(message) from error
        raise

"""Registers the annotation files that `DATASETS.REGISTER` lists: a dataset of one's own needs no Python.

COCO and LVIS format are told apart by their content; category ids may be any numbers. Categories are ordered by id, as
Detectron2 does.
"""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from pycocotools.mask import frPyObjects

from eql_d2.data.annotations import is_valid, read_annotations
from eql_d2.data.json_files import read_json
from eql_d2.errors import InputError

KEY = "DATASETS.REGISTER"
LVIS_V1_CLASSES = 1203


def datasets_root() -> Path:
    """`$DETECTRON2_DATASETS`, or `./datasets`, as Detectron2 has it."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_datasets(entries: Sequence[Sequence[str]]) -> None:
    """Register every ``[name, annotation file, image folder]``.

    Raises:
        InputError: an entry of another form, or see :func:`register_dataset`.
    """
    for entry in entries:
        if not (isinstance(entry, (list, tuple)) and len(entry) == 3):
            raise InputError(f"{KEY} is a list of [name, annotation file, image folder], got the entry {entry!r}")
        register_dataset(*entry)


def register_dataset(name: str, json_file: str, image_root: str) -> None:
    """Register one annotation file under ``name``, which files are called by too; doing so again changes nothing.

    A file that is not there is registered too, without categories: a trained model is evaluated where its
    training set is not. A run that needs the set says that the file is missing.

    The metadata has ``thing_classes``, ``thing_dataset_id_to_contiguous_id`` and an ``evaluator_type`` of "lvis" or
    "coco". Images of an LVIS-format file are found by ``file_name`` or, as LVIS has it, by ``coco_url``.

    Raises:
        InputError: the name belongs to another file, or is none; the image folder is missing; or see
            :func:`eql_d2.data.annotations.read_annotations`.
    """
    if not (isinstance(name, str) and re.fullmatch(r"\w[\w.+-]*", name)):
        raise InputError(f"{KEY}: files are called by a name, so it is letters, digits and any of _.+-, got {name!r}")
    if name in DatasetCatalog.list():
        taken_by = MetadataCatalog.get(name).get("json_file")
        if taken_by == json_file and MetadataCatalog.get(name).get("image_root") == image_root:
            return
        raise InputError(f"{KEY}: '{name}' is taken by {taken_by}, so {json_file} needs another name")
    if not PathManager.isfile(json_file):
        DatasetCatalog.register(name, lambda: read_json(json_file))  # says that it is not there
        MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root)
        return
    try:
        data = read_annotations(PathManager.get_local_path(json_file))
        is_lvis = is_lvis_format(json_file, data)
        classes, order = categories_of(data)
    except (ValueError, OSError) as error:
        raise InputError(f"{KEY} '{name}': {error}") from error
    if not PathManager.isdir(image_root):
        raise InputError(f"{KEY} '{name}': there is no image folder {image_root}")
    DatasetCatalog.register(name, lambda: load_dataset(json_file, image_root, order))
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="lvis" if is_lvis else "coco",
        thing_classes=classes,
        thing_dataset_id_to_contiguous_id=order,
        registered_by_file=True,  # as here: its classes can be put into another order
    )


def order_classes(name: str, classes: Sequence[str]) -> None:
    """Give a dataset that :func:`register_dataset` has registered its classes in another order.

    Args:
        classes: the names of the dataset's classes, which are all different, in the wanted order.
    """
    before = MetadataCatalog.get(name).as_dict()
    place = {key: i for i, key in enumerate(class_keys(classes))}
    own = class_keys(before["thing_classes"])
    order = {i: place[own[k]] for i, k in before["thing_dataset_id_to_contiguous_id"].items()}
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: load_dataset(before["json_file"], before["image_root"], order))
    after = {**before, "thing_classes": list(classes), "thing_dataset_id_to_contiguous_id": order}
    del after["name"]
    MetadataCatalog.get(name).set(**after)


def class_keys(names: Sequence[str]) -> list[str]:
    """:func:`class_key` of all classes of a dataset."""
    return [class_key(name, len(names)) for name in names]


def class_key(name: str, num_classes: int) -> str:
    """What two spellings of a class's name have in common: `Traffic_Light` and `traffic light` are one.

    And of LVIS v1 what its file calls bull, and Detectron2's metadata of it horned_cow.
    """
    key = " ".join(name.casefold().replace("_", " ").split())
    return "bull" if key == "horned cow" and num_classes == LVIS_V1_CLASSES else key


def is_lvis_format(json_file: str, data: dict) -> bool:
    """Whether images list the categories that are known to be absent; all that LVIS evaluates by must then be there.

    Raises:
        InputError: a part of LVIS's format is missing.
    """
    if not any("neg_category_ids" in image for image in data["images"]):
        return False
    for part, key in (
        ("images", "neg_category_ids"),
        ("images", "not_exhaustive_category_ids"),
        ("categories", "frequency"),
    ):
        lacking = [entry["id"] for entry in data[part] if key not in entry]
        if lacking:
            raise InputError(
                f"{json_file}: images have neg_category_ids, so this is LVIS format, but {len(lacking)} of the {part} "
                f"lack '{key}' (id {lacking[0]} first): add it, or drop neg_category_ids for COCO format"
            )
    return True


def categories_of(data: dict) -> tuple:
    """Names in the order of ascending ids, and dataset id -> contiguous id."""
    categories = sorted(data["categories"], key=lambda c: c["id"])
    return [c["name"] for c in categories], {c["id"]: i for i, c in enumerate(categories)}


def load_dataset(json_file: str, image_root: str, order: dict[int, int]) -> list[dict]:
    """An annotation file as Detectron2's standard dicts.

    Detectron2's own loader of LVIS format knows the categories of LVIS only, and finds images by ``coco_url`` only;
    that of COCO format trusts the file.

    Args:
        order: dataset id -> contiguous id.
    """
    data = read_annotations(PathManager.get_local_path(json_file))
    if not data["images"]:
        raise InputError(f"{json_file} lists no images (`images` is empty): nothing to train on or to evaluate")
    objects = defaultdict(list)
    for a in data["annotations"]:
        objects[a["image_id"]].append(a)
    images = sorted(data["images"], key=lambda image: image["id"])
    try:
        paths = image_paths(images, image_root)
    except ValueError as error:
        raise InputError(f"{json_file}: {error}") from error
    kept = ("height", "width", "neg_category_ids", "not_exhaustive_category_ids")
    return [
        {
            "file_name": path,
            "image_id": image["id"],
            **{key: image[key] for key in kept if key in image},
            "annotations": [as_object(a, order) for a in objects[image["id"]]],
        }
        for image, path in zip(images, paths)
    ]


def as_object(annotation: dict, order: dict[int, int]) -> dict:
    """One annotation as Detectron2 has it; an RLE in the compressed form."""
    entry = {
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": order[annotation["category_id"]],
    }
    if "iscrowd" in annotation:
        entry["iscrowd"] = annotation["iscrowd"]
    if annotation.get("keypoints"):  # indices of pixels, whose centres are meant
        entry["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(annotation["keypoints"])]
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list) and segmentation:
        entry["segmentation"] = list(filter(is_valid, segmentation))
    elif segmentation:
        as_text = isinstance(segmentation["counts"], str)
        entry["segmentation"] = segmentation if as_text else frPyObjects(segmentation, *segmentation["size"])
    return entry


def image_paths(images: list[dict], image_root: str) -> list[str]:
    """Where the images of a file are, all found in the first way that finds the first of them.

    Raises:
        InputError: no way does, or a path lies outside of ``image_root``.
    """

    def by_url(image, parts):  # the last parts of http://images.cocodataset.org/train2017/000000155379.jpg
        return "/".join(image["coco_url"].split("/")[-parts:]) if "coco_url" in image else ""

    ways = [
        lambda image: image.get("file_name", ""),
        lambda image: by_url(image, 2),  # the folder above train2017
        lambda image: by_url(image, 1),  # train2017 itself
    ]
    for way in ways:
        if not images or PathManager.isfile(path_inside(image_root, way(images[0]))):
            paths = [path_inside(image_root, way(image)) for image in images]
            require_images(images, paths)
            return paths
    tried = [os.path.join(image_root, name) for way in ways if (name := way(images[0]))]
    raise InputError(f"image {images[0]['id']} is none of {tried}: which folder holds the images ({KEY})?")


def require_images(images: list[dict], paths: list[str]) -> None:
    """
    Raises:
        InputError: one of the paths is no file; how many are none, and the first.
    """
    missing = [(image["id"], path) for image, path in zip(images, paths, strict=True) if not PathManager.isfile(path)]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(images)} images are not there, image {missing[0][0]} first: {missing[0][1]}. Put "
            f"them there, or drop their entries from the annotation file"
        )


def path_inside(folder: str, name: str) -> str:
    """``folder/name``, where ``name``, from an annotation file, must not lead out of the folder."""
    path = os.path.normpath(name)
    if not (os.path.isabs(path) or path.split(os.sep)[0] == os.pardir):
        return os.path.join(folder, path)
    path = os.path.normpath(os.path.join(folder, name))  # out and in again, as in ../images/1.png
    # As written, or where the user's own links lead: of the folder, of a folder on the way, of the image itself.
    entry = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    inside = is_within(os.path.abspath(path), os.path.abspath(folder))
    if not inside and not any(is_within(p, os.path.realpath(folder)) for p in (entry, os.path.realpath(path))):
        raise InputError(f"the image '{name}' lies outside of the image folder {folder}: refused")
    return path


def is_within(path: str, folder: str) -> bool:
    """Whether an absolute path lies in a folder, by their names alone."""
    return os.path.commonpath([path, folder]) == folder

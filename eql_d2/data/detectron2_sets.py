"""Datasets that Detectron2's own functions have registered, the built-in ones included, read by the one reader.

Theirs would parse the file once more, and neither check it nor say what is odd about it.
"""

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from eql_d2.data.annotations import read_annotations
from eql_d2.data.registration import categories_of, class_key, load_dataset
from eql_d2.errors import InputError

# Module and name of the function that makes the dicts.
OF_LVIS = ("detectron2.data.datasets.lvis", "register_lvis_instances.<locals>.<lambda>")
OF_COCO = ("detectron2.data.datasets.coco", "register_coco_instances.<locals>.<lambda>")


def take_over(name: str) -> None:
    """Let a dataset that ``register_coco_instances`` or ``register_lvis_instances`` has registered be read by us.

    Of a file that has nothing odd the dicts are those of Detectron2's loaders, and so are the classes' numbers. Other
    datasets stay as they are.

    Raises:
        InputError: the file has other categories than the metadata of the dataset says, or see
            :func:`eql_d2.data.annotations.read_annotations`.
    """
    loader, metadata = DatasetCatalog[name], MetadataCatalog.get(name)
    source = getattr(loader, "__module__", ""), getattr(loader, "__qualname__", "")
    if source not in (OF_LVIS, OF_COCO):
        return
    data = read_annotations(PathManager.get_local_path(metadata.json_file))
    classes, order = _classes(name, data, counts_from_1=source == OF_LVIS)
    DatasetCatalog.remove(name)
    DatasetCatalog.register(name, lambda: load_dataset(metadata.json_file, metadata.image_root, order))
    metadata.set(thing_classes=classes, thing_dataset_id_to_contiguous_id=order, registered_by_file=True)


def _classes(name: str, data: dict, counts_from_1: bool) -> tuple[list[str], dict[int, int]]:
    """The names of the classes, and dataset id -> contiguous id: the metadata's, or else the file's.

    Args:
        counts_from_1: whether ids of LVIS, 1 to K, are meant where the metadata has names alone.
    """
    metadata = MetadataCatalog.get(name)
    found, order = categories_of(data)
    classes = metadata.get("thing_classes")
    if classes is None:
        return found, order
    if counts_from_1:
        order = {id: id - 1 for id in order}
    order = metadata.get("thing_dataset_id_to_contiguous_id", order)
    K = len(classes)
    for category in data["categories"]:
        place = order.get(category["id"], -1)
        known = classes[place] if 0 <= place < K else None
        if known is None or class_key(known, K) != class_key(category["name"], K):
            raise InputError(
                f"{metadata.json_file}: category {category['id']} is {category['name']!r}, and {known!r} for '{name}' "
                f"as Detectron2 knows it: register a file of your own by DATASETS.REGISTER, or under another name"
            )
    return classes, order

"""Small annotation files with the quirks of real exports, with their images, and what a run must make of each."""

import copy
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

NAMES = ("cat", "dog", "owl")
WIDTH, HEIGHT = 64, 48
COLORS = ("red", "green", "blue")


@dataclass(frozen=True)
class Case:
    """What is odd about the files, and what must come of it.

    ``train``, ``evaluate`` and ``counts`` are patterns of the one-line error that these give; None: they work.
    ``logged`` are patterns of lines that a training logs.
    """

    change: Callable[[dict], None] | None = None  # of the training set
    change_val: Callable[[dict], None] | None = None
    files: Callable[[Path], None] | None = None  # of the folder, when all is there
    train: str | None = None
    evaluate: str | None = None
    counts: str | None = None
    logged: tuple[str, ...] = ()
    overrides: tuple = ()


def valid(lvis: bool) -> dict:
    """Three images with two boxes each."""
    data = {"images": [], "annotations": [], "categories": [{"id": k + 1, "name": n} for k, n in enumerate(NAMES)]}
    for i in range(3):
        data["images"].append({"id": i + 1, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT})
        for j in range(2):
            x, y, w, h = 4 + 32 * j, 6 + i, 22, 30
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": i + 1,
                    "category_id": (i + j) % 3 + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    if lvis:
        for image in data["images"]:
            image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
        for category, letter in zip(data["categories"], "fcr"):
            category["frequency"] = letter
    return data


def draw(data: dict, folder: Path) -> None:
    for image in data["images"]:
        picture = Image.new("RGB", (WIDTH, HEIGHT), "gray")
        for a in data["annotations"]:
            if a["image_id"] == image["id"]:
                x, y, w, h = a["bbox"]
                picture.paste(COLORS[a["category_id"] - 1], (x, y, x + w, y + h))
        picture.save(folder / image["file_name"])


def write(case: Case, folder: Path, lvis: bool) -> None:
    """``train.json``, ``val.json`` and ``images``."""
    (folder / "images").mkdir()
    data = valid(lvis)
    draw(data, folder / "images")
    for split, change in (("train", case.change), ("val", case.change_val)):
        content = copy.deepcopy(data)
        if change is not None:
            change(content)
        (folder / f"{split}.json").write_text(json.dumps(content))
    if case.files is not None:
        case.files(folder)


# ---- changes of a file ----


def each(part: str, **values):
    """Set the values in every entry; functions are given the entry."""

    def change(data):
        for entry in data[part]:
            entry.update({key: value(entry) if callable(value) else value for key, value in values.items()})

    return change


def first(part: str, **values):
    return lambda data: data[part][0].update(copy.deepcopy(values))


def all_of(*changes):
    def change(data):
        for one in changes:
            one(data)

    return change


def text_image_ids(data):
    for image in data["images"]:
        image["id"] = f"camera/{image['id']}"
    for a in data["annotations"]:
        a["image_id"] = f"camera/{a['image_id']}"


def spelt_image_ids(data):
    each("images", id=lambda image: str(image["id"]))(data)
    each("annotations", image_id=lambda a: str(a["image_id"]))(data)


def whole_floats(data):
    each("images", **{key: lambda image, key=key: float(image[key]) for key in ("id", "width", "height")})(data)
    each("annotations", **{k: lambda a, k=k: float(a[k]) for k in ("id", "image_id", "category_id", "iscrowd")})(data)
    each("categories", id=lambda c: float(c["id"]))(data)


def spelt_category_ids(data):
    each("categories", id=lambda c: str(c["id"]))(data)
    each("annotations", category_id=lambda a: str(a["category_id"]))(data)


def spelt_references(data):
    each("annotations", image_id=lambda a: str(a["image_id"]), category_id=lambda a: str(a["category_id"]))(data)


def text_category_ids(data):
    each("categories", id=lambda c: f"class {c['id']}")(data)
    each("annotations", category_id=lambda a: f"class {a['category_id']}")(data)


def without(part, key):
    def change(data):
        for entry in data[part]:
            del entry[key]

    return change


def rotated_categories(data):
    each("annotations", category_id=lambda a: a["category_id"] % 3 + 1)(data)
    each("categories", id=lambda c: c["id"] % 3 + 1)(data)


def shuffled_categories(data):
    """Ids of their own, in another order, and two names are written otherwise."""
    ids = {1: 70, 2: 8, 3: 33}
    each("annotations", category_id=lambda a: ids[a["category_id"]])(data)
    each("categories", id=lambda c: ids[c["id"]])(data)
    data["categories"].reverse()


def rle(data):
    for a in data["annotations"]:
        x, y, w, h = a["bbox"]
        runs = [x * HEIGHT + y] + [h, HEIGHT - h] * (w - 1) + [h]
        a["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [*runs, HEIGHT * WIDTH - sum(runs)]}


def one_crowd(data):
    everything = copy.deepcopy(data)
    rle(everything)
    data["annotations"][0] = {**everything["annotations"][0], "iscrowd": 1}


def nothing(data):
    data.update(images=[], annotations=[])


def null_annotations(data):
    data.update(annotations=None)


FAR = {"bbox": [40, -20, 300, 400], "segmentation": [[40, -20, 340, -20, 340, 380, 40, 380]], "area": 120000}
A_LITTLE = {"bbox": [40, 20, 34, 20], "segmentation": [[40, 20, 74, 20, 74, 40, 40, 40]], "area": 680}
FAR_POLYGON = {"segmentation": [[4, 6, 26, 6, 400, 36, 4, 36]]}
OUTSIDE = {"bbox": [70, 2, 20, 20], "segmentation": [[70, 2, 90, 2, 90, 22]]}
POINT = {"segmentation": [[5, 5, 5, 5]]}


# ---- changes of a folder ----


def in_images(change):
    """Of the first image of the test set, which is made one of its own."""

    def files(folder):
        data = json.loads((folder / "val.json").read_text())
        data["images"][0]["file_name"] = "odd.png"
        (folder / "val.json").write_text(json.dumps(data))
        (folder / "images" / "odd.png").write_bytes((folder / "images" / "0.png").read_bytes())
        change(folder / "images" / "odd.png")

    return files


def rotated_by_exif(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=exif)


def named(name):
    """File names of both files; ``name`` is given the folder and the old name."""

    def files(folder):
        for split in ("train", "val"):
            path = folder / f"{split}.json"
            data = json.loads(path.read_text())
            for image in data["images"]:
                image["file_name"] = name(folder, image["file_name"])
            path.write_text(json.dumps(data))

    return files


def in_a_subfolder(folder):
    images = folder / "images"
    (images / "sub").mkdir()
    for path in images.glob("*.png"):
        path.rename(images / "sub" / path.name)
    named(lambda _, name: f"sub\\{name}")(folder)


def behind_links(folder):
    """The image folder is a link, and so is each image in it."""
    (folder / "images").rename(folder / "real")
    (folder / "linked").mkdir()
    for path in (folder / "real").glob("*.png"):
        (folder / "linked" / path.name).symlink_to(path)
    (folder / "images").symlink_to(folder / "linked")
    named(lambda folder, name: str(folder / "linked" / name))(folder)


def outside(folder):
    (folder / "other").mkdir()
    for path in (folder / "images").glob("*.png"):
        (folder / "other" / path.name).write_bytes(path.read_bytes())
    named(lambda _, name: f"../other/{name}")(folder)


def deep(mode):
    def change(path):
        with Image.open(path) as image:
            wide = image.convert("I").point(lambda v: v * 256)
        wide.convert(mode).save(path, format="PNG" if mode == "I;16" else "TIFF")

    return change


def missing(folder):
    (folder / "images" / "1.png").unlink()


def marked(folder):
    """A byte order mark, as Windows' editors write it, and NaN in a key that nobody reads."""
    for split in ("train", "val"):
        path = folder / f"{split}.json"
        data = {**json.loads(path.read_text()), "info": float("nan")}
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(data).encode())


def compressed(folder):
    for split in ("train", "val"):
        path = folder / f"{split}.json"
        path.write_bytes(gzip.compress(path.read_bytes()))


def unicode_names(folder):
    for path in [*(folder / "images").glob("*.png")]:
        path.rename(path.with_name(f"Öl 猫 {path.name}"))
    named(lambda _, name: f"Öl 猫 {name}")(folder)


def both(change, **rest) -> Case:
    return Case(change, change, **rest)


CUT = r"image 1, .*odd\.png, cannot be used"
IMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "of another size": lambda path: Image.new("RGB", (HEIGHT, WIDTH)).save(path),
    "rotated by exif": rotated_by_exif,
    "a text": lambda path: path.write_text("no image"),
    "empty": lambda path: path.write_bytes(b""),
    "of 16 bits": deep("I;16"),
    "of 32 bits": deep("I"),
    "of floats": deep("F"),
}
NO_MASKS = r"objects to train masks on have none, in image 1 first: .*MODEL\.MASK_ON False"
NO_MASKS_VAL = r"of 6 objects in \S*val\.json .* have no mask, annotation 1 first, .*MODEL\.MASK_ON False"
UNPACK = r"train\.json is compressed: unpack it"
TWICE = r"train\.json: annotation 2 is there twice: give each"
NONE_LEFT = r"train\.json: left out 6 of 6 .* 6 without a polygon of three corners.*no object left to train on"
CASES = {
    "url empty": both(each("images", coco_url="", flickr_url=None)),
    "url zero": both(each("images", coco_url=0)),
    "ids from zero": both(each("annotations", id=lambda a: a["id"] - 1)),
    "text annotation ids": both(each("annotations", id=lambda a: f"a{a['id']}")),
    "text image ids": both(text_image_ids, logged=("train.json: numbered 3 images whose ids are texts",)),
    "spelt image ids": both(spelt_image_ids),
    "spelt category ids": both(spelt_category_ids),
    "spelt references": both(spelt_references),
    "spelt sizes": both(each("images", width=lambda i: str(i["width"]), height=lambda i: str(i["height"]))),
    "text category ids": both(text_category_ids, logged=("val.json: numbered 3 categories whose ids are texts",)),
    "whole floats": both(whole_floats),
    "no crowd key": both(without("annotations", "iscrowd")),
    "null annotations": Case(
        null_annotations,
        train=r"train\.json has no object",
        evaluate=r"train\.json has no object",
        counts=r"train\.json has no object",
    ),
    "val no area": Case(
        None,
        without("annotations", "area"),
        train="annotation 1 has no `area`.*give each",
        evaluate="annotation 1 has no `area`.*give each",
    ),
    "compressed": Case(files=compressed, train=UNPACK, evaluate=UNPACK, counts=UNPACK),
    "unicode names": Case(files=unicode_names),
    "the same id twice": both(first("annotations", id=2), train=TWICE, evaluate=TWICE, counts=TWICE),
    "ignored": both(first("annotations", ignore=1), logged=("train.json: 1 of 6 annotations .* marked `ignore`",)),
    "boxes in polygons": Case(
        each("annotations", segmentation=lambda a: [a["bbox"]]), train=NONE_LEFT, evaluate=NONE_LEFT, counts=NONE_LEFT
    ),
    "null crowd": both(each("annotations", iscrowd=None)),
    "null area to train": Case(each("annotations", area=None)),
    "byte order mark": Case(files=marked),
    "val rotated categories": Case(None, rotated_categories, logged=("val.json.* another order: matched by name",)),
    "val shuffled categories": Case(None, shuffled_categories, logged=("val.json.* another order: matched by name",)),
    "val names written otherwise": Case(None, first("categories", name="Cat")),
    "val other name": Case(
        None,
        first("categories", name="cow"),
        train=r"val\.json\) has the class 'cow', which .*train\.json\) has not",
        evaluate=r"val\.json\) has the class 'cow', which .*train\.json\) has not",
    ),
    "no masks": both(each("annotations", segmentation=[]), train=NO_MASKS_VAL, evaluate=NO_MASKS_VAL),
    "no masks, boxes only": both(each("annotations", segmentation=[]), overrides=("MODEL.MASK_ON", False)),
    "one without mask": Case(first("annotations", segmentation=[]), train="1 " + NO_MASKS),
    "val one without mask": Case(
        None, first("annotations", segmentation=None), train="1 " + NO_MASKS_VAL, evaluate="1 " + NO_MASKS_VAL
    ),
    "rle": both(rle, train="6 objects have an RLE as their mask, .*INPUT.MASK_FORMAT bitmask"),
    "rle, bitmask": both(rle, overrides=("INPUT.MASK_FORMAT", "bitmask")),
    "val point polygon": Case(None, first("annotations", **POINT), logged=("val.json: left out 1 of 6 .*id 1 first",)),
    "val point polygons": Case(None, each("annotations", segmentation=[[5, 5]]), logged=("val.json: left out 6 of 6",)),
    "val no polygon": Case(None, first("annotations", segmentation=[[]]), logged=("val.json: left out 1 of 6",)),
    "far": both(first("annotations", **FAR), logged=("train.json: clipped 1 of 6", "val.json: clipped 1 of 6")),
    "far polygon": both(first("annotations", **FAR_POLYGON), logged=("clipped 1 of 6",)),
    "a little out": both(first("annotations", **A_LITTLE), logged=("clipped 1 of 6",)),
    "outside": both(
        first("annotations", **OUTSIDE), logged=("train.json: left out 1 of 6", "val.json: left out 1 of 6")
    ),
    "all crowd": Case(
        all_of(rle, each("annotations", iscrowd=1)),
        train=r"train\.json: all 6 objects are crowd regions",
        evaluate=r"train\.json: all 6 objects are crowd regions",  # whose categories the loss counts
        counts=r"train\.json: all 6 objects are crowd regions",
    ),
    "one crowd": both(one_crowd, logged=("1 of 6 objects of .*train.json.* are crowd regions",)),
    "val empty": Case(None, nothing, train=r"val\.json.* lists no images", evaluate=r"val\.json.* lists no images"),
    "train empty": Case(nothing, train=r"train\.json", evaluate=r"train\.json", counts=r"train\.json"),
    "parent path": Case(files=named(lambda _, name: f"../images/{name}")),
    "absolute path": Case(files=named(lambda folder, name: str(folder / "images" / name))),
    "windows path": Case(files=in_a_subfolder),
    "links": Case(files=behind_links),
    "outside path": Case(files=outside, train="lies outside of the image folder", evaluate="lies outside of the image"),
    "missing image": Case(
        files=missing,
        train=r"1 of 3 images are not there, image 2 first: \S+1\.png",
        evaluate=r"1 of 3 images are not there, image 2 first: \S+1\.png",
    ),
    **{f"val image {kind}": Case(files=in_images(change), train=CUT, evaluate=CUT) for kind, change in IMAGES.items()},
}

"""How often each category occurs in the training set, and which categories are the tail.

Shape shorthand: K is the number of foreground categories, in the order of Detectron2's contiguous ids [0, K).
"""

import json
import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from eql_d2.data.counting import count_annotations
from eql_d2.data.json_files import read_json
from eql_d2.data.letters import frequency_letter
from eql_d2.data.whole_files import make_folder, naming
from eql_d2.errors import InputError, one_line

COUNTS_KEY = "MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE"
SHIPPED_COUNTS = {
    name: Path(__file__).parent / "counts" / f"{name}.json" for name in ("lvis_v0.5_train", "lvis_v1_train")
}
DEFAULT_MAX_IMAGE_COUNT = 100  # LVIS's rare and common categories


def whole_numbers(values, name: str) -> torch.Tensor:
    """int64 of a sequence of whole numbers; floats must be whole."""
    tensor = torch.as_tensor(values)
    wrong = tensor.frac() != 0 if tensor.is_floating_point() else ~tensor.isreal()  # that of inf is NaN, too
    if wrong.any():
        category = int(wrong.flatten().int().argmax())
        raise InputError(f"{name} must be whole numbers, got {tensor.flatten()[category]} of category {category}")
    return tensor.to(torch.int64)


class FrequenciesNotFound(InputError):
    """No source has the counts that are asked for: a model can score without them, but not train."""


@dataclass(frozen=True, eq=False, repr=False)
class ClassFrequencies:
    """Counts of a training set by category.

    Args:
        image_count: (K,) int64, images that contain the category; sequences are converted.
        instance_count: (K,) int64, annotated objects of the category, or None where the source lacks it.
        num_images: images with at least one annotation, the denominator of :attr:`frequency`; None if unknown.
        groups: K letters "r", "c", "f"; empty: by LVIS's rule on ``image_count``.
        source: where the counts come from, for messages.
        fractal_dimension: (K,) float64 in [1, 2], how evenly the objects of the category lie in their images
            (:func:`eql_d2.data.fractal.fractal_dimensions`), or None where the source lacks it.

    Raises:
        InputError: counts that are negative, of different lengths, or larger than the number of images.
    """

    image_count: torch.Tensor
    instance_count: torch.Tensor | None = None
    num_images: int | None = None
    groups: str = ""
    source: str = "counts passed as arguments"
    fractal_dimension: torch.Tensor | None = None

    def __post_init__(self):
        for name in ("image_count", "instance_count"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_numbers(value, name))
        if self.fractal_dimension is not None:
            dimension = torch.as_tensor(self.fractal_dimension, dtype=torch.float64)
            object.__setattr__(self, "fractal_dimension", dimension)
        if not self.groups:
            letters = map(frequency_letter, self.image_count.tolist())
            object.__setattr__(self, "groups", "".join(letters))
        self._validate()

    def _validate(self):
        K = len(self)
        if K == 0 or self.image_count.dim() != 1:
            raise InputError(
                f"image_count must hold one number >= 0 for each category; "
                f"{self.source} gives shape {tuple(self.image_count.shape)}"
            )
        if self.instance_count is not None and self.instance_count.shape != self.image_count.shape:
            raise InputError(
                f"image_count has {K} categories but instance_count has shape "
                f"{tuple(self.instance_count.shape)} in {self.source}"
            )
        for name in ("image_count", "instance_count"):
            counts = getattr(self, name)
            if counts is not None and (counts < 0).any():
                category = int(counts.argmin())
                raise InputError(
                    f"{name} must be >= 0, but is {counts[category]} of category {category} in {self.source}"
                )
        dimension = self.fractal_dimension
        if dimension is not None and not (dimension.shape == (K,) and ((dimension >= 1) & (dimension <= 2)).all()):
            raise InputError(
                f"fractal_dimension must hold a number in [1, 2] for each of the {K} categories of {self.source}"
            )
        if len(self.groups) != K or set(self.groups) - set("rcf"):
            raise InputError(
                f"groups must be {K} letters of 'r', 'c', 'f', got {len(self.groups)} letters "
                f"{sorted(set(self.groups))} from {self.source}"
            )
        if self.num_images is not None and not self.num_images >= max(1, int(self.image_count.max())):
            raise InputError(
                f"{self.source} has {self.num_images} annotated images, but a category occurs in "
                f"{int(self.image_count.max())}: an empty training set, or counts of two datasets mixed?"
            )

    def __len__(self) -> int:
        return len(self.image_count)

    def __repr__(self) -> str:
        return f"ClassFrequencies({len(self)} categories of {self.source})"

    @property
    def frequency(self) -> torch.Tensor:
        """(K,) float64 in [0, 1]: the share of annotated images that contain the category, f_j of the EQL paper."""
        if self.num_images is None:
            raise FrequenciesNotFound(
                f"{self.source} has image counts but not the number of annotated images, so a category's share "
                f"of images is unknown: use a rule by image count or group (TailRule(max_image_count=...), "
                f"TailRule(groups=...); TAIL.MAX_IMAGE_COUNT, TAIL.GROUPS), or give ClassFrequencies(num_images=...), "
                f"or a counts file that has it ({COUNTS_KEY})"
            )
        return self.image_count.double() / self.num_images

    def require_instance_count(self) -> torch.Tensor:
        """(K,) int64 instance counts, or an error that says where to get them."""
        if self.instance_count is None:
            raise FrequenciesNotFound(
                f"{self.source} has no instance counts: give ClassFrequencies(instance_count=...), or a counts file "
                f"that has them ({COUNTS_KEY}; make one with `eql-d2 counts`)"
            )
        return self.instance_count

    def require_fractal_dimension(self) -> torch.Tensor:
        """(K,) float64 in [1, 2], or an error that says where to get it."""
        if self.fractal_dimension is None:
            raise FrequenciesNotFound(
                f"{self.source} does not say how the objects lie in their images: make a counts file from the training "
                f"annotations (`eql-d2 counts`) and give it by {COUNTS_KEY}, or give "
                f"ClassFrequencies(fractal_dimension=...)"
            )
        return self.fractal_dimension

    @classmethod
    def of(cls, counts) -> "ClassFrequencies":
        """``counts`` as they are, read from a counts file, or made of a sequence of samples of each class.

        In plain classification an image has one object, so there one number counts both.

        Raises:
            InputError: none of these.
        """
        if isinstance(counts, cls):
            return counts
        if isinstance(counts, str | os.PathLike):
            return cls.from_counts_file(counts)
        try:
            samples = whole_numbers(counts, "frequencies")
            total = sum(samples.tolist())
        except InputError:
            raise
        except (TypeError, RuntimeError, ValueError) as error:
            raise InputError(
                f"frequencies must be ClassFrequencies, the path of a counts file, or a sequence of the number of "
                f"samples of each class, got {reprlib.repr(counts)}"
            ) from error
        return cls(samples, samples, num_images=max(total, 1))

    # ---- sources ----

    @classmethod
    def from_annotations(cls, json_file, category_order: dict | None = None) -> "ClassFrequencies":
        """Count a COCO- or LVIS-format annotation file; crowd regions, which are never trained on, are skipped.

        Args:
            json_file: path of the annotation file.
            category_order: dataset id -> contiguous id; by default ascending ids, as Detectron2 does.
        """
        return cls(**count_annotations(json_file, category_order), source=str(json_file))

    @classmethod
    def from_counts_file(cls, path) -> "ClassFrequencies":
        """Read a file that :meth:`save` or ``eql-d2 counts`` wrote."""
        counts = read_json(path, required=("image_count",))
        known = ("image_count", "instance_count", "num_images", "groups", "fractal_dimension")
        try:
            return cls(**{key: counts[key] for key in known if counts.get(key) is not None}, source=str(path))
        except InputError:
            raise
        except (TypeError, RuntimeError, ValueError, OverflowError) as error:  # of torch, for what is no number
            raise InputError(
                f"{path} is no counts file: image_count and instance_count must be lists of whole numbers below 2^63, "
                f"num_images a whole number, groups letters of r, c, f ({one_line(error)})"
            ) from error

    @classmethod
    def from_dataset(cls, name: str, cache_dir: str | None = None) -> "ClassFrequencies":
        """Counts of a registered dataset: shipped ones (LVIS), else its annotation file, else its metadata.

        Args:
            name: name in Detectron2's DatasetCatalog.
            cache_dir: where to keep the result of counting an annotation file; it is used again as long
                as the file's size and modification time are the same.

        Raises:
            FrequenciesNotFound: none of the sources is there.
        """
        if name in SHIPPED_COUNTS:
            return cls.from_counts_file(SHIPPED_COUNTS[name])
        from detectron2.data import DatasetCatalog, MetadataCatalog  # here, since counts and losses work without it

        if name not in DatasetCatalog.list():
            raise FrequenciesNotFound(
                f"dataset '{name}' of DATASETS.TRAIN is not registered, so its categories cannot be counted: "
                f"register it, or give {COUNTS_KEY}"
            )
        metadata = MetadataCatalog.get(name)
        json_file = _annotation_file(metadata)
        if json_file is not None:
            return cls._from_annotations_cached(name, metadata, json_file, cache_dir)
        if "class_image_count" in metadata.as_dict():
            counts = sorted(metadata.class_image_count, key=lambda c: c["id"])
            return cls(torch.tensor([c["image_count"] for c in counts]), source=f"the metadata of {name}")
        raise FrequenciesNotFound(
            f"the annotation file of '{name}' is not there ({metadata.get('json_file', 'none registered')}), so its "
            f"categories cannot be counted: set DETECTRON2_DATASETS, or give {COUNTS_KEY} "
            f"(made by `eql-d2 counts`)"
        )

    @classmethod
    def _from_annotations_cached(cls, name, metadata, json_file, cache_dir):
        stat = os.stat(json_file)
        order = metadata.get("thing_dataset_id_to_contiguous_id")
        key = {"file": str(Path(json_file).resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if order is not None:  # another TRAIN set may have put the classes into another order
            key["category_ids"] = sorted(order, key=order.__getitem__)
        cache = Path(cache_dir) / f"class_counts_{name}.json" if cache_dir else None
        if cache is not None and cache.is_file():
            cached = read_json(cache)
            if cached.get("counted") == key and "fractal_dimension" in cached:  # older ones lack it
                return cls.from_counts_file(cache)
        frequencies = cls.from_annotations(json_file, order)
        if cache is not None:
            frequencies.save(cache, counted=key)
        return frequencies

    @classmethod
    def from_config(cls, cfg, head: str = "ROI_HEADS") -> "ClassFrequencies":
        """Counts for ``cfg.DATASETS.TRAIN`` (summed if several), or of ``CLS_LOSS.COUNTS_FILE`` where it is set.

        Args:
            cfg: of a YAML file.
            head: section of MODEL that has the model's NUM_CLASSES.

        Raises:
            FrequenciesNotFound: no source of counts is there.
            InputError: the counts are not of ``MODEL.<head>.NUM_CLASSES`` categories.
        """
        counts_file, names = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE, cfg.DATASETS.TRAIN
        if counts_file:
            frequencies = cls.from_counts_file(_local_path(counts_file))
        elif not names:
            raise FrequenciesNotFound(f"DATASETS.TRAIN is empty and {COUNTS_KEY} is not set: nothing to count")
        else:
            frequencies = cls.sum([cls.from_dataset(name, cfg.OUTPUT_DIR) for name in names])
        num_classes = cfg.MODEL[head].NUM_CLASSES
        if len(frequencies) != num_classes:
            raise InputError(
                f"MODEL.{head}.NUM_CLASSES is {num_classes}, but {frequencies.source} "
                f"(DATASETS.TRAIN {tuple(names)}) has {len(frequencies)} categories: set NUM_CLASSES "
                f"{len(frequencies)}, or give the right {COUNTS_KEY}"
            )
        return frequencies

    @classmethod
    def sum(cls, parts: Sequence["ClassFrequencies"]) -> "ClassFrequencies":
        """Counts of several training sets together; an image that is in two of them counts twice."""
        if len(parts) == 1:
            return parts[0]
        sizes = [len(p) for p in parts]
        if len(set(sizes)) > 1:
            raise InputError(f"the datasets of DATASETS.TRAIN have {sizes} categories: they must be the same")
        instances = [p.instance_count for p in parts if p.instance_count is not None]
        images = [p.num_images for p in parts if p.num_images is not None]
        return cls(
            image_count=torch.stack([p.image_count for p in parts]).sum(0),
            instance_count=torch.stack(instances).sum(0) if len(instances) == len(parts) else None,
            num_images=sum(images) if len(images) == len(parts) else None,
            source=" + ".join(p.source for p in parts),
        )

    def save(self, path, **extra) -> None:
        """Write the counts as JSON at ``path``, atomically; ``extra`` goes in beside them."""
        content = {
            "source": self.source,
            "num_images": self.num_images,
            "image_count": self.image_count.tolist(),
            "instance_count": None if self.instance_count is None else self.instance_count.tolist(),
            "groups": self.groups,
            "fractal_dimension": None if self.fractal_dimension is None else self.fractal_dimension.tolist(),
            **extra,
        }
        path = Path(path)
        make_folder(path.parent)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with naming(path):
            temporary.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
            os.replace(temporary, path)


def _local_path(path: str) -> str:
    from detectron2.utils.file_io import PathManager  # here, since counts and losses work without it

    return PathManager.get_local_path(path)


def _annotation_file(metadata) -> str | None:
    """Local path of the annotation file, or None; a dataset that makes itself (MiniLVIS) does so here."""
    if metadata.get("json_file") is None:
        return None
    prepare = metadata.get("prepare")
    if prepare is not None:
        prepare()
    try:
        path = _local_path(metadata.json_file)
    except OSError:
        return None
    return path if os.path.isfile(path) else None


@dataclass(frozen=True, init=False)
class TailRule:
    """Which categories are the tail: T of the EQL paper (Tan et al., CVPR 2020, Eq. 4), by one of three rules.

    Args:
        lambda_: a category is tail if its share of annotated images is strictly below this number in (0, 1].
        max_image_count: a category is tail if it has at most so many training images.
        groups: LVIS frequency letters that are tail, "r" or "rc"; "" is an empty tail.

    With none of them, ``max_image_count`` is 100: LVIS's rare and common categories. That is what the authors' lambda
    of 0.00177 selects on LVIS v0.5, and 0.0010062 on v1: a lambda must be found anew for each dataset.

    Raises:
        InputError: more than one rule, or a value out of its range.
    """

    kind: str  # "lambda", "image_count" or "groups"
    value: Any  # a share of images, a number of images, letters

    def __init__(self, lambda_: float | None = None, max_image_count: int | None = None, groups: str | None = None):
        given = {"lambda": lambda_, "image_count": max_image_count, "groups": groups}
        given = {kind: value for kind, value in given.items() if value is not None}
        if len(given) > 1:
            raise InputError(
                f"a tail has one rule, got {given}: keep one of lambda_, max_image_count and groups (TAIL.LAMBDA, "
                f"TAIL.MAX_IMAGE_COUNT, TAIL.GROUPS)"
            )
        kind, value = next(iter(given.items()), ("image_count", DEFAULT_MAX_IMAGE_COUNT))
        _check_tail_value(kind, value)
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "value", value)

    @classmethod
    def of(cls, tail) -> "TailRule":
        """``tail`` as it is, or the rule that it stands for: an int is an image count, a float a lambda, a text groups.

        Raises:
            InputError: none of these.
        """
        if isinstance(tail, cls):
            return tail
        for kind, of_type in (("max_image_count", int), ("lambda_", float), ("groups", str)):
            if isinstance(tail, of_type) and not isinstance(tail, bool):
                arguments: dict[str, Any] = {kind: tail}
                return cls(**arguments)
        raise InputError(f"tail must be a TailRule, an image count, a share of images or letters 'rc', got {tail!r}")

    def __str__(self) -> str:
        return {
            "lambda": f"share of images < {self.value}",
            "image_count": f"image count <= {self.value}",
            "groups": f"groups '{self.value}'",
        }[self.kind]

    def mask(self, frequencies: ClassFrequencies) -> torch.Tensor:
        """(K,) bool, True for the tail."""
        if self.kind == "lambda":
            return frequencies.frequency < self.value
        if self.kind == "image_count":
            return frequencies.image_count <= self.value
        return torch.tensor([letter in str(self.value) for letter in frequencies.groups])

    def describe(self, frequencies: ClassFrequencies) -> str:
        """One line: how many categories of each group are tail, and the paper's tail ratio TR (Eq. 5)."""
        tail = self.mask(frequencies)
        letters = [g for g, is_tail in zip(frequencies.groups, tail.tolist()) if is_tail]
        return (
            f"{len(letters)} of {len(frequencies)} classes are tail: {letters.count('r')} rare, "
            f"{letters.count('c')} common, {letters.count('f')} frequent "
            f"({self}; tail ratio TR = {tail_ratio(frequencies, tail):.4f}; {frequencies.source})"
        )


def _check_tail_value(kind: str, value) -> None:
    """The value of a rule must be one that its kind can have, or an InputError."""
    if kind == "groups":
        if not isinstance(value, str) or set(value) - set("rcf"):
            raise InputError(f"groups (TAIL.GROUPS) takes letters of 'r', 'c', 'f', got {value!r}")
    elif not isinstance(value, int | float):
        name = {"lambda": "lambda_ (TAIL.LAMBDA)", "image_count": "max_image_count (TAIL.MAX_IMAGE_COUNT)"}[kind]
        raise InputError(f"{name} must be a number, got {value!r}")
    elif kind == "lambda" and not 0 < value <= 1:
        raise InputError(
            f"lambda is a share of images in (0, 1], got {value}: set lambda_ (TAIL.LAMBDA), or for a number of images "
            f"max_image_count (TAIL.MAX_IMAGE_COUNT)"
        )
    elif kind == "image_count" and value < 0:
        raise InputError(f"max_image_count (TAIL.MAX_IMAGE_COUNT) must be >= 0, got {value}")


LVIS_TAIL = TailRule()  # rare and common

# What a loss takes for its counts and its tail: see ClassFrequencies.of and TailRule.of
Counts: TypeAlias = ClassFrequencies | str | os.PathLike | Sequence[int] | torch.Tensor
Tail: TypeAlias = TailRule | int | float | str


def tail_ratio(frequencies: ClassFrequencies, tail: torch.Tensor) -> float:
    """TR(lambda) of the EQL paper (Eq. 5): the tail's share of the image counts, in [0, 1]."""
    total = frequencies.image_count.sum()
    return float(frequencies.image_count[tail].sum() / total) if total > 0 else 0.0

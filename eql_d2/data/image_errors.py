"""Images that cannot be read: which one it was, and of which dataset entry."""

from contextlib import nullcontext
from unittest.mock import patch

from detectron2.data import DatasetMapper, detection_utils
from PIL import ImageMode

from eql_d2.errors import InputError, one_line

DETECTRON2_FORMATS = ("BGR", "YUV-BT.601")  # beside the modes of PIL


def require_image_format(image_format: str | None, name: str) -> None:
    """
    Raises:
        InputError: a format, given by a key or argument of this name, that no image can be read in.
    """
    try:
        if image_format not in (None, *DETECTRON2_FORMATS):
            ImageMode.getmode(image_format)
    except KeyError as error:
        raise InputError(f"{name} is {image_format!r}: expected 'BGR', 'RGB', 'L' or another mode of PIL") from error


class UnreadableImage(InputError):
    """An image file that is missing, broken, or not as the annotation file says; the message names it and its id.

    From a worker process an error arrives with that process's traceback as its message: here only its last line stays.
    """

    def __init__(self, message: str):
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class ExplainedMapper:
    """A dataset mapper whose failures name the image.

    Args:
        mapper: Detectron2's ``DatasetMapper``, or any other function of a dataset dict.
    """

    def __init__(self, mapper):
        require_image_format(getattr(mapper, "image_format", None), "the mapper's image_format")
        self._mapper = mapper
        self._is_detectron2_s = isinstance(mapper, DatasetMapper)  # another may read images of 16 bits rightly

    def __call__(self, dataset_dict: dict):
        try:
            with eight_bits_alone() if self._is_detectron2_s else nullcontext():
                return self._mapper(dataset_dict)
        except Exception as error:
            reason = (one_line(error) or type(error).__name__).rstrip(".")
            raise UnreadableImage(
                f"image {dataset_dict.get('image_id')}, {dataset_dict.get('file_name')}, cannot be used: {reason}. "
                f"Mend the file or its entry in the annotation file, or drop both"
            ) from error


CONVERT = detection_utils.convert_PIL_to_numpy


def eight_bits_alone():
    """Within this context Detectron2 refuses to read an image of floats, or of integers beyond 255.

    Pillow's conversion to RGB would make all of them white. The error is an InputError.
    """
    return patch.object(detection_utils, "convert_PIL_to_numpy", convert_eight_bits)


def convert_eight_bits(image, format):
    if image.mode.startswith("F") or (image.mode.startswith("I") and image.getextrema()[1] > 255):
        raise InputError(
            f"it has pixels of more than 8 bits (Pillow's mode {image.mode}), and would be read as white or black: "
            f"save it with 8 bits, scaled by its own range"
        )
    return CONVERT(image, format)

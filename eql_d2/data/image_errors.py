"""Images that cannot be read: which one it was, and of which dataset entry."""

import PIL.Image
from detectron2.data import DatasetMapper
from detectron2.utils.file_io import PathManager
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

    def __call__(self, dataset_dict: dict):
        try:
            if isinstance(self._mapper, DatasetMapper):  # one of the user's own may read such images rightly
                require_eight_bits(dataset_dict["file_name"])
            return self._mapper(dataset_dict)
        except Exception as error:
            reason = (one_line(error) or type(error).__name__).rstrip(".")
            raise UnreadableImage(
                f"image {dataset_dict.get('image_id')}, {dataset_dict.get('file_name')}, cannot be used: {reason}. "
                f"Mend the file or its entry in the annotation file, or drop both"
            ) from error


def require_eight_bits(file_name: str) -> None:
    """
    Raises:
        InputError: an image of floats, or of integers beyond 255, all of which Pillow's conversion to RGB makes white.
    """
    with PathManager.open(file_name, "rb") as file, PIL.Image.open(file) as image:
        if image.mode.startswith("F") or (image.mode.startswith("I") and image.getextrema()[1] > 255):
            raise InputError(
                f"it has pixels of more than 8 bits (Pillow's mode {image.mode}), and would be read as white or black: "
                f"save it with 8 bits, scaled by its own range"
            )

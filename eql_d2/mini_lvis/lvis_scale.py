"""MiniLVIS at LVIS's own size: 1,203 categories with LVIS v1's image counts, drawn by the same generator."""

import functools
import json
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from eql_d2.errors import InputError
from eql_d2.mini_lvis.generator import GLYPHS, IMAGE_SIZES, GlyphSpec, require_integers

LVIS_COUNTS = Path(__file__).parents[1] / "data" / "counts" / "lvis_v1_train.json"
FREQUENT_ABOVE = 100  # images; LVIS's rule
CATEGORIES_PER_IMAGE = 5.0
BASE_GLYPHS = GLYPHS[90:170]  # the base weights were trained on these
TWINS_CORRELATE_ABOVE = 0.9
RENDERING = 24  # pixels a side at which glyphs are compared
LEAST_INK = 60  # dark pixels at 48 px; fewer are dots, and strokes that are too thin to be found

# Braille are dots alone; crosses, crescents and the like are left out as in GLYPHS.
LEFT_OUT = (
    *range(0x2800, 0x2900),
    *(0x2020, 0x2021, 0x2616, 0x2617, 0x2620, *range(0x2625, 0x2630), 0x2638, 0x2670, 0x2671),
    *(*range(0x26E4, 0x26E8), *range(0x2719, 0x2722), 0x271A, 0x2721, 0x1F540, 0x1F541, 0x1F542, 0x1F543),
)


@dataclass(frozen=True)
class MiniLVIS1203Spec(GlyphSpec):
    """Everything that decides the bytes of a MiniLVIS of LVIS's shape.

    A category has as many training images as one of LVIS v1 has, n, where n <= 100 (all of the rare and common), and
    ``max(101, 100 (n / 100) ** head_exponent)`` above. It is drawn as one of several glyphs, so that it has an inner
    variety to be learned; other categories look alike, as letters with different accents do. ``seed`` decides which
    glyphs make a category, and how frequent it is.

    Args:
        num_categories: K in [2, 1203]; fewer than all have evenly spaced quantiles of LVIS's counts.
        head_exponent: in [0, 1]; 1 are LVIS's own counts, which would take 72,000 images of 5 categories.
        glyphs_per_category: 1 or 2.
        num_val_images: at least K / 5.5.
        seed: of everything random, >= 0.
        image_size: side of the square images in pixels, 64 to 512; objects scale with it.
        min_val_images: as in :class:`MiniLVISSpec`.

    Raises:
        InputError: a value of the wrong type or out of range.
    """

    num_categories: int = 1203
    head_exponent: float = 0.2
    glyphs_per_category: int = 2
    num_val_images: int = 2400
    seed: int = 0
    image_size: int = 128
    min_val_images: int = 10

    first_glyph: ClassVar[int] = len(GLYPHS)  # type: ignore[misc]  # the same of all
    max_processes: ClassVar[int | None] = None
    more_objects_probability: ClassVar[float] = 0.2
    max_objects: ClassVar[int] = 4
    num_scenes: ClassVar[int] = 40
    polygon_tolerance: ClassVar[float] = 0.3

    def __post_init__(self):
        require_integers(
            self,
            num_categories=(2, 1203),
            glyphs_per_category=(1, 2),
            num_val_images=(math.ceil(self.num_categories / 5.5), math.inf),
            seed=(0, math.inf),
            image_size=IMAGE_SIZES,
            min_val_images=(1, math.inf),
        )
        if not isinstance(self.head_exponent, (int, float)) or not 0 <= self.head_exponent <= 1:
            raise InputError(f"head_exponent must be a number in [0, 1], got {self.head_exponent!r}")

    @property
    def num_train_images(self) -> int:  # type: ignore[override]  # follows from the counts
        counts = self.train_image_counts()
        return max(math.ceil(counts.sum() / CATEGORIES_PER_IMAGE), counts[0].item())

    def train_image_counts(self) -> np.ndarray:
        counts = np.sort(json.loads(LVIS_COUNTS.read_text())["image_count"])[::-1]
        counts = counts[np.linspace(0, len(counts) - 1, self.num_categories).round().astype(int)]
        compressed = np.rint(FREQUENT_ABOVE * (counts / FREQUENT_ABOVE) ** self.head_exponent)
        return np.where(counts <= FREQUENT_ABOVE, counts, np.maximum(FREQUENT_ABOVE + 1, compressed)).astype(np.int64)

    @property
    def glyphs(self) -> tuple[str, ...]:
        return _texts(self.seed, self.num_categories, self.glyphs_per_category)

    def record(self) -> dict:
        return super().record() | {"head_exponent": float(self.head_exponent)}


@functools.cache
def _texts(seed: int, num_categories: int, length: int) -> tuple[str, ...]:
    order = np.random.default_rng(seed).permutation(len(distinct_glyphs()))
    shuffled = [distinct_glyphs()[i] for i in order[: num_categories * length]]
    return tuple("".join(shuffled[i : i + length]) for i in range(0, len(shuffled), length))


@functools.cache
def distinct_glyphs() -> tuple[str, ...]:
    """The characters of DejaVuSans that can be told apart, from each other and from those of the base weights."""
    characters, renderings = zip(*_rendered())
    vectors = np.stack(renderings)
    vectors -= vectors.mean(1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kept = np.ones(len(characters), bool)
    for i in range(len(characters)):
        if kept[i]:
            kept[i + 1 :] &= vectors[i + 1 :] @ vectors[i] <= TWINS_CORRELATE_ABOVE
    return tuple(c for c, keep in zip(characters, kept, strict=True) if keep and c not in BASE_GLYPHS)


def _rendered() -> Iterator[tuple[str, np.ndarray]]:
    """Character and (RENDERING ** 2,) float32 rendering of all that have ink, those of the base weights first."""
    from matplotlib.ft2font import FT2Font
    from PIL import Image, ImageDraw, ImageFont

    from eql_d2.mini_lvis.generator import font_path

    font = ImageFont.truetype(font_path(), 48, layout_engine=ImageFont.Layout.BASIC)
    others = sorted(map(chr, FT2Font(font_path()).get_charmap()))
    for character in dict.fromkeys([*BASE_GLYPHS, *others]):
        if not _is_a_symbol(character):
            continue
        picture = Image.new("L", (144, 144))
        ImageDraw.Draw(picture).text((48, 48), character, 255, font)
        box = picture.getbbox()
        if box is None or np.count_nonzero(np.asarray(picture) > 127) < LEAST_INK:
            continue
        picture = picture.crop(box)
        picture.thumbnail((RENDERING, RENDERING), Image.Resampling.BOX)
        if min(picture.size) * 6 >= max(picture.size):
            square = Image.new("L", (RENDERING, RENDERING))
            square.paste(picture, ((RENDERING - picture.width) // 2, (RENDERING - picture.height) // 2))
            yield character, np.asarray(square, np.float32).ravel()


def _is_a_symbol(character: str) -> bool:
    """Not a space, a control character, or a mark that goes on another; and neither left out nor without a name."""
    if ord(character) in LEFT_OUT or not unicodedata.name(character, ""):
        return False
    return unicodedata.category(character)[0] not in "CMZ"

"""Category names in pictures: matplotlib's font has Latin, Greek and Cyrillic letters, and draws others as boxes."""

import logging
from collections.abc import Sequence

from eql_d2.errors import printable

logger = logging.getLogger(__name__)


def drawable(names: Sequence[str]) -> list[str]:
    """The names, and in the place of those that the font has no letters for their index, with a line that says so."""
    if all(name.isascii() for name in names):
        return [printable(name) for name in names]
    from matplotlib.font_manager import FontProperties, findfont, get_font

    letters = get_font(findfont(FontProperties())).get_charmap()
    beyond = [i for i, name in enumerate(names) if any(ord(c) not in letters for c in name)]
    if beyond:
        logger.warning(
            "%d category names have letters that the font of pictures lacks, %r first: they are drawn by their index",
            len(beyond),
            names[beyond[0]],
        )
    return [str(i) if i in set(beyond) else printable(name) for i, name in enumerate(names)]

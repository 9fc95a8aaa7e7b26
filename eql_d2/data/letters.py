"""LVIS's groups of categories."""

GROUP_NAMES = {"r": "rare", "c": "common", "f": "frequent"}


def frequency_letter(image_count: int) -> str:
    """LVIS's rule: rare, "r", is at most 10 training images; common, "c", at most 100; frequent, "f", more."""
    return "r" if image_count <= 10 else "c" if image_count <= 100 else "f"

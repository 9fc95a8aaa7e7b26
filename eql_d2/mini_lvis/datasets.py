"""Registers MiniLVIS: `mini_lvis_*`, the long-tailed set, and `mini_lvis_base_*`, other glyphs to pre-train on.

And `mini_lvis_1203_*`, with LVIS's categories by number and count. All are generated on first use under
`$DETECTRON2_DATASETS` (by default `./datasets`), like Detectron2's own sets.
"""

from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2.data.annotations import read_annotations
from eql_d2.data.registration import categories_of, datasets_root, load_dataset
from eql_d2.mini_lvis.generator import GlyphSpec, MiniLVISSpec, ensure
from eql_d2.mini_lvis.lvis_scale import MiniLVIS1203Spec

SPECS: dict[str, GlyphSpec] = {
    "mini_lvis": MiniLVISSpec(),
    "mini_lvis_base": MiniLVISSpec(num_categories=80, first_glyph=90, tail_exponent=0.0, num_val_images=100),
    "mini_lvis_1203": MiniLVIS1203Spec(),
}


def register_mini_lvis(name: str, spec: GlyphSpec, root: Path) -> None:
    """Register `<name>_train` and `<name>_val`, which are made at `root` when they are first asked for."""
    for split in ("train", "val"):
        _register_split(f"{name}_{split}", spec, root, root / f"mini_lvis_{split}.json")


def _register_split(dataset: str, spec: GlyphSpec, root: Path, json_file: Path) -> None:
    metadata = MetadataCatalog.get(dataset)

    def load():
        ensure(spec, root)
        classes, order = categories_of(read_annotations(json_file))
        metadata.set(thing_classes=classes)
        return load_dataset(str(json_file), str(root), order)

    DatasetCatalog.register(dataset, load)
    metadata.set(
        json_file=str(json_file),
        image_root=str(root),
        evaluator_type="lvis",
        prepare=lambda: ensure(spec, root),
    )


for _name, _spec in SPECS.items():
    register_mini_lvis(_name, _spec, datasets_root() / _name)

"""MiniLVIS: its files are LVIS's format, its counts the spec's, and no kill leaves half of it."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from eql_d2.mini_lvis import generator as mini_lvis
from eql_d2.mini_lvis.generator import GLYPHS, MiniLVISSpec, ensure, generate, image_count_targets

REPO = Path(__file__).parents[2]
SMALL = MiniLVISSpec(num_categories=12, num_train_images=60, num_val_images=20, max_image_count=40, min_val_images=5)
TINY = replace(SMALL, num_train_images=12, num_val_images=4, max_image_count=8, min_val_images=1)

# Loads the generator alone, as the package imports torch: argv is the file, the root, the spec.
SCRIPT = """
import importlib.util, sys
found = importlib.util.spec_from_file_location("mini_lvis", sys.argv[1])
module = sys.modules["mini_lvis"] = importlib.util.module_from_spec(found)
found.loader.exec_module(module)
heavy = {"torch", "detectron2", "PIL", "matplotlib", "contourpy"}
assert not heavy & set(sys.modules), "importing the generator is not cheap"
module.ensure(eval(sys.argv[3], vars(module)), sys.argv[2])
assert "torch" not in sys.modules
"""


def start(spec, root):
    command = [sys.executable, "-c", SCRIPT, mini_lvis.__file__, str(root), repr(spec)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def load(root, split):
    return json.loads((root / f"mini_lvis_{split}.json").read_text())


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate(SMALL, tmp_path_factory.mktemp("data") / "mini_lvis")


@pytest.fixture(params=["train", "val"])
def split(request):
    return request.param


def test_lvis_api_and_detectron2_read_it(root, split):
    from detectron2.data.datasets.lvis import load_lvis_json
    from lvis import LVIS

    json_file = str(root / f"mini_lvis_{split}.json")
    api = LVIS(json_file)
    assert api.get_cat_ids() == list(range(1, SMALL.num_categories + 1))
    dicts = load_lvis_json(json_file, f"{root}/", dataset_name=None)
    assert len(dicts) == len(api.imgs)
    for record in dicts:
        assert np.asarray(Image.open(record["file_name"])).shape == (128, 128, 3)
        assert (record["height"], record["width"]) == (128, 128)
    assert sum(len(record["annotations"]) for record in dicts) == len(api.anns)


def test_counts_and_letters_are_those_of_the_training_annotations(root):
    train, val = load(root, "train"), load(root, "val")
    assert train["categories"] == val["categories"]
    for category in train["categories"]:
        images, instances = set(), 0
        for annotation in train["annotations"]:
            if annotation["category_id"] == category["id"]:
                images.add(annotation["image_id"])
                instances += 1
        assert (category["image_count"], category["instance_count"]) == (len(images), instances)
        letter = "r" if len(images) <= 10 else "c" if len(images) <= 100 else "f"
        assert category["frequency"] == letter


def test_images_hold_exactly_the_target_counts(root):
    for name, target in zip(("train", "val"), image_count_targets(SMALL)):
        pairs = {(a["image_id"], a["category_id"]) for a in load(root, name)["annotations"]}
        counted = Counter(category_id for _, category_id in pairs)
        assert [counted[i + 1] for i in range(SMALL.num_categories)] == target.tolist()
    assert image_count_targets(SMALL)[1].min() >= SMALL.min_val_images


def test_ids_and_names_are_unique(root):
    train, val = load(root, "train"), load(root, "val")
    image_ids = [image["id"] for image in train["images"] + val["images"]]
    assert len(set(image_ids)) == len(image_ids)
    assert len({category["name"] for category in train["categories"]}) == SMALL.num_categories
    for content in (train, val):
        assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])


def test_negatives_are_absent_and_half_again_as_many_as_positives(root, split):
    content = load(root, split)
    positive = {(a["image_id"], a["category_id"]) for a in content["annotations"]}
    negative = {(i["id"], c) for i in content["images"] for c in i["neg_category_ids"]}
    assert not positive & negative
    num_positive, num_negative = (Counter(c for _, c in pairs) for pairs in (positive, negative))
    for category_id, n in num_positive.items():
        assert num_negative[category_id] == min(-(-3 * n // 2), len(content["images"]) - n)


def test_boxes_are_those_of_the_polygons_and_in_the_image(root, split):
    for annotation in load(root, split)["annotations"]:
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in annotation["segmentation"]])
        x, y, w, h = annotation["bbox"]
        np.testing.assert_allclose([x, y], points.min(0), atol=0.011)
        np.testing.assert_allclose([x + w, y + h], points.max(0), atol=0.021)
        assert min(x, y) >= 0 and max(x + w, y + h) <= 128
        assert min(w, h) >= 1 and max(w, h) <= 46.1
        assert annotation["area"] >= mini_lvis.MIN_FRAGMENT


def visible_masks(layers, size):
    """(H, W) bool for each object: the pixels that it covers by half, seen from above."""
    masks = []
    for i, layer in enumerate(layers):
        coverage = np.zeros((size, size))
        coverage[layer.window] = layer.alpha
        for above in layers[i + 1 :]:
            coverage[above.window] *= 1 - above.alpha
        if layer.category is not None:
            masks.append(coverage >= 0.5)
    return masks


def test_polygons_cover_the_visible_pixels():
    solid = [GLYPHS.index(glyph) for glyph in "Ξ∷⨌⇶wk✖◢◤M❣"]  # without holes
    spec = MiniLVISSpec()
    ious, area_ratios = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        layers = mini_lvis._arrange(rng, rng.choice(solid, 6).tolist(), spec)
        objects = mini_lvis._visible_objects(layers, spec.image_size)
        if objects is None:
            continue
        for (category, polygons), mask in zip(objects, visible_masks(layers, spec.image_size)):
            rles = pycocotools.mask.frPyObjects([p.ravel().tolist() for p in polygons], 128, 128)
            drawn = pycocotools.mask.decode(pycocotools.mask.merge(rles)).astype(bool)
            ious.append((drawn & mask).sum() / (drawn | mask).sum())
            area_ratios.append(sum(map(mini_lvis._area, polygons)) / mask.sum())
    assert len(ious) > 100
    assert np.median(ious) > 0.9
    assert np.median(area_ratios) == pytest.approx(1, abs=0.03)


def test_a_ring_is_one_filled_polygon():
    y, x = np.mgrid[:40, :40]
    radius = np.hypot(x - 19.5, y - 19.5)
    rings = ((radius < 18) & (radius > 12) | (radius < 6)).astype(np.float32)
    (polygon,) = mini_lvis._outlines(rings)
    assert mini_lvis._area(polygon) == pytest.approx((radius < 18).sum(), rel=0.02)


def test_same_spec_same_bytes_and_other_seed_other_bytes(root, tmp_path):
    first = contents(generate(TINY, tmp_path / "first"))
    assert contents(generate(TINY, tmp_path / "second")) == first
    other = contents(generate(replace(TINY, seed=1), tmp_path / "other"))
    assert all(other[name] != first[name] for name in first if name.endswith(".png"))


def test_default_spec_is_long_tailed_and_balanced_spec_is_not():
    train, val = image_count_targets(MiniLVISSpec())
    assert (train.min(), train.max(), val.min()) == (1, 500, 20)
    letters = Counter("r" if n <= 10 else "c" if n <= 100 else "f" for n in train)
    assert letters == {"r": 34, "c": 33, "f": 23}
    balanced = MiniLVISSpec(num_categories=80, first_glyph=90, tail_exponent=0)
    train, _ = image_count_targets(balanced)
    assert train.min() == train.max() == 93  # the largest count that 1500 images have room for
    harder, _ = image_count_targets(MiniLVISSpec(tail_exponent=2))
    assert np.median(harder) <= 2


def test_glyphs_are_distinct_and_in_the_font():
    masks = {mini_lvis._glyph_mask(glyph, 64).picture.tobytes() for glyph in GLYPHS}
    missing = mini_lvis._glyph_mask("\uffff", 64).picture.tobytes()
    assert len(masks) == len(set(GLYPHS)) == len(GLYPHS) and missing not in masks


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_categories": 1}, "num_categories must be an integer in"),
        ({"num_categories": 90.0}, "num_categories must be an integer in"),
        ({"first_glyph": 100}, "num_categories must be at most 76 with first_glyph 100"),
        ({"first_glyph": 10_000}, "first_glyph must be an integer in"),
        ({"num_train_images": 17}, "num_train_images must be at least 18 for 90 categories"),
        ({"num_val_images": 16}, "num_val_images must be at least 17 for 90 categories"),
        ({"max_image_count": 0}, "max_image_count must be an integer at least 1"),
        ({"tail_exponent": -1.0}, "tail_exponent must be a number >= 0"),
        ({"tail_exponent": float("nan")}, "tail_exponent must be a number >= 0"),
        ({"seed": -1}, "seed must be an integer at least 0"),
        ({"image_size": 32}, "image_size must be an integer in"),
    ],
)
def test_bad_specs_raise(wrong, message):
    with pytest.raises(ValueError, match=message):
        MiniLVISSpec(**wrong)


def test_ensure_keeps_a_finished_dataset_and_refuses_another(tmp_path):
    root = ensure(TINY, tmp_path / "set")
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert ensure(replace(TINY, tail_exponent=1), root) == root
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    with pytest.raises(ValueError, match=r"seed 0 \(wanted 3\): choose another folder"):
        ensure(replace(TINY, seed=3), root)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not a MiniLVIS dataset"):
        ensure(TINY, tmp_path / "mine")


def test_a_dataset_that_lost_files_is_made_again(tmp_path):
    root = ensure(TINY, tmp_path / "set")
    whole = contents(root)
    next(root.glob("train/*.png")).unlink()
    assert contents(ensure(TINY, root)) == whole


def test_leftovers_of_a_killed_run_go_and_a_failed_run_leaves_none(tmp_path, monkeypatch):
    partial = tmp_path / ".set.mini_lvis_partial"
    (partial / "train").mkdir(parents=True)
    (partial / "train" / "stray.png").touch()
    with monkeypatch.context() as patch:
        patch.setattr(mini_lvis, "_paint", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ensure(TINY, tmp_path / "set")
    assert not partial.exists() and not (tmp_path / "set").exists()
    (partial / "train").mkdir(parents=True)
    (partial / "train" / "stray.png").touch()
    root = ensure(TINY, tmp_path / "set")
    assert not partial.exists()
    assert len(list(root.glob("train/*.png"))) == TINY.num_train_images


def test_a_killed_process_is_made_good(tmp_path):
    root, partial = tmp_path / "set", tmp_path / ".set.mini_lvis_partial"
    process = start(replace(TINY, num_train_images=5000), root)
    deadline = time.time() + 30
    while not list(partial.glob("train/*.png")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert partial.exists() and not root.exists()
    expected = contents(generate(TINY, tmp_path / "expected"))
    assert contents(ensure(TINY, root)) == expected
    assert not partial.exists()


def test_two_processes_at_once_make_one_dataset(tmp_path):
    root = tmp_path / "set"
    processes = [start(TINY, root) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert sum("MiniLVIS train" in error for error in errors) == 1  # one drew, one waited
    assert contents(root) == contents(generate(TINY, tmp_path / "expected"))


class TestCommandLine:
    main = staticmethod(runpy.run_path(str(REPO / "datasets" / "prepare_mini_lvis.py"))["main"])
    small = "--num-categories 12 --num-train-images 12 --num-val-images 4".split()

    def test_makes_a_dataset_and_says_what_it_made(self, tmp_path, capsys):
        self.main(["--output", str(tmp_path / "set"), *self.small, "--max-image-count", "8"])
        printed = capsys.readouterr().out
        boxes = len(load(tmp_path / "set", "train")["annotations"])
        assert f"train: 12 images, {boxes} boxes" in printed
        assert f"12 rare categories with {boxes} boxes" in printed
        assert "register_mini_lvis" in printed

    def test_bad_input_is_one_line(self, tmp_path):
        with pytest.raises(SystemExit) as exit_info:
            self.main(["--output", str(tmp_path / "set"), "--first-glyph", "100"])
        assert str(exit_info.value).count("\n") == 0
        assert "error: num_categories must be at most 76" in str(exit_info.value)

    def test_output_defaults_to_detectron2s_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        self.main(self.small)
        assert (tmp_path / "mini_lvis" / "spec.json").is_file()


def test_categories_with_a_row_keep_to_it_and_the_others_do_not(tmp_path):
    spec = replace(SMALL, rows=True)
    data = json.loads((generate(spec, tmp_path / "rows") / "mini_lvis_train.json").read_text())
    spread = {}
    for category in range(spec.num_categories):
        boxes = [a["bbox"] for a in data["annotations"] if a["category_id"] == category + 1]
        if len(boxes) >= 12:
            spread[category] = np.std([y + h / 2 for _, y, _, h in boxes]) / spec.image_size
    assert {c % 2 for c in spread} == {0, 1}
    assert all(value < 0.1 for c, value in spread.items() if c % 2 == 0)
    assert all(value > 0.12 for c, value in spread.items() if c % 2 == 1)
    with pytest.raises(ValueError, match="rows True .wanted False"):
        ensure(SMALL, tmp_path / "rows")


def test_a_dataset_of_before_there_were_rows_is_found(tmp_path):
    folder = generate(TINY, tmp_path / "old")
    spec = json.loads((folder / "spec.json").read_text())
    assert spec.pop("rows") is False
    (folder / "spec.json").write_text(json.dumps(spec))
    changed = (folder / "mini_lvis_train.json").stat().st_mtime_ns
    assert ensure(TINY, folder) == folder and (folder / "mini_lvis_train.json").stat().st_mtime_ns == changed

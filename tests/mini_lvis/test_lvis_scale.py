"""MiniLVIS of LVIS's shape: its counts are LVIS's, its glyphs distinct, its images crowded as LVIS's are."""

import json
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from eql_d2 import ClassFrequencies
from eql_d2.data.frequencies import SHIPPED_COUNTS
from eql_d2.errors import InputError
from eql_d2.mini_lvis import generator
from eql_d2.mini_lvis.generator import GLYPHS, MiniLVISSpec, generate, image_count_targets
from eql_d2.mini_lvis.lvis_scale import BASE_GLYPHS, MiniLVIS1203Spec, distinct_glyphs

TINY = MiniLVIS1203Spec(num_categories=6, head_exponent=0, num_val_images=10, image_size=64, min_val_images=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate(TINY, tmp_path_factory.mktemp("data") / "set")


def load(root, split):
    return json.loads((root / f"mini_lvis_{split}.json").read_text())


class TestCounts:
    def test_rare_and_common_are_lvis_own(self):
        lvis = ClassFrequencies.from_counts_file(SHIPPED_COUNTS["lvis_v1_train"]).image_count.tolist()
        ours = MiniLVIS1203Spec().train_image_counts().tolist()
        assert sorted(n for n in ours if n <= 100) == sorted(n for n in lvis if n <= 100)
        assert Counter("r" if n <= 10 else "c" if n <= 100 else "f" for n in ours) == {"r": 337, "c": 461, "f": 405}
        assert max(ours) == round(100 * (max(lvis) / 100) ** 0.2)

    def test_the_exponent_compresses_the_frequent_alone(self):
        lvis = sorted(ClassFrequencies.from_counts_file(SHIPPED_COUNTS["lvis_v1_train"]).image_count.tolist())[::-1]
        assert MiniLVIS1203Spec(head_exponent=1).train_image_counts().tolist() == lvis
        flat = MiniLVIS1203Spec(head_exponent=0).train_image_counts()
        assert flat.max() == 101 and (flat <= 100).sum() == 798

    def test_val_has_ten_images_of_each_category_and_images_five_categories(self):
        spec = MiniLVIS1203Spec(seed=3)
        train, val = image_count_targets(spec)
        assert val.min() == 10 and val.sum() <= 5.5 * spec.num_val_images
        assert train.sum() / spec.num_train_images == pytest.approx(5, abs=0.01)

    def test_fewer_categories_span_the_same_range(self):
        counts = TINY.train_image_counts()
        whole = MiniLVIS1203Spec().train_image_counts()
        assert (counts[0], counts[-1], len(counts)) == (101, whole[-1], 6)
        assert TINY.num_train_images == 101  # no fewer than a category needs


class TestGlyphs:
    def test_they_suffice_are_distinct_and_are_not_those_of_the_base_weights(self):
        glyphs = distinct_glyphs()
        assert len(set(glyphs)) == len(glyphs) >= 2 * 1203
        assert BASE_GLYPHS == GLYPHS[90:170] and not set(glyphs) & set(BASE_GLYPHS)

    def test_each_category_has_its_own_and_another_seed_other_ones(self):
        texts = MiniLVIS1203Spec().glyphs
        assert len(texts) == 1203 and len(set("".join(texts))) == 2406
        assert texts != MiniLVIS1203Spec(seed=1).glyphs
        assert {len(text) for text in MiniLVIS1203Spec(glyphs_per_category=1).glyphs} == {1}

    def test_an_object_is_one_of_its_categorys_glyphs(self, monkeypatch):
        drawn = defaultdict(set)
        mask = generator._glyph_mask
        monkeypatch.setattr(generator, "_glyph_mask", lambda glyph, em: drawn[0].add(glyph) or mask(glyph, em))
        for seed in range(12):
            generator._arrange(np.random.default_rng(seed), [4], TINY)
        assert drawn[0] == set(TINY.glyphs[4])


class TestFiles:
    def test_images_hold_the_target_counts(self, root):
        for split, target in zip(("train", "val"), image_count_targets(TINY), strict=True):
            pairs = {(a["image_id"], a["category_id"]) for a in load(root, split)["annotations"]}
            counted = Counter(category for _, category in pairs)
            assert [counted[i + 1] for i in range(6)] == target.tolist()

    def test_a_category_has_up_to_four_objects_in_an_image(self, root):
        objects = Counter((a["image_id"], a["category_id"]) for a in load(root, "train")["annotations"])
        share = np.bincount(list(objects.values()), minlength=5) / len(objects)
        assert len(share) <= 5 and share[2:].sum() == pytest.approx(0.2, abs=0.06) and share[3] > 0

    def test_it_is_the_same_in_however_many_processes(self, root, tmp_path, monkeypatch):
        monkeypatch.setattr(generator, "IMAGES_WORTH_A_PROCESS", 5)
        monkeypatch.setattr(generator.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        again = generate(TINY, tmp_path / "again")
        for path in root.rglob("*"):
            assert path.is_dir() or path.read_bytes() == (again / path.relative_to(root)).read_bytes()

    def test_a_worker_that_fails_is_an_error_and_leaves_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(generator, "IMAGES_WORTH_A_PROCESS", 5)
        monkeypatch.setattr(generator.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        monkeypatch.setattr(generator, "IMAGES_TRIED", 0)
        with pytest.raises(RuntimeError, match="found no place for"):
            generate(TINY, tmp_path / "set")
        assert not (tmp_path / "set").exists()


def test_a_crowded_image_finds_its_place_in_the_end():
    """The most crowded of the val images of seed 2, which takes 119 arrangements."""
    categories = [1196, 1196, 28, 1004, 1004, 124, 290, 290, 290, 452, 452, 508, 508, 508, 508, 1021, 1183, 1183]
    pixels, objects = generator._draw_image(MiniLVIS1203Spec(seed=2), generator._VAL_STREAM, 2270, categories)
    assert pixels.shape == (128, 128, 3)
    assert Counter(category for category, _ in objects) == Counter(categories)


def test_categories_of_a_scene_are_found_together():
    spec = replace(MiniLVIS1203Spec(), num_categories=240)
    train, _ = image_count_targets(spec)
    images = generator._assign_categories(spec, train, spec.num_train_images, np.random.default_rng(0))

    def of_one_scene(images):
        pairs = [(a, b) for image in images for a in set(image) for b in set(image) if a < b]
        return np.mean([a % spec.num_scenes == b % spec.num_scenes for a, b in pairs])

    shuffled = np.random.default_rng(1).permutation(np.concatenate(images))
    parts = np.split(shuffled, np.cumsum([len(image) for image in images])[:-1])
    assert of_one_scene(images) > 2 * of_one_scene(parts)
    assert max(map(len, images)) <= generator.MAX_OBJECTS_PER_IMAGE


def test_mini_lvis_has_at_most_two_objects_of_a_category_and_no_scenes():
    spec = MiniLVISSpec()
    numbers = [generator._number_of_objects(spec, u) for u in np.linspace(0, 0.999, 1000)]
    assert set(numbers) == {1, 2} and np.mean(numbers) == pytest.approx(1.14, abs=0.002)
    assert spec.num_scenes == 1 and spec.record()["tail_exponent"] == 1.0 and "num_scenes" not in spec.record()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_categories": 1204}, r"num_categories must be an integer in \[2, 1203\]"),
        ({"glyphs_per_category": 3}, "glyphs_per_category must be an integer in"),
        ({"num_val_images": 218}, "num_val_images must be an integer at least 219"),
        ({"head_exponent": 1.5}, r"head_exponent must be a number in \[0, 1\]"),
        ({"head_exponent": float("nan")}, "head_exponent must be a number"),
        ({"seed": -1}, "seed must be an integer at least 0"),
        ({"image_size": 32}, "image_size must be an integer in"),
    ],
)
def test_bad_specs_raise(wrong, message):
    with pytest.raises(InputError, match=message):
        MiniLVIS1203Spec(**wrong)

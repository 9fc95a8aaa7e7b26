"""docs/: every loss has its section, picture and configs, links lead somewhere, and the example does what it claims."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import ROI_HEADS_REGISTRY

from eql_d2 import CLS_LOSS_REGISTRY, get_config_file
from eql_d2.engine import load_config
from eql_d2.losses.hyper_parameters import defaults

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
LOSSES_PAGE = (ROOT / "docs" / "losses.md").read_text()
LOSSES = sorted(name for name, cls in CLS_LOSS_REGISTRY if cls.__module__.startswith("eql_d2."))


def module_at(path):
    """A script outside the package, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_thread():
    """Thousands of small steps, which threads would only slow down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def section(name):
    """Text below the heading ``name``."""
    parts = re.split(r"^## (.+)$", LOSSES_PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))[name]


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_has_a_section_with_formula_picture_and_arguments(name):
    text = section(name)
    assert "```math" in text and "**Background**" in text and f"figures/losses/{name}.png" in text
    assert f"({name.lower()})" in LOSSES_PAGE.replace("(#", "(")  # the contents link to it
    for argument in defaults(CLS_LOSS_REGISTRY.get(name)):
        assert f"`{argument.upper()}`" in text, argument


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_has_configs_and_its_section_names_them(name):
    """A config for LVIS v1 and one for MiniLVIS that the section names, and that select the loss."""
    for folder in ("LVISv1", "MiniLVIS"):
        (config,) = set(re.findall(rf"configs/({folder}/\w+\.yaml)", section(name)))
        cfg = load_config(get_config_file(config))
        head = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)
        assert (head.loss_name or cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME) == name


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_what_a_page_links_exists(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
            assert anchor in anchors, link


def test_the_keys_of_the_page_for_other_projects_are_taken():
    page = (ROOT / "docs" / "coming_from.md").read_text()
    found = re.findall(r"`((?:MODEL|CLS_LOSS|DATALOADER|TEST)\.[\w.]+) ([^`]+)`", page)
    assert len(found) > 12
    for key, value in found:
        load_config("", [f"MODEL.ROI_BOX_HEAD.{key}" if key.startswith("CLS_LOSS.") else key, value])


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_the_tests_that_a_page_names_are_there(page):
    for path, names in re.findall(r"`((?:[a-z]+/)*test_\w+\.py)::([\w, ]+)`", page.read_text()):
        for name in names.split(", "):
            assert re.search(rf"^def test_{name}\(", (ROOT / "tests" / path).read_text(), re.MULTILINE), (path, name)


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "figures" / "losses").glob("*.png"))
    assert len(pictures) >= len(LOSSES) + 1
    assert all(p.stat().st_size <= 60_000 for p in pictures)


def test_the_tool_draws_a_loss(tmp_path, monkeypatch, capsys, one_thread):
    tool = module_at("tools/plot_losses.py")
    key = "MODEL.ROI_BOX_HEAD.CLS_LOSS.EqualizationLoss.TAIL.GROUPS"
    arguments = ["plot_losses.py", "--output", str(tmp_path), "--loss", "EqualizationLoss", "--opts"]
    monkeypatch.setattr(sys, "argv", [*arguments, key, "r"])
    assert tool.main() == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"drew 1 loss into {tmp_path}"
    assert (tmp_path / "EqualizationLoss.png").stat().st_size > 10_000

    monkeypatch.setattr(sys, "argv", [*arguments, f"{key}x", "r"])
    with pytest.raises(SystemExit, match="1"):
        tool.main()
    assert capsys.readouterr().err.startswith("error: ")


def test_the_example_without_labels_drops_whole_categories_of_images_and_no_rare_one():
    example = module_at("docs/examples/missing_labels.py")
    categories = [{"id": 1, "frequency": "r"}, {"id": 2, "frequency": "c"}, {"id": 3, "frequency": "f"}]
    objects = [{"image_id": i, "category_id": c} for i in range(300) for c in (1, 2, 3, 3)]
    kept = example.without_labels({"categories": categories, "annotations": objects}, 0.5)["annotations"]
    numbers = {c: [sum(o == {"image_id": i, "category_id": c} for o in kept) for i in range(300)] for c in (1, 2, 3)}
    assert numbers[1] == [1] * 300 and set(numbers[2]) == {0, 1} and set(numbers[3]) == {0, 2}
    assert all(0.4 < sum(map(bool, numbers[c])) / 300 < 0.6 for c in (2, 3))


def test_the_example_recognises_rare_digits_better_than_cross_entropy(one_thread):
    pytest.importorskip("sklearn")
    example = module_at("docs/examples/long_tailed_digits.py")
    results = example.run(seeds=2, steps=100)
    balanced = {name: values[:, 0].mean() for name, values in results.items()}
    rare = {name: values[:, 1].mean() for name, values in results.items()}
    # Of single seeds, the least of five is +7.6 points at 100 steps.
    for name in ("LogitAdjustedLoss", "... corrected post-hoc"):
        assert balanced[name] > balanced["SoftmaxCrossEntropy"] + 0.03
        assert rare[name] > rare["SoftmaxCrossEntropy"] + 0.05
    assert balanced["EqualizationLoss"] < 0.5  # no background, no negatives for the tail
    rows = example.table(results).splitlines()
    assert len(rows) == 2 + len(results) and all(row.count("|") == 5 for row in rows)

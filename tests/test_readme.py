"""What the README, and the page on extending, show works as it stands there."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from eql_d2 import build_cls_loss
from eql_d2.losses import CLS_LOSS_REGISTRY

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXTENDING = (ROOT / "docs" / "extending.md").read_text()


def python_block(text, contains):
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if contains in b]
    return block


def test_the_loss_that_the_documents_add(tiny_cfg):
    namespace = {}
    exec(python_block(EXTENDING, "class PolyLoss"), namespace)
    try:
        cfg = tiny_cfg()
        key = "MODEL.ROI_BOX_HEAD.CLS_LOSS"
        cfg.merge_from_list([f"{key}.NAME", "PolyLoss", f"{key}.PolyLoss.EPSILON", 2.0])
        loss = build_cls_loss(cfg)
        logits, gt_classes = torch.randn(9, 8), torch.randint(0, 8, (9,))
        p = logits.softmax(1)[torch.arange(9), gt_classes]
        expected = F.cross_entropy(logits, gt_classes) + 2 * (1 - p).mean()
        torch.testing.assert_close(loss(logits, gt_classes), expected)
    finally:
        CLS_LOSS_REGISTRY._obj_map.pop("PolyLoss")


def test_the_readmes_use_in_ones_own_code():
    namespace = {}
    exec(python_block(README, "ClassFrequencies.from_dataset"), namespace)
    assert namespace["logits"].grad.abs().sum() > 0


def test_nothing_is_left_to_be_filled_in():
    """A placeholder is a line of capitals alone, as CONCLUSIONS."""
    assert re.findall(r"^[A-Z][A-Z _-]*$", README, re.MULTILINE) == []


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_of_the_readme_exist(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:tools|configs|datasets)/[\w./-]+\.(?:py|yaml)", README))))
def test_files_that_the_readme_names_exist(path):
    assert (ROOT / path).is_file()


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150

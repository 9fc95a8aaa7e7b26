"""The site builds without a warning, from whole pages: a dead link, an unnamed key or a broken docstring fails here."""

import re

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings")
pytest.importorskip("latex2mathml")

from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config

from eql_d2 import CLS_LOSS_REGISTRY
from eql_d2.config import default_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        build(load_config("website/mkdocs.yml", site_dir=str(folder), strict=True))
    return folder


def text_of(page):
    return re.sub(r"<[^>]+>", "", page.read_text())


def test_every_page_of_docs_is_there(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "changelog", "contributing", "configs"}
    assert pages <= {path.stem for path in site.glob("*.html")}


def test_config_keys_are_all_there_with_their_defaults(site):
    text = text_of(site / "config_keys.html")
    cfg = default_config()
    for key in ("MODEL_EMA.DECAY = 0.999", "INPUT.LSJ.SIZE = 0", "MODEL.ROI_BOX_HEAD.CLS_LOSS.START_ITER = 0"):
        assert key in text
    for name, loss in CLS_LOSS_REGISTRY:
        if loss.__module__.startswith("eql_d2."):
            node = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS[name]
            for key in [k for k in node if k != "TAIL"] + [f"TAIL.{k}" for k in node.get("TAIL", ())]:
                assert f"{key} = " in text, (name, key)


def test_each_loss_has_its_api(site):
    text = text_of(site / "api" / "losses.html")
    missing = [n for n, loss in CLS_LOSS_REGISTRY if loss.__module__.startswith("eql_d2.") and f"{n}(" not in text]
    assert missing == []


def test_formulas_are_drawn_and_nothing_is_fetched(site):
    losses = (site / "losses.html").read_text()
    assert losses.count('display="block"') >= 20 and "\\mathrm" not in losses
    for page in site.rglob("*.html"):
        assert re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?https?://", page.read_text()) == [], page

"""What mkdocs does beside its own: pages from outside of docs/, generated pages, GitHub's links, formulas as MathML.

The files in docs/ are read on GitHub, too: their links lead through the clone (`../configs/README.md`), and formulas
are `$...$` and ```math. Nothing in them is written for the site.
"""

import html
import posixpath
import re
import sys
from pathlib import Path

import latex2mathml.converter
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from website.generated import PAGES  # noqa: E402

# Files of the clone, and where they are in the site.
TAKEN = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "CITATION.cff": "CITATION.cff",
    "configs/README.md": "configs.md",
    "datasets/README.md": "datasets.md",
    "eql_d2/data/counts/README.md": "lvis_counts.md",
    "website/site.css": "site.css",
}
ORIGIN = {site: clone for clone, site in TAKEN.items()}
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
FORMULA = re.compile(r'(<(span|div) class="arithmatex">)\\[(\[](.*?)\\[)\]](</\2>)', re.DOTALL)


def on_files(files, config):
    for clone, site in TAKEN.items():
        files.append(File.generated(config, site, abs_src_path=str(ROOT / clone)))
    for site, content in PAGES.items():
        files.append(File.generated(config, site, content=content()))
    return files


def on_nav(nav, files, **_):
    """Pages that the configuration does not name come last."""
    known = {page.file.src_uri for page in nav.pages}
    for file in files.documentation_pages():
        if file.src_uri not in known:
            nav.items.append(file.page)
            nav.pages.append(file.page)
    return nav


def on_page_markdown(markdown, page, **_):
    """Links through the clone become links through the site; dead ones stay as they are, and mkdocs names them."""
    here = page.file.src_uri
    folder = posixpath.dirname(ORIGIN.get(here, f"docs/{here}"))

    def replaced(link):
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        site = TAKEN.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        relative = posixpath.relpath(site, posixpath.dirname(here) or ".") if site else link[2]
        return f"{link[1]}{relative}{link[3] or ''}{link[4]}"

    return markdown if here.startswith("api/") else LINK.sub(replaced, markdown)


def on_page_content(content, **_):
    """Formulas as MathML, which browsers draw by themselves."""

    def drawn(formula):
        display = "block" if formula[2] == "div" else "inline"
        mathml = latex2mathml.converter.convert(html.unescape(formula[3]).strip(), display=display)
        return formula[1] + mathml + formula[4]

    return FORMULA.sub(drawn, content)

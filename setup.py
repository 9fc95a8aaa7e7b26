"""Package metadata. `make setup` makes a whole environment; `pip install -e '.[train]'` adds to one with Detectron2."""

import re
from pathlib import Path

from setuptools import find_packages, setup


def version() -> str:
    """The one in eql_d2/__init__.py, read as text: what builds the package need not import it."""
    text = (Path(__file__).parent / "eql_d2" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


TRAIN = ["contourpy", "fvcore", "iopath", "lvis", "matplotlib", "Pillow", "tqdm"]  # beside torch and Detectron2

REPORT = ["jinja2", "plotly"]  # what `eql-d2 report` makes its page with

VIT = ["shapely", "timm"]  # what ViT, Swin and MViTv2 backbones and the cropping of polygons need

DOCS = ["latex2mathml", "mkdocs<2", "mkdocs-material", "mkdocstrings[python]"]  # what `make docs` builds the site with

setup(
    name="eql_d2",
    version=version(),
    description="Equalization Loss and other losses for long-tailed object detection, as a Detectron2 plugin",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The eql_d2 authors",
    license="Apache-2.0",
    keywords="long-tailed detection, object detection, LVIS, Detectron2, equalization loss, instance segmentation",
    packages=find_packages(include=["eql_d2", "eql_d2.*"]),
    # eql_d2/configs is a symlink to configs/, so that the files are at the root of a clone and inside the package.
    package_data={
        "eql_d2": [
            "py.typed",
            "configs/**/*.yaml",
            "configs/**/*.py",
            "data/counts/*.json",
            "data/counts/*.md",
            "report/*.html",
        ]
    },
    entry_points={"console_scripts": ["eql-d2 = eql_d2.cli:main"]},
    python_requires=">=3.10",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
    # Not torch (2.3 or newer), torchvision or detectron2. PyPI's "detectron2" is not the library; which torch is right
    # depends on the machine's GPU, and pip would replace a person's own build. tools/setup_env.sh installs all three.
    # What reads results and runs needs no more than this; training needs the extra `train`, too.
    install_requires=["msgspec", "numpy", "orjson", "Pillow", "pycocotools", "PyYAML", "tabulate"],
    extras_require={
        "docs": DOCS,
        "plot": ["tensorboard"],  # shows the training curves: tensorboard --logdir output
        "report": REPORT,
        "train": TRAIN,
        "vit": VIT,
        "test": [
            "hypothesis",
            "mypy",
            "pytest",
            "pytest-cov",
            "pytest-xdist",
            "ruff",
            "scikit-learn",
            "scipy",
            "selenium",
            *DOCS,
            *REPORT,
            *TRAIN,
            *VIT,
        ],
    },
)

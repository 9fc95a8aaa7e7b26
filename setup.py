"""Package metadata. `make setup` makes a whole environment; `pip install -e .` adds eql_d2 to one with detectron2."""

import re
from pathlib import Path

from setuptools import find_packages, setup


def version() -> str:
    """The one in eql_d2/__init__.py, read as text: importing it needs torch and detectron2."""
    text = (Path(__file__).parent / "eql_d2" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


REPORT = ["jinja2", "plotly"]  # what tools/report.py makes its page with

VIT = ["shapely", "timm"]  # what ViT, Swin and MViTv2 backbones and the cropping of polygons need

setup(
    name="eql_d2",
    version=version(),
    description="Equalization Loss and other losses for long-tailed object detection, as a Detectron2 plugin",
    license="Apache-2.0",
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
    python_requires=">=3.10",
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
    # Not torch (2.3 or newer), torchvision or detectron2. PyPI's "detectron2" is not the library; which torch is right
    # depends on the machine's GPU, and pip would replace a person's own build. tools/setup_env.sh installs all three.
    install_requires=[
        "contourpy",
        "fvcore",
        "iopath",
        "lvis",
        "matplotlib",
        "numpy",
        "orjson",
        "Pillow",
        "pycocotools",
        "tabulate",
        "tqdm",
    ],
    extras_require={
        "plot": ["tensorboard"],  # shows the training curves: tensorboard --logdir output
        "report": REPORT,
        "vit": VIT,
        "test": [
            "hypothesis",
            "mypy",
            "pytest",
            "pytest-cov",
            "ruff",
            "scikit-learn",
            "scipy",
            "selenium",
            *REPORT,
            *VIT,
        ],
    },
)

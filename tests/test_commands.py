"""Commands in the README and in docs/ are ones that `eql-d2` takes, with their arguments and configs."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from eql_d2.cli import command, names
from eql_d2.config_files import config_path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "configs" / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def commands(text):
    """The lines of code blocks that start with `eql-d2`, joined where a backslash or a text in quotes goes on."""
    for block in re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        block = re.sub(r'"[^"]*"', lambda quoted: quoted[0].replace("\n", " "), block.replace("\\\n", " "))
        for line in block.splitlines():
            if line.strip().startswith("eql-d2 "):
                yield line.strip()


FOUND = [(page.name, line) for page in PAGES for line in commands(page.read_text())]


def test_there_are_commands_to_check():
    assert len(FOUND) > 20 and {"README.md", "evaluation.md", "report.md"} <= {page for page, _ in FOUND}


@pytest.mark.parametrize(("page", "line"), FOUND, ids=[f"{page}-{i}" for i, (page, _) in enumerate(FOUND)])
def test_the_command_is_taken(page, line, monkeypatch):
    monkeypatch.chdir(ROOT / "docs")  # where no config is found by chance
    _, name, *arguments = shlex.split(line, comments=True)
    if name in ("--help", "..."):
        return
    assert name in names(), line
    parser = argparse.ArgumentParser(prog=f"eql-d2 {name}")
    command(name).add_arguments(parser)
    args = parser.parse_args(arguments)
    config = getattr(args, "config_file", None)
    if config and config != "..." and "$" not in config and "/" in config:
        assert Path(config_path(config)).is_file()

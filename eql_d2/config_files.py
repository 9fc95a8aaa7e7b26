"""The configs that come with the package: what there is, and of which files each is made."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from eql_d2.errors import InputError, did_you_mean
from eql_d2.removed_configs import replacement

ROOT = (Path(__file__).parent / "configs").resolve()  # a link, in a clone
# What a LazyConfig defines that can be trained, and a file that others import from does not.
TRAINABLE = ("model", "optimizer", "lr_multiplier", "dataloader", "train")
YAML_BASE = re.compile(r"^_BASE_:(.*)$", re.MULTILINE)


def config_names() -> list[str]:
    """Those that can be trained: no `Base-*.yaml`, and no Python file that is only a part of others."""
    yaml_files = [path for path in ROOT.rglob("*.yaml") if not path.name.startswith("Base-")]
    lazy_files = [path for path in ROOT.rglob("*.py") if _defined(path).issuperset(TRAINABLE)]
    return sorted(path.relative_to(ROOT).as_posix() for path in [*yaml_files, *lazy_files])


def find_config(name: str) -> Path:
    """Path of a config of the package; `configs/` before its name and `.yaml` or `.py` after it may be left out.

    Raises:
        InputError: no such config, with the nearest names, or with what replaced a removed one.
    """
    short = name.removeprefix("configs/")
    for candidate in (short, f"{short}.yaml", f"{short}.py"):
        if (ROOT / candidate).is_file():
            return ROOT / candidate
    if words := replacement(short) or replacement(f"{short}.yaml"):
        raise InputError(f"the config '{name}' was replaced by: {words}")
    near = did_you_mean(short, config_names()) or "; `eql-d2 configs list` names all"
    raise InputError(f"there is no file and no config of eql_d2 '{name}'{near}")


def config_path(name: str) -> str:
    """What ``--config-file`` stands for: a file or an address as it is, else a config of the package."""
    if not name or "://" in name or Path(name).is_file():
        return name
    return str(find_config(name))


def files_of(path: Path) -> list[Path]:
    """The config and all the files that it is made of, what is read first in front."""
    files: dict[Path, None] = {}
    for part in _parts(path):
        files.update(dict.fromkeys(files_of(part)))
    return [*files, path]


def summary(path: Path) -> str:
    """One line: the first one of a LazyConfig's docstring, or what a YAML file sets beyond its `_BASE_`s."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    import yaml  # here, since what finds a config needs none

    settings = {key: value for key, value in yaml.safe_load(text).items() if key != "_BASE_"}
    return ", ".join(_flat(settings)) or " with ".join(part.name for part in _parts(path))


def _parts(path: Path) -> Iterator[Path]:
    """What the file itself names as its bases, or imports from beside it."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        match = YAML_BASE.search(text)
        names = re.findall(r'"(.+?)"', match[1]) if match else []
    else:
        imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level == 1]
        names = [f"{node.module}.py" for node in imports]
    for name in names:
        yield (path.parent / name).resolve()


def _defined(path: Path) -> set[str]:
    """The names that a Python file assigns or imports at its top level."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            names |= {part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def _flat(settings: dict, prefix: str = "") -> Iterator[str]:
    """`KEY VALUE` of each leaf; of its path the last two names are enough to be recognised."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{'.'.join(f'{prefix}{key}'.split('.')[-2:])} {value}"

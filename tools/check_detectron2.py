#!/usr/bin/env python
"""Whether the Detectron2 that is installed has what this project imports, calls, inherits and overrides.

    python tools/check_detectron2.py          print what is missing, and exit with 1 if anything is
    python tools/check_detectron2.py --list   print what is used
    python tools/check_detectron2.py --write  write detectron2_overrides.txt anew, after an override came or went

What is used is read off the source (imports, calls, attributes) and the classes (methods they override, what they use
of `self` and `super()` and do not define). So after an upgrade of Detectron2 this says at once what broke.
"""

import argparse
import ast
import importlib
import inspect
import pkgutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from torch import nn

ROOT = Path(__file__).parents[1]
UPSTREAM = ("detectron2", "fvcore", "yacs")
# A method that is gone from Detectron2 leaves our override without anything to compare it with: hence a list.
OVERRIDES_FILE = Path(__file__).parent / "detectron2_overrides.txt"
GONE = object()


def sources() -> Iterator[Path]:
    for folder in ("eql_d2", "tools", "configs", "docs/examples", "datasets"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def is_upstream(module: str) -> bool:
    return module.split(".")[0] in UPSTREAM


class Source:
    """One file: the upstream names it imports, and what it does with them."""

    def __init__(self, text: str, where: str):
        self.where = where
        self.tree = ast.parse(text)
        self.imports = list(self._imports())
        assigned = {n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        assigned |= {n.arg for n in ast.walk(self.tree) if isinstance(n, ast.arg)}
        self.names = {name: found for name, _, found in self.imports if name not in assigned}

    def _imports(self) -> Iterator[tuple[str, str, object]]:
        """(name in this file, full name, the object or GONE)"""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module and is_upstream(node.module):
                for alias in node.names:
                    yield alias.asname or alias.name, f"{node.module}.{alias.name}", find(node.module, alias.name)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if is_upstream(alias.name):
                        module = find(alias.name)
                        top = module if alias.asname else find(alias.name.split(".")[0])
                        yield alias.asname or alias.name.split(".")[0], alias.name, GONE if module is GONE else top

    def problems(self) -> Iterator[str]:
        for _, full_name, found in self.imports:
            if found is GONE:
                yield f"{self.where}: {full_name}, which it imports, is gone"
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and self.resolve(node.value) is not GONE:
                if self.resolve(node) is GONE:
                    yield f"{self.where}:{node.lineno}: {ast.unparse(node)} is gone"
            elif isinstance(node, ast.Call) and self.resolve(node.func) is not GONE:
                problem = why_not(self.resolve(node.func), node)
                if problem:
                    name = ast.unparse(node.func)
                    yield f"{self.where}:{node.lineno}: {name} does not take these arguments: {problem}"

    def resolve(self, node: ast.AST) -> object:
        """What an upstream name, or a chain of attributes from one, stands for."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, GONE)
        if isinstance(node, ast.Attribute):
            owner = self.resolve(node.value)
            return GONE if owner is GONE else getattr(owner, node.attr, GONE)
        return GONE


def find(module: str, name: str = "") -> object:
    try:
        found = importlib.import_module(module)
    except ImportError:
        return GONE
    if not name or hasattr(found, name):
        return getattr(found, name) if name else found
    return find(f"{module}.{name}")


def why_not(function, call: ast.Call, has_self: bool = False) -> str:
    """Why ``function`` cannot be called like this; "" if it can, or if that is only known at run time."""
    from_config = getattr(function, "from_config", None)  # @configurable takes a config, too
    if from_config and not why_not(from_config, call):
        return ""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    unpacked = any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords)
    positional = [a for a in call.args if not isinstance(a, ast.Starred)]
    bind = signature.bind_partial if unpacked else signature.bind
    try:
        bind(*[None] * (len(positional) + has_self), **{k.arg: None for k in call.keywords if k.arg})
    except TypeError as error:
        return f"{error}; it is now {getattr(function, '__name__', function)}{signature}"
    return ""


# ---- our classes ----


def our_classes() -> list[type]:
    import eql_d2  # here, so that what it imports in vain is said before

    modules = [
        importlib.import_module(m.name)
        for m in pkgutil.walk_packages(eql_d2.__path__, "eql_d2.")
        if not m.name.startswith("eql_d2.configs")
    ]
    classes = {c: None for m in modules for c in vars(m).values() if inspect.isclass(c) and c.__module__ == m.__name__}
    return [c for c in classes if any(is_upstream(base.__module__) for base in c.__mro__)]


def plain(attribute) -> Callable:
    """The function of a method, class method or static method."""
    return getattr(attribute, "__func__", attribute)


def overrides(classes: list[type]) -> dict[str, tuple[Callable, Callable]]:
    """ "our method <- the upstream method that it replaces" -> the two functions."""
    found = {}
    for cls in classes:
        for name in dir(cls):
            owners = [c for c in cls.__mro__ if name in vars(c)]
            theirs = next((c for c in owners if is_upstream(c.__module__)), None)
            if theirs in (None, owners[0]) or not inspect.isfunction(plain(vars(owners[0])[name])):
                continue
            found[f"{full_name(owners[0])}.{name} <- {full_name(theirs)}.{name}"] = (
                plain(vars(owners[0])[name]),
                plain(vars(theirs)[name]),
            )
    return found


def full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def override_problems(classes: list[type], listed: list[str]) -> Iterator[str]:
    found = overrides(classes)
    rewrite = f"run tools/{Path(__file__).name} --write"
    for line in sorted(set(listed) - found.keys()):
        yield f"{line}: the latter is gone or has moved, so ours overrides nothing (if it is ours that went: {rewrite})"
    for line in sorted(found.keys() - set(listed)):
        yield f"{line}: this override is not in {OVERRIDES_FILE.name}: {rewrite}"
    for line, (ours, theirs) in sorted(found.items()):
        if not line.endswith(".__init__"):  # nobody upstream constructs our classes
            for problem in incompatible(ours, theirs):
                yield f"{line}: takes {inspect.signature(ours)}, not {inspect.signature(theirs)}: {problem}"


def incompatible(ours: Callable, theirs: Callable) -> Iterator[str]:
    """Which calls of ``theirs`` (the fewest arguments, all in order, all by name) ``ours`` cannot take."""
    parameters = list(inspect.signature(theirs).parameters.values())
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    required = [p for p in by_place if p.default is p.empty]
    calls = (
        ([None] * len(required), []),
        ([None] * len(by_place), by_name),
        ([None], [p.name for p in by_place[1:]] + by_name),
    )
    for positional, keywords in calls:
        try:
            inspect.signature(ours).bind(*positional, **dict.fromkeys(keywords))
        except TypeError as error:
            yield str(error)
            return


def inherited(classes: list[type]) -> Iterator[tuple[type, str]]:
    """(class, attribute): what methods of ours use of ``self`` and no class of ours makes."""
    for cls in classes:
        ours = [c for c in cls.__mro__ if c.__module__.startswith("eql_d2")]
        made = {name for c in ours for name in [*vars(c), *assigned_to_self(c), *vars(c).get("__annotations__", {})]}
        made |= vars(nn.Module()).keys() if issubclass(cls, nn.Module) else set()
        for node in ast.walk(tree_of(cls)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and is_self(node.value):
                if node.attr not in made:
                    yield cls, node.attr


def inherited_problems(classes: list[type]) -> Iterator[str]:
    for cls, attribute in inherited(classes):
        theirs = [c for c in cls.__mro__ if is_upstream(c.__module__)]
        if not hasattr(cls, attribute) and not any(attribute in assigned_to_self(c) for c in theirs):
            yield f"{full_name(cls)} uses self.{attribute}, which none of {[c.__qualname__ for c in theirs]} has"
    for cls in classes:
        for name, call in super_calls(cls):
            theirs = next((c for c in cls.__mro__[1:] if name in vars(c)), None)
            if theirs is None:
                yield f"{full_name(cls)} calls super().{name}, which is gone"
            elif is_upstream(theirs.__module__):
                problem = why_not(plain(vars(theirs)[name]), call, has_self=True)
                if problem:
                    yield f"{full_name(cls)} calls super().{name} with arguments that it does not take: {problem}"


@cache
def tree_of(cls: type) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(cls)))


def is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def super_calls(cls: type) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree_of(cls)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_super(node.func.value):
            yield node.func.attr, node


@cache
def assigned_to_self(cls: type) -> list[str]:
    return [
        node.attr
        for node in ast.walk(tree_of(cls))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value)
    ]


# ---- all together ----


def problems() -> list[str]:
    found = [p for path in sources() for p in Source(path.read_text(), str(path.relative_to(ROOT))).problems()]
    try:
        classes = our_classes()
    except (ImportError, AttributeError) as error:
        return [*found, f"eql_d2 cannot be imported, so its classes were not looked at: {error}"]
    listed = OVERRIDES_FILE.read_text().splitlines()
    return [*found, *override_problems(classes, listed), *inherited_problems(classes)]


def print_uses() -> None:
    classes = our_classes()
    imports = {full_name for path in sources() for _, full_name, _ in Source(path.read_text(), str(path)).imports}
    print("imports", *sorted(imports), sep="\n  ")
    attributes = {f"{full_name(cls)}: self.{name}" for cls, name in inherited(classes)}
    print("uses of its base classes", *sorted(attributes), sep="\n  ")
    print("overrides", *sorted(overrides(classes)), sep="\n  ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print what is used")
    parser.add_argument("--write", action="store_true", help=f"write {OVERRIDES_FILE.name}")
    args = parser.parse_args()
    if args.list:
        print_uses()
    elif args.write:
        OVERRIDES_FILE.write_text("\n".join(sorted(overrides(our_classes()))) + "\n")
    else:
        missing = problems()
        print("\n".join(missing) or "Detectron2 has all that eql_d2 uses")
        return int(bool(missing))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The configs that come with eql_d2: list them, show one, copy one to change it.

eql-d2 configs list MiniLVIS                       what each sets beyond its _BASE_
eql-d2 configs show MiniLVIS/eql_faster_rcnn       its text, and that of the files that it is made of
eql-d2 configs copy MiniLVIS/eql_faster_rcnn mine  these files, into the folder mine
"""

import argparse
from pathlib import Path

from eql_d2.config_files import ROOT, config_names, files_of, find_config, summary
from eql_d2.data.whole_files import make_folder, naming
from eql_d2.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="{list,show,copy}")
    lister = actions.add_parser("list", help="one line each")
    lister.add_argument("part", nargs="?", default="", help="only names with this in them")
    shower = actions.add_parser("show", help="print one, and the files that it is made of")
    shower.add_argument("name", help="as listed; .yaml may be left out")
    copier = actions.add_parser("copy", help="copy one, and the files that it is made of")
    copier.add_argument("name", help="as listed; .yaml may be left out")
    copier.add_argument("folder", type=Path, help="where to; a file that is there already is never replaced")


def run(args: argparse.Namespace) -> None:
    if args.action == "list":
        print_list(args.part)
    elif args.action == "show":
        show(find_config(args.name))
    else:
        copy(find_config(args.name), args.folder)


def print_list(part: str) -> None:
    names = [name for name in config_names() if part.lower() in name.lower()]
    if not names:
        raise InputError(f"no config has '{part}' in its name; `eql-d2 configs list` names all")
    width = max(map(len, names))
    print("\n".join(f"{name:<{width}}  {summary(ROOT / name)}" for name in names))


def show(config: Path) -> None:
    for path in files_of(config):
        print(f"# ---- {path.relative_to(ROOT)}\n{path.read_text(encoding='utf-8')}")


def copy(config: Path, folder: Path) -> None:
    targets = {path: folder / path.relative_to(ROOT) for path in files_of(config)}
    if existing := [str(target) for target in targets.values() if target.exists()]:
        raise InputError(f"there is already {', '.join(existing)}: give another folder, or remove it")
    for path, target in targets.items():
        make_folder(target.parent)
        with naming(target):
            target.write_bytes(path.read_bytes())
    print(f"copied {len(targets)} files; train with --config-file {targets[config]}")

"""The command `eql-d2`. Each module of this folder is one of its commands, by the name of the file.

A command has a docstring, which is its help, ``add_arguments(parser)``, and ``run(args)``, which returns the exit code
or None for 0. It imports what is heavy inside of ``run``, so that help needs neither torch nor Detectron2.
"""

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from eql_d2 import __version__
from eql_d2.errors import TRACEBACK_VARIABLE, did_you_mean, what_to_say
from eql_d2.streams import ready_standard_streams


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. A mistake in the input is one line, `error: ...`, and exit code 1; of an argument, 2.

    Args:
        argv: the command and its arguments; None takes the process's own.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        print(f"eql_d2 {__version__}")
    elif name in names():
        return run_command(name, rest)
    else:
        near = did_you_mean(name, names()) or "; `eql-d2 --help` names all"
        print(f"error: eql-d2 has no command '{name}'{near}", file=sys.stderr)
        return 2
    return 0


def run_command(name: str, argv: Sequence[str]) -> int:
    module = command(name)
    parser = argparse.ArgumentParser(
        prog=f"eql-d2 {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    args = parser.parse_args(argv)
    ready_standard_streams()
    try:
        code = module.run(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141  # as a shell has it for SIGPIPE
    except Exception as error:
        message = what_to_say(error)
        if not message:
            raise
        print(f"error: {message}", file=sys.stderr, flush=True)
        return 1


def names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


def command(name: str) -> ModuleType:
    return importlib.import_module(f"eql_d2.cli.{name}")


def overview() -> str:
    """The commands, with the first line of the help of each."""
    lines = [f"  {name:<9} {(command(name).__doc__ or '').partition(chr(10))[0]}" for name in names()]
    return "\n".join(
        [
            "usage: eql-d2 COMMAND [arguments]",
            "",
            "Long-tailed object detection with Detectron2: train, evaluate, compare.",
            "",
            *lines,
            "",
            "`eql-d2 COMMAND --help` says what it takes. A mistake is one line and exit code 1;",
            f"{TRACEBACK_VARIABLE}=1 shows where it came from.",
        ]
    )

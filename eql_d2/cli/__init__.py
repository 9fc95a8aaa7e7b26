"""The command `eql-d2`. Each module of this folder is one of its commands, by the name of the file.

A command has a docstring, which is its help, ``add_arguments(parser)``, and ``run(args)``, which returns the exit code
or None for 0. It imports what is heavy inside of ``run``, so that help needs neither torch nor Detectron2.
"""

import argparse
import errno
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from eql_d2 import __version__
from eql_d2.errors import CANNOT_WRITE, TRACEBACK_VARIABLE, InputError, did_you_mean, how_to_install, printable
from eql_d2.streams import ready_standard_streams

NO_SUCH_OUTPUT = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


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
    except (InputError, ModuleNotFoundError, OSError) as error:
        message = what_to_say(error)
        if not message or os.getenv(TRACEBACK_VARIABLE):
            raise
        print(f"error: {message}", file=sys.stderr, flush=True)
        return 1


def what_to_say(error: Exception) -> str:
    """Of a mistake in the input, or an output that cannot be written; "" of anything else, which is a bug."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return how_to_install(error)
    if not isinstance(error, OSError) or error.filename is None:
        return ""
    no_folder = error.errno == errno.ENOENT and not os.path.isdir(os.path.dirname(error.filename) or ".")
    if error.errno not in (*CANNOT_WRITE, *NO_SUCH_OUTPUT) and not no_folder:
        return ""
    reason = "there is no such folder" if no_folder else error.strerror
    return printable(
        f"cannot write {error.filename}: {reason}. Give another path, or make room or the folder writable", 4000
    )


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

"""What ``from eql_d2.losses import ...`` offers, to a program and to a type checker or an editor."""

import ast
import subprocess
import sys

import eql_d2.losses
from eql_d2.losses import CLS_LOSS_REGISTRY


def test_each_loss_is_imported_where_a_type_checker_looks():
    """Which does not run the loop that finds the files."""
    tree = ast.parse(open(eql_d2.losses.__file__, encoding="utf-8").read())
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    ours = {name for name, loss in CLS_LOSS_REGISTRY if loss.__module__.startswith("eql_d2.losses.")}
    assert ours <= imported and imported == set(eql_d2.losses.__all__)


def test_losses_do_without_detectron2():
    code = "import sys, eql_d2.losses; print({'detectron2', 'matplotlib'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True).split() == ["set()"]

"""One training at a time in a folder: refused while another process trains there, free when that has ended."""

import os
import signal
from argparse import Namespace

import pytest

from eql_d2.engine import folder_lock
from eql_d2.engine.folder_lock import LOCK_FILE, claim_folder
from eql_d2.errors import InputError


@pytest.fixture
def other_training(tmp_path):
    """A process that has claimed the folder, and waits to be killed; its id."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        claim_folder(str(tmp_path))
        os.write(tell, b"!")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    yield pid
    kill(pid)


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def test_a_second_training_is_refused_until_the_first_has_ended(tmp_path, other_training):
    with pytest.raises(InputError, match=f"another training writes to .*process {other_training} on .*OUTPUT_DIR"):
        claim_folder(str(tmp_path / "." / "x" / ".."))
    kill(other_training)  # a requeued job finds the file, and nobody who holds it
    claim_folder(str(tmp_path))
    claim_folder(str(tmp_path))  # the second training of one process, after its first
    assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()


def test_the_lock_does_not_outlive_its_process_in_a_child(tmp_path):
    """As a data worker that is left over when the training was killed."""
    ready, tell = os.pipe()
    parent = os.fork()
    if parent == 0:
        claim_folder(str(tmp_path))
        worker = os.fork()
        if worker:
            os.write(tell, str(worker).encode())
        signal.pause()
    worker = int(os.read(ready, 20))
    try:
        kill(parent)
        claim_folder(str(tmp_path))
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("way", ["no fcntl", "no lock"])
def test_where_there_are_no_locks_it_is_a_warning(tmp_path, monkeypatch, caplog, way):
    if way == "no fcntl":
        monkeypatch.setattr(folder_lock, "fcntl", None)
    else:

        def refuse(*args):
            raise OSError(37, "No locks available")

        monkeypatch.setattr(folder_lock.fcntl, "lockf", refuse)
    claim_folder(str(tmp_path))
    assert "cannot be locked" in caplog.text and "no second training" in caplog.text


def test_a_training_claims_its_folder_and_an_evaluation_does_not(tiny_cfg, tmp_path, other_training):
    from eql_d2.engine.setup import setup

    config = tmp_path / "c.yaml"
    config.write_text(tiny_cfg("OUTPUT_DIR", str(tmp_path)).dump())
    args = Namespace(config_file=str(config), opts=[], eval_only=True, resume=False)
    setup(args)
    args.eval_only = False
    with pytest.raises(InputError, match="another training"):
        setup(args)
    assert not (tmp_path / "config.yaml").exists()

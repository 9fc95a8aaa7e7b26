"""A disk that is full while a run writes: one error with the file, the last good checkpoint and the cure."""

import errno
import logging
import os
import resource
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from detectron2.utils.events import EventStorage, JSONWriter, TensorboardXWriter

from eql_d2.cli import main
from eql_d2.data.whole_files import folder_written_whole, naming, written_whole
from eql_d2.engine import Trainer
from eql_d2.engine.output_errors import (
    NamedWriter,
    OutputError,
    explained_write_errors,
    guard_the_log,
    said_at_the_end,
    without_escapes,
)
from eql_d2.evaluation.predictions import ImagePredictions, save, write_json
from eql_d2.streams import take_every_letter

FULL = "/dev/full"  # Linux's, where any write fails


@pytest.fixture
def full_disk(monkeypatch):
    """Files that are opened to be written are on a full disk."""
    real = open

    def on_a_full_disk(path, mode="r", **kwargs):
        return real(FULL if "w" in mode else path, mode, **kwargs)

    monkeypatch.setattr("builtins.open", on_a_full_disk)


PREDICTION = ImagePredictions(1, np.array([0]), np.zeros((1, 4)), np.array([0.5]), None, None)


@pytest.mark.parametrize("write", [save, write_json])
def test_results_and_predictions_are_whole_or_not_there(tmp_path, full_disk, write):
    path = tmp_path / "results"
    path.touch()
    with pytest.raises(OutputError, match="cannot write .*results: No space left on device"):
        with explained_write_errors(str(tmp_path)):
            write([PREDICTION], str(path))
    assert [p.name for p in tmp_path.iterdir()] == ["results"]  # the one before


def test_a_folder_whose_files_are_whole(tmp_path):
    (tmp_path / "a").write_text("before")
    with pytest.raises(OSError), folder_written_whole(tmp_path) as folder:
        (Path(folder) / "a").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "a").read_text() == "before" and len(list(tmp_path.iterdir())) == 1
    with folder_written_whole(tmp_path) as folder:
        (Path(folder) / "a").write_text("after")
    assert (tmp_path / "a").read_text() == "after" and len(list(tmp_path.iterdir())) == 1


def test_standard_output_on_a_full_disk(monkeypatch, capsys, tmp_path):
    """In a run and in any command, as by `> /dev/full`."""
    full = [open(FULL, "w") for _ in range(3)]
    for file, within in zip(full, (nullcontext(), folder_written_whole(tmp_path))):
        monkeypatch.setattr("sys.stdout", file)
        with pytest.raises(OutputError, match="cannot write standard output: No space left on device"):
            with explained_write_errors(str(tmp_path)), within:
                print("a line", flush=True)
    monkeypatch.setattr("sys.stdout", full[2])
    assert main(["configs", "list"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write standard output: No space left on device.") and error.count("\n") == 1


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), explained_write_errors("folder"):
        open(tmp_path / "nothing")
    with pytest.raises(RuntimeError, match="a bug"), naming("file"), written_whole(tmp_path / "x"):
        raise RuntimeError("a bug")


def test_tensorboard_on_a_full_disk(tmp_path, capfd):
    """Its thread meets the error, and tells the next who writes; in a process with a limit to its files' size."""
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        writer = NamedWriter(TensorboardXWriter(str(tmp_path)), "the events")
        try:
            with explained_write_errors("folder"), EventStorage() as storage:
                for storage.iter in range(200):
                    storage.put_scalars(**{f"scalar{i}": 0.0 for i in range(20)})
                    writer.write()
                    writer.writer._writer.flush()
        except OutputError as error:
            os._exit(0 if "cannot write the events: File too large" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "Traceback" not in capfd.readouterr().err


def test_a_training_names_the_file_and_the_last_good_checkpoint(tiny_cfg, datasets, tmp_path):
    options = ["DATASETS.TRAIN", (datasets[0],), "DATASETS.TEST", (), "SOLVER.IMS_PER_BATCH", 1, "SOLVER.MAX_ITER", 4]
    cfg = tiny_cfg(*options)
    Path(cfg.OUTPUT_DIR).mkdir()
    (Path(cfg.OUTPUT_DIR) / "metrics.json").symlink_to(FULL)
    with pytest.raises(OutputError, match=r"metrics\.json: No space left.*good checkpoint is .*final\.pth.*--resume"):
        Trainer(cfg).train()


def test_a_log_that_cannot_be_written_is_one_line(capfd):
    logger = logging.Logger("lost")
    logging.Logger.manager.loggerDict["eql_d2_lost"] = logger
    with open(FULL, "w", buffering=1) as file:
        logger.addHandler(logging.StreamHandler(file))
        guard_the_log("eql_d2_lost")
        for _ in range(3):
            logger.warning("a line")
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
    assert capfd.readouterr().err == "warning: lines of the log are lost: [Errno 28] No space left on device\n"


def test_a_writer_names_its_file():
    with EventStorage(), pytest.raises(OSError) as error:
        writer = JSONWriter(FULL)
        from detectron2.utils.events import get_event_storage

        get_event_storage().put_scalar("x", 1.0)
        try:
            NamedWriter(writer, "metrics.json").write()
        finally:
            os.dup2(os.open(os.devnull, os.O_WRONLY), writer._file_handle.fileno())
    assert error.value.filename == "metrics.json"


def test_a_log_has_colours_and_no_other_escape_sequence():
    record = logging.LogRecord("x", 20, "", 0, "a %s\n\tb", ("\x1b[36mc\x1b[0m \x1b]0;evil\x07\x1b[2J\r",), None)
    assert without_escapes(record)
    assert record.getMessage() == "a \x1b[36mc\x1b[0m \\x1b]0;evil\\x07\\x1b[2J\\r\n\tb"


def test_detectron2s_traceback_of_a_full_disk_is_left_out():
    def logged(error):
        return said_at_the_end(logging.LogRecord("x", 40, "", 0, "Exception", (), (type(error), error, None)))

    assert not logged(OSError(errno.ENOSPC, "full")) and not logged(OutputError("full"))
    assert logged(OSError(errno.ENOENT, "no file")) and logged(KeyError("a bug"))
    assert said_at_the_end(logging.LogRecord("x", 40, "", 0, "a line", (), None))


def test_a_log_takes_letters_that_the_locale_lacks(tmp_path):
    with open(tmp_path / "log.txt", "a", encoding="ascii") as file:
        take_every_letter(file)
        file.write("苹果 \udcff")
    take_every_letter(file)  # closed, as a log that is rotated
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "苹果 \\udcff"

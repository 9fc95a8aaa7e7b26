"""What makes a resumed run equal an uninterrupted one: random numbers, the data's place, metrics, missed hooks."""

import json
import logging
import os
from collections.abc import Iterable

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules

from eql_d2.data.seeding import seed_generators
from eql_d2.data.train_loader import TrainLoader
from eql_d2.engine.train_step import average_running_statistics
from eql_d2.losses import keeping_state

logger = logging.getLogger(__name__)

WINDOW = 20  # values over which Detectron2's writers take a median


class Resumption(HookBase):
    """Seeds each iteration, and keeps in the checkpoint what Detectron2 does not; place it before all other hooks.

    - Torch's, Python's and numpy's generators start each iteration at a hash of (seed, rank, iteration). So there is no
      state of theirs to save, in any process, and neither evaluation nor any hook changes what training draws.
    - The place in the training data is saved (:class:`TrainLoader`).
    - The last values of each metric are saved, since metrics.json holds medians of them. Lines of metrics.json that
      were written after the checkpoint are moved to metrics_before_resume.json; they are about to be written again.
    - Hooks behind the checkpointer (evaluation, writers) may not have run when training stopped: they are run first.

    Args:
        data_loader: the training data; if it is not a TrainLoader, it starts anew and iterations are not seeded.
        output_dir: where metrics.json is.
        behind: the hooks behind the checkpointer, in their order.
        write_period: iterations between lines of metrics.json.
    """

    def __init__(self, data_loader: Iterable, output_dir: str, behind: list[HookBase], write_period: int):
        self.stream = data_loader if isinstance(data_loader, TrainLoader) else None
        self.metrics_file = os.path.join(output_dir, "metrics.json")
        self.behind = behind
        self.write_period = write_period
        self.resumes = False  # set by who calls resume_or_load(resume=True)
        self._place: dict | None = None  # in the data, after the last finished iteration
        self._loaded: dict | None = None

    def before_step(self):
        if self.stream is not None:
            seed_generators(self.stream.seed, comm.get_rank(), self.trainer.iter, devices=True)

    def after_step(self):
        self._place = self._present_place()

    def _present_place(self) -> dict | None:
        return None if self.stream is None else self.stream.state_dict()

    def state_dict(self) -> dict:
        """Plain Python only, as ``torch.load(weights_only=True)`` asks for."""
        return {
            "stream": self._place or self._present_place(),
            "metrics": last_values(self.trainer.storage)
            if hasattr(self.trainer, "storage")
            else {},  # not yet training
        }

    def load_state_dict(self, state: dict) -> None:
        self._loaded = state

    def before_train(self):
        if not self.resumes:
            return
        start = self.trainer.start_iter
        # Writers ran last at this iteration, before the checkpoint's.
        written = (start - 1) // self.write_period * self.write_period - 1
        if comm.is_main_process():
            move_later_lines(self.metrics_file, written)
        if start == 0:
            return
        self._restore(written)
        self.trainer.iter = self.trainer.storage.iter = start - 1
        self.trainer.make_final_checkpoint_good()  # now that all is as it was after that iteration
        for hook in self.behind:
            hook.after_step()
        self.trainer.iter = self.trainer.storage.iter = start

    def _restore(self, written: int) -> None:
        state = self._loaded or {"stream": None, "metrics": {}}
        if self.stream is not None and state["stream"] is not None:
            self.stream.load_state_dict(state["stream"])
        else:
            logger.warning(
                "%s: the training data starts anew, and the run does not equal an uninterrupted one",
                "the checkpoint does not say which data were seen" if self.stream else "this data loader has no place",
            )
        restore_values(self.trainer.storage, state["metrics"], written)

    def after_train(self):
        # Detectron2 counts one too many where no iteration was left.
        self.trainer.iter = self.trainer.storage.iter = min(self.trainer.iter, self.trainer.max_iter)


def last_values(storage: EventStorage) -> dict[str, dict]:
    """Of each scalar the last values with their iterations, and whether it is to be smoothed."""
    smoothed = storage.smoothing_hints()
    return {
        name: {"smoothed": smoothed.get(name, True), "values": [list(v) for v in history.values()[-WINDOW:]]}
        for name, history in storage.histories().items()
    }


def restore_values(storage: EventStorage, metrics: dict[str, dict], written: int) -> None:
    """Put :func:`last_values` back; those after iteration ``written`` count as not yet written."""
    for name, metric in metrics.items():
        *earlier, (value, iteration) = metric["values"]
        storage.smoothing_hints()[name] = metric["smoothed"]
        for v, i in earlier:
            storage.histories()[name].update(v, i)
        if iteration > written:
            storage.put_scalar(name, value, smoothing_hint=metric["smoothed"], cur_iter=int(iteration))
        else:
            storage.histories()[name].update(value, iteration)


def move_later_lines(metrics_file: str, written: int) -> None:
    """Move the last lines of ``metrics.json`` that are of iterations after ``written``, or cut off, to a file beside.

    Only the end is looked at: what is before may be of another run in the same folder.
    """
    if not os.path.exists(metrics_file):
        return
    with open(metrics_file, "rb+") as file:
        lines = file.readlines()
        keep = len(lines)
        while keep and _iteration(lines[keep - 1]) > written:
            keep -= 1
        if keep == len(lines):
            return
        with open(metrics_file.replace(".json", "_before_resume.json"), "ab") as beside:
            beside.writelines(line.rstrip(b"\n") + b"\n" for line in lines[keep:])
        file.truncate(sum(map(len, lines[:keep])))


def _iteration(line: bytes) -> float:
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that was being written


class PreciseBN(hooks.PreciseBN):
    """Detectron2's, which leaves all but batch-norm statistics as they were, and whose data have a place, too."""

    def __init__(self, period: int, model, data_loader: TrainLoader, num_iter: int):
        super().__init__(period, model, data_loader, num_iter)
        self.stream = data_loader

    def update_stats(self):
        with keeping_state(self._model):
            super().update_stats()
        average_running_statistics(get_bn_modules(self._model))  # each process has seen images of its own

    def state_dict(self) -> dict:
        return {"stream": self.stream.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.stream.load_state_dict(state["stream"])

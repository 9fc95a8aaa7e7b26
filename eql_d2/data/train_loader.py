"""The training data as an endless stream that depends only on a seed, and so can be entered at any position.

Detectron2's loader cannot go on where it stopped: its samplers start anew, its aspect-ratio buckets hold images that
are lost, and its augmentation depends on the number of workers. Here all that is decided before an image is read:

    sampler (Detectron2's, of a seed) -> index stream -> batches of (position, index) -> worker: read, augment -> batch

The position counts the indices drawn, in all processes together; the augmentation of an image is seeded by (seed,
position). To resume, the batches before are drawn again, which costs microseconds each, and not read.
"""

import copy
import itertools
import logging
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import queues
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info
from torch.utils.data._utils import signal_handling

from eql_d2.data.packed_list import PackedList
from eql_d2.data.samplers import TRAIN_SAMPLER_REGISTRY
from eql_d2.data.seeding import seeded
from eql_d2.errors import InputError, one_line

logger = logging.getLogger(__name__)

MAX_REJECTED_IN_A_ROW = 100
# At which a training saves and ends, where the system has them.
STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]


class TrainLoader:
    """Endless batches (lists of mapped dataset dicts) of a stream whose place can be saved and found again.

    With the same seed the batches are the same for any number of workers, and their images those of Detectron2's own
    loader with at most one worker and the same sampler.

    Args:
        dataset: dataset dicts as a list, or a map-style dataset of them. A :class:`Disposable` list is emptied.
        mapper: from a dataset dict to the model's input. Where it returns None, another image of the dataset is drawn.
        sampler: as of Detectron2's loader, an endless stream of indices of ``dataset``: one of Detectron2's samplers,
            which is given the loader's seed, or another that starts anew each time it is iterated over, and then
            depends only on the rank. Default: Detectron2's ``TrainingSampler``.
        make_sampler: in the place of ``sampler``, ``(dataset, seed) -> Sampler``, which depends only on the seed and
            the rank.
        total_batch_size: images of a batch in all processes together.
        aspect_ratio_grouping: whether a batch holds only images that are wider than high, or only such that are not;
            needs `width` and `height` in the dataset dicts.
        num_workers: processes that read ahead; 0 reads in this one.
        seed: >= 0, or None to draw one, the same in all processes.

    Raises:
        InputError: an argument that is not as above.
    """

    @configurable
    def __init__(
        self,
        dataset: Sequence[dict],
        *,
        mapper: Callable[[dict], dict | None],
        total_batch_size: int,
        sampler: Sampler | None = None,
        make_sampler: Callable[[Sequence[dict], int], Sampler] | None = None,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        seed: int | None = None,
    ):
        processes = comm.get_world_size()
        if total_batch_size < 1 or total_batch_size % processes:
            raise InputError(
                f"SOLVER.IMS_PER_BATCH is {total_batch_size}: expected a multiple of the number of processes, "
                f"{processes}"
            )
        if isinstance(dataset, IterableDataset) or not len(dataset):
            raise InputError("the training data must be a list or a map-style dataset, with at least one image")
        if sampler is not None and make_sampler is not None:
            raise InputError("TrainLoader takes a sampler or make_sampler, not both")
        self.mapper = mapper
        self.make_sampler = make_sampler or (training_sampler if sampler is None else partial(reseeded, sampler))
        self.wider = wider_than_high(dataset) if aspect_ratio_grouping else [False] * len(dataset)
        self.aspect_ratio_grouping = aspect_ratio_grouping
        self.batch_size = total_batch_size // processes
        self.num_workers = num_workers
        self.batches = 0  # that were handed out by this process
        self.rejected_images = 0  # by the mapper, in this process
        self.seed = comm.shared_random_seed() if seed is None else seed
        is_list = isinstance(dataset, list)
        self.sampler = self.make_sampler([*dataset] if is_list else dataset, self.seed)  # it may keep what it is given
        # Serialized, so that worker processes share it; the sampler may read all of it, which is slow from there.
        self.dataset = DatasetFromList(dataset, copy=False, serialize=PackedList) if is_list else dataset

    @classmethod
    def from_config(cls, cfg, *, mapper=None, dataset=None):
        """The arguments by Detectron2's keys; ``cfg.SEED`` is the seed, -1 draws one."""
        arguments = build_detection_train_loader.from_config(cfg, mapper, dataset=dataset, sampler=NOT_YET)
        del arguments["sampler"]
        seed = cfg.SEED if cfg.SEED >= 0 else None
        return {**arguments, "make_sampler": partial(sampler_from_config, cfg), "seed": seed}

    def __iter__(self) -> Iterator[list[dict]]:
        """The batches from number ``self.batches`` on."""
        loader = DataLoader(
            SeededMap(self.dataset, self.mapper, self.seed),
            batch_sampler=BatchSampler(self.sampler, self.batch_size, self.wider, self.batches),
            num_workers=self.num_workers,
            collate_fn=split_rejected,
            worker_init_fn=obey_only_the_parent,
            generator=torch.Generator(),  # or its own seeds would come from the global one
        )
        end_workers_that_cannot_send()
        with signals_blocked():
            batches = iter(loader)
        tell_of_dead_workers_late()
        for batch, rejected in batches:
            self.batches += 1
            if rejected:
                self.rejected_images += len(rejected)
                logger.warning(
                    "the mapper rejected image(s) %s of the dataset, and others were taken: %d so far in this process",
                    rejected,
                    self.rejected_images,
                )
            yield batch

    def _made_of(self) -> dict[str, Any]:
        """What, besides the seed, decides which batches there are."""
        return {
            "sampler": type(self.sampler).__name__,
            "images": len(self.dataset),
            "images_per_process": self.batch_size,
            "processes": comm.get_world_size(),
            "aspect_ratio_grouping": self.aspect_ratio_grouping,
        }

    def state_dict(self) -> dict[str, Any]:
        """Seed, place, and what the stream was made of; plain Python, the same in all processes but the rejected."""
        return {
            "seed": self.seed,
            "batches": self.batches,
            "rejected_images": self.rejected_images,
            "made_of": self._made_of(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches of ``state``, with its seed.

        Where the stream is made of something else now, it is entered after as many images as were seen, and a warning
        says that the run is no longer the same.
        """
        before, now = state["made_of"], self._made_of()
        changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
        self.batches = state["batches"]
        self.rejected_images = state["rejected_images"]
        if changed:
            images = self.batches * before["images_per_process"] * before["processes"]
            self.batches = images // (now["images_per_process"] * now["processes"])
            logger.warning(
                "the training data is not what the checkpoint's was (%s): it goes on after about %d images, but the "
                "run no longer equals an uninterrupted one",
                ", ".join(changed),
                images,
            )
        if state["seed"] != self.seed:
            logger.info("the training data goes on with the seed of the checkpoint, %d", state["seed"])
            self.seed = state["seed"]
            self.sampler = self.make_sampler(self.dataset, self.seed)


NOT_YET = object()  # stands for the sampler where Detectron2 is asked for everything but that


def training_sampler(dataset, seed: int) -> Sampler:
    """Detectron2's ``TrainingSampler``: one shuffle of the dataset after another."""
    return TrainingSampler(len(dataset), seed=seed)


def sampler_of_configs(dataset, seed: int) -> Sampler:
    """The ``TrainingSampler`` of a run, of a YAML file or a LazyConfig: it draws a seed of its own, under ours.

    So Detectron2's loader made it before 2024-05, when it began to give ``cfg.SEED``. With any version of it a seed
    means one order.
    """
    with seeded(seed):
        return TrainingSampler(len(dataset))


def reseeded(sampler: Sampler, _dataset, seed: int) -> Sampler:
    """A copy of one of Detectron2's samplers, which draw by a seed of their own, with this seed; others as they are."""
    if hasattr(sampler, "_seed"):
        sampler = copy.copy(sampler)
        sampler._seed = seed  # type: ignore[attr-defined]
    else:
        logger.warning(
            "%s has no seed that could be set: a resumed run equals an uninterrupted one only if its stream is the "
            "same each time",
            type(sampler).__name__,
        )
    return sampler


def sampler_from_config(cfg, dataset, seed: int) -> Sampler:
    """The sampler that ``DATALOADER.SAMPLER_TRAIN`` names, of :data:`TRAIN_SAMPLER_REGISTRY` or Detectron2's."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name in TRAIN_SAMPLER_REGISTRY:
        logger.info("Using training sampler %s", name)  # as Detectron2 does of its own
        sampler = TRAIN_SAMPLER_REGISTRY.get(name)
        return sampler(dataset, seed, **(sampler.from_config(cfg) if hasattr(sampler, "from_config") else {}))
    if name == "TrainingSampler":
        logger.info("Using training sampler %s", name)
        return sampler_of_configs(dataset, seed)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed  # some of Detectron2's take this, the others draw from numpy's generator
    with seeded(seed):
        return build_detection_train_loader.from_config(cfg, mapper=NOT_YET, dataset=dataset)["sampler"]


def wider_than_high(dataset: Sequence[dict]) -> list[bool]:
    """Of each image, whether it is wider than high: Detectron2's two groups of aspect ratios."""
    try:
        return [image["width"] > image["height"] for image in map(dataset.__getitem__, range(len(dataset)))]
    except KeyError as error:
        raise InputError(
            f"the dataset dicts have no {error}: DATALOADER.ASPECT_RATIO_GROUPING needs it; give it, or set that to "
            f"False"
        ) from error


class BatchSampler(Sampler):
    """Batches of (position, index), in the order in which Detectron2's AspectRatioGroupedDataset fills them.

    Args:
        sampler: an endless stream of indices of this process, one of every ``world_size``.
        batch_size: images of a batch of this process.
        wider: the group, False or True, of each index.
        start: the number of batches to leave out.
    """

    def __init__(self, sampler: Sampler, batch_size: int, wider: Sequence[bool], start: int):
        self.sampler = sampler
        self.batch_size = batch_size
        self.wider = wider
        self.start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._batches(), self.start, None)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        groups: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        positions = itertools.count(comm.get_rank(), comm.get_world_size())
        for position, index in zip(positions, self.sampler):
            wider = self.wider[index]
            groups[wider].append((position, index))
            if len(groups[wider]) == self.batch_size:
                yield groups[wider]
                groups[wider] = []


class SeededMap(Dataset):
    """``mapper(dataset[index])`` under generators seeded by (seed, position), with the indices it rejected."""

    def __init__(self, dataset, mapper, seed: int):
        self.dataset = dataset
        self.mapper = PicklableWrapper(mapper)
        self.seed = seed

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> tuple[dict, list[int]]:
        position, index = place
        rejected: list[int] = []
        with seeded(self.seed, position):
            while len(rejected) < MAX_REJECTED_IN_A_ROW:
                mapped = self.mapper(self.dataset[index])
                if mapped is not None:
                    return mapped, rejected
                rejected.append(index)
                index = random.randrange(len(self.dataset))
        raise InputError(f"the mapper rejected {MAX_REJECTED_IN_A_ROW} images in a row, the last one number {index}")


def split_rejected(batch: list[tuple[dict, list[int]]]) -> tuple[list[dict], list[int]]:
    """The mapped images of a batch, and the indices that were rejected on the way."""
    return [mapped for mapped, _ in batch], [index for _, rejected in batch for index in rejected]


@contextmanager
def signals_blocked():
    """Processes that are started within this context are born with the signals blocked that stop a training.

    Ctrl-C and many batch systems signal all processes at once. Without its workers the training process could not
    finish its iteration, nor save: they leave signals to it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


OF_PYTHON = queues.Queue._on_queue_feeder_error  # type: ignore[attr-defined]


def end_workers_that_cannot_send() -> None:
    """A data worker that cannot send a batch, since /dev/shm is full, ends: the training is then told that it is gone.

    Python's own would print the error and go on with the next batch, and the training wait for this one for ever.
    """
    queues.Queue._on_queue_feeder_error = staticmethod(feeder_error)  # type: ignore[attr-defined]


def feeder_error(error: Exception, sent) -> None:
    if get_worker_info() is None:  # not a data worker
        return OF_PYTHON(error, sent)
    line = (
        f"data worker {os.getpid()} cannot send what it has read: {one_line(error)}. If /dev/shm is full, make it "
        f"larger (docker run --shm-size 8g), or set DATALOADER.NUM_WORKERS (num_workers of a LazyConfig's loader) to 0"
    )
    os.write(2, f"{line}\n".encode())
    os._exit(1)


def tell_of_dead_workers_late() -> None:
    """Remove the signal handler by which torch's DataLoader reports that a worker has died.

    It raises wherever this process is, in the middle of an optimizer step perhaps. Without it, who waits for the next
    batch is told, within five seconds. Only the main thread can set handlers.
    """
    is_torchs = getattr(signal.getsignal(signal.SIGCHLD), "__module__", None) == signal_handling.__name__
    if is_torchs and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def obey_only_the_parent(_worker_id: int) -> None:
    """In a worker process born under :func:`signals_blocked`: end at a SIGTERM, but only if the parent sends it."""
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_exit_at_sigterm_of_the_parent, daemon=True).start()
    else:  # macOS cannot tell who sends
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _exit_at_sigterm_of_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)

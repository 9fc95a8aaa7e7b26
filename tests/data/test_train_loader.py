"""The stream of training batches: Detectron2's order, the same for any number of workers, entered at any place."""

import itertools
import logging
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.data.samplers import RandomSubsetTrainingSampler, TrainingSampler
from torch.utils.data import get_worker_info

from eql_d2.data.samplers import TRAIN_SAMPLER_REGISTRY, ClassAwareSampler
from eql_d2.data.seeding import seeded
from eql_d2.data.train_loader import TrainLoader, sampler_from_config, sampler_of_configs
from eql_d2.engine import load_config

SIZES = [(4, 3), (3, 4), (3, 3), (5, 2), (2, 5), (4, 1), (1, 4), (9, 8), (8, 9), (7, 6), (2, 1)]
DATASET = [
    {"image_id": i, "width": w, "height": h, "annotations": [{"category_id": i % 3}], "dataset_source": 0}
    for i, (w, h) in enumerate(SIZES)
]


def identity(image):
    return image


def with_random_numbers(image):
    """What an augmentation draws, from all three generators."""
    return {"image_id": image["image_id"], "drawn": (random.random(), np.random.rand(), torch.rand(2).tolist())}


def loader(mapper=identity, seed=5, total_batch_size=3, **kwargs):
    return TrainLoader(DATASET, mapper=mapper, total_batch_size=total_batch_size, seed=seed, **kwargs)


def take(batches, n):
    return list(itertools.islice(iter(batches), n))


@pytest.mark.parametrize("grouping", [True, False])
def test_the_images_of_each_batch_are_detectron2s(grouping):
    sampler = TrainingSampler(len(DATASET), seed=5)
    stock = build_detection_train_loader(
        DATASET, mapper=identity, sampler=sampler, total_batch_size=3, aspect_ratio_grouping=grouping
    )
    assert take(loader(aspect_ratio_grouping=grouping), 20) == take(stock, 20)


@pytest.mark.parametrize("name", ["InstanceAwareRepeatFactorSampler", "MultiDatasetSampler"])
def test_samplers_of_ours_go_on_where_they_stopped(cfg, name):
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.SEED = name, 4
    whole = take(TrainLoader(cfg, mapper=with_random_numbers), 9)
    first, rest = TrainLoader(cfg, mapper=with_random_numbers), TrainLoader(cfg, mapper=with_random_numbers)
    assert take(first, 4) == whole[:4]
    rest.load_state_dict(first.state_dict())
    assert take(rest, 5) == whole[4:]


class CannotBeSent:
    def __init__(self, image):
        pass

    def __reduce__(self):
        raise OSError(28, "No space left on device")


def test_a_full_shared_memory_is_a_line_and_no_wait_for_ever(capfd):
    """What torch meets there, in the thread that sends a batch from the worker."""
    with pytest.raises(RuntimeError, match="DataLoader worker .* exited unexpectedly"):
        next(iter(loader(CannotBeSent, num_workers=1)))
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("data worker")]
    assert "No space left on device" in line and "/dev/shm" in line and "NUM_WORKERS" in line


@pytest.mark.parametrize("stock_seed", [0, 5, 77])
def test_the_order_is_that_of_the_seed_whatever_detectron2_does_with_it(monkeypatch, stock_seed):
    """Upstream gives cfg.SEED to its TrainingSampler since 2024-05; the wheel none."""
    cfg = load_config("", ["SEED", 3])
    order = list(itertools.islice(sampler_from_config(cfg, DATASET, 5), 30))
    monkeypatch.setattr("detectron2.data.build.TrainingSampler", lambda size: TrainingSampler(size, seed=stock_seed))
    assert list(itertools.islice(sampler_from_config(cfg, DATASET, 5), 30)) == order
    assert list(itertools.islice(sampler_of_configs(DATASET, 5), 30)) == order  # of a LazyConfig
    with seeded(5):
        assert order == list(itertools.islice(TrainingSampler(len(DATASET)), 30))  # as it was with the wheel


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_where_it_stopped_with_any_number_of_workers(grouping, workers):
    whole = take(loader(with_random_numbers, aspect_ratio_grouping=grouping), 12)
    first = loader(with_random_numbers, aspect_ratio_grouping=grouping, num_workers=workers)
    assert take(first, 5) == whole[:5]
    rest = loader(with_random_numbers, aspect_ratio_grouping=grouping, num_workers=2 - workers)
    rest.load_state_dict(first.state_dict())
    assert take(rest, 7) == whole[5:]
    drawn = [x for batch in whole for image in batch for x in (*image["drawn"][:2], *image["drawn"][2])]
    assert len(set(drawn)) == len(drawn)  # an image that comes again is augmented anew


def test_reading_leaves_the_global_generators_alone():
    def state():
        return str(random.getstate()), str(np.random.get_state()), torch.get_rng_state().tolist()

    before = state()
    take(loader(with_random_numbers), 2)
    assert state() == before


def test_seeded_depends_on_all_of_the_key():
    def draw(*key):
        with seeded(*key):
            return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw(1, 2) == draw(1, 2)
    values = [draw(*key) for key in ((1, 2), (2, 1), (1, 3), (1,), (0, 1, 2))]
    assert len(set(itertools.chain(*values))) == 15


def reject_even(image):
    np.random.rand()
    return None if image["image_id"] % 2 == 0 else image


def test_rejected_images_are_replaced_in_the_same_way_and_counted(caplog):
    whole = loader(reject_even)
    batches = take(whole, 8)
    assert all(image["image_id"] % 2 for batch in batches for image in batch)
    assert [len(batch) for batch in batches] == [3] * 8
    rest = loader(reject_even, num_workers=1)
    rest.load_state_dict({**whole.state_dict(), "batches": 3, "rejected_images": 0})
    assert take(rest, 5) == batches[3:]
    assert 0 < rest.rejected_images < whole.rejected_images
    assert f"{whole.rejected_images} so far" in caplog.text


def reject_all(image):
    return None


def test_a_mapper_that_rejects_everything_is_an_error():
    with pytest.raises(ValueError, match="rejected 100 images in a row"):
        take(loader(reject_all), 1)


def test_a_drawn_seed_is_saved_and_used_again():
    first, second = loader(seed=None), loader(seed=None)
    second.load_state_dict(first.state_dict())
    assert second.seed == first.seed and take(second, 6) == take(first, 6)


def test_another_batch_size_goes_on_after_as_many_images_and_warns(caplog):
    first = loader(total_batch_size=2)
    take(first, 9)
    other = loader(total_batch_size=3)
    other.load_state_dict(first.state_dict())
    assert other.batches == 6
    assert "images_per_process 2 -> 3" in caplog.text and "no longer equals" in caplog.text
    assert take(other, 1) == take(loader(total_batch_size=3), 7)[6:]


def test_state_is_plain(tmp_path):
    batches = loader()
    take(batches, 2)
    torch.save(batches.state_dict(), tmp_path / "state.pth")
    assert torch.load(tmp_path / "state.pth", weights_only=True) == batches.state_dict()
    assert batches.state_dict()["batches"] == 2


@pytest.fixture
def cfg(tiny_cfg):
    DatasetCatalog.register("eql_d2_test_loader", lambda: DATASET)
    yield tiny_cfg(
        "DATASETS.TRAIN", ("eql_d2_test_loader",), "DATALOADER.REPEAT_THRESHOLD", 0.9, "SOLVER.IMS_PER_BATCH", 2
    )
    DatasetCatalog.remove("eql_d2_test_loader")


@pytest.mark.parametrize(
    "name",
    [
        "TrainingSampler",
        "RepeatFactorTrainingSampler",
        "RandomSubsetTrainingSampler",
        "WeightedTrainingSampler",
        "WeightedCategoryTrainingSampler",
        "InstanceAwareRepeatFactorSampler",
        "ExponentialRepeatFactorSampler",
        "MultiDatasetSampler",
    ],
)
def test_every_sampler_is_a_stream_of_the_seed(cfg, name):
    cfg.DATALOADER.SAMPLER_TRAIN = name
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.6
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = [["eql_d2_test_loader", 1.5]]  # a key that Detectron2 reads but does not have

    def indices(seed, n=40):
        np.random.seed(None)  # not what was drawn before
        cfg.SEED = seed
        return take(TrainLoader(cfg, mapper=identity).sampler, n)

    assert indices(3) == indices(3) != indices(4)
    cfg.SEED = -1
    assert TrainLoader(cfg, mapper=identity).seed != TrainLoader(cfg, mapper=identity).seed


def test_a_sampler_of_ones_own(cfg):
    def subset(dataset, seed):
        return RandomSubsetTrainingSampler(len(dataset), 0.5, seed_shuffle=seed, seed_subset=seed)

    TRAIN_SAMPLER_REGISTRY._do_register("OurSubset", subset)
    cfg.DATALOADER.SAMPLER_TRAIN = "OurSubset"
    batches = TrainLoader(cfg, mapper=identity)
    assert isinstance(batches.sampler, RandomSubsetTrainingSampler)
    assert len({image["image_id"] for batch in take(batches, 30) for image in batch}) <= 5


def test_class_aware_sampling(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN = "ClassAwareSampler"
    batches = TrainLoader(cfg, mapper=identity)
    assert isinstance(batches.sampler, ClassAwareSampler)
    assert take(batches.sampler, 50) == take(ClassAwareSampler(batches.dataset, batches.seed), 50)


def test_bad_input(cfg, monkeypatch):
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 0"):
        loader(total_batch_size=0)
    without_size = [{"image_id": 1}]
    with pytest.raises(ValueError, match="no 'width'.*ASPECT_RATIO_GROUPING"):
        TrainLoader(without_size, mapper=identity, total_batch_size=1, seed=0)
    with pytest.raises(ValueError, match="at least one image"):
        TrainLoader([], mapper=identity, total_batch_size=1, seed=0)


def with_pid(image):
    assert get_worker_info() is not None
    return os.getpid()


def test_the_death_of_a_worker_shows_at_the_next_batch_alone(tmp_path):
    """Not in the middle of whatever this process computes."""
    parent, received = os.getpid(), tmp_path / "received"

    def die_at_the_third(dataset_dict):
        if dataset_dict["image_id"] == 0:
            (tmp_path / "pid").write_text(str(os.getpid()))
        if dataset_dict["image_id"] == 2:
            assert os.getpid() != parent
            while not received.exists():  # or the second image might still be on its way, and die with the worker
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return dataset_dict

    dataset = [{"image_id": i, "height": 1, "width": 1} for i in range(3)]
    in_order = lambda dataset, seed: itertools.cycle(range(3))
    batches = iter(
        TrainLoader(dataset, mapper=die_at_the_third, make_sampler=in_order, total_batch_size=1, num_workers=1)
    )
    assert [next(batches)[0]["image_id"] for _ in range(2)] == [0, 1]
    received.touch()
    worker = int((tmp_path / "pid").read_text())
    assert os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT).si_status == signal.SIGKILL  # it has died
    assert sum(range(10**5)) == 4999950000
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        next(batches)


def test_workers_outlive_signals_to_all_processes():
    """As of Ctrl-C, or of a batch system; they end when the loader does."""
    batches = iter(loader(with_pid, num_workers=2))
    workers = {pid for _ in range(4) for pid in next(batches)}
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, signal.SIGINT)
    # SIGTERM of a process that is not the parent
    for pid in workers:
        assert os.spawnlp(os.P_WAIT, "kill", "kill", "-TERM", str(pid)) == 0
    logging.info("signalled %s", workers)
    assert {pid for _ in range(6) for pid in next(batches)} == workers
    batches.close()
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_detectron2s_sampler_argument_is_taken_and_gets_the_loaders_seed():
    sampler = RandomSubsetTrainingSampler(len(DATASET), 0.5, seed_shuffle=9, seed_subset=1)

    def loader(seed):
        return TrainLoader(DATASET, mapper=identity, sampler=sampler, total_batch_size=1, seed=seed)

    assert take(loader(4).sampler, 30) == take(loader(4).sampler, 30) != take(loader(5).sampler, 30)
    assert set(take(loader(4).sampler, 30)) == set(take(sampler, 30))  # its subset stays
    first = loader(4)
    second = loader(5)
    second.load_state_dict(first.state_dict())
    assert take(second.sampler, 30) == take(first.sampler, 30)
    with pytest.raises(ValueError, match="a sampler or make_sampler, not both"):
        TrainLoader(DATASET, mapper=identity, sampler=sampler, make_sampler=lambda *_: sampler, total_batch_size=1)


def test_a_sampler_without_a_seed_is_taken_with_a_line(caplog):
    sampler = torch.utils.data.SequentialSampler(DATASET)
    assert TrainLoader(DATASET, mapper=identity, sampler=sampler, total_batch_size=1).sampler is sampler
    assert "SequentialSampler has no seed that could be set" in caplog.text

"""Seconds and memory of calls."""

import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import torch


def alternate(variants: dict, repeats: int) -> dict[str, float]:
    """Median CPU seconds of each variant, {name: call}; the first round warms up and does not count."""
    seconds: dict[str, list] = {name: [] for name in variants}
    for _ in range(1 + repeats):
        for name, call in variants.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def in_own_process(function, *args, **environment: str):
    """What a function returns in a new process, of one thread, whose peak of memory is its own."""
    new = multiprocessing.get_context("spawn")
    with mock.patch.dict(os.environ, environment):
        with ProcessPoolExecutor(1, new, torch.set_num_threads, [1]) as pool:
            return pool.submit(function, *args).result()


def resident_peak() -> float:
    """MiB; ru_maxrss would not do, since a process starts with that of its parent. (Linux only.)"""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM:")) / 1024


def peak_of(call) -> float:
    """MiB by which a second call raises this process' peak. (Linux only.)"""
    call()
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # resets the peak to what is resident now
    before = resident_peak()
    call()
    return resident_peak() - before

"""What a run says of its machine when it starts."""

import os

import pytest
import torch

from eql_d2.engine.setup import describe_threads


@pytest.mark.parametrize("threads, load, advised", [(2, 0.1, False), (2, 1.9, True), (1, 9.0, False), (4, 0.4, False)])
def test_one_thread_is_advised_where_the_cores_have_other_work(threads, load, advised, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "cpu_count", lambda: max(2, threads))
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setenv("GOMP_SPINCOUNT", "30000")
    words = describe_threads()
    assert words.startswith(f"CPU threads: {threads} (OMP_NUM_THREADS), GOMP_SPINCOUNT 30000")
    assert ("OMP_NUM_THREADS=1" in words) == advised

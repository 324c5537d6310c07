"""Ranks as real processes over gloo."""

from __future__ import annotations

import datetime
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

ON_RANKS = [
    pytest.mark.skipif(not dist.is_available(), reason="needs distributed"),
    pytest.mark.slow,
]
"""The marks of tests that start processes."""


def on_two_ranks(work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(rank, *arguments)` returns in each of two processes."""
    return on_ranks(2, work, *arguments)


def on_ranks(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(rank, *arguments)` returns in each of `count` processes.

    A process imports `work` by its name, so it is a function of a module that is no test; what it
    is given and what it returns is pickled. All are copies of one that has imported torch and did
    nothing else, which takes a tenth of the time of a fresh one.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.fsdp", "gradscale"])
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        processes = [
            context.Process(
                target=_enter,
                args=((rank, count), store, dict(os.environ), work, arguments, queue),
            )
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        results = dict(queue.get(timeout=120) for _ in processes)
        for process in processes:
            process.join()
    failed = [error for _, error in results.values() if error]
    assert not failed, "\n".join(failed)
    return [results[rank][0] for rank in range(count)]


def _enter(
    place: tuple[int, int],
    store: str,
    environment: dict[str, str],
    work: Callable[..., Any],
    arguments: Any,
    queue: Any,
) -> None:
    rank, count = place
    # That of the process it is a copy of is the one with which the first test began.
    os.environ.update(environment)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    short = datetime.timedelta(seconds=60)  # a rank that waits for another one must not wait long
    try:
        dist.init_process_group(
            "gloo", f"file://{store}", rank=rank, world_size=count, timeout=short
        )
        queue.put((rank, (work(rank, *arguments), "")))
        dist.destroy_process_group()
    except BaseException:
        queue.put((rank, (None, traceback.format_exc())))

"""Copies that nobody waits for: on the CPU, on any accelerator, and of what has no value."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from gradscale.capturing import capturing
from gradscale.host_copies import HostCopies

HERE = Path(__file__).parent


def test_on_the_cpu_nothing_is_copied() -> None:
    tensor = torch.ones(3)
    copies = HostCopies([tensor, None])
    assert copies.arrived
    there, nothing = copies.tensors
    assert there is not None and there.data_ptr() == tensor.data_ptr() and nothing is None


def test_a_copy_does_not_keep_the_graph() -> None:
    (copy,) = HostCopies([torch.ones(1, requires_grad=True) * 2]).tensors
    assert copy.grad_fn is None and not copy.requires_grad


@pytest.mark.parametrize("situation", ["with_events", "without_events"])
def test_an_accelerator_that_is_none_of_torchs_own_is_asked_and_not_waited_for(
    situation: str,
) -> None:
    run = [sys.executable, "-W", "ignore", HERE / "late_accelerator.py", situation]
    result = subprocess.run(run, capture_output=True, text=True, timeout=240, check=False)
    assert result.stdout.strip() == "done", result.stderr[-3000:]


def test_a_tensor_without_a_value_never_arrives() -> None:
    with FakeTensorMode():
        copies = HostCopies([torch.ones(3, device="cuda")])
        assert not copies.arrived
        copies.wait()
        with pytest.raises(DataDependentOutputException):
            copies.tensors[0].sum().item()
    assert not HostCopies([torch.ones(3, device="meta")]).arrived


@pytest.mark.cuda
def test_cuda_is_not_waited_for() -> None:
    flags = torch.arange(3, device="cuda")
    HostCopies([flags]).wait()  # pinned memory is made the first time
    torch.cuda._sleep(100_000_000)
    copies = HostCopies([flags + 1, flags[:1]])
    assert not copies.arrived
    copies.wait()
    assert copies.arrived and copies.tensors[0].tolist() == [1, 2, 3]
    assert all(tensor.is_pinned() for tensor in copies.tensors)


@pytest.mark.cuda
def test_while_a_graph_is_captured_nothing_has_arrived_and_no_event_is_asked() -> None:
    copies = HostCopies([torch.ones(1, device="cuda")])
    graph, number = torch.cuda.CUDAGraph(), torch.ones(1, device="cuda")
    with torch.cuda.graph(graph):
        assert capturing() and not copies.arrived
        number.add_(1)
    copies.wait()
    assert copies.arrived

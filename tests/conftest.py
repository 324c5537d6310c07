"""What every test starts from: a seed, one thread, and the devices that are there."""

import os
import weakref

import pytest
import torch

from gradscale.emulation import over_time

torch.set_num_threads(1)
# GNU readline, which pytest loads, leaves the width of no terminal to the workers of xdist.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords and item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def waiting_is_allowed():
    """After a test that forbade host reads and failed."""
    yield
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(autouse=True)
def fake_tensors_are_on_no_device(monkeypatch):
    """What is claimed of a device that is not there is claimed where there is one, too.

    Its events would have nothing to wait for, and the copies that they announce hold no number.
    """

    def faking():
        return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None

    for module in (torch.cuda, torch.accelerator):
        if module.is_available():
            monkeypatch.setattr(module, "is_available", lambda: not faking())


@pytest.fixture(autouse=True)
def no_scaler_of_another_test_splits_recurrences(monkeypatch):
    """A layer-wise scaler that nobody has collected yet would change how they are emulated."""
    monkeypatch.setattr(over_time, "_WISHES", weakref.WeakSet())


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param

"""The Triton kernels without a GPU: compiled for several, and left alone where they cannot run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gradscale import triton_kernels
from gradscale.half.widen import widen

HERE = Path(__file__).parent
HAS_TRITON = importlib.util.find_spec("triton") is not None


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize(
    "capability",
    [pytest.param(70, marks=pytest.mark.slow), pytest.param(80, marks=pytest.mark.slow), 90],
)
def test_every_kernel_compiles_without_a_gpu(capability: int, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", HERE / "compiled_kernels.py", str(capability)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    kernels = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(kernels) == 7 and all(kernel["bytes"] for kernel in kernels)
    for kernel in kernels:
        name, operations = kernel["name"], kernel["operations"]
        # A small gradient must survive its division: no instruction flushes subnormal numbers.
        assert not any("ftz" in operation for operation in operations), name
        if "aligned=False" not in name and "i64" not in name:
            assert "ld.global.v4.b32" in operations, f"{name} does not read 16 bytes at a time"
        if "aligned=True" in name:
            assert "st.global.v4.b32" in operations, f"{name} does not write 16 bytes at a time"


def test_no_kernel_is_handed_memory_that_is_not_there() -> None:
    assert not triton_kernels.can_read(torch.ones(3))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.ones(3, dtype=torch.float16, device="cuda")
        assert not triton_kernels.can_read(fake)
        flag = torch.zeros((), device="cuda")
        widen([(fake, 1)], torch.ones((), device="cuda"), flag, lambda place, grad: None)


@pytest.fixture
def fresh_answers():
    triton_kernels._runs_on.cache_clear()
    yield
    triton_kernels._runs_on.cache_clear()


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_a_triton_that_cannot_start_is_said_once_and_done_without(monkeypatch, fresh_answers):
    from triton.runtime import driver

    class Broken:
        def get_current_target(self):
            raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(driver, "_active", Broken())
    with pytest.warns(UserWarning, match="cannot start .Failed to find C compiler.*Plain torch"):
        assert not triton_kernels._runs_on(0)
    assert not triton_kernels._runs_on(0)


def test_an_old_gpu_gets_plain_torch(monkeypatch, fresh_answers) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, 1))
    assert not triton_kernels._runs_on(0)


@pytest.mark.cuda
@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_on_a_gpu_the_kernels_are_used() -> None:
    assert triton_kernels.can_read(torch.ones(3, device="cuda"))

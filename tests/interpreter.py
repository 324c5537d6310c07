"""Triton kernels on the host: Triton's interpreter, in a process of its own."""

import importlib.util
import os
import subprocess
import sys

import pytest

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def assert_equal_in_interpreter(program: str) -> None:
    """`program` prints "equal" at its end, and nothing else."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.stdout.strip() == "equal", result.stderr[-3000:]

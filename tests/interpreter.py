"""Triton kernels on the host: Triton's interpreter, in a process of its own."""

import importlib.util
import os
import subprocess
import sys

import pytest

# Triton 3.6's interpreter takes the loop bounds of a kernel for numbers, which numpy 2.4 refuses.
_OUTDATED = "only 0-dimensional arrays can be converted to Python scalars"

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
    if _OUTDATED in result.stderr:
        pytest.skip("this Triton's interpreter does not work with this numpy")
    assert result.stdout.strip() == "equal", result.stderr[-3000:]

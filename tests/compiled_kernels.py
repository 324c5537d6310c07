"""Compiles the Triton kernels for GPUs that need not be here, and says what became of them.

A program of its own, because a process has either Triton's interpreter or its compiler:

    python tests/compiled_kernels.py 70 90

It prints a line of JSON per kernel: name, capability, and how often each memory operation occurs.
"""

import json
import re
import sys
from collections import Counter

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gradscale.backward.measure_kernel import _BLOCK as COUNT_BLOCK
from gradscale.backward.measure_kernel import count_kernel
from gradscale.half.widen_kernel import _BLOCK as WIDEN_BLOCK
from gradscale.half.widen_kernel import widen_kernel

DIVISIBLE = [["tt.divisibility", 16]]


def variants():
    """Name, kernel, types of what it is passed (a value itself if it is a constant)."""
    for half, aligned, factor, later, flag in (
        (True, True, "*fp32", None, "*fp32"),
        (True, False, "*fp32", None, "*fp32"),
        (False, True, "*fp32", "*fp32", "*fp32"),
        (False, True, None, None, None),
    ):
        yield (
            f"widen half={half} aligned={aligned} checks={flag is not None}",
            widen_kernel,
            {
                "table": "*i64", "factor": factor, "later": later, "flag": flag,
                "IS_HALF": half, "ALIGNED": aligned, "BLOCK": WIDEN_BLOCK,
            },
        )  # fmt: skip
    # Beyond 2^31 elements their number arrives as 64 bits.
    for dtype, numel, ceil in (
        ("fp16", "i32", False),
        ("bf16", "i32", True),
        ("fp32", "i64", False),
    ):
        yield (
            f"count {dtype} {numel} ceil={ceil}",
            count_kernel,
            {
                "values": f"*{dtype}", "row": "*i64", "numel": numel,
                "BLOCK": COUNT_BLOCK, "CEIL": ceil,
            },
        )  # fmt: skip


def compiled(kernel, arguments, capability):
    types = {n: v if isinstance(v, str) else "constexpr" for n, v in arguments.items()}
    constants = {n: v for n, v in arguments.items() if not isinstance(v, str)}
    # What the launcher would have seen of aligned tensors and of a round number of elements.
    attributes = {(i,): DIVISIBLE for i, v in enumerate(arguments.values()) if _divisible(v)}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def _divisible(argument):
    return isinstance(argument, str) and ("*" in argument or argument == "i32")


def operations(ptx):
    found = re.findall(r"\b((?:ld|st|atom|red)\.(?:\w+\.)*\w+|mul\.\S+)", ptx)
    return dict(Counter(found))


if __name__ == "__main__":
    for capability in map(int, sys.argv[1:]):
        for name, kernel, arguments in variants():
            binary = compiled(kernel, arguments, capability)
            print(
                json.dumps(
                    {
                        "name": name,
                        "capability": capability,
                        "bytes": len(binary.asm["cubin"]),
                        "shared": binary.metadata.shared,
                        "operations": operations(binary.asm["ptx"]),
                    }
                )
            )

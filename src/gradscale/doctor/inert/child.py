"""The process that reads a stranger's file from its standard input and writes it flat, or why not.

What it does is bounded by limits that it sets on itself before it looks at the file: a file may
share tuples until hashing one takes a year, choose keys that collide, or unpack to more than there
is memory. Where the system has no such limits, a pickle's instructions are counted first.
"""

from __future__ import annotations

import json
import pickletools
import sys
from typing import IO

from gradscale.doctor.inert.containers import read_container
from gradscale.doctor.inert.flat import TooMuch, flatten

try:
    import resource
except ImportError:  # Windows
    resource = None

MOST_INSTRUCTIONS = 2_000_000
"""Of a pickle, on a system that cannot bound memory: each leaves at most some 100 bytes there."""


def answer_standard_input() -> None:
    """Reads standard input within ``megabytes`` and ``seconds``; the size of it comes third."""
    megabytes, seconds, size = (int(argument) for argument in sys.argv[1:4])
    # Before the file is looked at: what a limit is for may happen at its first byte.
    bounded = _limit(megabytes, seconds)
    answer = answer_to(sys.stdin.buffer, megabytes, bounded=bounded, readable=size)
    sys.stdout.write(answer)


def answer_to(file: IO[bytes], megabytes: int, *, bounded: bool, readable: int = 0) -> str:
    """The file as flat JSON, or a JSON text that says why not.

    Args:
        file: at its beginning.
        megabytes: that may be used, for the words.
        bounded: whether the system sees to it.
        readable: bytes of tensors that may be looked through: an archive may unpack to more.
    """
    try:
        tree = read_container(file, _nothing if bounded else count_instructions)
        return flatten(tree, readable)
    except MemoryError:
        refusal = f"reading it takes more than {megabytes} MB of memory"
    except TooMuch:
        refusal = "it holds more values than any checkpoint"
    except Exception as error:  # whatever a broken pickle makes of Python's unpickler
        known = type(error) is ValueError and str(error).startswith("it")
        said = str(error) or type(error).__name__
        refusal = said if known else f"it is no pickle that Python could have written: {said}"
    return json.dumps(refusal)


def _limit(megabytes: int, seconds: int) -> bool:
    """Bounds this process; whether the system does that."""
    if resource is None:
        return False
    wanted = {
        resource.RLIMIT_CORE: 0,  # a file that ends the process leaves nothing on the disk
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: megabytes * 2**20,
    }
    try:
        for which, most in wanted.items():
            hard = resource.getrlimit(which)[1]
            lower = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(which, (lower, hard))
    except (OSError, ValueError):  # macOS has the name, and refuses the limit
        return False
    return True


def _nothing(file: IO[bytes]) -> None:
    pass


def count_instructions(file: IO[bytes]) -> None:
    """Refuses a pickle with too many instructions, or with a memo that would not fit.

    Raises:
        ValueError: if it is one of these; the file is left at its end otherwise.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        # The unpickler's memo is an array: an index of two billion takes 32 GB.
        far = "PUT" in opcode.name and isinstance(argument, int) and argument > MOST_INSTRUCTIONS
        if count > MOST_INSTRUCTIONS or far:
            raise ValueError(f"it is a pickle of more than {MOST_INSTRUCTIONS:,} instructions")

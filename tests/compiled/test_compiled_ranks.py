"""Compiled graphs under DDP and FSDP2: the plan is inside, and all ranks have the same bits."""

from __future__ import annotations

import pytest

from compiled_worker import (
    Build,
    compiled_ddp,
    ddp_of_compiled,
    eager_ddp,
    eager_fsdp2,
    fsdp2_of_compiled_blocks,
    train,
)
from processes import ON_RANKS, on_two_ranks

pytestmark = ON_RANKS


@pytest.mark.parametrize(
    ("build", "plain"),
    [
        (compiled_ddp, eager_ddp),
        (ddp_of_compiled, eager_ddp),
        (fsdp2_of_compiled_blocks, eager_fsdp2),
    ],
)
def test_random_plans_inside_train_to_the_bits_of_the_eager_run(build: Build, plain: Build) -> None:
    expected = [parameters for parameters, _, _ in on_two_ranks(train, plain)]
    found = on_two_ranks(train, build)
    for (parameters, inner, closed), bits in zip(found, expected, strict=True):
        assert parameters == bits
        assert inner > 8
        assert not closed

"""Gradients that ranks send each other in a narrow format: real processes, gloo."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from compress_worker import all_overflows, all_reduced
from gradscale.communication import CompressGradients
from processes import ON_RANKS, on_two_ranks

# Of one rounding before the sum and one after it, relative to the largest of a gradient.
ROUNDING = {"float16": 2**-10, "bfloat16": 2**-7, "float8_e5m2": 2**-2, "float8_e4m3fn": 2**-3}
TORCHS = "fp16_compress_hook"


@functools.cache
def results():
    return on_two_ranks(all_reduced, [None, *ROUNDING, TORCHS])


def close(one, other, share):
    return all(
        math.isclose(a, b, rel_tol=0, abs_tol=share * max(map(abs, theirs)))
        for mine, theirs in zip(one, other, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )


class TestOnRanks:
    pytestmark = ON_RANKS

    @pytest.mark.parametrize("log2_scale", [0, 39])
    @pytest.mark.parametrize("dtype", ROUNDING)
    def test_no_gradient_is_lost_wherever_its_scale_is(self, dtype, log2_scale):
        first, second = (rank[dtype, log2_scale, False] for rank in results())
        assert first == second
        assert close(first, results()[0][None, 0, False], ROUNDING[dtype])

    def test_torchs_hook_loses_gradients_at_a_low_scale_and_overflows_at_a_high_one(self):
        low, high = (results()[0][TORCHS, log2_scale, False] for log2_scale in (0, 39))
        assert not any(low[2]) and any(results()[0][None, 0, False][2])
        assert not all(map(math.isfinite, high[0]))

    @pytest.mark.parametrize("dtype", ROUNDING)
    def test_a_gradient_that_is_infinite_on_one_rank_is_not_finite_on_all(self, dtype):
        for rank in results():
            gradients = rank[dtype, 0, True]
            assert not any(map(math.isfinite, gradients[1]))
            assert all(map(math.isfinite, gradients[0]))

    def test_a_plan_that_lifts_the_scale_overflows_in_torchs_hook_and_not_in_ours(self):
        first, second = on_two_ranks(all_overflows, [TORCHS, "float16"])
        assert first[TORCHS][0] > 0
        assert first["float16"][0] == 0
        assert first["float16"] == second["float16"]


def test_another_format_is_refused():
    with pytest.raises(ValueError, match=r"CompressGradients\(torch.float32\).*torch.float16"):
        CompressGradients(torch.float32)

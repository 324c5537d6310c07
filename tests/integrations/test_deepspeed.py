"""DeepSpeed's engine, ZeRO 0 to 3, torch-autocast and fp16 mode: real engines on two ranks."""

from __future__ import annotations

import pytest
import torch

from deepspeed_worker import Case, refusals, run
from hosts import host
from processes import on_two_ranks

host("deepspeed")

OURS = [
    Case("autocast", 0),
    Case("autocast", 1, layerwise=True),
    Case("autocast", 3),
    Case("fp16", 1),
    Case("fp16", 3),
]


# One test a case, because an engine takes seconds to begin and xdist would begin it for each test.
@pytest.mark.parametrize("case", OURS, ids=str)
def test_bad_data_costs_one_step_norms_are_true_and_a_checkpoint_resumes_bit_for_bit(case):
    for rank in on_two_ranks(run, case):
        assert rank["counters"].reasons == {"nonfinite_loss": 1}
        assert rank["counters"].steps == 6 and rank["skipped"] == 1
        assert rank["rate"] == 1e-2 * 0.5**5  # the schedule waited for the step that was skipped
        assert rank["finite"]
        if case.stage:  # without ZeRO the engine tells no norm
            norms = rank["norms"]
            assert norms[3] == torch.inf
            assert all(0.01 < norm < 10 for n, norm in enumerate(norms) if n != 3)
        again = rank["resumed"]
        assert again["counters"] == rank["counters"] and again["scale"] == rank["scale"]
        assert again["same"]
        # A plan forms, and chooses a scale; without one, bad data has left it where it was.
        assert rank["groups"] > 1 if case.layerwise else rank["scale"] == 65536.0
        assert ("layer-wise" in rank["said"]) is case.layerwise and "detached" in rank["detached"]


def test_an_overflow_lowers_the_scale_where_torchs_never_would():
    for rank in on_two_ranks(run, Case("autocast", 2, overflow=True)):
        assert rank["counters"].reasons == {"overflow": 1} and rank["scale"] == 32768.0


def test_with_torchs_scaler_the_norm_is_that_of_scaled_gradients():
    assert on_two_ranks(run, Case("autocast", 2, ours=False))[0]["norms"][0] > 1000


def test_engines_that_cannot_have_one_are_refused_with_the_way_out():
    without_zero, float32, needs, planned = on_two_ranks(refusals)[0]
    assert "variable of their own" in without_zero and "'stage': 1" in without_zero
    assert "does not train in float16" in float32 and "torch_autocast" in float32
    assert "needs amax" in needs and "DeepSpeed tells only" in needs
    assert "ZeRO 3" in planned and "inside the backward pass" in planned

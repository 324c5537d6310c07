"""A pipeline: stages without a loss share scale and fate with the one that has it."""

from __future__ import annotations

import functools

import pytest
import torch

import gradscale
from pipeline_worker import BAD, OPTIMIZERS, OVERFLOW, STEPS, every_kind, whole
from processes import ON_RANKS, on_two_ranks

KINDS = [{}, {"sync_free": True}, {"layerwise": True}]


@functools.cache
def results():
    return on_two_ranks(every_kind)


class TestOnRanks:
    pytestmark = ON_RANKS

    @pytest.mark.parametrize("clip", [None, 1.0])
    @pytest.mark.parametrize("kind", KINDS, ids=str)
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_all_stages_skip_alike_and_are_at_one_scale(self, optimizer, kind, clip):
        first, last = (rank[repr((optimizer, kind, clip))][0] for rank in results())
        assert [it[0] for it in first] == [step in (OVERFLOW, BAD) for step in range(STEPS)]
        assert [it[0] for it in last] == [it[0] for it in first]
        assert [it[2] for it in last] == [it[2] for it in first]

    @pytest.mark.parametrize("kind", KINDS, ids=str)
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_bad_data_of_the_last_stage_lowers_no_scale_and_the_first_knows_why(
        self, optimizer, kind
    ):
        for rank in results():
            seen = rank[repr((optimizer, kind, None))][0]
            assert seen[BAD][1] == "nonfinite_loss"
            assert seen[BAD][2] == seen[BAD - 1][2]

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_it_trains_as_one_process_does_without_the_lost_steps(self, optimizer):
        weights = results()[0][repr((optimizer, {}, None))][1]
        for mine, theirs in zip(weights, whole(optimizer), strict=True):
            torch.testing.assert_close(torch.tensor(mine), theirs.flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("call", ["step", "unscale_", "update"])
@pytest.mark.parametrize("kind", [gradscale.GradScaler, torch.amp.GradScaler])
def test_without_ranks_a_call_before_any_loss_is_refused_as_torch_does(kind, call):
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    ours = kind is gradscale.GradScaler
    words = rf"^`{call}` was called before any loss.*`scaler.scale\(loss\).backward\(\)`"
    with pytest.raises(AssertionError, match=words if ours else "_scale is None"):
        getattr(kind("cpu"), call)(*[optimizer] * (call != "update"))

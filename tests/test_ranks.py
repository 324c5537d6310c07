"""Ranks decide alike: real processes, gloo."""

import pytest
import torch

from gradscale.ranks import differing_ranks, groups_of
from processes import on_two_ranks
from ranks_worker import (
    OPTIMIZERS,
    data_parallel,
    divergence,
    divergence_within_a_mesh,
    inf_on_rank_one,
    quotient,
    reasons,
    sharded_module,
    sharded_parameters,
)

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs distributed")


@pytest.mark.slow
@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_ranks_skip_if_one_overflows(name, unscale_first):
    assert on_two_ranks(inf_on_rank_one, "ours", name, unscale_first) == [(False, 4.0)] * 2


@pytest.mark.slow
def test_torchs_sharded_scaler_with_a_fused_optimizer_does_not():
    outcomes = on_two_ranks(inf_on_rank_one, "sharded", "adamw-fused", False)
    assert outcomes == [(True, 8.0), (False, 4.0)]


@pytest.mark.slow
def test_torchs_plain_scaler_does_not():
    assert on_two_ranks(inf_on_rank_one, "torch", "sgd", False) == [(True, 8.0), (False, 4.0)]


@pytest.mark.slow
def test_one_bad_loss_is_bad_data_on_all_ranks():
    assert on_two_ranks(reasons, "ours", True) == [(True, "nonfinite_loss", 8.0)] * 2


@pytest.mark.slow
def test_without_a_group_bad_data_lowers_the_scale_alike():
    outcomes = on_two_ranks(reasons, "alone", True)
    assert [scale for _, _, scale in outcomes] == [4.0, 4.0]


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_quotient_that_overflows_on_one_rank_stops_all(name):
    assert on_two_ranks(quotient, name) == [(False, 2.0**-126)] * 2


@pytest.mark.parametrize("name", ["adamw-fused"])
def test_data_parallel_ranks_stay_alike(name):
    first, second = on_two_ranks(data_parallel, name)
    assert first == second
    assert first[2] == {"nonfinite_loss": 1}


@pytest.mark.slow
def test_ranks_that_diverged_are_reported():
    for report, scale in zip(on_two_ranks(divergence), (8, 2), strict=True):
        assert "ranks [1] differ from rank 0" in report[0] and f"scale {scale}" in report[0]


@pytest.mark.slow
def test_ranks_of_a_mesh_that_diverged_are_reported():
    for (report,) in on_two_ranks(divergence_within_a_mesh):
        assert "ranks [1] differ from rank 0" in report


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sharded_parameters_need_no_group(name):
    assert on_two_ranks(sharded_parameters, name) == [([True, False], 4.0, "overflow")] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_fully_sharded_module_trains_as_without_a_scaler(name):
    for plain, scaled in on_two_ranks(sharded_module, name):
        assert plain == scaled


def test_one_process_needs_no_group():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    assert groups_of(optimizer, None) == [] and differing_ranks(torch.ones(1)) == []

"""Half-precision models on several ranks: real processes, gloo."""

import pytest
import torch

from half_worker import (
    alone,
    data_parallel,
    divided_among_ranks,
    fully_sharded,
    planned,
    seeds,
    sharded_wrongly,
    wide_gradients,
    wrapped_before,
    wrapped_inside_before,
)
from processes import ON_RANKS, on_two_ranks

pytestmark = ON_RANKS


@pytest.mark.parametrize("views", [False, True], ids=["buckets", "views"])
@pytest.mark.parametrize("name", ["SGD", "fused"])
def test_ddp_equals_the_average_of_both_ranks_half_gradients(name, views):
    first, second = on_two_ranks(data_parallel, name, views, False, "float16")
    assert first == second
    assert first[2] == [False, False, True, False]
    assert first[:2] == alone(name, "float16", inf_at=2)


@pytest.mark.parametrize("format", ["float16", "bfloat16"])
def test_ranks_that_accumulate_without_sync_stay_alike(format):
    first, second = on_two_ranks(data_parallel, "SGD", True, True, format)
    assert first == second


def test_ranks_with_other_weights_are_refused_until_they_are_sent():
    first, second = on_two_ranks(seeds, False)
    assert "call `half.broadcast()` after wrapping" in second[0]
    assert first == second  # none waits for the other
    first, second = on_two_ranks(seeds, True)
    assert first == second


def test_float32_gradients_and_wrapping_first_are_refused_under_ddp():
    assert "sum micro-batches in float32 with" in on_two_ranks(wide_gradients)[0][0]
    assert "Convert first, then wrap" in on_two_ranks(wrapped_before)[0][0]


@pytest.mark.parametrize("outer", [False, True])
def test_a_model_that_ddp_knows_in_float32_is_refused_at_its_first_pass(outer):
    first, second = on_two_ranks(wrapped_inside_before, outer)
    assert first == second and "Convert first, then wrap" in first[0]


def test_an_optimizer_that_divides_parameters_among_ranks_is_refused():
    assert "FSDP2 shards masters and state" in on_two_ranks(divided_among_ranks)[0][0]


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_fsdp2_trains_exports_and_resumes(name):
    first, second = on_two_ranks(fully_sharded, name)
    assert first == second
    masters, resumed, exported, skipped, dtypes, _ = first
    assert masters == resumed == exported
    assert skipped == [False, True, False, False]
    assert dtypes.count("torch.float16") == 4 and dtypes.count("torch.float32") == 2
    expected = torch.cat([torch.tensor(v).flatten() for v in alone(name, "float16", inf_at=1)[0]])
    ours = torch.cat([torch.tensor(v).flatten() for v in masters])
    # FSDP divides after the sum, where float16 rounds elsewhere; AdamW's first steps are signs.
    assert torch.allclose(ours, expected, atol=2e-3 if name == "SGD" else 2e-2)


def test_mixed_groups_and_sharding_afterwards_are_refused():
    said = on_two_ranks(sharded_wrongly)[0]
    assert "Apply `fully_shard` to each normalisation layer" in said[0]
    assert "MixedPrecisionPolicy(param_dtype=torch.float16" in said[0]
    assert "parameters were replaced after `half_precision" in said[1]


def test_ranks_under_a_plan_hold_leaves_at_the_same_exponents():
    first, second = on_two_ranks(planned)
    assert first == second
    _, leaves, zeros, skipped = first
    assert len(leaves) > 1 and zeros == 0 and not skipped

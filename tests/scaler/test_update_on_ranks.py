"""The weight update on several ranks: real processes, gloo, FSDP2."""

import math

import pytest
import torch

from processes import ON_RANKS, on_two_ranks
from update_worker import (
    closures,
    micro_batches,
    norms_of_orders,
    partial_and_replicated,
    sharded_with,
)

pytestmark = ON_RANKS


def run(name, clip, bad=False, **arguments):
    return on_two_ranks(sharded_with, name, clip, bad, arguments)


def assert_close(left, right):
    for mine, theirs in zip(left, right, strict=True):
        assert mine[1:3] == theirs[1:3]
        for a, b in zip(mine[3], theirs[3], strict=True):
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw", "adamw-fused"])
def test_the_norm_is_that_of_all_shards(name):
    ours, theirs = run(name, "ours"), run(name, "torch")
    assert ours[0] == ours[1]
    assert ours[0][0] == pytest.approx(theirs[0][0], rel=1e-5) and max(ours[0][0]) > 0.1
    assert_close(ours, theirs)


def test_in_the_clip_threshold_too():
    assert_close(run("sgd", "ours", undo="learning_rate"), run("sgd", "torch"))


def test_clipping_shards_by_value():
    assert_close(run("sgd", "value"), run("sgd", "torch-value"))


@pytest.mark.parametrize("name", ["sgd", "adamw-fused"])
def test_an_infinite_element_of_one_shard_skips_the_step_on_all_ranks(name):
    first, second = run(name, "ours", bad=True)
    assert first[1:] == second[1:] and first[1] == [False, False, True, False]
    assert not math.isfinite(first[0][2])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sgd", {"undo": "learning_rate"}),
        ("adamw", {"undo": "moments"}),
        ("adamw", {"sync_free": True}),
    ],
)
def test_sharded_state_follows_the_scale_and_comes_back_after_a_skip(name, arguments):
    assert run(name, "", bad=True, **arguments) == run(name, "", bad=True)


def test_every_order_of_norm():
    for ours, whole in on_two_ranks(norms_of_orders)[0]:
        assert ours == pytest.approx(whole, rel=1e-5)


def test_partial_sums_are_summed_first():
    assert on_two_ranks(partial_and_replicated) == [13.0, 13.0]


def test_all_ranks_drop_the_same_micro_batch():
    assert on_two_ranks(micro_batches) == [([-1.0, -1.0], 1, False, 4.0)] * 2


def test_all_ranks_abandon_a_closure_together():
    assert on_two_ranks(closures) == [([3.0, 3.0], 3, True, 4.0)] * 2

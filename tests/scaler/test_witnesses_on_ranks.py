"""Bad data or scale: all ranks give the same reason and keep the same scale; real processes."""

import math

import pytest

from gradscale.scaler.patience import AFTER
from processes import ON_RANKS, on_two_ranks
from training_loops import START
from witness_worker import (
    bad_data,
    depends_on_the_scale,
    each_by_its_own_loss,
    left_over,
    penalty,
)

pytestmark = [*ON_RANKS, pytest.mark.parametrize("sync_free", [False, True])]


def alike(work, *arguments):
    first, second = on_two_ranks(work, *arguments)
    assert first == second
    return first


def test_each_optimizer_is_judged_by_the_losses_of_all_ranks(sync_free):
    last = alike(each_by_its_own_loss, sync_free)[-1]
    assert last == (2.0, ["nonfinite_loss", "overflow"])


def test_gradients_that_one_rank_never_cleared_are_no_overflow_on_any(sync_free):
    seen = alike(left_over, sync_free)
    assert [reasons for _, reasons in seen[1:]] == [["nonfinite_loss"]] + [
        ["nonfinite_gradient"]
    ] * 3
    assert {scale for scale, _ in seen} == {START}


@pytest.mark.parametrize("inner", [False, True])
def test_bad_data_of_one_rank_leaves_the_scale_of_all_where_it_was(inner, sync_free):
    """Also where only that rank has reason to suspect the scale."""
    seen = alike(bad_data, sync_free, inner, 4 * AFTER)
    assert seen[-1][0] == START and 1.0 in [scale for scale, _ in seen]
    assert seen[-1][1] == ["nonfinite_loss"]


def test_a_loss_that_depends_on_the_scale_on_one_rank_lowers_that_of_all(sync_free):
    seen = alike(depends_on_the_scale, sync_free, 3 * AFTER)
    assert seen[-1] == (2.0**12, [None])
    assert math.isclose(min(scale for scale, _ in seen), 1.0)


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_gradient_penalty_that_overflows_on_one_rank_lowers_the_scale_of_all(
    layerwise, sync_free
):
    seen, _ = alike(penalty, sync_free, layerwise)
    reasons = [reason for _, (reason,) in seen]
    assert set(reasons) == {"overflow", None} and reasons[-1] is None
    assert seen[-1][0] < START

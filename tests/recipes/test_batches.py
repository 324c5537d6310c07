"""Which items make up a step."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from gradscale.recipes.batches import generator, shuffled, windows


@given(count=st.integers(1, 40), size=st.integers(1, 60), seed=st.integers(0, 99))
def test_successive_steps_walk_through_whole_permutations(count, size, seed):
    steps = -(-3 * count // size)
    taken = torch.cat([shuffled(count, seed=seed, step=s, size=size) for s in range(steps)])
    for epoch in range(3):
        part = taken[epoch * count : (epoch + 1) * count]
        assert sorted(part.tolist()) == list(range(count))


@given(length=st.integers(8, 50), step=st.integers(0, 99))
def test_windows_stay_inside_and_are_contiguous(length, step):
    found = windows(length, seed=1, step=step, size=5, width=8)
    assert found.min() >= 0 and found.max() < length
    assert torch.equal(found.diff(dim=1), torch.ones(5, 7, dtype=torch.long))


def test_neighboring_seeds_and_steps_do_not_share_numbers():
    keys = [(seed, step) for seed in range(10) for step in range(10)]
    drawn = {torch.rand(1, generator=generator(*key)).item() for key in keys}
    assert len(drawn) == len(keys)

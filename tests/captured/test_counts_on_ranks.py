"""Counts of a captured pass on several ranks."""

import pytest

from counted_pass_worker import merged
from processes import on_two_ranks


@pytest.mark.slow
def test_counts_with_moments_behind_them_are_merged():
    assert on_two_ranks(merged) == [(True, [[2.0, 2.0], [2.0, 2.0]])] * 2

"""Real processes over gloo: any plan leaves the reduced gradients bit for bit as they were."""

from __future__ import annotations

import pytest

from distributed_bits_worker import MODELS, compare
from processes import ON_RANKS, on_two_ranks

pytestmark = ON_RANKS


@pytest.mark.parametrize("name", list(MODELS))
def test_reduced_gradients_keep_their_bits(name: str) -> None:
    one, other = on_two_ranks(compare, name)
    assert one == other > 0

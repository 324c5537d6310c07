"""References, lost shares and the hunt under DDP and FSDP2, in real processes."""

from __future__ import annotations

import pytest

from processes import on_two_ranks
from truth.on_two_ranks import differences


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_reference_under_a_wrapper_is_the_mean_of_the_ranks_and_leaves_gradients(kind):
    for result in on_two_ranks(differences, kind):
        assert result == {"kept": True, "far": 0.0, "lost": 0.0, "bad": False}

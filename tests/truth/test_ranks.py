"""References, lost shares and the hunt under DDP and FSDP2, in real processes."""

from __future__ import annotations

import pytest

from truth.on_two_ranks import launch


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_reference_under_a_wrapper_is_the_mean_of_the_ranks_and_leaves_gradients(kind, tmp_path):
    for result in launch(kind, str(tmp_path / "rendezvous")):
        assert result == {"kept": True, "far": 0.0, "lost": 0.0, "bad": False}

"""Users' functions under DDP: probed alike on all ranks, and what they add is exact there, too."""

import pytest

from injected_worker import told, with_and_without
from processes import ON_RANKS, on_two_ranks

pytestmark = ON_RANKS


@pytest.mark.parametrize(
    ("family", "plan", "parts", "sums"),
    [
        ("DeepSeek", "one", 1, False),
        ("icefall", "windows", 2, False),
        ("Megatron", "any", 3, False),
        ("DeepSeek", "any", 2, True),
        ("icefall", "one", 2, True),
    ],
)
def test_ranks_train_as_float32_without_a_scaler_does(family, plan, parts, sums):
    first, second = on_two_ranks(with_and_without, family, plan, parts, sums)
    assert first == second
    plain, scaled = first
    assert plain == scaled


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_function_that_adds_is_named_once_on_each_rank_and_known_alike(layerwise):
    first, second = on_two_ranks(told, layerwise)
    assert first == second
    (warning,), _, report = first
    assert "1,024 times too small" in warning
    assert report == ["AddAuxiliaryLoss stays at the loss scale: it returns a gradient of its own"]

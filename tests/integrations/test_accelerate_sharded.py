"""Accelerate with its FSDP plugins: one rank's shard overflows, and all ranks decide alike."""

from __future__ import annotations

import pytest

from accelerate_worker import BAD, Case, run
from hosts import host
from processes import on_two_ranks

host("accelerate")

OURS = [
    Case(1),
    Case(1, layerwise=True, optimizer="adamw-fused", attach="after"),
    Case(2),
    Case(2, layerwise=True, optimizer="adamw-fused", attach="after"),
]


@pytest.mark.parametrize("case", OURS, ids=str)
def test_an_infinity_in_one_shard_is_skipped_by_all_and_a_state_resumes_bit_for_bit(case):
    first, second = on_two_ranks(run, case)
    for rank in (first, second):
        assert "FSDP" in rank["model"] or "Fully" in rank["model"]
        assert rank["sharded"] and rank["finite"]
        assert rank["skipped"] == [number == BAD for number in range(6)]
        assert rank["counters"].steps == 6
        assert rank["counters"].reasons == {"overflow": 1}
        # The schedule waited; Accelerate moves it once a rank.
        assert rank["rate"] == 1e-3 * 0.5**10
        again = rank["resumed"]
        assert again["same"] and again["norms"][-2:] == rank["norms"][-2:]
        for what in ("counters", "scale", "exponents"):
            assert again[what] == rank[what]
        assert ("layer-wise" in rank["said"]) is case.layerwise
        assert rank["detached"] == "<gradscale, detached from Accelerator>"
        if case.layerwise:
            assert len(set(rank["exponents"])) > 2
    for what in ("scale", "norms", "skipped", "exponents"):
        assert first[what] == second[what]


def test_norms_are_those_of_the_scaler_that_accelerate_would_make():
    ours = on_two_ranks(run, Case(2))[0]
    torchs = on_two_ranks(run, Case(2, torchs=True))[0]
    assert ours["norms"] == torchs["norms"] and ours["skipped"] == torchs["skipped"]


def test_torchs_sharded_scaler_cannot_lead_a_fused_optimizer():
    with pytest.raises(AssertionError, match="doesn't match the broadcast shape"):
        on_two_ranks(run, Case(1, optimizer="adamw-fused", torchs=True))

"""Lightning over FSDP2: one rank's shard overflows, all ranks decide alike; a run resumes."""

from __future__ import annotations

import pytest
import torch

from hosts import host
from processes import on_two_ranks

host("lightning")
worker = host("lightning_worker")


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-fused"])
@pytest.mark.parametrize("layerwise", [False, True], ids=["global", "layerwise"])
def test_an_infinity_in_one_shard_is_skipped_by_all_and_a_run_resumes(
    optimizer, layerwise, tmp_path
):
    first, second = on_two_ranks(worker.run, optimizer, layerwise, str(tmp_path))
    for rank in (first, second):
        whole, resumed = rank["whole"], rank["resumed"]
        assert len(whole["weights"]) > 2
        assert all(torch.tensor(values).isfinite().all() for values in whole["weights"])
        assert whole["counters"].reasons == {"overflow": 1}
        assert whole["skipped"] == [step == worker.BAD for step in range(worker.STEPS)]
        assert resumed["skipped"] == whole["skipped"][worker.RESUMED :]
        for what in ("weights", "scale", "counters", "rate", "exponents"):
            assert whole[what] == resumed[what]
        if layerwise:
            assert len(set(whole["exponents"])) > 1
    for what in ("scale", "skipped", "rate", "exponents"):
        assert first["whole"][what] == second["whole"][what]

"""A scaler in a `torch.distributed.checkpoint`: plan and scale together, on another world size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from checkpoint_worker import continued, saved_on_ranks
from gradscale import GradScaler
from processes import ON_RANKS, on_ranks

pytestmark = ON_RANKS


def test_a_plan_comes_back_with_the_scale_that_was_chosen_for_it(tmp_path: Path) -> None:
    ((scale, plan, weights),) = on_ranks(1, saved_on_ranks, str(tmp_path))
    again, loaded, after = continued(str(tmp_path))
    assert (again, loaded) == (scale, plan)
    assert len(set(plan)) > 1
    assert after == weights


def test_two_ranks_save_and_one_goes_on(tmp_path: Path) -> None:
    (scale, plan, _), other = on_ranks(2, saved_on_ranks, str(tmp_path))
    assert other[:2] == (scale, plan)
    assert continued(str(tmp_path))[:2] == (scale, plan)


@pytest.mark.parametrize("trained", [0, 2])
def test_a_scaler_that_has_met_its_graph_already_takes_over_the_same(
    tmp_path: Path, trained: int
) -> None:
    ((scale, plan, _),) = on_ranks(1, saved_on_ranks, str(tmp_path))
    assert continued(str(tmp_path), trained=trained)[:2] == (scale, plan)


def test_the_tracks_are_one_entry_of_the_checkpoint(tmp_path: Path) -> None:
    on_ranks(1, saved_on_ranks, str(tmp_path))
    keys = dcp.FileSystemReader(str(tmp_path)).read_metadata().state_dict_metadata
    assert [key for key in keys if ".tracks" in key] == ["scaler.gradscale.layerwise.tracks"]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_fresh_scaler_learns_why_steps_were_skipped(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = GradScaler("cpu")
    for loss_times, gradient_times in ((torch.nan, 1.0), (1.0, torch.inf), (1.0, 1.0)):
        optimizer.zero_grad()
        scaler.scale(weight.sum() * loss_times).backward()
        weight.grad *= gradient_times
        scaler.step(optimizer)
        scaler.update()
    assert scaler.counters.reasons == {"nonfinite_loss": 1, "overflow": 1}
    dcp.save({"scaler": scaler}, checkpoint_id=str(tmp_path), no_dist=True)
    fresh = GradScaler("cpu")
    dcp.load({"scaler": fresh}, checkpoint_id=str(tmp_path), no_dist=True)
    assert fresh.counters == scaler.counters

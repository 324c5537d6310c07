"""Every sharded engine, our scaler and torch's: do all ranks decide alike?"""

from __future__ import annotations

import functools

import pytest

from processes import ON_RANKS, on_ranks
from sharded_worker import ENGINES, OPTIMIZERS, Case, overflow_on_last_rank

pytestmark = ON_RANKS

ON_FOUR = ("HSDP", "FSDP2 with TP", "FSDP2 with TP, a norm first")
BY_HAND = ("replicated first", "two meshes", "plain and sharded")
ON_TWO = (*(name for name in ENGINES if name not in ON_FOUR), *BY_HAND)
MIXED = ("TP", "plain and sharded")
"""Plain parameters beside DTensors: torch's own scaler and fused optimizers refuse them."""
UNTOLD = "DDP"
"""Replicas that are all alike unless something is wrong; which they are, nobody tells a scaler."""

SKIPPED_ALIKE = [(True, 8.0), (False, 4.0), (True, 4.0)]
BACK_IN_PLAN = [(True, 8.0), (False, 4.0), (True, 8.0)]
WENT_ON = [(True, 8.0)] * 3

# Where torch's own scalers let the first rank step and the last one skip.
TORCH_PARTS = {
    ("torch", "sgd"): {"DDP", "FSDP1", "FSDP1, use_orig_params", "HSDP", "replicated first",
                       "two meshes", "FSDP2 with TP, a norm first"},
    ("torch", "adamw-fused"): {"DDP", "FSDP1", "FSDP1, use_orig_params", "HSDP",
                               "replicated first", "two meshes", "FSDP2 with TP, a norm first"},
    ("sharded", "sgd"): set[str](),
    ("sharded", "adamw-fused"): {"DDP", "FSDP1", "FSDP1, use_orig_params", "HSDP",
                                 "replicated first", "two meshes", "FSDP2 with TP, a norm first"},
}  # fmt: skip


@functools.cache
def results(world: int):
    engines = ON_FOUR if world == 4 else ON_TWO
    kinds = [("torch", False), ("sharded", False), ("ours", False), ("ours", True)]
    cases = [Case(e, o, *kind) for e in engines for o in OPTIMIZERS for kind in kinds]
    ranks = on_ranks(world, overflow_on_last_rank, cases)
    return {case: [rank[case] for rank in ranks] for case in cases}


def result(engine: str, optimizer: str, scaler: str, layerwise: bool = False):
    return results(4 if engine in ON_FOUR else 2)[Case(engine, optimizer, scaler, layerwise)]


@pytest.mark.parametrize("layerwise", [False, True], ids=["global", "layerwise"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("engine", [*ON_TWO, *ON_FOUR])
def test_all_ranks_skip_what_one_must_skip_without_being_told_of_each_other(
    engine, optimizer, layerwise
):
    found = result(engine, optimizer, "ours", layerwise)
    if optimizer == "adamw-fused" and engine in MIXED:
        assert all("mixed torch.Tensor and DTensor" in it for it in found)  # the optimizer's own
    elif engine == UNTOLD and not layerwise:
        assert found == [WENT_ON, SKIPPED_ALIKE]
    else:
        assert found == [BACK_IN_PLAN if layerwise else SKIPPED_ALIKE] * len(found)


@pytest.mark.parametrize("scaler", ["torch", "sharded"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("engine", [*ON_TWO, *ON_FOUR])
def test_where_torchs_scalers_part(engine, optimizer, scaler):
    found = result(engine, optimizer, scaler)
    if engine in MIXED:
        assert all("mixed torch.Tensor and DTensor" in it for it in found)
    elif engine in TORCH_PARTS[scaler, optimizer]:
        assert found[0] == WENT_ON and found[-1] == SKIPPED_ALIKE
    else:
        assert found == [SKIPPED_ALIKE] * len(found)

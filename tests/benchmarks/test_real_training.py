"""The networks of real size, and how they are trained and measured; on toys."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from calendars import quiet
from real.row import LOW, WARM, Effort, at_work, measured
from real.tasks import FULL, TINY
from real.trainer import Trainer, batches_of, products
from real.ways import BASE, WAYS

PUBLISHED = {"ResNet-50": 25_557_032, "GPT-2-124M": 124_439_808, "U-Net 512 x 512": 31_038_933}
TOYS = {task.name: task for task in TINY}
WAY = {way.name: way for way in WAYS}
LEAST = Effort(steps=WARM + 2, rounds=2, block=0.0)


def build_of(task, way, device="cpu", fused=True, compiled=False):
    batches = batches_of(task, device)
    return partial(
        Trainer, task, way, fused=fused, compiled=compiled, batches=batches, device=device
    )


def row_of(task, way, **settings):
    base = at_work(build_of(task, BASE, **settings))
    found = measured(build_of(task, way, **settings), base, LEAST, settings.get("device", "cpu"))
    json.dumps(found)
    return found


@pytest.mark.parametrize("task", FULL, ids=lambda task: task.name)
def test_networks_have_the_published_number_of_parameters(task):
    with torch.device("meta"):
        model = task.model()
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[task.name]


def test_a_unet_has_the_parameters_of_its_stages():
    def stage(inner, outer):
        return 9 * inner * outer + 9 * outer * outer + 4 * outer

    levels = [(64 << k, 128 << k) for k in range(4)]
    down = stage(3, 64) + sum(stage(fine, coarse) for fine, coarse in levels)
    up = sum(4 * coarse * fine + fine + stage(coarse, fine) for fine, coarse in levels)
    assert down + up + 64 * 21 + 21 == PUBLISHED["U-Net 512 x 512"]


@pytest.mark.parametrize("task", TINY, ids=lambda task: task.name)
def test_every_way_is_trained_on_the_same_batches(task):
    first, second = batches_of(task, "cpu"), batches_of(task, "cpu")
    for batch, other in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))
    assert not torch.equal(first[0][0], first[1][0])
    unit = first[0][0].shape[0] * (first[0][0].shape[1] - 1 if task.unit == "tokens" else 1)
    assert unit == task.units


@pytest.mark.parametrize("task", TINY, ids=lambda task: task.name)
def test_batches_can_be_learned(task):
    task = replace(task, optimizer=partial(torch.optim.Adam, lr=1e-2))
    trainer = build_of(task, WAY["float32"])(init_scale=1.0)
    losses = [trainer.looked_at()[0] for _ in range(40)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("name", WAY)
def test_a_row_of_every_way_has_figures(name):
    found = row_of(TOYS["GPT-2-124M"], WAY[name])
    assert len(found["losses"]) == LEAST.steps and found["skipped"] == 0
    assert all(math.isfinite(loss) for loss in found["losses"])
    assert found["ms"] > 0 and len(found["ratio"]) == 3
    assert found["peak"] is found["host_reads"] is None  # a CPU does not say
    assert ("measuring" in found) == ("layerwise" in name)
    if "layerwise" in name:
        assert found["interval"] >= 100 and found["scales"] >= 1
        assert (found["edges"] == 0) == (found["scales"] == 1)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["ResNet-50", "U-Net 512 x 512"])
@pytest.mark.parametrize(
    "way", ["fp16, torch's scaler", "fp16, layerwise", "half model, layerwise"]
)
def test_convolutions_are_trained_in_every_way(name, way, fused):
    found = row_of(TOYS[name], WAY[way], fused=fused)
    assert found["ms"] > 0 and found["skipped"] < LEAST.steps


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("way", ["fp16, layerwise", "half model, gradscale"])
def test_compiled_models_are_trained_too(way):
    found = row_of(TOYS["GPT-2-124M"], WAY[way], compiled=True)
    eager = row_of(TOYS["GPT-2-124M"], WAY[way])
    assert found["losses"] == pytest.approx(eager["losses"], abs=1e-2)


@pytest.mark.cuda
@pytest.mark.parametrize("name", WAY)
def test_a_gpu_tells_memory_and_host_reads(name):
    found = row_of(TOYS["GPT-2-124M"], WAY[name], device="cuda")
    assert found["peak"] > 0
    assert found["host_reads"] <= found["host_reads_torch"]


def test_losses_of_float16_are_those_of_float32():
    task = TOYS["GPT-2-124M"]
    found = {}
    for name in ("float32", "fp16, gradscale", "fp16, layerwise"):
        trainer = build_of(task, WAY[name])(init_scale=2.0**16)
        found[name] = [trainer.looked_at()[0] for _ in range(20)]
    for losses in found.values():
        assert losses == pytest.approx(found["float32"], abs=5e-3)


def test_a_trainer_settles_where_all_steps_measure_or_none():
    trainer = build_of(TOYS["GPT-2-124M"], WAY["fp16, layerwise"])(init_scale=LOW)
    for measures in (False, True, False):
        trainer.settle(measures)
        for _ in range(3):
            assert quiet(trainer.scaler) is not measures
            trainer.step()


def test_a_skipped_step_is_told_of_either_scaler():
    task = TOYS["GPT-2-124M"]
    for name in ("fp16, torch's scaler", "fp16, gradscale"):
        trainer = build_of(task, WAY[name])(init_scale=2.0**60)
        assert trainer.looked_at()[1]
        trainer = build_of(task, WAY[name])(init_scale=LOW)
        assert not trainer.looked_at()[1]


def test_float32_products_are_exact_unless_asked_for():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for tf32 in (True, False):
        with products(tf32):
            assert torch.backends.cudnn.allow_tf32 is tf32
            assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)

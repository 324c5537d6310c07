"""Every preset against an independent plain-Python model of its system, step by step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from gradscale.policies import Dynamic, Policy, Recovering, preset, presets
from policies import plain_models as plain
from policies.sequences import CLEAN, OVERFLOW, Step, observe, only, sequences, trajectory

WINDOWED: dict[str, Callable[..., Any]] = {
    "torch": plain.Torch,
    "apex": plain.Apex,
    "deepspeed": plain.DeepSpeed,
    "megatron": plain.Megatron,
    "fairseq": plain.Fairseq,
    "metaseq": plain.Metaseq,
    "keras": plain.Keras,
    "jmp": plain.Jmp,
    "flax": plain.Flax,
    "paddle": plain.Paddle,
    "mindspore": plain.MindSpore,
    "colossalai": plain.ColossalAI,
    "verl": plain.Verl,
    "lerobot": plain.LeRobot,
    "icefall": plain.Icefall,
    "openseq2seq_backoff": plain.OpenSeq2SeqBackoff,
}


fewer = settings(max_examples=40, deadline=None)


def expected(model: Any, run: list[Step]) -> list[float]:
    scales: list[float] = []
    for step in run:
        model.step(step.overflow, step.amax, step.counts)
        scales.append(model.scale)
    return scales


def scales_of(policy: Policy, run: list[Step]) -> list[float]:
    return [state.scale.item() for state in trajectory(policy, run)]


def with_window(name: str, window: int, **settings: Any) -> Policy:
    policy = preset(name)
    if isinstance(policy, Recovering):
        inner = dataclasses.replace(policy.policy, growth_interval=window)
        return dataclasses.replace(policy, policy=inner)
    assert isinstance(policy, Dynamic)
    # Flax grows one clean step after its interval.
    interval = window + 1 if name == "flax" else window
    return dataclasses.replace(policy, growth_interval=interval, **settings)


def test_the_table_of_models_covers_every_preset() -> None:
    assert set(WINDOWED) | {"openseq2seq_logmax", "popart"} == set(presets.PRESETS)


@pytest.mark.parametrize("name", WINDOWED)
@fewer
@given(run=sequences(60, counts_too=False), window=st.integers(1, 5))
def test_a_preset_moves_as_its_system_over_random_overflows(
    name: str, run: list[Step], window: int
) -> None:
    assert scales_of(with_window(name, window), run) == expected(WINDOWED[name](window), run)


@pytest.mark.parametrize("name", WINDOWED)
def test_a_preset_has_its_systems_defaults(name: str) -> None:
    policy, model = preset(name), WINDOWED[name]()
    assert policy.init().scale.item() == model.scale
    window = model.window
    # Growth, hysteresis used up and again, growth, an overflow just before the next growth.
    run = [CLEAN] * (window + 2) + [OVERFLOW] * 4 + [CLEAN] * (window + 1)
    run += [OVERFLOW] + [CLEAN] * (window - 1) + [OVERFLOW] * 3 + [CLEAN] * 3
    assert scales_of(policy, run) == expected(model, run)


@pytest.mark.parametrize("name", WINDOWED)
def test_a_preset_stops_where_its_system_stops(name: str) -> None:
    model = WINDOWED[name]()
    run = [OVERFLOW] * 40 + [CLEAN] * 3
    assert scales_of(preset(name), run) == expected(model, run)


@fewer
@given(
    run=sequences(60, counts_too=False),
    window=st.integers(1, 5),
    hysteresis=st.integers(1, 4),
    consecutive=st.booleans(),
)
def test_deepspeed_hysteresis_of_both_kinds(
    run: list[Step], window: int, hysteresis: int, consecutive: bool
) -> None:
    refill = "clean" if consecutive else "growth"
    policy = with_window("deepspeed", window, hysteresis=hysteresis, hysteresis_refill=refill)
    assert scales_of(policy, run) == expected(plain.DeepSpeed(window, hysteresis, consecutive), run)


@fewer
@given(run=sequences(60, counts_too=False), window=st.integers(1, 5), hysteresis=st.integers(1, 4))
def test_apex_kernel_megatron_colossalai_and_paddle_with_any_hysteresis(
    run: list[Step], window: int, hysteresis: int
) -> None:
    def check(name: str, model: Any, refill: str) -> None:
        policy = with_window(name, window, hysteresis=hysteresis, hysteresis_refill=refill)
        assert scales_of(policy, run) == expected(model, run)

    check("torch", plain.ApexKernel(window, hysteresis), "clean")
    check("megatron", plain.Megatron(window, hysteresis), "growth")
    check("colossalai", plain.ColossalAI(window, hysteresis), "growth")
    check("paddle", plain.Paddle(window, hysteresis), "clean_or_backoff")


@fewer
@given(
    run=sequences(60, counts_too=False),
    window=st.integers(1, 6),
    tolerance=st.sampled_from([0.0, 0.05, 0.1, 0.25, 1 / 3, 0.5, 0.9]),
)
def test_fairseq_and_metaseq_tolerate_a_share_of_overflows(
    run: list[Step], window: int, tolerance: float
) -> None:
    for name, model in (
        ("fairseq", plain.Fairseq(window, tolerance)),
        ("metaseq", plain.Metaseq(window, tolerance)),
    ):
        policy = with_window(name, window, tolerance=tolerance)
        scales = expected(model, run)
        if not model.stopped:
            assert scales_of(policy, run) == scales


BELOW = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from([2.0**-12, 0.5, 1.0, 2.0, 8.0])),
    min_size=1,
    max_size=3,
)


@fewer
@given(run=sequences(60, counts_too=False), window=st.integers(1, 5), below=BELOW)
def test_icefall_with_any_block_after_its_update(
    run: list[Step], window: int, below: list[tuple[int, float]]
) -> None:
    model = plain.Icefall(window, tuple(below))
    policy = dataclasses.replace(with_window("icefall", window), below=tuple(below))
    scales = expected(model, run)
    if not model.stopped:
        assert scales_of(policy, run) == scales


def test_icefall_is_back_from_the_floor_in_four_hundred_batches() -> None:
    down = [OVERFLOW] * 16
    scales = scales_of(preset("icefall"), down + [CLEAN] * 1984)
    # Batch 0 has doubled what its overflow had halved.
    assert scales[15] == 2.0**-15
    assert scales[399] == 1.0 and scales[425] == 2.0
    assert max(scales) == scales[-1] == 32.0
    # From here on torch's interval is alone.
    assert scales_of(preset("icefall"), down + [CLEAN] * 2000)[-1] == 64.0


def test_fairseq_forgets_the_steps_but_not_the_overflows_as_the_scale_grows() -> None:
    run = [CLEAN] * 5 + [OVERFLOW] + [CLEAN] * 6 + [CLEAN] * 4 + [OVERFLOW]
    policy = with_window("fairseq", 6, tolerance=0.25)
    scales = scales_of(policy, run)
    # One overflow in six steps is tolerated; after the growth it still counts: two in five.
    assert [scales[0], scales[5], scales[11], scales[-1]] == [2.0**15, 2.0**15, 2.0**16, 2.0**15]
    assert scales == expected(plain.Fairseq(6, 0.25), run)


@fewer
@given(run=sequences(60, counts_too=False), window=st.integers(1, 5), factor=st.integers(2, 4))
def test_mindspore_with_any_whole_factor(run: list[Step], window: int, factor: int) -> None:
    policy = with_window("mindspore", window, growth_factor=factor, backoff_factor=1 / factor)
    scales = expected(plain.MindSpore(window, factor), run)
    # A third is not a power of two: both round it, in float64 and in float32.
    assert scales_of(policy, run) == pytest.approx(scales, rel=1e-5)


def test_flax_grows_after_one_clean_step_more_than_its_interval() -> None:
    assert scales_of(presets.flax(), [CLEAN] * 2001)[-2:] == [2.0**16, 2.0**17]


def test_flax_cuts_the_last_growth_to_the_maximum_of_float32() -> None:
    policy = dataclasses.replace(presets.flax(), init_scale=2.0**127, growth_interval=1)
    assert scales_of(policy, [CLEAN] * 2) == [torch.finfo(torch.float32).max] * 2


def test_metaseq_counts_its_doubled_window_from_the_last_overflow() -> None:
    scales = scales_of(presets.metaseq(), [CLEAN] * 1024)
    grown = [step for step in range(1, 1024) if scales[step] != scales[step - 1]]
    assert grown == [256 - 1, 512 - 1, 1024 - 1]


@fewer
@given(run=sequences(60, counts_too=False))
def test_openseq2seq_logmax_follows_the_original(run: list[Step]) -> None:
    # A maximum that is subnormal in float32 counts as the smallest normal number.
    run = [step._replace(amax=max(step.amax, 2.0**-126) if step.amax else 0.0) for step in run]
    scales = scales_of(presets.openseq2seq_logmax(), run)
    # Host doubles against float32 moments, of values up to 65536 squared.
    for scale, original in zip(scales, expected(plain.OpenSeq2SeqLogMax(), run), strict=True):
        assert math.log2(scale) == pytest.approx(math.log2(original), abs=2e-3)


@fewer
@given(run=sequences(60))
def test_popart_follows_its_bin_edge(run: list[Step]) -> None:
    assert scales_of(presets.popart(), run) == [
        min(scale, 2.0**60) for scale in expected(plain.PopART(), run)
    ]


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"`preset\('horovod'\)` is not a known system.*apex, deep"
    ):
        preset("horovod")


def test_a_preset_needs_only_what_it_says() -> None:
    for make in presets.PRESETS.values():
        policy = make()
        policy.update(policy.init(), only(policy, observe(CLEAN)))

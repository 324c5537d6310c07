"""What other systems were configured with, as a policy."""

from __future__ import annotations

import json
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from gradscale.policies import Dynamic, Static, presets
from policies import plain_models as plain
from policies.sequences import CLEAN, OVERFLOW, trajectory


def half(**entries: object) -> dict[str, object]:
    return {"fp16": {"enabled": True, **entries}}


def test_a_bare_configuration_is_the_preset() -> None:
    assert presets.from_deepspeed(half()) == presets.deepspeed()
    assert presets.from_deepspeed(half(initial_scale_power="auto")) == presets.deepspeed()


@settings(max_examples=40, deadline=None)
@given(
    run=st.lists(st.sampled_from([CLEAN, CLEAN, OVERFLOW]), min_size=1, max_size=40),
    window=st.integers(1, 5),
    hysteresis=st.integers(1, 3),
    consecutive=st.booleans(),
)
def test_a_deepspeed_configuration_moves_as_deepspeed_does(
    run: list[object], window: int, hysteresis: int, consecutive: bool
) -> None:
    config = half(
        loss_scale_window=window, hysteresis=hysteresis, consecutive_hysteresis=consecutive
    )
    model = plain.DeepSpeed(window, hysteresis, consecutive)
    scales = []
    for step in run:
        model.step(step.overflow, step.amax, step.counts)  # type: ignore[attr-defined]
        scales.append(model.scale)
    policy = presets.from_deepspeed(config)
    assert [state.scale.item() for state in trajectory(policy, run)] == scales


def test_all_of_its_numbers_are_read_and_a_fixed_scale_is_static(tmp_path) -> None:
    config = half(initial_scale_power=12, min_loss_scale=4, loss_scale_window=7)
    policy = presets.from_deepspeed(config)
    assert policy == Dynamic(2.0**12, growth_interval=7, min_scale=4.0, hysteresis=2)
    assert presets.from_deepspeed(half(loss_scale=128)) == Static(128.0)
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps(config))
    assert presets.from_deepspeed(path) == presets.from_deepspeed(str(path)) == policy
    autocast = {"torch_autocast": {"enabled": True, "dtype": "float16"}}
    assert presets.from_deepspeed(autocast) == Dynamic()


@pytest.mark.parametrize("config", [{}, {"bf16": {"enabled": True}}, {"fp16": {"enabled": False}}])
def test_a_configuration_without_half_precision_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"neither 'fp16' nor 'torch_autocast'.*'enabled': true"):
        presets.from_deepspeed(config)


NUMBERS = {"init_scale": 8.0, "growth_factor": 4.0, "backoff_factor": 0.25, "growth_interval": 9}


def test_accelerates_handler_and_an_accelerator_with_one() -> None:
    handler = SimpleNamespace(**NUMBERS)
    assert presets.from_accelerate(handler) == Dynamic(**NUMBERS)
    assert presets.from_accelerate(SimpleNamespace(scaler_handler=handler)) == Dynamic(**NUMBERS)
    assert presets.from_accelerate(SimpleNamespace(scaler_handler=None)) == Dynamic()
    with pytest.raises(TypeError, match=r"from_accelerate\(int\(…\)\).*GradScalerKwargs"):
        presets.from_accelerate(3)


def test_lightnings_plugin_and_a_trainer_with_one() -> None:
    plugin = SimpleNamespace(scaler=torch.amp.GradScaler("cpu", **NUMBERS))
    trainer = SimpleNamespace(strategy=SimpleNamespace(precision_plugin=plugin))
    fabric = SimpleNamespace(strategy=SimpleNamespace(precision=plugin))
    for it in (plugin, trainer, fabric):
        assert presets.from_lightning(it) == Dynamic(**NUMBERS)
    for scaler in (None, torch.amp.GradScaler("cpu", enabled=False)):
        with pytest.raises(ValueError, match=r"no scaler.*'16-mixed' on a GPU"):
            presets.from_lightning(SimpleNamespace(scaler=scaler))

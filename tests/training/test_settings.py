"""Settings: defaults of the recipe, and errors word by word."""

from __future__ import annotations

import pytest

from gradscale import policies
from gradscale.policies import Dynamic, Guarded, LastMaximum, Static
from gradscale.policies.by_name import BY_NAME
from gradscale.scaler import GradScaler
from gradscale.training import COMPARED, SCALINGS, SYSTEMS, settings_for
from gradscale.training.precision import is_emulated
from gradscale.training.scaling import make_policy, make_scaler
from gradscale.training.schedule import learning_rate


def test_what_is_not_given_comes_from_the_recipe():
    settings = settings_for("digits", steps=7, lr=None, device="cpu")
    assert (settings.steps, settings.batch_size, settings.lr) == (7, 64, 5e-3)
    assert settings.threads == 1


@pytest.mark.parametrize(
    ("precision", "scaling"),
    [("fp32", "none"), ("bf16", "none"), ("fp16", "dynamic"), ("e4m3", "dynamic")],
)
def test_narrow_precisions_are_scaled_unless_told_otherwise(precision, scaling):
    assert settings_for("digits", format=precision, device="cpu").policy == scaling


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "fp12"}, r"`--format fp12` must be one of fp32, bf16, fp16, e5m2, e4m3"),
        ({"policy": "magic"}, r"`--policy magic` must be one of none, static, dynamic"),
        ({"steps": 0}, r"`--steps 0` must be at least 1"),
        ({"batch_size": -1}, r"`--batch-size -1` must be at least 1"),
        ({"lr": float("nan")}, r"`--lr nan` must be a positive number"),
        ({"loss_divisor": 0.0}, r"`--loss-divisor 0.0` must be a positive number"),
        ({"init_scale": 2.0**-127}, r"must lie in \[2\^-126, 2\^128\)"),
        ({"seed": -1}, r"`--seed -1` must lie in"),
        ({"emulate": "maybe"}, r"`--emulate maybe` must be one of auto, on, off"),
        ({"device": "abacus"}, r"`--device abacus` is not there, .*; `--device cpu` always is"),
        ({"format": "e5m2", "emulate": "off"}, r"torch has no 8-bit autocast"),
    ],
)
def test_wrong_values_are_refused_with_the_option_and_the_rule(given, message):
    with pytest.raises(ValueError, match=message):
        settings_for("digits", **{"device": "cpu", **given})


def test_every_name_makes_a_scaler():
    for name in SCALINGS:
        scaler = make_scaler(name, "cpu", None)
        assert (scaler is None) == (name == "none")
        assert isinstance(scaler, GradScaler) == (name not in ("none", "torch"))
    assert {"apex", "deepspeed", "openseq2seq-logmax"} < set(SYSTEMS)
    assert len(set(SCALINGS)) == len(COMPARED) + len(SYSTEMS) + 2  # recovering, adaptive


def test_every_public_policy_and_preset_can_be_chosen_by_a_name():
    """`Recovering` could not: it had been added beside the list."""
    kinds = {
        kind
        for kind in vars(policies).values()
        if isinstance(kind, type) and issubclass(kind, policies.Policy)
    } - {policies.Policy}
    chosen = {name: make_policy(name, None) for name in SCALINGS if name in BY_NAME}
    assert kinds == {type(policy) for policy in chosen.values()}
    assert set(policies.presets.PRESETS) <= {name.replace("-", "_") for name in SCALINGS}
    own = {type(policy) for name, policy in chosen.items() if name not in SYSTEMS}
    assert own == kinds, "a policy that only another system's name leads to is not named"


@pytest.mark.parametrize("name", sorted(set(SCALINGS) - {"none", "torch"}))
def test_a_first_scale_reaches_the_policy(name):
    scaler = make_scaler(name, "cpu", 2.0**12)
    assert scaler is not None
    assert scaler.get_scale() == 2.0**12


def test_first_scales_and_formats_reach_inside_a_guard():
    policy = make_policy("guarded", 4.0, "e4m3")
    assert policy == Guarded(
        LastMaximum(init_scale=4.0, format="e4m3"), Dynamic(init_scale=4.0, growth_interval=200)
    )
    assert make_policy("static", None) == Static(2.0**10)


def test_emulation_is_for_what_the_device_lacks():
    assert not is_emulated("fp32", "cpu", "on")
    assert is_emulated("fp16", "cpu", "on") and not is_emulated("fp16", "cpu", "off")
    assert is_emulated("e4m3", "cuda", "auto") and not is_emulated("fp16", "cuda", "auto")


def test_the_learning_rate_rises_then_falls():
    rates = [learning_rate(step, 50, 2.0) for step in range(50)]
    peak = rates.index(max(rates))
    assert max(rates) == 2.0
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert learning_rate(0, 1, 2.0) == 2.0

"""Policies by name with settings: what may be typed, and what is answered to anything else."""

import dataclasses
import json

import pytest

from gradscale.policies import Dynamic, Guarded, LogNormal, Policy, Static, presets
from gradscale.replay import policy_from
from gradscale.replay.policy_text import NAMES, policy_of
from gradscale.scaler.state import describe


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_policy(name):
    assert isinstance(policy_from(name), Policy)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("dynamic", Dynamic()),
        (" Dynamic() ", Dynamic()),
        ("dynamic(init_scale=2^20, growth_interval=5)", Dynamic(2.0**20, growth_interval=5)),
        ("dynamic(init_scale=2**20)", Dynamic(2.0**20)),
        (
            "dynamic(min_scale=2^-3, hysteresis_refill='clean')",
            Dynamic(min_scale=0.125, hysteresis_refill="clean"),
        ),
        ("static", Static(2.0**10)),
        ("log-normal(deviations=2)", LogNormal(deviations=2)),
        ("LogNormal(format='e5m2')", LogNormal(format="e5m2")),
        (
            "guarded(policy=lognormal, guard=dynamic(growth_interval=7))",
            Guarded(LogNormal(), Dynamic(growth_interval=7)),
        ),
        ("openseq2seq-backoff", presets.openseq2seq_backoff()),
        ("megatron(hysteresis=3)", dataclasses.replace(presets.megatron(), hysteresis=3)),
    ],
)
def test_settings_are_given_by_name(text, policy):
    assert policy_from(text) == policy


@pytest.mark.parametrize(
    "policy", [Dynamic(hysteresis=2), Guarded(LogNormal(format="e5m2")), presets.icefall()]
)
def test_a_described_policy_is_built_again(policy):
    assert policy_of(json.loads(json.dumps(describe(policy)))) == policy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no policy. Write a name"),
        ("dynamic(", "is no policy"),
        ("dynamic + 1", "is no policy"),
        ("3", "is no policy"),
        ("'dynamic'", "is no policy"),
        ("dynamik", "no policy 'dynamik'. Did you mean dynamic?"),
        ("lognormal(margin=2)", "LogNormal has no setting 'margin'"),
        ("dynamic(init_scal=2)", "Did you mean init_scale?"),
        ("dynamic(2^16)", "settings are given by name"),
        ("dynamic(**{})", "settings are given by name"),
        ("dynamic(growth_factor=0.5)", "must be above 1|above 1"),
        ("dynamic(init_scale='a'^2)", "is not a number"),
        ("dynamic(init_scale=(0-1)^0.5)", "is no policy|is not a number"),
        ("dynamic(init_scale=10^1000)", "is not a number"),
        ("__import__('os').system('false')", "is no policy"),
        ("print()", "no policy 'print'"),
    ],
)
def test_anything_else_is_refused_in_words(text, words):
    with pytest.raises(
        (ValueError, TypeError), match=words.replace("(", r"\(").replace("?", r"\?")
    ):
        policy_from(text)


def test_a_policy_of_the_users_own_cannot_be_built_again():
    with pytest.raises(ValueError, match=r"'Mine' is none of `gradscale\.policies`"):
        policy_of({"name": "Mine", "config": {}})

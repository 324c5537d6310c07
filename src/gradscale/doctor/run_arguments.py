"""What a checkpoint says of its scaler outside the scaler's state: arguments, steps, skips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from gradscale.doctor.inert.tree import SavedObject

_STEPS = ("global_steps", "global_step", "iteration", "num_updates", "step")

_MEGATRON = {
    "initial_loss_scale": "init_scale",
    "min_loss_scale": "min_scale",
    "loss_scale_window": "growth_interval",
    "hysteresis": "hysteresis",
}
_DEEPSPEED = {
    "min_loss_scale": "min_scale",
    "loss_scale_window": "growth_interval",
    "hysteresis": "hysteresis",
}
_FAIRSEQ = {
    "fp16_init_scale": "init_scale",
    "fp16_scale_window": "growth_interval",
    "fp16_scale_tolerance": "tolerance",
    "min_loss_scale": "min_scale",
    "threshold_loss_scale": "max_scale",
}


@dataclass(frozen=True)
class RunArguments:
    """What was found.

    Attributes:
        settings: the run's arguments, by gradscale's names.
        steps: optimizer steps that the run had made.
        skipped: how many of them it skipped.
    """

    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    steps: int | None = None
    skipped: int | None = None


def read_run_arguments(tree: Any, system: str) -> RunArguments:
    """Reads the arguments and the step counters of a whole checkpoint.

    Args:
        tree: what the file holds.
        system: whose arguments to look for.

    Example:
        >>> read_run_arguments({"iteration": 7, "args": {"loss_scale_window": 500}}, "megatron")
        RunArguments(settings={'growth_interval': 500}, steps=7, skipped=None)
    """
    root = _mapping(tree)
    steps = next((n for key in _STEPS if (n := _count(root.get(key))) is not None), None)
    history = root.get("optimizer_history")
    if steps is None and isinstance(history, list) and history:
        steps = _count(_mapping(cast("list[Any]", history)[-1]).get("num_updates"))
    return RunArguments(_settings(root, system), steps, _count(root.get("skipped_steps")))


def _settings(root: Mapping[str, Any], system: str) -> dict[str, Any]:
    if system == "megatron":
        return _named(_mapping(root.get("args")), _MEGATRON)
    if system.startswith("deepspeed"):
        config = _mapping(_mapping(root.get("ds_config")).get("fp16"))
        power = _count(config.get("initial_scale_power"))
        first = {} if power is None or power > 127 else {"init_scale": 2.0**power}
        return {**_named(config, _DEEPSPEED), **first}
    return _fairseq(root) if system == "fairseq" else {}


def _fairseq(root: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of either age: one flat namespace, or sections of a configuration."""
    config = _mapping(root.get("cfg"))
    sections = ("common", "optimization", "distributed_training")
    flat: dict[str, Any] = dict(_mapping(root.get("args")))
    for section in sections:
        flat |= _mapping(config.get(section))
    settings = _named(flat, _FAIRSEQ)
    if flat and "growth_interval" not in settings:
        # The window that its trainer sets where nobody asked for one.
        every = flat.get("update_freq")
        often = cast("list[Any]", every)[0] if isinstance(every, list) and every else every
        world = _count(flat.get("distributed_world_size"))
        each = _count(often)
        if world and each:
            settings["growth_interval"] = max(1, int(2**14 / world / each))
    return settings


def _named(found: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {
        ours: found[theirs]
        for theirs, ours in names.items()
        if isinstance(found.get(theirs), int | float) and not isinstance(found[theirs], bool)
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, SavedObject):
        return value.attributes or value.entries
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if whole and 0 <= value < 2**62 else None

"""What a checkpoint says of its scaler outside the scaler's state: arguments, steps, skips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from gradscale.doctor.examined_scaler import Setting
from gradscale.doctor.inert.tree import SavedObject
from gradscale.entries import MOST, plain_settings

# Of DeepSpeed; Lightning and the Trainer; Megatron; fairseq; and of loops written by hand.
_STEPS = ("global_steps", "global_step", "iteration", "num_updates", "step")

_DEEPSPEED = {
    "min_loss_scale": "min_scale",
    "loss_scale_window": "growth_interval",
    "hysteresis": "hysteresis",
}
_MEGATRON = {"initial_loss_scale": "init_scale", **_DEEPSPEED}
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

    settings: Mapping[str, Setting] = field(default_factory=dict[str, Setting])
    steps: int | None = None
    skipped: int | None = None


def read_run_arguments(tree: object, system: str) -> RunArguments:
    """Reads the arguments and the step counters of a whole checkpoint.

    What is there and is no number is passed over: it belongs to somebody else.

    Args:
        tree: what the file holds.
        system: whose arguments to look for.

    Example:
        >>> read_run_arguments({"iteration": 7, "args": {"loss_scale_window": 500}}, "megatron")
        RunArguments(settings={'growth_interval': 500}, steps=7, skipped=None)
    """
    root = _mapping(tree)
    # In the order of how sure the name is: `step` alone may count anything.
    steps = next((n for key in _STEPS if (n := count_in(root, key)) is not None), None)
    # fairseq counts in its history, an entry for every optimizer that the run has had.
    history = root.get("optimizer_history")
    if steps is None and isinstance(history, list) and history:
        steps = count_in(_mapping(cast("list[object]", history)[-1]), "num_updates")
    return RunArguments(_settings(root, system), steps, count_in(root, "skipped_steps"))


def _settings(root: Mapping[str, object], system: str) -> dict[str, Setting]:
    if system == "megatron":
        return _named(_mapping(root.get("args")), _MEGATRON)
    if system.startswith("deepspeed"):
        config = _mapping(_mapping(root.get("ds_config")).get("fp16"))
        power = count_in(config, "initial_scale_power")
        settings = _named(config, _DEEPSPEED)
        if power is not None and power <= 127:  # as much as a float32 holds
            settings["init_scale"] = 2.0**power
        return settings
    return _fairseq(root) if system == "fairseq" else {}


def _fairseq(root: Mapping[str, object]) -> dict[str, Setting]:
    """Arguments of either age: one flat namespace, or sections of a configuration."""
    config = _mapping(root.get("cfg"))
    flat = dict(_mapping(root.get("args")))
    for section in ("common", "optimization", "distributed_training"):
        flat |= _mapping(config.get(section))
    settings = _named(flat, _FAIRSEQ)
    # Without arguments it is not fairseq's trainer that wrote the file.
    if flat and "growth_interval" not in settings:
        # The window that its trainer sets where nobody asked for one.
        every = flat.get("update_freq")
        often = cast("list[object]", every)[0] if isinstance(every, list) and every else every
        world = count_in(flat, "distributed_world_size")
        each = count_in({"often": often}, "often")
        if world and each:
            settings["growth_interval"] = max(1, int(2**14 / world / each))
    return settings


def _named(found: Mapping[str, object], names: Mapping[str, str]) -> dict[str, Setting]:
    numbers: dict[str, Setting] = {}
    for theirs, ours in names.items():
        value = found.get(theirs)
        if not isinstance(value, bool | str):  # a policy of ours has texts; their arguments not
            numbers |= plain_settings([(ours, value)])
    return numbers


def _mapping(value: object) -> Mapping[str, object]:
    held = (value.attributes or value.entries) if isinstance(value, SavedObject) else value
    return cast("Mapping[str, object]", held) if isinstance(held, dict) else {}


def count_in(held: Mapping[str, object], key: str) -> int | None:
    """A count if there is one, else None.

    Example:
        >>> count_in({"step": 3.0}, "step"), count_in({"step": -1}, "step")
        (3, None)
    """
    value = held.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= MOST else None

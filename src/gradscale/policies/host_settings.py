"""The loss-scaling settings of DeepSpeed, Accelerate and Lightning, turned into a policy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch.amp.grad_scaler import GradScaler as TorchScaler

from gradscale.policies.dynamic import Dynamic
from gradscale.policies.policy import Policy
from gradscale.policies.static import Static

_DEEPSPEED = {
    "initial_scale_power": 16,
    "loss_scale_window": 1000,
    "hysteresis": 2,
    "consecutive_hysteresis": False,
    "min_loss_scale": 1,
    "loss_scale": 0,
}
"""What DeepSpeed fills in; Transformers writes "auto" for some of them."""


class ScalerNumbers(Protocol):
    """Accelerate's `GradScalerKwargs`: the arguments of torch's scaler."""

    init_scale: float
    growth_factor: float
    backoff_factor: float
    growth_interval: int


def from_deepspeed(config: Mapping[str, object] | str | Path) -> Policy:
    """The policy of a DeepSpeed configuration: `Dynamic`, or `Static` where it fixes the scale.

    Args:
        config: as for `deepspeed.initialize`: a dictionary, or the path of a JSON file.

    Raises:
        ValueError: if it does not train in float16.

    Example:
        >>> from_deepspeed({"fp16": {"enabled": True, "loss_scale_window": 500}}).growth_interval
        500
    """
    read: Mapping[str, object] = (
        config if isinstance(config, Mapping) else json.loads(Path(config).read_text())
    )
    half, autocast = _section(read, "fp16"), _section(read, "torch_autocast")
    if half.get("enabled", False):
        # "auto" is for a trainer to fill in: until then DeepSpeed's own default holds.
        given = {name: value for name, value in half.items() if value != "auto"}
        return _of_deepspeed({**_DEEPSPEED, **given})
    if autocast.get("enabled", False) and autocast.get("dtype") in ("float16", "torch.float16"):
        return Dynamic()  # torch's own scaler, with its defaults
    raise ValueError(
        "`from_deepspeed(config)`: it enables neither 'fp16' nor 'torch_autocast' with dtype "
        "'float16', so nothing is scaled. Set `'fp16': {'enabled': true}`."
    )


def from_accelerate(settings: ScalerNumbers | object) -> Dynamic:
    """The policy of Accelerate's settings.

    Args:
        settings: a `GradScalerKwargs`, or an `Accelerator` that was made with one.

    Raises:
        TypeError: if it is neither.

    Example:
        >>> from types import SimpleNamespace
        >>> numbers = {"init_scale": 8.0, "growth_factor": 2.0, "backoff_factor": 0.25}
        >>> from_accelerate(SimpleNamespace(**numbers, growth_interval=100)).backoff_factor
        0.25
    """
    if hasattr(settings, "scaler_handler"):  # an Accelerator
        settings = getattr(settings, "scaler_handler", None)
        if settings is None:
            return Dynamic()
    try:
        numbers = {name: getattr(settings, name) for name in _TORCH_ARGUMENTS}
    except AttributeError as error:
        raise TypeError(
            f"`from_accelerate({type(settings).__name__}(…))` must be a `GradScalerKwargs` or an "
            f"`Accelerator`: {error}."
        ) from None
    return Dynamic(**numbers)


def from_lightning(plugin: object) -> Dynamic:
    """The policy of a Lightning or Fabric plugin for ``"16-mixed"``, or of a trainer with one.

    Args:
        plugin: `MixedPrecision`, `Trainer` or `Fabric`.

    Raises:
        ValueError: if it has no scaler: in another precision, or on a CPU.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> scaler = torch.amp.GradScaler("cpu", growth_interval=100)
        >>> from_lightning(SimpleNamespace(scaler=scaler)).growth_interval
        100
    """
    strategy: object = getattr(plugin, "strategy", None)
    for name in ("precision_plugin", "precision"):
        plugin = getattr(strategy, name, plugin)
    scaler: object = getattr(plugin, "scaler", None)
    if not isinstance(scaler, TorchScaler) or not scaler.is_enabled():
        raise ValueError(
            f"`from_lightning({type(plugin).__name__}(…))`: it has no scaler, so it does not train "
            "in float16, or on a CPU. Pass one that was made for '16-mixed' on a GPU."
        )
    growth, backoff = scaler.get_growth_factor(), scaler.get_backoff_factor()
    interval = scaler.get_growth_interval()
    return Dynamic(float(scaler._init_scale), growth, backoff, interval)


_TORCH_ARGUMENTS = ("init_scale", "growth_factor", "backoff_factor", "growth_interval")


def _section(config: Mapping[str, object], name: str) -> Mapping[str, object]:
    section = config.get(name, {})
    return section if isinstance(section, Mapping) else {}


def _of_deepspeed(half: Mapping[str, object]) -> Policy:
    def number(name: str) -> float:
        return float(str(half[name]))

    if number("loss_scale"):
        return Static(number("loss_scale"))
    return Dynamic(
        init_scale=2.0 ** number("initial_scale_power"),
        growth_interval=int(number("loss_scale_window")),
        min_scale=number("min_loss_scale"),
        hysteresis=int(number("hysteresis")),
        hysteresis_refill="clean" if half["consecutive_hysteresis"] else "growth",
    )

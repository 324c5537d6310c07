"""Who reads `.grad` while an optimizer steps: its own kernel alone, or somebody else, too."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch.optim.optimizer import _global_optimizer_pre_hooks


def steps_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it divides, and skips, by itself: torch's word for it."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def takes_scaler(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the `step` of a fused one wants the scaler itself: torch's older contract."""
    return _takes_scaler(getattr(optimizer.step, "__func__", None))


def read_by_others(optimizer: torch.optim.Optimizer) -> bool:
    """Whether somebody who knows nothing of the scale looks at gradients within its `step`.

    A step hook that clips, or a fused optimizer whose `step` is not torch's own and may do so.
    """
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", None)
    if hooks and not all(map(_is_ours, hooks.values())):
        return True
    if _global_optimizer_pre_hooks and not all(map(_is_ours, _global_optimizer_pre_hooks.values())):
        return True
    return not _is_torchs(type(optimizer)) and steps_fused(optimizer)


def _is_ours(hook: Callable[..., object]) -> bool:
    function = getattr(hook, "func", hook)  # of a `functools.partial`
    return str(getattr(function, "__module__", "")).startswith("gradscale.")


@cache
def _is_torchs(kind: type[torch.optim.Optimizer]) -> bool:
    return inspect.unwrap(kind.step).__module__.startswith("torch.optim.")


@lru_cache(maxsize=64)
def _takes_scaler(step: Callable[..., object] | None) -> bool:
    return step is not None and "grad_scaler" in inspect.signature(step).parameters

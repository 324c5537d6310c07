"""What holds for an optimizer's own code, and for none of the hooks that run inside its `step`.

Torch calls step hooks within `optimizer.step`: schedulers, averages and checkpoints that are made
there must find the optimizer as its user knows it. A `step` that calls its parent's runs the hooks
twice, one pair inside the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks


@contextmanager
def own_step(
    optimizer: torch.optim.Optimizer,
    leave: Callable[[bool], None],
    enter: Callable[[], None] | None = None,
    ours: Callable[..., object] | None = None,
) -> Generator[None, None, None]:
    """Within it, `leave` is called before each round of the optimizer's hooks, and `enter` after.

    Where there are no hooks neither is called: the caller has put in what holds, and takes it out.

    Args:
        optimizer: whose `step` is called within, once.
        leave: called with whether the optimizer's own code has run to its end.
        enter: called where its own code goes on.
        ours: a hook that does not mind.
    """
    if not _hooked(optimizer, ours):
        yield  # four hooks would cost a small optimizer more than its step
        return
    depth = 0

    def before_pre_hooks(*_: object) -> None:
        leave(False)

    def after_pre_hooks(*_: object) -> None:
        nonlocal depth
        depth += 1
        if enter is not None:
            enter()

    def before_post_hooks(*_: object) -> None:
        nonlocal depth
        depth -= 1
        leave(depth == 0)

    def after_post_hooks(*_: object) -> None:
        if depth and enter is not None:
            enter()

    # Ordered dictionaries, whatever their annotation says.
    pre = cast("OrderedDict[int, object]", optimizer._optimizer_step_pre_hooks)
    post = cast("OrderedDict[int, object]", optimizer._optimizer_step_post_hooks)
    handles = [
        optimizer.register_step_pre_hook(before_pre_hooks),
        optimizer.register_step_post_hook(before_post_hooks),
    ]
    pre.move_to_end(handles[0].id, last=False)
    post.move_to_end(handles[1].id, last=False)
    handles += [
        optimizer.register_step_pre_hook(after_pre_hooks),
        optimizer.register_step_post_hook(after_post_hooks),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooked(optimizer: torch.optim.Optimizer, ours: Callable[..., object] | None) -> bool:
    # A wrapper that never called `Optimizer.__init__` has none, and its inner optimizer its own.
    kinds: tuple[Mapping[int, Callable[..., object]], ...] = (
        getattr(optimizer, "_optimizer_step_pre_hooks", {}),
        getattr(optimizer, "_optimizer_step_post_hooks", {}),
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )
    hooks = (hook for kind in kinds for hook in kind.values())
    return any(hook is not ours and not _only_looks(hook) for hook in hooks)


def _only_looks(hook: Callable[..., object]) -> bool:
    """Whether it is the scaler's own, which compares gradients in a first step, and no more."""
    function = getattr(hook, "func", hook)
    return getattr(function, "__module__", None) == "gradscale.scaler.bare_step"

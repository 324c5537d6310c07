"""Checkpoints: masters travel in the optimizer's state, and follow what the model loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradscale.half.link import Link, copy_back, link_of, settle_ahead
from gradscale.optimizer_parameters import distinct_parameters
from gradscale.torch_types import StateDict

KEY = "master_weights"
"""Where `optimizer.state_dict()` has the masters: by the index that torch gives each parameter."""


def hook_states(optimizer: Optimizer, links: Sequence[Link]) -> list[RemovableHandle]:
    """Makes an optimizer save and load its masters; returns the handles."""
    return [
        optimizer.register_state_dict_post_hook(partial(_add_masters, links)),
        optimizer.register_load_state_dict_pre_hook(partial(_load_masters, links)),
    ]


def hook_module_states(model: nn.Module) -> None:
    """Makes masters follow what `load_state_dict` writes, and reach what `state_dict` reads."""
    for module in model.modules():
        own = any(link_of(parameter) is not None for parameter in module._parameters.values())
        if own and not any(_hooks(module)):
            module.register_load_state_dict_pre_hook(follow_loaded)
            module.register_load_state_dict_post_hook(settle_loaded)
            module.register_state_dict_pre_hook(settle_saved)


def unhook_module_states(model: nn.Module) -> None:
    """Takes these hooks off again."""
    for module in model.modules():
        for hooks, key in list(_hooks(module)):
            del hooks[key]


def _hooks(module: nn.Module) -> Iterator[tuple[dict[int, Callable[..., object]], int]]:
    """Where the hooks are that are ours: torch wraps some of them."""
    for hooks in (
        module._load_state_dict_pre_hooks,
        module._load_state_dict_post_hooks,
        module._state_dict_pre_hooks,
    ):
        for key, hook in hooks.items():
            # Torch puts hooks that are given the module into a wrapper, which keeps them as `hook`.
            if getattr(hook, "hook", hook) in (follow_loaded, settle_loaded, settle_saved):
                yield hooks, key


def follow_loaded(
    module: nn.Module, state_dict: StateDict, prefix: str, metadata: StateDict, *rest: object
) -> None:
    """Before a module loads: its masters take the values, float32 ones without rounding.

    A master that rounds to the loaded half-precision value keeps its bits, so that it does not
    matter whether the model or the optimizer is loaded first.

    Raises:
        RuntimeError: if the parameters would be replaced by the loaded tensors.
    """
    del rest
    for name, parameter in module._parameters.items():
        link, value = link_of(parameter), state_dict.get(prefix + name)
        if parameter is None or link is None or not isinstance(value, Tensor):
            continue
        if metadata.get("assign_to_params_buffers"):
            raise RuntimeError(
                "`load_state_dict(state, assign=True)` replaces the parameters, and after "
                "`half_precision(model, optimizer)` the optimizer would not know the new ones. "
                "Load without `assign`, or call `half_precision` afterwards."
            )
        # Of another shape torch itself complains, with its own list of what does not fit.
        if value.shape == parameter.shape:
            link.take(value)


def settle_saved(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    """Before a module's state is taken: its own parameters hold what was written to masters."""
    settle_ahead(_own_links(module))


def settle_loaded(module: nn.Module, incompatible: object) -> None:
    """After a module has loaded, and its masters with it: both agree."""
    copy_back(_own_links(module))


def _own_links(module: nn.Module) -> list[Link]:
    links = (link_of(parameter) for parameter in module._parameters.values())
    return [link for link in links if link is not None]


def _add_masters(links: Sequence[Link], optimizer: Optimizer, state: StateDict) -> None:
    by_id = {id(link.master): link.value for link in links}
    state[KEY] = {
        index: by_id[id(parameter)]
        for index, parameter in enumerate(distinct_parameters(optimizer))
        if id(parameter) in by_id
    }


def _load_masters(links: Sequence[Link], optimizer: Optimizer, state: StateDict) -> None:
    # A state from before `half_precision` has none: the masters stay as they are.
    saved: Mapping[int, Tensor] | None = state.get(KEY)
    if saved is None:
        return
    order = distinct_parameters(optimizer)
    _refuse_other_shapes(order, saved)
    loaded = {id(order[index]) for index in saved}
    for link in links:
        if id(link.master) not in loaded:
            link.take_changes()  # or what was written would be lost below
    with torch.no_grad():
        for index, value in saved.items():
            order[index].copy_(value)
    copy_back(links)


def _refuse_other_shapes(order: list[Tensor], saved: Mapping[int, Tensor]) -> None:
    for index, value in saved.items():
        if index >= len(order) or order[index].shape != value.shape:
            own = tuple(order[index].shape) if index < len(order) else "no parameter"
            raise ValueError(
                f"`optimizer.load_state_dict(state)`: the state's master {index} has shape "
                f"{tuple(value.shape)}, the optimizer has {own} there. Build the model and the "
                "optimizer as they were when the state was saved, then load."
            )


def float_values(model: nn.Module) -> StateDict:
    """The model's state with masters in the place of half-precision parameters, all in float32."""
    values: StateDict = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            values[name] = value
            continue
        link = link_of(value)
        tensor = value.detach() if link is None else link.value
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        values[name] = tensor.to(torch.float32) if half else tensor
    return values

"""Where the casting hooks of a model go: on the fewest modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from gradscale.half.casting import Begins, Ends, ReadsIn, Returns, ReturnsFloat32
from gradscale.half.kept import NORMALIZATION
from gradscale.half.norms import NormReads, NormReturns
from gradscale.half.settling import Settles

HOOKS = (Begins, Ends, ReadsIn, Returns, ReturnsFloat32, NormReads, NormReturns, Settles)


def hook_model(
    model: nn.Module,
    format: torch.dtype,
    kept: Mapping[str, nn.Module],
    named: set[str],
    *,
    without_ddp: bool = False,
) -> None:
    """Installs what is missing of the hooks of a model; called again it finds new modules.

    Args:
        model: the model; its parameters have their final dtypes.
        format: the half-precision format.
        kept: the outermost modules in float32, by name.
        named: those of them that the user named: they return float32.
        without_ddp: refuse to run inside DistributedDataParallel.
    """
    inside = {id(m) for module in kept.values() for m in module.modules()}
    for name, module in kept.items():
        if hooked(module):
            continue
        if isinstance(module, NORMALIZATION) and module is not model:
            _register_first(module, NormReads())
            # After an error, too: what the layer keeps is taken back by this hook alone.
            module.register_forward_hook(NormReturns(format), always_call=True)
            continue
        _register_first(module, ReadsIn(torch.float32), with_kwargs=True)
        if module is not model and name not in named:
            module.register_forward_hook(Returns(format))
    for module in model.modules():
        if id(module) in inside or hooked(module):
            continue
        if _is_layer(module, format, model):
            _register_first(module, ReadsIn(format), with_kwargs=True)
        if module is model or not _torchs_own(module):
            own = module is model
            begins = Begins(format, model=own, without_ddp=without_ddp and own)
            _register_first(module, begins)
            module.register_forward_hook(Ends(format, model=own), always_call=True)
        if module is model:
            module.register_forward_hook(ReturnsFloat32())


def _is_layer(module: nn.Module, format: torch.dtype, model: nn.Module) -> bool:
    """Whether half precision is all that a module can read.

    A module of the user's that has parts, or is the whole model, may hand on to them, or to a loss,
    what it is given; where it multiplies by itself, the product casts.
    """
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    if not any(tensor.dtype == format for tensor in own):
        return False
    alone = next(module.children(), None) is None and module is not model
    return alone or _torchs_own(module)


def _torchs_own(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def hook_settling(model: nn.Module, settles: Settles) -> None:
    """Puts this first, in the place of one that was there: a model computes with what it copies."""
    _remove(model, (Settles,))
    _register_first(model, settles)


def _register_first(
    module: nn.Module, hook: Callable[..., object], *, with_kwargs: bool = False
) -> None:
    """As `register_forward_pre_hook(prepend=True)`, in a way that dynamo sees.

    That moves the new hook to the front of an `OrderedDict`, whose inner dict keeps the old order.
    Dynamo of torch 2.11 guards the hooks by the inner one, and takes them for each other.
    """
    earlier = list(module._forward_pre_hooks)
    module.register_forward_pre_hook(hook, with_kwargs=with_kwargs)
    for key in earlier:
        module._forward_pre_hooks[key] = module._forward_pre_hooks.pop(key)


def hooked(module: nn.Module) -> bool:
    """Whether a module has one of these hooks."""
    return any(isinstance(hook, HOOKS) for hook in module._forward_pre_hooks.values())


def unhook_model(model: nn.Module) -> None:
    """Takes these hooks off a model and everything below it."""
    for module in model.modules():
        _remove(module, HOOKS)


def _remove(module: nn.Module, kinds: tuple[type, ...]) -> None:
    for hooks, flags in (
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        (module._forward_hooks, module._forward_hooks_with_kwargs),
    ):
        for key in [key for key, hook in hooks.items() if isinstance(hook, kinds)]:
            del hooks[key]
            flags.pop(key, None)
            module._forward_hooks_always_called.pop(key, None)

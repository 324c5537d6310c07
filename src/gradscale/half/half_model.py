"""A model in half precision with its float32 masters: weights in and out, and the way back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from gradscale.gradients.master_weights import masters_of
from gradscale.half.hooks import hook_model, hook_settling, unhook_model
from gradscale.half.kept import Keep, Kept, kept_of
from gradscale.half.link import link_of
from gradscale.half.masters import Masters
from gradscale.half.refusals import check_fits, check_gradients
from gradscale.half.repoint import repoint
from gradscale.half.rounding import HALVES, convert_, floating
from gradscale.half.saving import (
    float_values,
    hook_module_states,
    unhook_module_states,
)
from gradscale.half.settling import Settles
from gradscale.optimizer_parameters import parameters_of
from gradscale.torch_types import StateDict


class HalfPrecision:
    """A model in half precision with its float32 masters; made by `half_precision`.

    Attributes:
        model: the model.
        format: its half-precision format.
        kept: the names of the outermost modules that stay in float32.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> from gradscale import half_precision
        >>> half = half_precision(model, optimizer)
        >>> [(name, weight.dtype) for name, weight in half.named_parameters()]
        [('weight', torch.float32), ('bias', torch.float32)]
        >>> half.restore()
        >>> model.weight.dtype
        torch.float32
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        format: torch.dtype,
        keep: Keep | Collection[Keep] | None,
        kept: Kept,
        gradients: torch.dtype,
        saturate: bool,
    ) -> None:
        self.model = model
        self.format = format
        self.kept = tuple(kept.modules)
        self._keep = keep
        self._gradients = gradients
        self._saturate = saturate
        self._optimizers = list(optimizers)
        self._masters = [
            Masters(o, model, gradients, saturate, self._adopt_new) for o in optimizers
        ]
        self._casts: list[tuple[Tensor, torch.dtype]] = []
        self._adopt(kept)

    def _adopt_new(self) -> None:
        """After `optimizer.add_param_group`: what it brought, and the modules around it."""
        kept = kept_of(self.model, self._keep)
        check_gradients(self._optimizers)
        check_fits(self.model, self.format, kept.tensors, saturate=self._saturate)
        self._adopt(kept)

    def _adopt(self, kept: Kept) -> None:
        inside = {id(p): p for p in self.model.parameters() if floating(p)}
        half = {key: p for key, p in inside.items() if key not in kept.tensors}
        owned = set(map(id, parameters_of(*self._optimizers)))
        fresh = {key: p for key, p in half.items() if key in owned and link_of(p) is None}
        # Before anything is cast: they begin at the values that the casts will round.
        masters = {key: _master_of(parameter) for key, parameter in fresh.items()}
        for tensor in (*half.values(), *self.model.buffers()):
            if id(tensor) in kept.tensors or not floating(tensor):
                continue
            if id(tensor) not in fresh and link_of(tensor) is None:
                self._casts.append((tensor, torch.promote_types(tensor.dtype, torch.float32)))
            if tensor.dtype != self.format:
                convert_(tensor, self.format, saturate=self._saturate and id(tensor) in half)
        widened = self._widen_kept(kept)
        for optimizer, own in zip(self._optimizers, self._masters, strict=True):
            here = set(map(id, parameters_of(optimizer)))
            for key, parameter in fresh.items():
                if key in here:
                    own.link(parameter, masters[key])
            # What was widened stands for itself: its state is brought to float32 along with it.
            repoint(optimizer, {**masters, **widened})
        wide = self._gradients not in HALVES
        hook_model(self.model, self.format, kept.modules, kept.named, without_ddp=wide)
        stay = (t for t in (*inside.values(), *self.model.buffers()) if id(t) in kept.tensors)
        hook_settling(self.model, Settles(self._masters, stay))
        hook_module_states(self.model)
        # cuDNN wants a layer's weights in one block of memory, which the casts have taken apart.
        for module in self.model.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()

    def _widen_kept(self, kept: Kept) -> dict[int, Tensor]:
        """What is to stay in float32 and was half before, such as a bfloat16 checkpoint's norms."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        halves = [t for t in tensors if id(t) in kept.tensors and t.dtype in HALVES]
        for tensor in halves:
            convert_(tensor, torch.float32)
        return {id(tensor): tensor for tensor in halves}

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The model's parameters in its own order, with masters in the place of half ones."""
        for masters in self._masters:
            if not masters.may_be_of_another_rank:
                masters.take_changes()
        for name, parameter in self.model.named_parameters():
            link = link_of(parameter)
            yield name, parameter if link is None else link.master

    def parameters(self) -> Iterator[Tensor]:
        """The same without names: for clipping, and for `AveragedModel.update_parameters`."""
        for _, parameter in self.named_parameters():
            yield parameter

    def buffers(self) -> Iterator[Tensor]:
        """The model's buffers, as `AveragedModel(use_buffers=True)` asks for."""
        return self.model.buffers()

    def float_state_dict(self) -> StateDict:
        """The model's state with the float32 weights: for a plain model, an export, an evaluation.

        The masters are not copied: a later step changes them. Parameters that no optimizer has were
        rounded when they were converted, and stay so.
        """
        return float_values(self.model)

    def float_model(self) -> nn.Module:
        """A copy of the model in float32, with the masters as weights and no trace of this.

        Example:
            >>> from gradscale import half_precision
            >>> half = half_precision(m := nn.Linear(2, 1), torch.optim.SGD(m.parameters(), lr=0.1))
            >>> average = torch.optim.swa_utils.AveragedModel(half.float_model())
            >>> average.update_parameters(half)
            >>> average.module.weight.dtype
            torch.float32
        """
        copy = deepcopy(self.model, _computed(self.model))
        unhook_model(copy)
        unhook_module_states(copy)
        for tensor in (*copy.parameters(), *copy.buffers()):
            if tensor.dtype == self.format:
                convert_(tensor, torch.float32)
        copy.load_state_dict(self.float_state_dict())
        return copy

    def sync(self) -> None:
        """Brings parameters and masters together now; forward passes, steps and states do, too.

        For writes that torch does not count, which are those through `.data` of the masters, and
        for a compiled model. Where both were written, the masters' values hold.
        """
        for masters in self._masters:
            masters.sync()

    def widen_gradients(self) -> None:
        """Turns half-precision gradients into float32 ones now; `step` does it otherwise.

        For clipping without a scaler. With one, `scaler.unscale_(optimizer)` does it.
        """
        for masters in self._masters:
            masters.widen_()

    def broadcast(self, source: int = 0, process_group: dist.ProcessGroup | None = None) -> None:
        """Sends one rank's masters to all others, and rounds them into the parameters.

        For ranks that built their models from different seeds. DDP sends parameters only.

        Args:
            source: the global rank that sends.
            process_group: the ranks that take part; None for all.
        """
        with torch.no_grad():
            for tensor in (*self.parameters(), *self.buffers()):
                dist.broadcast(tensor.detach(), source, group=process_group)
        for masters in self._masters:
            masters.copy_back()

    def restore(self) -> None:
        """Undoes everything: the model is float32 again, with the masters as its weights.

        Gradients are dropped; the optimizer keeps its state. Parameters that no optimizer has have
        no master either: they are float32 again, with the values to which they were rounded.
        """
        for masters in self._masters:
            masters.take_changes()
        links = {id(link.parameter): link for m in self._masters for link in m.links}
        for optimizer, masters in zip(self._optimizers, self._masters, strict=True):
            optimizer.zero_grad()
            repoint(optimizer, {id(link.master): link.parameter for link in masters.links})
            masters.remove()
        unhook_model(self.model)
        unhook_module_states(self.model)
        for tensor, dtype in self._casts:
            convert_(tensor, dtype)
        for link in links.values():
            link.dissolve()

    def __getstate__(self) -> StateDict:
        return {name: value for name, value in self.__dict__.items() if name != "_masters"}

    def __setstate__(self, state: StateDict) -> None:
        # Copied optimizers have masters of their own; the model may not be complete yet.
        self.__dict__.update(state)
        self._masters = [cast(Masters, masters_of(o)) for o in self._optimizers]
        for masters in self._masters:
            masters.adopt = self._adopt_new
            masters.attach(self.model)

    def __repr__(self) -> str:
        parameters = list(self.model.parameters())
        linked = sum(link_of(parameter) is not None for parameter in parameters)
        alone = sum(p.dtype == self.format for p in parameters) - linked
        others = f", {alone} without" if alone else ""
        name = str(self.format).removeprefix("torch.")
        return (
            f"HalfPrecision({name}: {linked} parameters with float32 masters{others}, "
            f"{len(parameters) - linked - alone} in float32)"
        )


def _computed(model: nn.Module) -> dict[int, Tensor]:
    """For `deepcopy`: what modules hold that they computed, and will compute anew.

    The old `weight_norm` and `spectral_norm` leave a weight that autograd made, which torch does
    not copy.
    """
    held = [value for module in model.modules() for value in vars(module).values()]
    made = [value for value in held if isinstance(value, Tensor) and not value.is_leaf]
    return {id(value): value.detach().clone() for value in made}


def _master_of(parameter: Tensor) -> Parameter:
    """A float32 parameter with the values: the storage that the half one is about to leave."""
    value = parameter.data  # `detach()` would share the count of in-place changes as well
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    return Parameter(wide, requires_grad=parameter.requires_grad)

"""One forward and backward pass that leaves nothing behind but its gradients."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from gradscale.backward.cancellation import Cancellations
from gradscale.backward.graph import Walk, walk
from gradscale.backward.injection import scale_injected
from gradscale.backward.names import parameter_names
from gradscale.emulation import emulating
from gradscale.emulation.later_passes import ENGINE, Engine
from gradscale.truth.alike import alike
from gradscale.truth.gradients import Gradients, as_dense, capture_gradients
from gradscale.truth.untouched import no_gradients, untouched
from gradscale.truth.wider import wider

Loss = Callable[[nn.Module], Tensor]


def one_pass(
    model: nn.Module,
    loss: Loss,
    scale: float = 1.0,
    *,
    dtype: torch.dtype | None = None,
    cancelled: bool = False,
    draw_alike: bool = False,
) -> Gradients:
    """The gradients of `scale * loss(model)`; the model, its gradients and the RNG stay as is.

    What a user's function adds to them is multiplied by the scale, too.

    Args:
        model: any.
        loss: of the model, a scalar; with whatever autocast it enters.
        scale: the loss scale.
        dtype: compute everything in this dtype that would be in half precision; see `wider`.
        cancelled: also find the gradients that are zero up to rounding.
        draw_alike: drop the same elements as another such pass in another precision; see `alike`.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> one_pass(model, lambda m: m(torch.ones(1, 2)).sum(), scale=8.0).parameters["weight"]
        tensor([[8., 8.]])
        >>> model.weight.grad is None
        True
    """
    with untouched(model, dtype), torch.inference_mode(False), torch.enable_grad():
        with ExitStack() as stack:
            if dtype is not None:
                stack.enter_context(wider(dtype))
            if draw_alike:
                stack.enter_context(alike())
            found = stack.enter_context(capture_gradients(model))
            value = checked_loss(loss(model))
            found.loss, found.scale = float(value.detach()), scale
            formats = emulating(value)
            found.emulated = None if formats is None else formats.backward
            walked, device = walk(value), value.device
            with (
                _strangers_without_gradients(model, walked),
                _injected_scaled(walked, scale, device),
            ):
                sums = Cancellations(walked) if cancelled else None
                # Half precision cannot hold a scale such as 2^16.
                run_backward(value.to(torch.float32) * scale)
                zeros = {} if sums is None else sums.zeros()
        named, places = dict(model.named_parameters()), parameter_names(model)
        found.owners = {name: places[id(p)].module for name, p in named.items() if id(p) in places}
        found.zeros = {name: zeros[id(p)] for name, p in named.items() if id(p) in zeros}
        found.parameters = {
            name: as_dense(p.grad) for name, p in named.items() if p.grad is not None
        }
    return found


def checked_loss(value: object, call: str = "loss(model)") -> Tensor:
    """A loss that a backward pass can start from.

    Raises:
        TypeError: it is no tensor.
        ValueError: it is no scalar, or requires no gradient.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"`{call}` returned {type(value).__name__}; it must return the loss as a tensor."
        )
    if value.numel() != 1 or value.is_complex():
        raise ValueError(
            f"`{call}` returned a {value.dtype} tensor of shape {tuple(value.shape)}; a loss "
            "is one real number. Take its mean or sum."
        )
    if not value.requires_grad:
        raise ValueError(
            f"`{call}` does not depend on any parameter that requires a gradient. Is it computed "
            "under `torch.no_grad()`, detached, or is every parameter frozen?"
        )
    return value.reshape(())


def run_backward(loss: Tensor) -> None:
    """`loss.backward()`, in which a function mode stays on.

    torch hands its own `backward` to the mode, which is off until that returns. What checkpointing
    computes again inside would not be computed as it was the first time.
    """
    # Looked up anew, where `emulate` stands in for it once a block has ended.
    engine: Engine = getattr(torch.autograd, ENGINE)
    engine(
        (loss,),
        (torch.ones_like(loss),),
        False,
        False,
        (),
        allow_unreachable=True,
        accumulate_grad=True,
    )


@contextmanager
def _injected_scaled(walked: Walk, scale: float, device: torch.device) -> Generator[None]:
    """Gradients that functions return of their own are at the scale, as `injected="scale"` does."""
    remove = scale_injected(
        walked,
        sorted(walked.graph.unproven) if scale != 1 else (),
        torch.full((), scale, device=device),
        lambda node, name, why: None,  # advice and watch name those that cannot be asked
    )
    try:
        yield
    finally:
        remove()


@contextmanager
def _strangers_without_gradients(model: nn.Module, walked: Walk) -> Generator[None]:
    """Leaves of the graph that are no parameters of the model keep their gradients, too."""
    own = {id(parameter) for parameter in model.parameters()}
    leaves = walked.graph.parameters().values()
    with no_gradients(leaf for leaf in leaves if leaf is not None and id(leaf) not in own):
        yield

"""`gradscale.watch`: the one call that a training loop needs."""

from __future__ import annotations

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler as TorchScaler

from gradscale.formats import FloatFormat
from gradscale.ranks import Ranks
from gradscale.scaler import GradScaler
from gradscale.watching.watch import Watch


def watch(
    model: nn.Module,
    scaler: TorchScaler | None = None,
    *,
    every: int = 100,
    activations: bool = False,
    format: FloatFormat | torch.dtype | str | None = None,
    keep: int = 10,
    process_group: Ranks | None = None,
) -> Watch:
    """Measures what a model's gradients hold, and what a format loses of them, while it trains.

    Use it as a context manager around the training loop. Gradients keep their bits; the model, the
    loop and the scaler are not changed, and every hook is gone after the block. Steps that do not
    measure cost two calls. Measuring steps are 0, 1, 2, 4, 8, … up to `every`, then each multiple
    of it; each measured tensor is read once, and nothing waits for the device.

    Args:
        model: any module; DDP and FSDP included.
        scaler: the loop's scaler, ours or torch's, if it has one.
        every: steps between two measurements.
        activations: also count what every module returns.
        format: to judge for; None for the one that each gradient has, and for float16 in a run
            that is all float32.
        keep: how many measuring steps a report is made of, the latest ones.
        process_group: the ranks that share a report, as a group or a device mesh; None for all.

    Raises:
        TypeError: if `model` is no module, or `scaler` no scaler.
        ValueError: if the model has nothing to train, or a number is out of range.

    Example:
        >>> model = torch.nn.Linear(4, 1)
        >>> with watch(model) as watching:
        ...     (model(torch.ones(2, 4)).sum() * 2.0**-30).backward()
        >>> row = watching.report(format="fp16").worst(1)[0]
        >>> row.name, row.lost_share, row.exponent, row.needs
        ('weight', 1.0, 0, 5)
    """
    watching = Watch(
        model,
        scaler,
        every=every,
        activations=activations,
        format=format,
        keep=keep,
        process_group=process_group,
    )
    if isinstance(scaler, GradScaler):
        # So that it names parameters as the report does, and looks at the buffers of this model
        # after a bad step.
        scaler._step.names.learn_from(model)
        scaler._step.models.know(watching.model)
    return watching

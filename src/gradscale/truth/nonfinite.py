"""The hunt for the first infinity or NaN: a re-run of the failing batch says where it began."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import nn

from gradscale.backward.graph import walk
from gradscale.files.json_text import JsonObject
from gradscale.truth.call_log import CallLog, Spot, nonfinite
from gradscale.truth.one_pass import Loss, checked_loss
from gradscale.truth.untouched import no_gradients, untouched
from gradscale.truth.wider import eagerly


@dataclass(frozen=True)
class Nonfinite:
    """What a re-run of one batch found; false if all was finite.

    Attributes:
        loss: the loss, unscaled.
        scale: the loss scale of the re-run.
        forward: the first module, in forward order, that made a value which is not finite.
        backward: the first operation, in backward order, that made such a gradient of finite ones.
        inputs: whether the model was already handed something that is not finite.
        parameters: parameters and buffers that were not finite to begin with.
        gradients: the parameters whose gradients are not finite in the end.
    """

    loss: float
    scale: float
    forward: Spot | None = None
    backward: Spot | None = None
    inputs: bool = False
    parameters: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        found = self.forward or self.backward or self.inputs or self.parameters or self.gradients
        return bool(found) or not math.isfinite(self.loss)

    def __str__(self) -> str:
        if not self:
            return f"everything is finite: loss {self.loss:.4g} at scale {self.scale:g}"
        lines: list[str] = []
        if self.parameters:
            lines.append(f"not finite to begin with: {_few(self.parameters)}")
        if self.inputs:
            lines.append("the model was handed a batch that is not finite")
        if self.forward is not None:
            lines.append(f"forward, first {self.forward}")
        if not math.isfinite(self.loss):
            lines.append(f"the loss is {self.loss}")
        elif self.forward is not None:
            lines.append(f"the loss is finite all the same: {self.loss:.4g}")
        # What follows from a loss that is not finite says nothing of its own.
        if math.isfinite(self.loss) and self.backward is not None:
            lines.append(f"backward at scale {self.scale:g}, first {self.backward}")
        if self.gradients:
            lines.append(f"gradients that are not finite in the end: {_few(self.gradients)}")
        return "\n".join(lines)

    def to_dict(self) -> JsonObject:
        """Plain numbers and strings; `first_nonfinite` of a recording takes the two modules."""
        return asdict(self)


class Scales(Protocol):
    """A scaler: torch's, ours, or anything that can be asked."""

    def get_scale(self) -> float:
        """The loss scale."""
        ...


def find_nonfinite(model: nn.Module, loss: Loss, scale: float | Scales = 1.0) -> Nonfinite:
    """Runs the batch once more, and says where the first value that is not finite was made.

    Every module's output and every operation of the backward pass is looked at, so the re-run is
    slow; a step that nobody asks about pays nothing. The model, its gradients, buffers and random
    numbers are left alone. Compiled code runs eagerly, because it has no modules.

    Args:
        model: any module.
        loss: of the model: the failing step up to, but without, `backward`, under its autocast.
        scale: at which it failed: a number, or the scaler, which remembers it.

    Raises:
        TypeError: `loss(model)` is no tensor.
        ValueError: it is no scalar, or requires no gradient.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> spot = find_nonfinite(model, lambda m: m(torch.zeros(1, 2)).mul(0).sqrt().sum())
        >>> spot.forward is None, spot.backward.operation
        (True, 'SqrtBackward0')
    """
    with eagerly(), untouched(model), torch.inference_mode(False), torch.enable_grad():
        return _hunt(model, loss, scale_to_run_at(scale))


def scale_to_run_at(scale: float | Scales) -> float:
    """A number as it is; of a scaler the scale of its last step if that was skipped, else its own.

    Example:
        >>> from gradscale import GradScaler
        >>> scale_to_run_at(2.0), scale_to_run_at(GradScaler("cpu"))
        (2.0, 65536.0)
    """
    if isinstance(scale, float | int):
        return float(scale)
    last = getattr(scale, "last_step", None)
    return float(last.scale if last is not None and last.skipped else scale.get_scale())


def _hunt(model: nn.Module, loss: Loss, scale: float) -> Nonfinite:
    # Before the pass: what was bad to begin with has no first place.
    named = [*model.named_parameters(), *model.named_buffers()]
    bad = tuple(name for name, value in named if nonfinite(value))
    with CallLog(model) as log:
        value = checked_loss(loss(model))
        walked = walk(value)
        for node in walked.nodes:
            log.follow(node)
        # Of the graph, not of the model: a loss may reach tensors that are no parameters.
        leaves = [leaf for leaf in walked.graph.parameters().values() if leaf is not None]
        del walked
        with no_gradients(leaves):
            torch.autograd.backward(value.to(torch.float32) * scale)
            gradients = tuple(
                name
                for name, parameter in model.named_parameters()
                if parameter.grad is not None and nonfinite(parameter.grad)
            )
    return Nonfinite(
        float(value.detach()), scale, log.forward, log.backward, log.bad_inputs, bad, gradients
    )


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

"""How losses are scaled: in float32, at the scale in force, left-over gradients brought along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from gradscale.scaler.eager import eager
from gradscale.scaler.given_up import MIXED, Divided, before_backward, divided
from gradscale.scaler.stepping import SteppingScaler


class ScalingScaler(SteppingScaler):
    """A scaler that multiplies losses."""

    _backward_ran = False
    _outputs: list[tuple[Tensor, Tensor]] | None = None

    @eager
    def scale(self, outputs: Any, *, inputs: Any = None) -> Any:
        """Multiplies a loss, or a nesting of lists and tuples of them, by the scale.

        Half-precision losses are promoted to float32 first, where the product cannot overflow.
        Gradients left over from before the last `update` are brought to the current scale.

        Args:
            outputs: tensors of any shape.
            inputs: the batch, kept until the step ends, so that a bad one can be named
                (`nonfinite_input`).

        Returns:
            The same nesting, scaled; `outputs` itself if scaling is disabled.

        Raises:
            ValueError: if something in `outputs` is no tensor.
        """
        if not self._enabled:
            return outputs
        earlier = len(self._evidence.losses), len(self._evidence.inputs)
        if inputs is not None:
            self._evidence.inputs.append(inputs)
        return self._scale_nested(outputs, earlier)

    def _scale_nested(self, outputs: Any, earlier: tuple[int, int]) -> Any:
        if isinstance(outputs, Tensor):
            return self._scale_tensor(outputs, earlier)
        if isinstance(outputs, Iterable) and not isinstance(outputs, str | bytes | Mapping):
            items = cast("Iterable[Any]", outputs)
            scaled = (self._scale_nested(item, earlier) for item in items)
            if isinstance(outputs, list | tuple):
                return type(outputs)(scaled)  # pyright: ignore[reportUnknownVariableType]
            return scaled
        raise ValueError(
            f"`scale({type(outputs).__name__})`: outputs must be a Tensor or an iterable of "
            "Tensors. Pass the loss, or a list of losses."
        )

    def _scale_tensor(self, output: Tensor, earlier: tuple[int, int]) -> Tensor:
        if self._scale is None:
            self._lazy_init_scale_growth_tracker(output.device)
        scale = cast(Tensor, self._scale)
        if self._layerwise is not None:
            self._layerwise.begin_step(scale)
        self._pending.bring_to(scale)
        self._evidence.note_loss(output)
        given = output
        if output.dim() and output.dtype in (torch.float16, torch.bfloat16):
            output = output.to(torch.float32)
        if self._layerwise is not None:
            output = self._layerwise.attach(output)
        scaled = output * scale.to(device=output.device, non_blocking=True)
        if scaled.requires_grad:
            if any(divided(record) for record in self._per_optimizer_states.values()):
                scaled.register_hook(partial(self._look_for_new_step, earlier))
            elif not self._backward_ran:
                scaled.register_hook(self._note_backward)
        if self._outputs is not None:
            self._outputs.append((scaled, given))
        return scaled

    def _note_backward(self, gradient: Tensor) -> None:
        del gradient
        self._backward_ran = True

    def _look_for_new_step(self, earlier: tuple[int, int], gradient: Tensor) -> None:
        self._note_backward(gradient)
        after = partial(self._begin_anew, earlier)
        before_backward(self._per_optimizer_states, self._pending.optimizer, after)

    def _begin_anew(self, earlier: tuple[int, int], touched: list[Divided]) -> None:
        """Forgets what a step that was given up had done to these optimizers' gradients."""
        for each in touched:
            if not each.empty:
                each.record[MIXED] = True
                continue
            del self._per_optimizer_states[each.key]
            self._gradients.forget(each.optimizer)
        if not self._per_optimizer_states:
            losses, inputs = earlier
            del self._evidence.losses[:losses], self._evidence.inputs[:inputs]

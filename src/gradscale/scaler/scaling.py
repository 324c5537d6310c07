"""How losses are scaled: in float32, at the scale in force, left-over gradients brought along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from gradscale.scaler.eager import eager
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
        if inputs is not None:
            self._evidence.inputs.append(inputs)
        return self._scale_nested(outputs)

    def _scale_nested(self, outputs: Any) -> Any:
        if isinstance(outputs, Tensor):
            return self._scale_tensor(outputs)
        if isinstance(outputs, Iterable) and not isinstance(outputs, str | bytes | Mapping):
            scaled = map(self._scale_nested, cast("Iterable[Any]", outputs))
            if isinstance(outputs, list | tuple):
                return type(outputs)(scaled)  # pyright: ignore[reportUnknownVariableType]
            return scaled
        raise ValueError(
            f"`scale({type(outputs).__name__})`: outputs must be a Tensor or an iterable of "
            "Tensors. Pass the loss, or a list of losses."
        )

    def _scale_tensor(self, output: Tensor) -> Tensor:
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
        if scaled.requires_grad and not self._backward_ran:
            scaled.register_hook(self._note_backward)
        if self._outputs is not None:
            self._outputs.append((scaled, given))
        return scaled

    def _note_backward(self, gradient: Tensor) -> None:
        del gradient
        self._backward_ran = True

"""Megatron-core: its `grad_scaler`, with any policy that needs nothing but overflows."""
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

from typing import Protocol

from megatron.core.optimizer.grad_scaler import MegatronGradScaler
from torch import Tensor

from gradscale.integrations.attachment import Attachment
from gradscale.integrations.slots import without_half
from gradscale.integrations.told import ToldScaler
from gradscale.integrations.wanted import WantedScaler, device_of
from gradscale.scaler import GradScaler


class MixedPrecisionOptimizer(Protocol):
    """What is asked of Megatron's optimizers for half-precision models."""

    grad_scaler: object | None


class PolicyGradScaler(MegatronGradScaler):
    """A `MegatronGradScaler` that asks a policy for the scale, counts, alarms and logs.

        optimizer.grad_scaler = PolicyGradScaler(policy=gradscale.presets.megatron())

    Megatron multiplies the loss and divides the gradients itself, and agrees over its ranks on
    whether they are finite before it tells.

    Args:
        device: of the scale; None is the accelerator, or the CPU.
        scaler: one that is there already; None makes one.
        scaler_arguments: of `GradScaler`.

    Raises:
        ValueError: if the policy needs more of a step than whether it overflowed, or for
            ``layerwise``: Megatron's own code multiplies the loss, so that no plan can reach it.
    """

    def __init__(
        self,
        device: str | None = None,
        scaler: GradScaler | None = None,
        **scaler_arguments: object,
    ) -> None:
        # Not the parent's: it puts a tensor on CUDA, whatever there is.
        device = device_of(self) if device is None else device
        self.scaler = WantedScaler(scaler, scaler_arguments).build(device)
        if self.scaler.layerwise is not None:
            raise ValueError(
                "`PolicyGradScaler(layerwise=…)`: Megatron multiplies the loss itself, and a plan "
                "would never see it. Leave it out."
            )
        self._told = ToldScaler(self.scaler, device, "Megatron")

    @property
    def scale(self) -> Tensor:
        """The loss scale, shape `(1,)`."""
        return self._told.scale.view(1)

    @property
    def inv_scale(self) -> Tensor:
        """Its reciprocal, which is exact for powers of two, shape `(1,)`."""
        return self.scale.double().reciprocal().float()

    def update(self, found_inf: bool) -> None:
        """Ends a step."""
        self._told.tell(bool(found_inf))

    def state_dict(self) -> dict[str, object]:
        """That of the `GradScaler`."""
        return self.scaler.state_dict()

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Goes on at a state of ours, or of Megatron's own scaler."""
        self._told.take_over(
            state_dict,
            "megatron" if "scale" in state_dict and "gradscale" not in state_dict else None,
        )


def attach_megatron(optimizer: MixedPrecisionOptimizer, wanted: WantedScaler) -> Attachment:
    """Puts a `PolicyGradScaler` into a `MixedPrecisionOptimizer`; of a chain, into each link.

    Raises:
        ValueError: if it trains in bfloat16, without a scaler.
    """
    if optimizer.grad_scaler is None:
        raise ValueError(without_half(type(optimizer).__name__, "`OptimizerConfig(fp16=True)`"))
    scaler = wanted.build(device_of(optimizer))
    attachment = Attachment(optimizer, scaler)
    attachment.put(optimizer, "grad_scaler", PolicyGradScaler(scaler._device, scaler))
    return attachment

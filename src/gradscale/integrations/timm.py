"""`timm.utils.NativeScaler`, with a scaler of ours in it."""
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

from timm.utils.cuda import NativeScaler as TimmScaler

from gradscale.integrations.wanted import WantedScaler, device_of
from gradscale.scaler import GradScaler


class NativeScaler(TimmScaler):
    """Backward pass, clipping and step in one call, as timm's training script makes it.

        loss_scaler = gradscale.integrations.timm.NativeScaler(layerwise=True)
        loss_scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())

    Args:
        device: of the gradients; None is the accelerator, or the CPU.
        scaler: one that is there already; None makes one.
        scaler_arguments: of `GradScaler`.
    """

    def __init__(
        self,
        device: str | None = None,
        scaler: GradScaler | None = None,
        **scaler_arguments: object,
    ) -> None:
        super().__init__()
        wanted = WantedScaler(scaler, scaler_arguments)
        self._scaler = wanted.build(device_of(self) if device is None else device)

"""fastai: a callback that gives `MixedPrecision` another scaler."""
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

from typing import Protocol

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision

from gradscale.integrations.attachment import Attachment
from gradscale.integrations.slots import without_half
from gradscale.integrations.wanted import WantedScaler, device_of
from gradscale.scaler import GradScaler


class Learner(Protocol):
    """What is asked of fastai's `Learner`."""

    cbs: list[object]
    scaler: object

    def add_cb(self, cb: object) -> object:
        """Adds a callback."""
        ...

    def remove_cb(self, cb: object) -> object:
        """Takes it away."""
        ...


class ScalerCallback(Callback):
    """Puts a scaler in the place of the one that `MixedPrecision` makes at each fit.

    So one scaler lives as long as the learner: a second `fit` begins at the scale of the first.

    Args:
        given: the scaler.
    """

    learn: Learner
    mixed_precision: MixedPrecision

    order: int = MixedPrecision.order + 1

    def __init__(self, given: GradScaler) -> None:
        super().__init__()
        self.given = given

    def before_fit(self) -> None:
        """Runs after that of `MixedPrecision`."""
        self.learn.scaler = self.given
        if self.given._device == "cpu":  # the host's autocast is CUDA's: elsewhere it does nothing
            self.mixed_precision.autocast = torch.autocast("cpu", dtype=torch.float16)


def attach_learner(learner: Learner, wanted: WantedScaler) -> Attachment:
    """Puts a scaler into a `Learner` that has been told `to_fp16()`.

    Raises:
        ValueError: if it has not, or the scaler would have to step fastai's optimizer itself.
    """
    host = next((it for it in learner.cbs if isinstance(it, MixedPrecision)), None)
    mode: object = getattr(host, "amp_mode", None)
    if str(getattr(mode, "value", mode)) != "fp16":
        raise ValueError(without_half(type(learner).__name__, "`learner.to_fp16()`"))
    scaler = wanted.build(device_of(None))  # a learner does not say where
    if scaler._undo.sync_free or scaler._undo.way != "gradient":
        raise ValueError(
            "`attach(learner, sync_free=…, undo=…)`: fastai shows the scaler a callback in the "
            "optimizer's place, and steps by itself. Leave both at their defaults."
        )
    attachment = Attachment(learner, scaler)
    callback = ScalerCallback(scaler)
    learner.add_cb(callback)
    attachment.undone_by(lambda: learner.remove_cb(callback))
    attachment.say("callback after MixedPrecision")
    return attachment

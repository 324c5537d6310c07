"""PyTorch Lightning and Fabric: a precision plugin for both."""
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.utils._pytree import tree_map

from gradscale.integrations.attachment import Attachment
from gradscale.integrations.held import LightningSchedules
from gradscale.integrations.wanted import WantedScaler, device_of, join_ranks
from gradscale.metrics.meter import Subscription
from gradscale.metrics.metrics import Metrics

# Both names of the package are in use, and a plugin must derive from that of the trainer.
_NAMES = ("lightning.pytorch", "pytorch_lightning")
_package = next((name for name in _NAMES if name in sys.modules), _NAMES[0])
_precision: Any = importlib.import_module(f"{_package}.plugins.precision")
_MixedPrecision: Any = _precision.MixedPrecision


class Precision(_MixedPrecision):
    """Float16 training in a Lightning `Trainer` or in Fabric: ``plugins=Precision(…)``.

    As the host's own plugin for ``"16-mixed"``, with a `gradscale.GradScaler`, and:

    - gradients are divided before `on_before_optimizer_step` and clipped, whatever the optimizer;
      the host refuses to clip for fused ones, and shows their gradients at S times their value;
    - schedules that move by the step are held where the optimizer skipped;
    - the scale, skips and what else is in `Metrics` go to the trainer's loggers;
    - on a CPU it trains in float16, where the host turns to bfloat16.

    Args:
        device: where autocast is; None is the accelerator that is there, or the CPU.
        scaler: one that is there already; None makes one.
        scaler_arguments: of `GradScaler`: ``layerwise=True``, ``policy=``, …
    """

    scaler: Any

    def __init__(
        self, device: str | None = None, scaler: Any = None, **scaler_arguments: Any
    ) -> None:
        device = device_of(None) if device is None else device
        built = WantedScaler(scaler, scaler_arguments).build(device)
        self._joins = scaler is None and scaler_arguments.get("process_group") is None
        self._schedules = LightningSchedules(built)
        self._logging: Subscription | None = None
        super().__init__("16-mixed", device, built)

    def connect(self, model: Any, optimizers: Any, lr_schedulers: Any) -> Any:
        """Begins a fit."""
        self.teardown()
        return super().connect(model, optimizers, lr_schedulers)

    def teardown(self) -> None:
        """Ends it."""
        self._schedules.release()
        if self._logging is not None:
            self._logging.remove()
            self._logging = None

    def convert_output(self, data: Any) -> Any:
        """What a Fabric module returns, in float32: losses are computed outside autocast there."""
        return tree_map(_widened, data)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast. Fabric enters it for a forward pass, the Trainer for a whole step."""
        return torch.autocast(self.device, dtype=torch.float16)

    def pre_backward(self, tensor: Tensor, module: Any) -> Tensor:
        """Scales the Trainer's loss; Fabric's is scaled in `backward`."""
        if self._joins:
            join_ranks(self.scaler)
        if not _in_trainer(module):
            return tensor
        if not self._schedules.held:
            self._follow(module)
        return super().pre_backward(tensor, module)

    def _follow(self, module: Any) -> None:
        """Holds schedules and logs, from the first backward pass of a fit on.

        What `connect` is given may be the module in a strategy's wrapper.
        """
        trainer = module.trainer
        self.scaler.name_parameters(module)
        self._schedules.hold(module, trainer)
        if trainer.loggers:
            self._logging = self.scaler.log_to(_Loggers(trainer), trainer.log_every_n_steps)

    def backward(self, tensor: Tensor, model: Any, *args: Any, **kwargs: Any) -> None:
        """Runs the backward pass."""
        if _in_trainer(model):
            super().backward(tensor, model, *args, **kwargs)
        else:
            self.scaler.scale(tensor).backward(*args, **kwargs)

    def post_backward(self, tensor: Tensor, module: Any) -> Any:
        """Calls the Trainer's hooks."""
        return super().post_backward(tensor, module) if _in_trainer(module) else tensor

    def optimizer_step(
        self,
        optimizer: Any,
        model: Any = None,
        closure: Callable[[], Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Steps unless a gradient is not finite; then `update`.

        Raises:
            MisconfigurationException: for LBFGS in a Trainer, from the host.
        """
        if model is None or closure is None or not _in_trainer(model):  # Fabric
            kwargs |= {} if closure is None else {"closure": closure}
        elif isinstance(optimizer, torch.optim.LBFGS):
            return super().optimizer_step(optimizer, model, closure, **kwargs)
        else:
            result = closure()
            no_backward = result is None and model.automatic_optimization
            if not no_backward:
                self.unscale_gradients(optimizer)
            self._after_closure(model, optimizer)
            if no_backward:
                return result
        output = self.scaler.step(optimizer, **kwargs)
        self.scaler.update()
        return output

    def unscale_gradients(self, optimizer: Any) -> None:
        """Divides gradients by the scale, once a step; those of fused optimizers, too."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        record = self.scaler._per_optimizer_states[id(optimizer)]
        if record["stage"] is OptState.READY:
            self.scaler.unscale_(optimizer)

    def clip_gradients(
        self, optimizer: Any, clip_val: float | None = 0.0, gradient_clip_algorithm: Any = "norm"
    ) -> None:
        """Clips true gradients, of fused optimizers and in manual optimization as well."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        if not clip_val or clip_val <= 0:
            return
        if str(getattr(gradient_clip_algorithm, "value", gradient_clip_algorithm)) == "value":
            self.scaler.clip_grad_value_(optimizer, clip_val)
        else:
            self.scaler.clip_grad_norm_(optimizer, clip_val)

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes over the scaler of a run that the host's own plugin began."""
        for theirs in ("MixedPrecision", "FSDPPrecision", "MixedPrecisionPlugin"):
            if type(self).__qualname__ not in checkpoint and checkpoint.get(theirs):
                self.load_state_dict(checkpoint[theirs])


class _Loggers:
    """Hands metrics to the loggers of a trainer, at the steps by which it counts."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def __call__(self, metrics: Metrics) -> None:
        named = {f"gradscale/{name}": value for name, value in metrics.scalars().items()}
        for logger in self._trainer.loggers:
            logger.log_metrics(named, step=self._trainer.global_step)


def _in_trainer(module: Any) -> bool:
    return getattr(module, "_trainer", None) is not None


def _widened(it: Any) -> Any:
    half = isinstance(it, Tensor) and it.dtype == torch.float16
    return it.to(torch.get_default_dtype()) if half else it


def attach_lightning(host: Any, wanted: WantedScaler) -> Attachment:
    """Puts a `Precision` into a `Trainer` or a `Fabric` that has another one.

    Raises:
        ValueError: if it does not train in mixed precision, or bfloat16 was meant.
    """
    name, strategy = type(host).__name__, host.strategy
    slot = "precision_plugin" if hasattr(strategy, "precision_plugin") else "precision"
    before = getattr(strategy, slot)
    device = strategy.root_device.type
    # On a CPU the host has made bfloat16 of "16-mixed".
    if before.precision != "16-mixed" and (device, before.precision) != ("cpu", "bf16-mixed"):
        raise ValueError(
            f"`attach({name})`: it trains with precision={before.precision!r}, which needs no loss "
            f"scale. Make it with `{name}(plugins=gradscale.integrations.lightning.Precision(…))`."
        )
    arguments = {"process_group": None, **wanted.arguments} if wanted.given is None else {}
    if hasattr(before, "mixed_precision_config"):  # FSDP's strategy insists on its own plugin
        attachment = Attachment(host, wanted.build(device))
        attachment.put(before, "scaler", attachment.scaler, say=f"{type(before).__name__}.scaler")
        return attachment
    plugin = Precision(device, wanted.given, **arguments)
    attachment = Attachment(host, plugin.scaler)
    setattr(strategy, slot, plugin)
    attachment.undone_by(lambda: setattr(strategy, slot, before))
    attachment.say("precision plugin (float16)")
    if hasattr(host, "_precision"):
        attachment.put(host, "_precision", plugin, say="")
    return attachment

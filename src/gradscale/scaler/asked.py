"""What a scaler answers: torch's names for what it holds, its state, counts and numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from gradscale.gradients.unscale import Flags
from gradscale.layerwise import Layerwise
from gradscale.metrics.meter import Meter, Subscription
from gradscale.metrics.metrics import Metrics
from gradscale.outcomes.counters import Counters
from gradscale.outcomes.outcome import StepOutcome
from gradscale.policies.policy import Need, Policy
from gradscale.ranks import Ranks, differing_ranks, mesh_groups
from gradscale.scaler.books import Books, note_lost
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.dividing import check_fused, divide_gradients
from gradscale.scaler.held_scale import HeldScale
from gradscale.scaler.order import BETWEEN_STEPS
from gradscale.scaler.record import Record, Records
from gradscale.scaler.saving import load, own_state, warn_of_sums
from gradscale.scaler.settings import check_listener, check_needs
from gradscale.scaler.stepping import host_step, step_call
from gradscale.scaler.views import PolicySetting, View
from gradscale.torch_types import StateDict
from gradscale.undo.undo import Undo


class AskedScaler(torch.amp.GradScaler):
    """A scaler that can be asked what it holds and what it did.

    What begins with an underscore are torch's names, for code that was written for its scaler.
    """

    _held: HeldScale
    _step: CurrentStep
    _books: Books
    _undo: Undo

    _scale: Any = View("_held.tensor", then=HeldScale.rebind)
    _growth_tracker: Any = View("_held.tracker", then=HeldScale.rebind)
    _init_scale: Any = View("_held.init_scale")
    _init_growth_tracker: Any = View("_held.init_growth_tracker")
    _per_optimizer_states: Any = View("_step.records", Records)
    _growth_factor: Any = PolicySetting("growth_factor")
    _backoff_factor: Any = PolicySetting("backoff_factor")
    _growth_interval: Any = PolicySetting("growth_interval")

    def _lazy_init_scale_growth_tracker(self, dev: torch.device) -> None:
        self._held.begin_on(dev)

    def _unscale_grads_(
        self,
        optimizer: torch.optim.Optimizer,
        inv_scale: Tensor,
        found_inf: Tensor,
        allow_fp16: bool,
    ) -> Flags:
        return divide_gradients(self._step, optimizer, inv_scale, found_inf)

    def _check_inf_per_device(self, optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
        record = self._step.records[id(optimizer)]
        return check_fused(self._step, optimizer, record)

    def _maybe_opt_step(
        self,
        optimizer: torch.optim.Optimizer,
        optimizer_state: StateDict,
        *args: object,
        **kwargs: object,
    ) -> float | None:
        record = Record.of(optimizer_state)
        return host_step(self._step, optimizer, record, step_call(optimizer, args, kwargs))

    @property
    def policy(self) -> Policy:
        """Who chooses the scale."""
        return self._held.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._held.policy = policy

    @property
    def process_group(self) -> Ranks | None:
        """The ranks that must decide alike."""
        return self._step.process_group

    @process_group.setter
    def process_group(self, process_group: Ranks | None) -> None:
        # The step that begins has its gradients checked by them already.
        self._step.process_group = self._step.gradients.process_group = process_group

    def set_growth_factor(self, new_factor: float) -> None:
        """Sets the policy's `growth_factor`."""
        self._growth_factor = new_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        """Sets the policy's `backoff_factor`."""
        self._backoff_factor = new_factor

    def set_growth_interval(self, new_interval: int) -> None:
        """Sets the policy's `growth_interval`."""
        self._growth_interval = new_interval

    def state_dict(self) -> StateDict:
        """Torch's five entries, and all of ours under ``"gradscale"``; empty if disabled.

        Numbers, strings, dictionaries and tensors: `torch.load(weights_only=True)` reads it, and
        so does torch's own scaler. Reads the device.
        """
        if not self._enabled:
            return {}
        warn_of_sums(self._step.records)
        own = own_state(self._held, self._books)
        return {**super().state_dict(), "gradscale": own}

    def load_state_dict(
        self,
        state_dict: StateDict,
        *,
        configuration: Literal["keep", "restore"] = "keep",
    ) -> None:
        """Takes over the state of this or of torch's scaler; nothing changes if it does not fit.

        Args:
            state_dict: from `state_dict`.
            configuration: ``"keep"`` goes on with this scaler's settings and warns where the saved
                ones differ; ``"restore"`` takes the saved settings.

        Raises:
            RuntimeError: if the dictionary is empty or has no scale.
            TypeError: if it is no dictionary, or an entry is of another kind.
            ValueError: if the saved scale is zero, subnormal or not finite, a shape differs, or an
                entry is out of range.
        """
        if self._enabled:
            load(self._step, self._books, state_dict, configuration)

    def __getstate__(self) -> StateDict:
        if self._enabled and len(self._step.records):
            raise AssertionError(BETWEEN_STEPS)
        return self.__dict__.copy()

    def __setstate__(self, state: StateDict) -> None:
        self.__dict__.update(state)
        self._step.begin()

    @property
    def last_step(self) -> StepOutcome:
        """What became of the last step, from the first `step` after an `update` on of this one."""
        return self._step.outcome

    @property
    def counters(self) -> Counters:
        """Optimizer steps taken and skipped. Waits for the device if an optimizer is fused."""
        return self._books.ledger.counters

    @property
    def layerwise(self) -> Layerwise | None:
        """The layer-wise part, whose `report()` says which scales are in use; None without one."""
        return self._held.layerwise

    def check_ranks(self, process_group: Ranks | None = None) -> None:
        """Compares the scale and its counters over all ranks; a collective, and a host read.

        Args:
            process_group: the ranks to compare; the scaler's own group if it has one, else all.

        Raises:
            RuntimeError: if they differ; the message names the ranks.
        """
        group = process_group if process_group is not None else self._step.process_group
        scale, tracker = self._check_scale_growth_tracker("check_ranks")
        values = torch.stack([scale.detach(), tracker.to(scale.dtype)])
        groups = mesh_groups(group) or [None]
        ranks = sorted({rank for each in groups for rank in differing_ranks(values, each)})
        if ranks:
            raise RuntimeError(
                f"`check_ranks()`: ranks {ranks} differ from rank 0 in the loss scale or its "
                f"growth counter (here: scale {float(scale):g}), so they skip different steps. "
                "Pass the group over which they must agree as `GradScaler(process_group=…)`."
            )

    def __repr__(self) -> str:
        if not self._enabled:
            return f"{type(self).__name__}(enabled=False)"
        planner = (
            "" if self._held.layerwise is None else f", layerwise={self._held.layerwise.planner!r}"
        )
        return f"{type(self).__name__}({self._device!r}, policy={self.policy!r}{planner})"

    def metrics(self) -> Metrics:
        """The latest step whose numbers have reached the host; never waits for the device.

        On the CPU that is the step just ended. On an accelerator the numbers travel on their own
        and arrive a step or two later; `Metrics.step` says of which step they speak. The copies
        begin with the first call.

        Example:
            >>> import torch
            >>> from gradscale import GradScaler
            >>> model = torch.nn.Linear(4, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> scaler = GradScaler("cpu")
            >>> scaler.scale(model(torch.ones(2, 4)).mean()).backward()
            >>> scaler.step(optimizer)
            >>> scaler.update()
            >>> metrics = scaler.metrics()
            >>> metrics.step, metrics.scale, metrics.skipped
            (0, 65536.0, False)
        """
        return self._metering.latest

    def log_to(self, sink: Callable[[Metrics], object], every: int = 1) -> Subscription:
        """Calls `sink` with the metrics of every `every`-th step, in order, once they have arrived.

        Args:
            sink: any function of a `Metrics`; `gradscale.metrics` has some for well-known systems.
                What it raises comes out of `update()`, after the step has ended.
            every: 100 shows it the steps 0, 100, 200, …

        Returns:
            Its `remove()` ends it.

        Raises:
            TypeError: if `sink` cannot be called.
            ValueError: if `every` is below 1.

        Example:
            >>> from gradscale import GradScaler
            >>> scaler = GradScaler("cpu")
            >>> subscription = scaler.log_to(print, every=100)
            >>> subscription.remove()
        """
        check_listener(sink, every)
        return self._metering.listen(lambda finished: sink(finished.metrics), every)

    def also_measure(self, *needs: Need) -> None:
        """Has every step measure these too, for metrics and recordings; from the next step on.

        A fused optimizer's gradients are then divided before its step instead of inside it.

        Args:
            needs: ``"amax"``, one more pass over the gradients, or ``"exponents"``, a histogram.

        Raises:
            ValueError: if it is something else.

        Example:
            >>> from gradscale import GradScaler
            >>> GradScaler("cpu").also_measure("amax")
        """
        check_needs("also_measure", needs)
        self._step.also_measure(needs)

    def follow(self, watch: Any) -> None:
        """Takes the lost share in `metrics()` from what a watch measures.

        Args:
            watch: what `gradscale.watch` returned.
        """
        watch.on_measured(partial(note_lost, self._metering))

    @property
    def _metering(self) -> Meter:
        return self._books.metering(self._step)

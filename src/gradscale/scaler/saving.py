"""How a scaler is saved, loaded and pickled: torch's five numbers, and all of ours beside them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor

from gradscale.gradients.pending import PendingGradients
from gradscale.outcomes.ledger import Counters, Ledger
from gradscale.outcomes.outcome import StepOutcome
from gradscale.policies.policy import Policy
from gradscale.scaler.known_scale import KnownScale
from gradscale.scaler.settings import PolicySetting
from gradscale.scaler.state import (
    VERSION,
    check_saved,
    copy_state_,
    describe,
    differences,
    dump_state,
    fill_state_,
    restored_policy,
)


class SavedScaler(torch.amp.GradScaler):
    """A scaler whose state is the policy's, and whose torch attributes are views of it."""

    _growth_factor = PolicySetting("growth_factor")
    _backoff_factor = PolicySetting("backoff_factor")
    _growth_interval = PolicySetting("growth_interval")

    policy: Policy
    last_step: StepOutcome
    _state: Any
    _loaded: Mapping[str, Any] | None
    _ledger: Ledger
    _layerwise: Any
    _known: KnownScale

    def _lazy_init_scale_growth_tracker(self, dev: torch.device) -> None:
        state = self.policy.init((), dev)
        fill_state_(state, self._loaded or {})
        state.scale.fill_(self._init_scale)
        tracker = getattr(state, "growth_tracker", None)
        if tracker is None:
            tracker = torch.zeros((), dtype=torch.int32, device=dev)
        tracker.fill_(self._init_growth_tracker)
        self._state, self._scale, self._growth_tracker = state, state.scale, tracker
        self._known.note(state.scale, self._init_scale)

    def _rebind(self) -> Any:
        """The policy's state, with tensors that other code has put into torch's attributes."""
        state = self._state
        if state.scale is not self._scale:
            state = state._replace(scale=self._scale)
        tracker: Tensor | None = getattr(state, "growth_tracker", None)
        if tracker is not None and tracker is not self._growth_tracker:
            state = state._replace(growth_tracker=self._growth_tracker)
        self._state = state
        return state

    def state_dict(self) -> dict[str, Any]:
        """Torch's five entries, and all of ours under ``"gradscale"``; empty if disabled.

        Numbers, strings, dictionaries and tensors: `torch.load(weights_only=True)` reads it, and
        so does torch's own scaler. Reads the device.
        """
        if not self._enabled:
            return {}
        if any("micro_batches" in record for record in self._per_optimizer_states.values()):
            warnings.warn(
                "`state_dict()` between `accumulate_` and `step`: the sum of the micro-batches is "
                "not part of it, and a run resumed from here steps without them. Save after "
                "`update()`.",
                stacklevel=2,
            )
        # First, because a plan that is due may change the scale.
        layerwise = None if self._layerwise is None else self._layerwise.state_dict()
        own: dict[str, Any] = {
            "version": VERSION,
            "policy": describe(self.policy),
            "state": self._saved_fields(),
            "counters": asdict(self._ledger.counters),
        }
        if layerwise is not None:
            own["layerwise"] = layerwise
        return {**super().state_dict(), "gradscale": own}

    def load_state_dict(
        self,
        state_dict: dict[str, Any],
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
            TypeError: if it is no dictionary.
            ValueError: if the saved scale is zero, subnormal or not finite, or a shape differs.
        """
        if not self._enabled:
            return
        if not isinstance(state_dict, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"`load_state_dict({state_dict!r})` must be given what `state_dict()` returned."
            )
        if configuration not in ("keep", "restore"):
            raise ValueError(
                f"`load_state_dict(configuration={configuration!r})` must be 'keep' or 'restore'."
            )
        policy = self.policy
        if configuration == "restore" and state_dict:
            policy = restored_policy(state_dict, policy)
        fields = check_saved(state_dict, policy.init(), policy)
        differing = differences(state_dict, policy)
        if differing:
            warnings.warn(
                "`load_state_dict` keeps this scaler's settings, which differ from the saved ones: "
                f"{'; '.join(differing)}. Pass `configuration='restore'` to take the saved ones.",
                stacklevel=2,
            )
        self._take_over(policy, fields)
        own = state_dict.get("gradscale", {})
        if "counters" in own:
            self._ledger.counters = Counters(**own["counters"])
        if self._layerwise is not None and "layerwise" in own:
            self._layerwise.load_state_dict(own["layerwise"])

    def _take_over(self, policy: Policy, fields: Mapping[str, Any]) -> None:
        self._init_scale = float(fields["scale"])
        self._init_growth_tracker = int(fields["growth_tracker"])
        self._loaded = fields
        scale, tracker, before = self._scale, self._growth_tracker, self._state
        self.policy = policy
        if scale is None or tracker is None:
            return
        # The tensors stay the same ones, because captured graphs hold them.
        self._lazy_init_scale_growth_tracker(scale.device)
        if type(before) is type(self._state):
            copy_state_(before, self._state)
            self._state = before
        scale.copy_(self._state.scale)
        tracker.fill_(self._init_growth_tracker)
        self._scale, self._growth_tracker = scale, tracker
        self._rebind()

    def _saved_fields(self) -> dict[str, Any]:
        if self._state is not None:
            return dump_state(self._rebind())
        state = self.policy.init()
        fill_state_(state, {**(self._loaded or {}), "scale": self._init_scale})
        return dump_state(state)

    def _begin_step(self) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        if not self._enabled:
            return self.__dict__.copy()
        if len(self._per_optimizer_states):
            raise AssertionError(
                "A GradScaler may only be pickled between steps. Call `update()` first, or pickle "
                "`scaler.state_dict()`."
            )
        fields = self._saved_fields()
        ledger = Ledger(self._ledger.on_skip)
        ledger.counters = self._ledger.counters
        ledger.copies = self._ledger.copies
        state = super().__getstate__()
        state |= {"_loaded": fields, "_state": None, "_names": {}, "_ledger": ledger}
        state |= {"last_step": StepOutcome(), "_pending": PendingGradients()}
        state["_known"] = KnownScale()
        for transient in ("_evidence", "_gradients"):
            del state[transient]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._enabled:
            self._begin_step()

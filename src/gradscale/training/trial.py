"""One training run in memory: it advances step by step; its state can be saved and loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from gradscale.formats import FloatFormat
from gradscale.metrics.lost_count import LostCount, count_lost
from gradscale.recipes import Batch, Data, Recipe, find
from gradscale.recording import Recorder
from gradscale.training.precision import EIGHT_BIT, computing_in
from gradscale.training.scaling import Outcome, make_scaler, outcome
from gradscale.training.schedule import learning_rate
from gradscale.training.settings import Settings
from gradscale.truth import Gradients, capture_gradients, compared, reference
from gradscale.watching import Watch

LOST_SAMPLES = 4
"""Steps of a run that are compared with float32, in the middle of its quarters.

Each costs a second pass; what the table says of them, it says with two places.
"""


@dataclass(frozen=True)
class StepRecord:
    """One step, as it is written to ``steps.jsonl``. Nothing in it depends on the clock."""

    step: int
    loss: float
    scale: float
    skipped: bool
    reason: str | None


class TrialState(TypedDict):
    """All that the next step of a `Trial` depends on, as tensors and plain values."""

    step: int
    samples: int
    lost: dict[str, dict[str, Any]]
    seconds: list[float]
    skips: dict[str, int]
    model: dict[str, object]
    optimizer: dict[str, object]
    scaler: dict[str, object] | None
    watch: Mapping[str, object] | None


class Trial:
    """A run between two steps.

    Args:
        settings: what the run depends on.
        data: the recipe's data, already on the device.

    Attributes:
        step: how many steps have been taken.
        lost: the flushed gradients, by ``activations`` and ``parameters``; see `gradscale.truth`.
        seconds: what each step took, the sampled ones left out.
        recorder: is told the losses, if there is one.
        watching: measures for the recorder.
        watched: what the watch of an earlier session knew; None if there was none.
    """

    def __init__(self, settings: Settings, data: Data) -> None:
        self.settings = settings
        self.recipe: Recipe = find(settings.recipe)
        self.data = data
        # On the CPU and before `.to`: weights are equal on every device.
        torch.manual_seed(settings.seed)
        self.model = self.recipe.model().to(settings.device)
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=settings.lr, eps=self.recipe.defaults.eps, foreach=True
        )
        self.scaler = make_scaler(
            settings.policy, settings.device, settings.init_scale, settings.format
        )
        self.step = 0
        self.samples = 0
        self.lost = {"activations": LostCount(), "parameters": LostCount()}
        self.seconds: list[float] = []
        self.skips: dict[str, int] = {}
        self.recorder: Recorder | None = None
        self.watching: Watch | None = None
        self.watched: Mapping[str, object] | None = None

    def _groups(self) -> list[dict[str, object]]:
        parameters = list(self.model.parameters())
        # Biases and norms are not decayed, as everywhere in the field.
        decay = self.recipe.defaults.weight_decay
        return [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return self.step >= self.settings.steps

    def advance(self) -> StepRecord:
        """Take one step."""
        settings = self.settings
        batch = self.recipe.batch(self.data.train, settings.seed, self.step, settings.batch_size)
        self._seed()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        # By hand, not by a scheduler: the rate is a function of the step, with no state to save.
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, settings.steps, settings.lr)
        # Before the step's own pass and from the same random state, so that dropout agrees.
        true = self._reference(batch) if self._sample_is_due() else None
        started = time.perf_counter()
        loss, stored = self._backward(batch, sampling=true is not None)
        if self.recorder is not None:
            self.recorder.note_loss(loss)
        result = self._optimize()
        # Reading the loss waits for the device, so the clock below is right on accelerators too.
        record = StepRecord(self.step, float(loss), result.scale, result.skipped, result.reason)
        if true is None or stored is None:
            self.seconds.append(time.perf_counter() - started)
        elif not result.skipped:
            self._count(true, stored)
        if result.skipped:
            reason = result.reason or "unknown"
            self.skips[reason] = self.skips.get(reason, 0) + 1
        self.step += 1
        return record

    def _seed(self) -> None:
        """Random numbers of a step depend on the seed and the step alone, so none need saving."""
        # A prime above the steps of any run, so that no two seeds share a step's numbers.
        torch.manual_seed(self.settings.seed * 1_000_003 + self.step)

    def _sample_is_due(self) -> bool:
        if self.settings.format == "fp32":
            return False
        # Counted, not matched: a sample whose step was skipped is taken at the next one.
        steps = self.settings.steps
        due = sum(
            self.step >= steps * (2 * i + 1) // (2 * LOST_SAMPLES) for i in range(LOST_SAMPLES)
        )
        return self.samples < due

    def _reference(self, batch: Batch) -> Gradients:
        loss, divisor = self.recipe.loss, self.settings.loss_divisor
        return reference(self.model, lambda model: loss(model, batch) / divisor)

    def _backward(self, batch: Batch, *, sampling: bool) -> tuple[Tensor, Gradients | None]:
        """The undivided loss, and all gradients as stored if `sampling`."""
        settings = self.settings
        with ExitStack() as stack:
            stored = stack.enter_context(capture_gradients(self.model)) if sampling else None
            with computing_in(settings.format, settings.device, settings.emulate):
                loss = self.recipe.loss(self.model, batch)
                divided = loss / settings.loss_divisor
                scaled = divided if self.scaler is None else self.scaler.scale(divided)
                scaled.backward()
        if stored is not None:
            # Before they are unscaled: what the format has flushed, and nothing else, is a zero.
            stored.scale = 1.0 if self.scaler is None else self.scaler.get_scale()
            named = self.model.named_parameters()
            stored.parameters = {n: p.grad.clone() for n, p in named if p.grad is not None}
        return loss.detach(), stored

    def _optimize(self) -> Outcome:
        """Unscale, multiply by the divisor, step, update."""
        if self.scaler is None:
            self._undivide()
            self.optimizer.step()
            if self.recorder is not None:
                self.recorder.step()
            return Outcome(1.0, skipped=False, reason=None)
        scale = self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        self._undivide()
        self.scaler.step(self.optimizer)
        result = outcome(self.scaler, self.optimizer, scale)
        self.scaler.update()
        return result

    def _undivide(self) -> None:
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.settings.loss_divisor != 1:
            torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage]
                grads, self.settings.loss_divisor
            )

    def _count(self, true: Gradients, stored: Gradients) -> None:
        precision = self.settings.format
        format = FloatFormat.of(precision if precision in EIGHT_BIT else "fp16")
        lost = compared(true, stored, format)
        for name, kind in (("activations", "module"), ("parameters", "parameter")):
            self.lost[name] += count_lost(row for row in lost if row.kind == kind)
        self.samples += 1

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """The test loss and the metric, in float32, whatever the run trained in."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        count = 0
        for batch in self.recipe.evaluation(self.data.test):
            # Means over batches of unequal size: weighted, and summed in float64.
            values = [self.recipe.loss(self.model, batch), self.recipe.metric(self.model, batch)]
            sums += len(batch[0]) * torch.stack(values).cpu().double()
            count += len(batch[0])
        loss, metric = (sums / count).tolist()
        return loss, metric

    def state_dict(self) -> TrialState:
        """All that the next step depends on."""
        return {
            "step": self.step,
            "samples": self.samples,
            "lost": {kind: asdict(value) for kind, value in self.lost.items()},
            "seconds": self.seconds,
            "skips": self.skips,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "watch": None if self.watching is None else self.watching.state_dict(),
        }

    def load_state_dict(self, state: TrialState) -> None:
        """Go on from where `state_dict` was called."""
        self.step, self.samples = state["step"], state["samples"]
        self.lost = {kind: LostCount(**value) for kind, value in state["lost"].items()}
        self.seconds, self.skips = list(state["seconds"]), dict(state["skips"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"] or {})
        self.watched = state.get("watch")


def load_data(settings: Settings) -> Data:
    """The recipe's data on the run's device."""
    folder = Path(settings.data) if settings.data else None
    data = find(settings.recipe).load(folder)
    return Data(*(tuple(tensor.to(settings.device) for tensor in part) for part in data))

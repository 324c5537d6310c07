"""`advise`: a handful of steps on a copy, and what they say about every format."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gradscale.advice.activations import Largest, largest_activation
from gradscale.advice.advice import Advice
from gradscale.advice.batches import model_device, on_device, taken
from gradscale.advice.evaluations import Evaluations
from gradscale.advice.evidence import Truth
from gradscale.advice.format_trial import FormatTrial
from gradscale.advice.model_step import ModelStep
from gradscale.advice.updates import Updates, step_with
from gradscale.advice.verdict import verdict_of
from gradscale.argument_checks import check_whole
from gradscale.formats import FloatFormat
from gradscale.random_state import same_random_numbers
from gradscale.truth import Gradients, find_nonfinite, reference
from gradscale.truth.one_pass import Loss, checked_loss
from gradscale.truth.reference import fresh_copy
from gradscale.truth.wider import NARROW, eagerly

FORMATS = ("fp16", "bf16", "e5m2", "e4m3")
LOOKS = 3
"""At so many moments, evenly over the steps, every format is tried."""

NamedFormat = str | torch.dtype | FloatFormat
Progress = Callable[[int, int, str], object]


def advise(
    model_step: object,
    *,
    formats: NamedFormat | Sequence[NamedFormat] = FORMATS,
    steps: int = 8,
    device: torch.device | str | None = None,
    emulate: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Advice:
    """Says in plain words which formats are safe for a model, and how to scale them.

    A float32 copy of the model trains for a few steps. At three moments every format computes the
    same batch with the same weights and random numbers: without scaling, under `GradScaler()`, at
    the best single scale, and under the plan that `GradScaler(layerwise=Windows())` finds. What the
    optimizer would make of each of these gradients is compared with what it makes of float32's: a
    lost gradient is nothing to one that hardly moves the layer, and a frozen layer to one that
    takes small gradients for as good as large ones. The model, its gradients and the random number
    generators are left alone.

    On an accelerator float16 and bfloat16 are the real ones; on a CPU, and for eight bits, products
    are rounded by `gradscale.emulation`.

    Args:
        model_step: `(model, batches, loss)` or `(model, batches, loss, optimizer)`, or a function
            that returns it. `loss(model, batch)` returns a scalar tensor and enters no autocast;
            `optimizer(parameters)` returns an optimizer of just these parameters, default Adam at
            1e-3; it is called for copies of them, several times.
        formats: one or more of ``"fp16"``, ``"bf16"``, ``"e5m2"``, ``"e4m3"``, or what else they
            are called, such as `torch.float16`; the first that is safe is recommended.
        steps: of training, at least 1; fewer if there are fewer batches.
        device: where to run; None: where the model is. Batches are brought there.
        emulate: ``"on"`` to emulate what the device has, ``"off"`` to refuse to; ``"auto"``.
        seed: of the random numbers; the same seed gives the same advice.
        progress: called with steps done, steps in all, and what runs now.

    Raises:
        TypeError: `model_step` is not what it should be.
        ValueError: an argument is out of range, the batches are empty, the loss is no scalar, the
            model has nothing to train or cannot be copied.

    Example:
        >>> torch.manual_seed(0).initial_seed()
        0
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batches = [torch.randn(16, 4) for _ in range(4)]
        >>> advice = advise((model, batches, lambda m, x: m(x).square().mean()), formats=["bf16"])
        >>> print(advice.code)
        with torch.autocast("cpu", torch.bfloat16):  # no scaler
    """
    formats = _named(formats)
    _check(steps, emulate, seed, progress)
    device = _device(device)
    step = ModelStep.of(model_step)
    with same_random_numbers(), torch.inference_mode(False), torch.enable_grad(), eagerly():
        torch.manual_seed(seed)
        model = _float32_copy(step.model, device)
        batches = [on_device(b, model_device(model)) for b in taken(step.batches, steps, step.call)]
        return _Advising(step, model, batches, formats, emulate, seed, progress).run(steps)


def _named(formats: NamedFormat | Sequence[NamedFormat]) -> tuple[str, ...]:
    alone = isinstance(formats, str | torch.dtype | FloatFormat)
    try:
        given = [formats] if alone else list(formats)
        names = tuple(FloatFormat.of(format).name for format in given)
    except (TypeError, ValueError):
        names = ()
    if not names or not set(names) <= set(FORMATS):
        raise ValueError(
            f"`advise(formats={formats!r})` must name one or more of {', '.join(FORMATS)}."
        )
    return names


def _check(steps: int, emulate: str, seed: int, progress: object) -> None:
    check_whole("advise", "steps", steps, 1, "Each is a step of float32 training.")
    check_whole("advise", "seed", seed, 0, "The same seed gives the same advice.")
    if not (progress is None or callable(progress)):
        raise TypeError(f"`advise(progress={progress!r})` must be a function of three arguments.")
    if emulate not in ("auto", "on", "off"):
        raise ValueError(f"`advise(emulate={emulate!r})` must be 'auto', 'on' or 'off'.")


def _device(device: object) -> torch.device | str | None:
    if device is None or isinstance(device, torch.device):
        return device
    try:
        return torch.device(device)  # pyright: ignore[reportArgumentType, reportCallIssue]
    except (RuntimeError, TypeError):
        raise ValueError(
            f'`advise(device={device!r})` must be a device that torch knows, such as "cuda". '
            "Leave it out to run where the model is."
        ) from None


def _float32_copy(model: nn.Module, device: torch.device | str | None) -> nn.Module:
    twin = fresh_copy(model)
    for tensor in (*twin.parameters(), *twin.buffers()):
        if tensor.dtype in NARROW:
            tensor.data = tensor.data.to(torch.float32)
    return twin if device is None else twin.to(device)


class _Advising:
    """One advice under way."""

    def __init__(
        self,
        step: ModelStep,
        model: nn.Module,
        batches: Sequence[object],
        formats: Sequence[str],
        emulate: str,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.step, self.model, self.batches, self.seed = step, model, batches, seed
        self.device = str(model_device(model))
        self.trials = [FormatTrial(f, model, self.device, emulate) for f in dict.fromkeys(formats)]
        self.updates = Updates(model, step.make)
        self.optimizer = step.make([p for p in model.parameters() if p.requires_grad])
        self.looks = _moments(len(batches))
        self.total = len(batches) + len(self.looks) * len(self.trials)
        self.done = 0
        self.progress = progress
        self.largest = Largest()
        self.losses: list[float] = []

    def run(self, asked: int) -> Advice:
        hunt = None
        for index, batch in enumerate(self.batches):
            # As a training run seeds its steps: a prime, so that no two seeds share a step's.
            torch.manual_seed(self.seed * 1_000_003 + index)
            if not self._advance(index, self._loss_of(batch)):
                hunt = find_nonfinite(self.model, self._loss_of(batch))
                break
        verdicts = () if hunt else tuple(verdict_of(t, self.largest) for t in self.trials)
        return Advice(
            type(self.step.model).__name__,
            self.device,
            type(self.optimizer).__name__,
            tuple(self.losses),
            verdicts,
            hunt,
            tuple(self._notes(asked)),
            self.seed,
        )

    def _loss_of(self, batch: object) -> Loss:
        def loss(model: nn.Module) -> Tensor:
            return checked_loss(self.step.loss(model, batch), "loss(model, batch)")

        return loss

    def _advance(self, index: int, loss: Loss) -> bool:
        """One float32 step, and before it every format if it is time; whether all was finite."""
        self._tell("float32")
        with largest_activation(self.model, self.largest):
            true = reference(self.model, loss, draw_alike=True)
        self.losses.append(true.loss)
        if not (true.finite and math.isfinite(true.loss)):
            return False
        if index in self.looks:
            truth = Truth(true, self.updates)
            for trial in self.trials:
                self._tell(trial.format)
                trial.look(index, loss, truth)
        self._step(loss, true)
        return True

    def _step(self, loss: Loss, true: Gradients) -> None:
        evaluations = Evaluations(self.model, loss, true)
        evaluations()
        step_with(self.optimizer, evaluations)
        self.optimizer.zero_grad(set_to_none=True)

    def _tell(self, what: str) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total, what)
        self.done += 1

    def _notes(self, asked: int) -> list[str]:
        notes: list[str] = []
        if len(self.batches) < asked:
            notes.append(f"The batches ended after {len(self.batches)} of {asked} steps.")
        half = {str(p.dtype) for p in self.step.model.parameters() if p.dtype in NARROW}
        if half:
            notes.append(
                f"The parameters are {' and '.join(sorted(half))}. This is about training with a "
                "float32 copy of them: `gradscale.half_precision` keeps one."
            )
        if self.step.optimizer is None:
            notes.append(
                "No optimizer was given, so this is about Adam at 1e-3: under another one a lost "
                "gradient may be nothing, or a frozen layer. Name yours as the fourth item."
            )
        finite = all(math.isfinite(loss) for loss in self.losses)
        emulated = [trial.format for trial in self.trials if trial.emulated]
        if emulated and finite:
            notes.append(
                f"Emulated on {self.device}: {', '.join(emulated)}. Lost shares are those of a "
                "comparison with float32 passes over the same batches."
            )
        return notes


def _moments(steps: int) -> set[int]:
    return {round(i * (steps - 1) / max(1, LOOKS - 1)) for i in range(LOOKS)}

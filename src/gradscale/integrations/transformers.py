"""Hugging Face Transformers `Trainer`, and those built on it: TRL, sentence-transformers."""

from __future__ import annotations

from typing import Any

from gradscale.integrations.accelerate import attach_accelerator
from gradscale.integrations.attachment import Attachment
from gradscale.integrations.wanted import WantedScaler


class TrainerAttachment(Attachment):
    """A scaler in whichever `Accelerator` the trainer has.

    A hyperparameter search makes a new one for each trial; it gets a scaler of its own.
    """

    def __init__(self, trainer: Any, wanted: WantedScaler) -> None:
        self._wanted = wanted
        self._inner = attach_accelerator(trainer.accelerator, wanted)
        super().__init__(trainer, self._inner.scaler)
        self.undone_by(self._let_go)
        self.say("accelerator.scaler")
        create, log = trainer.create_accelerator_and_postprocess, trainer.log

        def create_accelerator_and_postprocess() -> None:
            self._inner.detach()
            create()
            self._inner = attach_accelerator(trainer.accelerator, wanted)
            self.scaler = self._inner.scaler

        def log_with_scale(logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
            return log({**logs, **self._facts(logs)}, *args, **kwargs)

        name = "create_accelerator_and_postprocess"
        self.put(trainer, name, create_accelerator_and_postprocess, say="")
        self.put(trainer, "log", log_with_scale, say="log (loss_scale, skipped_steps)")

    def _facts(self, logs: dict[str, float]) -> dict[str, float]:
        """What a log line says of the scaler: the lines of training, not those of evaluation."""
        if "loss" not in logs or self.scaler._scale is None:
            return {}
        skipped = self.scaler.counters.skipped
        return {"loss_scale": self.scaler.get_scale(), "skipped_steps": skipped}

    def _let_go(self) -> None:
        self._inner.detach()


def attach_trainer(trainer: Any, wanted: WantedScaler) -> Attachment:
    """Puts a scaler into a `Trainer`, before `train` or between two calls of it.

    Raises:
        RuntimeError: if one of ours is there already.
        ValueError: if it does not train with ``fp16=True``.
    """
    if not trainer.args.fp16:
        raise ValueError(
            "`attach(trainer)`: it does not train in float16, and nothing else needs a loss "
            "scale. Make it with `TrainingArguments(fp16=True)`."
        )
    return TrainerAttachment(trainer, wanted)

"""A scaler as the doctor sees it: what a file says of it, in the words of no particular system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from gradscale.doctor.run_course import Course
from gradscale.entries import MOST
from gradscale.files.json_text import JsonObject, json_object

Setting = float | int | bool | str

NAMES = {
    "gradscale": "gradscale.GradScaler",
    "torch": "torch.amp.GradScaler",
    "apex": "apex.amp",
    "deepspeed": "DeepSpeed's loss scaler",
    "deepspeed_fused": "DeepSpeed's FP16_Optimizer",
    "megatron": "Megatron's DynamicGradScaler",
    "fairseq": "fairseq's FP16Optimizer",
    "keras": "Keras' LossScaleOptimizer",
    "paddle": "paddle.amp.GradScaler",
    "flax": "flax' DynamicScale",
    "none": "no scaler",
}


@dataclass(frozen=True)
class Skips:
    """What became of the steps so far.

    Attributes:
        steps: optimizer steps that were asked for.
        skipped: of these, not taken.
        consecutive: not taken since the last one that was; None if the source does not say.
        reasons: not taken, by reason; empty if the source does not say.
    """

    steps: int
    skipped: int
    consecutive: int | None = None
    reasons: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def share(self) -> float:
        """Skipped steps as a share of all.

        Example:
            >>> Skips(200, 3).share
            0.015
        """
        return self.skipped / self.steps if self.steps else 0.0


@dataclass(frozen=True)
class PlanFacts:
    """What a layer-wise scaler saved of its plans.

    Attributes:
        graphs: shapes of the backward graph that it has met.
        scales: loss scales of the plan that has most of them.
        frozen: why a graph is not planned, one a graph that is not.
    """

    graphs: int
    scales: int
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Patient:
    """One scaler. None: the file does not say.

    Attributes:
        system: who saved it: a name of `gradscale.checkpoints.SYSTEMS`, or ``"none"``.
        where: how to reach it in the file, as Python would write it.
        scale: the loss scale as it was saved, however bad.
        policy: who moves it.
        dynamic: whether it moves at all.
        settings: the configuration that was saved with it or beside it, by gradscale's names.
        from_beside: names of the settings that come from the run's arguments, not from the state.
        beside: settings of the run's arguments that contradict the state's.
        good_steps: finite steps that count towards the next growth.
        hysteresis_left: overflows until it backs off.
        unread: what was saved that the other fields have no place for.
        steps: optimizer steps that the run had made.
        skips: what became of them.
        never_overflowed: whether no step ever overflowed.
        unsaved: counters that this system does not save.
        plan: of a layer-wise scaler.
        course: its steps one by one, if they were recorded.
        broken: why the state cannot be restored, in words.
        files: how many files hold it, as one for each rank.
    """

    system: str
    where: str
    scale: float
    policy: str | None = None
    dynamic: bool | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict[str, Setting])
    from_beside: tuple[str, ...] = ()
    beside: Mapping[str, Setting] = field(default_factory=dict[str, Setting])
    good_steps: int | None = None
    hysteresis_left: int | None = None
    unread: tuple[str, ...] = ()
    steps: int | None = None
    skips: Skips | None = None
    never_overflowed: bool | None = None
    unsaved: tuple[str, ...] = ()
    plan: PlanFacts | None = None
    course: Course | None = None
    broken: str | None = None
    files: int = 1

    @property
    def name(self) -> str:
        """The system in full."""
        return NAMES.get(self.system, self.system)

    @property
    def interval(self) -> int | None:
        """Finite steps in a row before a growth."""
        # From a file, and so of any kind: the checks divide by it.
        interval = self.settings.get("growth_interval")
        return (
            int(interval) if isinstance(interval, int | float) and 1 <= interval <= MOST else None
        )

    def to_dict(self) -> JsonObject:
        """As words of JSON: numbers that are not finite are texts.

        Example:
            >>> Patient("torch", "", float("nan")).to_dict()["scale"]
            'nan'
        """
        return json_object(asdict(self))

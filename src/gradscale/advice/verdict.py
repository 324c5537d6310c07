"""Whether a format is safe for a model, and how it wants to be scaled: a rule over the evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from gradscale.advice.activations import Largest
from gradscale.advice.evidence import ASTRAY, LIMITS, NOTHING, Level, Scaling, ScalingEvidence
from gradscale.advice.format_trial import FormatTrial, Moment
from gradscale.advice.planned_passes import ScaleGroup
from gradscale.emulation.computing import EIGHT_BIT
from gradscale.emulation.direction_formats import carrier
from gradscale.exponents import ceil_exponent
from gradscale.files.json_text import JsonObject
from gradscale.formats import FloatFormat
from gradscale.layerwise.function_verdict import FunctionVerdict
from gradscale.truth import Nonfinite
from gradscale.watching.rows import Row

INJECTED = 'injected="scale"'

TIGHT = 2.0
"""Octaves of headroom below which activations are close to overflow."""


@dataclass(frozen=True)
class Verdict:
    """What the trial of one format says.

    Attributes:
        format: ``"fp16"``, ``"bf16"``, ``"e5m2"`` or ``"e4m3"``.
        level: ``"safe"``: nothing overflows, at least half is left of the update of every module
            that the optimizer really moves, and their gradients point where float32's do;
            ``"risky"``: a tenth is left; ``"unsafe"`` otherwise; ``"unknown"`` if it could not run.
        scaling: the least that reaches this level.
        log2_default: the exponent to which `GradScaler()` has come.
        log2_scale: that of the best single scale.
        scales: the exponents of the plan, ascending.
        groups: of the plan: which modules are at which scale.
        evidence: by way of scaling, the simplest first; also as `none`, `default` (that is under
            `GradScaler()`), `one` and `plan`.
        moments: what each look found at the single scale.
        activation: the largest activation of the float32 pass.
        headroom: octaves between it and the largest number of the forward pass's format.
        hunt: where the forward pass stopped being finite, if it did.
        emulated: whether the format was emulated.
        code: the line to write.
        functions: what backward functions that torch did not write do to their gradient; what
            some return of their own was multiplied by the scale.
        note: why it could not run, or what else to know.
    """

    format: str
    level: Level
    scaling: Scaling
    log2_default: int
    log2_scale: int
    scales: tuple[int, ...]
    groups: tuple[ScaleGroup, ...]
    evidence: dict[Scaling, ScalingEvidence | None]
    moments: tuple[Moment, ...]
    activation: Largest
    headroom: float
    hunt: Nonfinite | None
    emulated: bool
    code: str
    functions: tuple[FunctionVerdict, ...] = ()
    note: str = ""

    @property
    def chosen(self) -> ScalingEvidence | None:
        """The evidence for the scaling that is advised."""
        return self.evidence[self.scaling]

    @property
    def none(self) -> ScalingEvidence | None:
        """Without scaling."""
        return self.evidence["none"]

    @property
    def default(self) -> ScalingEvidence | None:
        """Under `GradScaler()` as it comes."""
        return self.evidence["default"]

    @property
    def one(self) -> ScalingEvidence | None:
        """At the best single scale."""
        return self.evidence["one scale"]

    @property
    def plan(self) -> ScalingEvidence | None:
        """At the scales of the plan."""
        return self.evidence["a plan"]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Modules and parameters at the single scale, most lost elements first; the last look."""
        return self.moments[-1].rows if self.moments else ()

    @property
    def lost_share(self) -> float:
        """The share of gradients lost with the scaling that is advised; 1 if nothing could run."""
        return 1.0 if self.chosen is None else self.chosen.lost_share

    def to_dict(self) -> JsonObject:
        """Plain numbers, strings and lists, for JSON."""
        evidence = {
            "none": self.none,
            "default": self.default,
            "one": self.one,
            "plan": self.plan,
        }
        return {
            "format": self.format,
            "level": self.level,
            "scaling": self.scaling,
            "lost_share": self.lost_share,
            "log2_default": self.log2_default,
            "log2_scale": self.log2_scale,
            "scales": list(self.scales),
            "groups": [{"exponent": g.exponent, "modules": list(g.modules)} for g in self.groups],
            "evidence": {k: None if e is None else e.to_dict() for k, e in evidence.items()},
            "method": "reference",
            "largest_activation": {"amax": self.activation.amax, "module": self.activation.module},
            "headroom": self.headroom if math.isfinite(self.headroom) else None,
            "nonfinite": None if self.hunt is None else self.hunt.to_dict(),
            "emulated": self.emulated,
            "code": self.code,
            "functions": [asdict(function) for function in self.functions],
            "note": self.note,
            "rows": [row.to_dict() for row in self.rows],
        }


def verdict_of(trial: FormatTrial, activation: Largest) -> Verdict:
    """The verdict on a format whose trial is over."""
    evidence: dict[Scaling, ScalingEvidence | None] = {
        way: collected.evidence for way, collected in trial.ways.items()
    }
    level, scaling = _least(evidence, trial.format)
    log2_scale = trial.log2_default if scaling == "default" else trial.log2_single
    if trial.planned.hunt is not None:
        level = "unsafe"
    elif trial.error:
        level = "unknown"
    functions = tuple(_at_scale(v, log2_scale) for v in trial.planned.functions)
    injects = any(function.kind == "injects" for function in functions)
    headroom = activation.headroom(forward_format(trial.format))
    # Less than an octave: a float32 pass of a few steps has not seen the largest there will be.
    if level == "safe" and headroom < 1:
        level = "risky"
    return Verdict(
        trial.format,
        level,
        scaling,
        trial.log2_default,
        trial.log2_single,
        trial.planned.scales,
        trial.planned.groups,
        evidence,
        tuple(trial.moments),
        activation,
        headroom,
        trial.planned.hunt,
        trial.emulated,
        code_for(trial.format, scaling, log2_scale, trial.device, level, injects=injects),
        functions,
        trial.error,
    )


def forward_format(format: str) -> FloatFormat:
    """The format of the forward pass: float16 also where gradients have eight bits."""
    return carrier(FloatFormat.of(format))


def level_of(evidence: ScalingEvidence | None) -> Level:
    """How safe one way of scaling is.

    Example:
        >>> level_of(ScalingEvidence(0.2, 0.999, 0.98, "head", overflowed=False))
        'safe'
        >>> level_of(ScalingEvidence(0.001, 0.999, 0.02, "head", overflowed=False))
        'unsafe'
        >>> level_of(ScalingEvidence(0.0, 0.54, 0.58, "head", overflowed=False, clipped_share=0.3))
        'risky'
    """
    if evidence is None or evidence.overflowed:
        return "unsafe"
    reached: list[Level] = [level for level, least in LIMITS if evidence.worst >= least]
    level = reached[0] if reached else "unsafe"
    # An optimizer that counts all gradients alike hides that the largest of a module are clipped.
    return "risky" if level == "safe" and evidence.cosine < ASTRAY else level


def _least(ways: Mapping[Scaling, ScalingEvidence | None], format: str) -> tuple[Level, Scaling]:
    """The best level that some way of scaling reaches, and the simplest that reaches it."""
    # A format with float32's range needs no scaling; any other gets one scale, which costs nothing.
    if FloatFormat.of(format).exponent_bits < 8:
        ways = {way: evidence for way, evidence in ways.items() if way != "none"}
    levels = {way: level_of(evidence) for way, evidence in ways.items()}
    for level, _ in LIMITS:
        for way in ways:
            if levels[way] == level:
                return level, way
    # Nothing is good enough: then the one that comes nearest is told of.
    return "unsafe", max(ways, key=lambda way: (ways[way] or NOTHING).worst)


def _at_scale(found: FunctionVerdict, log2_scale: int) -> FunctionVerdict:
    """How wrong it is at this scale unless it is corrected, as our trial did."""
    wrong = 1.0 if found.wrong == 1 else 2.0**log2_scale
    return replace(found, wrong=wrong, corrected=False)


def code_for(
    format: str,
    scaling: Scaling,
    log2_scale: int,
    device: str,
    level: Level,
    *,
    injects: bool = False,
) -> str:
    """The line of code that the verdict comes to.

    Args:
        format: advised.
        scaling: advised.
        log2_scale: the exponent of the single scale, or of the default one.
        device: where the model is.
        level: how safe that is.
        injects: whether a function returns a gradient of its own.

    Example:
        >>> code_for("fp16", "one scale", 12, "cuda", "safe")
        'scaler = gradscale.GradScaler("cuda", init_scale=2.0**12)'
        >>> code_for("fp16", "default", 16, "cuda", "safe")
        'scaler = gradscale.GradScaler("cuda")'
        >>> code_for("bf16", "none", 0, "cuda", "safe")
        'with torch.autocast("cuda", torch.bfloat16):  # no scaler'
    """
    kind = device.partition(":")[0]
    if level in ("unsafe", "unknown"):
        return ""
    if scaling == "none":
        return f'with torch.autocast("{kind}", torch.bfloat16):  # no scaler'
    arguments = [f'"{kind}"']
    if scaling == "a plan":
        windows = f'gradscale.Windows(product_format="{format}")'
        arguments.append(f"layerwise={windows if format in EIGHT_BIT else True}")
    elif format == "e4m3":
        # It saturates: a scale that waits for an overflow would grow for ever.
        arguments.append(f"policy=gradscale.Static(2.0**{log2_scale})")
    elif scaling == "one scale":
        arguments.append(f"init_scale=2.0**{log2_scale}")
    if injects:
        arguments.append(INJECTED)
    return f"scaler = gradscale.GradScaler({', '.join(arguments)})"


def magnitude_text(value: float) -> str:
    """A magnitude as the power of two at or above it.

    Example:
        >>> magnitude_text(5.0), magnitude_text(0.0)
        ('2^3', '0')
    """
    return f"2^{ceil_exponent(value)}" if value > 0 else "0"

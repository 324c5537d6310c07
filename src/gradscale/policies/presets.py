"""Other systems' loss-scaling defaults by name.

Each preset reproduces, step for step, the scale that the named system computes with its defaults,
as long as that scale is a normal float32 number (ours never leaves that range). Change a setting
with ``dataclasses.replace(presets.apex(), max_scale=2.0**20)``.
"""

from __future__ import annotations

from collections.abc import Callable

from gradscale.policies.bits import MAX_FLOAT32
from gradscale.policies.dynamic import Dynamic
from gradscale.policies.host_settings import from_accelerate as from_accelerate
from gradscale.policies.host_settings import from_deepspeed as from_deepspeed
from gradscale.policies.host_settings import from_lightning as from_lightning
from gradscale.policies.lognormal import LogNormal
from gradscale.policies.policy import Policy
from gradscale.policies.recovering import Recovering
from gradscale.policies.two_sided import TwoSided


def torch() -> Dynamic:
    """`torch.amp.GradScaler`: from 2^16, a growth every 2000 clean steps."""
    return Dynamic()


def apex() -> Dynamic:
    """NVIDIA apex `amp`, ``loss_scale="dynamic"``: as torch, capped at 2^24."""
    return Dynamic(max_scale=2.0**24)


def deepspeed() -> Dynamic:
    """DeepSpeed ``fp16`` with its configuration defaults: two overflows to back off, floor 1.

    The hysteresis is refilled when the scale grows; for `consecutive_hysteresis` replace
    `hysteresis_refill` by ``"clean"``. DeepSpeed raises an error at an overflow at the floor; here
    the scale stays there.
    """
    return Dynamic(growth_interval=1000, min_scale=1.0, hysteresis=2)


def megatron() -> Dynamic:
    """Megatron-LM: from 2^32, two overflows to back off.

    Its documentation calls the hysteresis consecutive; its code, and this, refill it only when the
    scale grows.
    """
    return Dynamic(init_scale=2.0**32, growth_interval=1000, min_scale=1.0, hysteresis=2)


def fairseq() -> Dynamic:
    """Fairseq `DynamicLossScaler` with its class defaults.

    The window that fairseq's trainer sets depends on the world size. Fairseq stops with an error
    rather than go to 1e-4 or below; the last scale that it can reach from 2^15, 2^-13, is the floor
    here.
    """
    return Dynamic(init_scale=2.0**15, min_scale=2.0**-13)


def metaseq() -> Dynamic:
    """Metaseq: from 4, with a window of 256 that doubles and halves with the scale, floor 2^-5."""
    return Dynamic(
        init_scale=4.0, growth_interval=256, min_scale=2.0**-5, window_follows_scale=True
    )


def keras() -> Dynamic:
    """Keras 3 `LossScaleOptimizer`: from 2^15, without floor or cap of its own."""
    return Dynamic(init_scale=2.0**15)


def jmp() -> Dynamic:
    """DeepMind jmp `DynamicLossScale`: floor 1; 2^15 is its documentation's, no default."""
    return Dynamic(init_scale=2.0**15, min_scale=1.0)


def flax() -> Dynamic:
    """Flax `DynamicScale`: grows after 2001 clean steps, one more than its `growth_interval`.

    A growth beyond float32 is cut to its maximum.
    """
    return Dynamic(growth_interval=2001, max_scale=MAX_FLOAT32)


def paddle() -> Dynamic:
    """PaddlePaddle `GradScaler`: every overflow backs off.

    For a `decr_every_n_nan_or_inf` of n, replace `hysteresis` by n: a backoff takes n overflows
    without a clean step between, and the next one n more.
    """
    return Dynamic(hysteresis_refill="clean_or_backoff")


def mindspore() -> Dynamic:
    """MindSpore `DynamicLossScaleManager`: from 2^24, floor 1.

    Its factor is a whole number; the scale is divided by it on the way down.
    """
    return Dynamic(init_scale=2.0**24, min_scale=1.0)


def colossalai() -> Dynamic:
    """ColossalAI `DynamicGradScaler` with its mixin's bounds, 1 and 2^32.

    Two overflows to back off; the hysteresis is refilled when the scale grows.
    """
    return Dynamic(growth_interval=1000, min_scale=1.0, max_scale=2.0**32, hysteresis=2)


def verl() -> Dynamic:
    """Verl's FSDP engine: `ShardedGradScaler(growth_interval=400)`, torch's rule otherwise."""
    return Dynamic(growth_interval=400)


def lerobot() -> Dynamic:
    """LeRobot's `GradScalerConfig`, which Accelerate hands to torch's scaler: torch's numbers."""
    return Dynamic()


def icefall() -> Recovering:
    """Icefall (k2): from 1, doubled while low every 25, 100 and 400 batches; floor 2^-16.

    The numbers of its LibriSpeech zipformer recipe. Where most others look, every 100 batches below
    8 and every 400 below 32, replace `below` by ``((100, 8.0), (400, 32.0))``; older ones have
    ``((100, 1.0), (400, 8.0))``. icefall counts batches anew in each epoch. It warns of a scale
    below 0.01, as this does by an alarm, and stops with an error below 1e-5; the last scale that it
    can reach from 1, 2^-16, is the floor here.
    """
    return Recovering(
        Dynamic(init_scale=1.0, min_scale=2.0**-16),
        below=((25, 2.0), (100, 8.0), (400, 32.0)),
        alarm_below=0.01,
    )


def openseq2seq_backoff() -> Dynamic:
    """OpenSeq2Seq `BackoffScaler`: starts at its cap, 2^14; floor 1.

    It grows where the steps since the last overflow are a multiple of 2000. Its graph leaves open
    whether the step counter is read before or after it is raised; here it is read before.
    """
    return Dynamic(init_scale=2.0**14, min_scale=1.0, max_scale=2.0**14)


def openseq2seq_logmax() -> LogNormal:
    """OpenSeq2Seq `LogMaxScaler` with its slips (see `LogNormal`): from 1, at most 2^14."""
    return LogNormal(init_scale=1.0, min_scale=1.0, max_scale=2.0**14, compat=True)


def popart() -> TwoSided:
    """Graphcore PopART: halves or doubles by the share of elements in the top four octaves.

    It halves if more than 1e-7 of them lie above 1/16 of float16's maximum, else it doubles.
    The bin edge is taken at a whole octave, 2^12 for 4094, and exact zeros are not counted. PopART
    leaves the first scale to the optimizer, whose default is 1; it skips no step.
    """
    return TwoSided(upper_octaves=4, lost_share=None, init_scale=1.0)


PRESETS: dict[str, Callable[[], Policy]] = {
    make.__name__: make
    for make in (
        torch,
        apex,
        deepspeed,
        megatron,
        fairseq,
        metaseq,
        keras,
        jmp,
        flax,
        paddle,
        mindspore,
        colossalai,
        verl,
        lerobot,
        icefall,
        openseq2seq_backoff,
        openseq2seq_logmax,
        popart,
    )
}


def preset(name: str) -> Policy:
    """The policy of the named system with its defaults.

    Args:
        name: one of `PRESETS`.

    Raises:
        ValueError: if there is no such preset; the message lists those that exist.

    Example:
        >>> preset("deepspeed").hysteresis
        2
    """
    if name not in PRESETS:
        raise ValueError(
            f"`preset({name!r})` is not a known system. Pass one of {', '.join(PRESETS)}, "
            "or set up a `Dynamic`."
        )
    return PRESETS[name]()

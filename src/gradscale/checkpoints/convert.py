"""From one system's saved loss scaler to another's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradscale.checkpoints.draft import Exported
from gradscale.checkpoints.layout import Layout, Saved
from gradscale.checkpoints.state import ScalerState
from gradscale.checkpoints.systems.apex import Apex
from gradscale.checkpoints.systems.deepspeed import DeepSpeedFused, DeepSpeedScaler
from gradscale.checkpoints.systems.fairseq import Fairseq
from gradscale.checkpoints.systems.flax import Flax
from gradscale.checkpoints.systems.keras import Keras
from gradscale.checkpoints.systems.megatron import Megatron
from gradscale.checkpoints.systems.own import Own
from gradscale.checkpoints.systems.paddle import Paddle
from gradscale.checkpoints.systems.torch_amp import TorchAmp
from gradscale.entries import Entries, shown

_KINDS: tuple[type[Layout], ...] = (
    Own,
    TorchAmp,
    Apex,
    Megatron,
    Fairseq,
    Keras,
    Paddle,
    Flax,
    DeepSpeedScaler,
    DeepSpeedFused,
)
_LAYOUTS: dict[str, Layout] = {kind.name: kind() for kind in _KINDS}

SYSTEMS: tuple[str, ...] = tuple(sorted(_LAYOUTS))
"""The words that `source` and `target` take."""


def detect_source(state: Saved) -> str:
    """Which system saved `state`, told by its keys.

    Args:
        state: what the system saved for its loss scaler; not the whole checkpoint around it.

    Raises:
        TypeError: if `state` is no dictionary, such as a pickled scaler object.
        ValueError: if no system, or more than one, saves such keys.

    Example:
        >>> detect_source({"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 12}})
        'apex'
    """
    _check_mapping(state)
    found = [name for name, layout in _LAYOUTS.items() if layout.recognizes(state)]
    if len(found) == 1:
        return found[0]
    keys = shown(sorted(map(str, state)))
    if found:
        raise ValueError(
            f"`detect_source(state)` found the keys of {' and '.join(found)} in {keys}. "
            f"Say which one, as in `read_state(state, source={found[0]!r})`."
        )
    raise ValueError(
        f"`detect_source(state)` knows no system that saves the keys {keys}. {_advice(state)}"
    )


def read_state(state: Saved, source: str | None = None) -> ScalerState:
    """A loss scaler's saved state, whoever saved it.

    Nothing is unpickled and nothing is guessed: what the source did not say is `None` and listed in
    `ScalerState.missing`; what this value cannot hold is listed in `ScalerState.unread`.

    Args:
        state: what the system saved for its loss scaler.
        source: one of `SYSTEMS`; None tells it by the keys.

    Raises:
        TypeError: if `state`, or a value in it, is not of the kind that the system saves.
        ValueError: if the system is unknown, an entry is absent, or the scale is no usable scale.

    Example:
        >>> import torch
        >>> saved = {"scale": torch.tensor([4096.0]), "growth_tracker": 17, "hysteresis_tracker": 2}
        >>> state = read_state(saved)
        >>> state.scale, state.good_steps, state.hysteresis_left
        (4096.0, 17, 2)
    """
    _check_mapping(state)
    return _layout("source", source or detect_source(state)).read(Entries(state))


def export_state(state: ScalerState, target: str) -> Exported:
    """A neutral state in the layout of `target`, with an account of what it could not hold.

    Args:
        state: from `read_state`, or written by hand.
        target: one of `SYSTEMS`.

    Returns:
        The dictionary (plain numbers; Megatron's scale is a tensor, as it demands), what was left
        out, and what had to be assumed.

    Raises:
        TypeError: if `state` is a dictionary that some system has saved.
        ValueError: if there is no such target.

    Example:
        >>> export_state(ScalerState(8192.0, good_steps=40), "fairseq")
        Exported(state={'loss_scale': 8192.0}, left_out=('good_steps',), assumed=())
    """
    layout = _layout("target", target)
    if not isinstance(state, ScalerState):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"`export_state({type(state).__name__}, {target!r})` must be given a `ScalerState`. "
            "Pass `read_state(state)`, which makes one of what any system has saved."
        )
    return layout.write(state)


def import_state(state: Saved, source: str | None = None) -> dict[str, Any]:
    """What `GradScaler.load_state_dict` takes, from any system's saved state.

    The scaler keeps its own settings; ``load_state_dict(state, configuration="restore")`` takes
    those that were found, too.

    Args:
        state: what the system saved for its loss scaler.
        source: one of `SYSTEMS`; None tells it by the keys.

    Raises:
        TypeError: as `read_state`.
        ValueError: as `read_state`.

    Example:
        >>> saved = {"loss_scaler0": {"loss_scale": 32768.0, "unskipped": 250}}
        >>> import_state(saved)["_growth_tracker"]
        250
    """
    return export_state(read_state(state, source), "gradscale").state


def _layout(argument: str, name: str) -> Layout:
    if name not in _LAYOUTS:
        raise ValueError(f"`{argument}={name!r}` must be one of {', '.join(SYSTEMS)}.")
    return _LAYOUTS[name]


def _check_mapping(state: object) -> None:
    if not isinstance(state, Mapping):
        raise TypeError(
            f"`read_state({type(state).__name__}(…))` takes the dictionary that was saved. For a "
            "scaler object, as DeepSpeed's ZeRO pickles it, pass `vars(loss_scaler)`."
        )


def _advice(state: Saved) -> str:
    if not state:
        return "It is empty: a disabled scaler saved it, so there is no state to restore."
    # One level down: that is where frameworks put a scaler's state into a checkpoint.
    inside = [key for key, value in state.items() if _is_known(value)]
    if inside:
        return f"It looks like a whole checkpoint; pass `state[{inside[0]!r}]`."
    return f"Pass `source=`, one of {', '.join(SYSTEMS)}, if it is one of them in another form."


def _is_known(value: object) -> bool:
    return isinstance(value, Mapping) and any(x.recognizes(value) for x in _LAYOUTS.values())

"""How a scaler is saved and loaded: torch's five numbers, and all of ours beside them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Literal

from gradscale.outcomes.counters import Counters
from gradscale.outcomes.triage import REASONS
from gradscale.scaler.books import Books
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.held_scale import HeldScale
from gradscale.scaler.record import Records
from gradscale.scaler.saved_state import read_saved
from gradscale.scaler.state import VERSION, describe
from gradscale.torch_types import StateDict


def own_state(held: HeldScale, books: Books) -> StateDict:
    """What torch's five numbers do not say. Reads the device."""
    # First, because a plan that is due may change the scale.
    layerwise = None if held.layerwise is None else held.layerwise.state_dict()
    own: StateDict = {
        "version": VERSION,
        "policy": describe(held.policy),
        "state": held.saved_fields(),
        "counters": _every_reason(books.ledger.counters),
    }
    if layerwise is not None:
        own["layerwise"] = layerwise
    return own


def _every_reason(counters: Counters) -> dict[str, object]:
    """Counters as they are saved: those of reasons that have not come up are zeros.

    `torch.distributed.checkpoint` reads what the scaler that loads has saved itself, key by key; a
    fresh one has met no reason yet, and would be given none.
    """
    return {**asdict(counters), "reasons": {**dict.fromkeys(REASONS, 0), **counters.reasons}}


def warn_of_sums(records: Records) -> None:
    """Warns if micro-batches have been summed that no saved state holds."""
    if any(record.sums is not None for record in records.values()):
        warnings.warn(
            "`state_dict()` between `accumulate_` and `step`: the sum of the micro-batches is "
            "not part of it, and a run resumed from here steps without them. Save after "
            "`update()`.",
            stacklevel=3,
        )


def load(
    step: CurrentStep,
    books: Books,
    saved: Mapping[str, object],
    configuration: Literal["keep", "restore"],
) -> None:
    """Takes over a saved state, or nothing of it; see `GradScaler.load_state_dict`."""
    if not isinstance(saved, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"`load_state_dict({saved!r})` must be given what `state_dict()` returned.")
    if configuration not in ("keep", "restore"):
        raise ValueError(
            f"`load_state_dict(configuration={configuration!r})` must be 'keep' or 'restore'."
        )
    held = step.held
    read = read_saved(saved, held.policy, restore=configuration == "restore" and bool(saved))
    if read.differing:
        warnings.warn(
            "`load_state_dict` keeps this scaler's settings, which differ from the saved ones: "
            f"{'; '.join(read.differing)}. Pass `configuration='restore'` to take the saved ones.",
            stacklevel=3,
        )
    step.check_follows(read.policy)
    # Nothing below can fail: all or nothing of a state is taken over.
    held.take_over(read.policy, read.fields)
    if read.counters is not None:
        books.ledger.counters = read.counters
    if held.layerwise is not None and read.plans is not None:
        held.layerwise.take_over(read.plans)
    step.follow()

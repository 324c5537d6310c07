"""How a scaler is saved and loaded: torch's five numbers, and all of ours beside them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from gradscale.outcomes.ledger import Counters
from gradscale.scaler.books import Books
from gradscale.scaler.held_scale import HeldScale
from gradscale.scaler.record import Records
from gradscale.scaler.state import VERSION, check_saved, describe, differences, restored_policy


def own_state(held: HeldScale, books: Books) -> dict[str, Any]:
    """What torch's five numbers do not say. Reads the device."""
    # First, because a plan that is due may change the scale.
    layerwise = None if held.layerwise is None else held.layerwise.state_dict()
    own: dict[str, Any] = {
        "version": VERSION,
        "policy": describe(held.policy),
        "state": held.saved_fields(),
        "counters": asdict(books.ledger.counters),
    }
    if layerwise is not None:
        own["layerwise"] = layerwise
    return own


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
    held: HeldScale,
    books: Books,
    saved: Mapping[str, Any],
    configuration: Literal["keep", "restore"],
) -> None:
    """Takes over a saved state, or nothing of it; see `GradScaler.load_state_dict`."""
    if not isinstance(saved, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"`load_state_dict({saved!r})` must be given what `state_dict()` returned.")
    if configuration not in ("keep", "restore"):
        raise ValueError(
            f"`load_state_dict(configuration={configuration!r})` must be 'keep' or 'restore'."
        )
    policy = held.policy
    if configuration == "restore" and saved:
        policy = restored_policy(saved, policy)
    fields = check_saved(saved, policy.init(), policy)
    differing = differences(saved, policy)
    if differing:
        warnings.warn(
            "`load_state_dict` keeps this scaler's settings, which differ from the saved ones: "
            f"{'; '.join(differing)}. Pass `configuration='restore'` to take the saved ones.",
            stacklevel=3,
        )
    held.take_over(policy, fields)
    own = saved.get("gradscale", {})
    if "counters" in own:
        books.ledger.counters = Counters(**own["counters"])
    if held.layerwise is not None and "layerwise" in own:
        held.layerwise.load_state_dict(own["layerwise"])

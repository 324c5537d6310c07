"""What torch types as `dict[str, Any]`: said once, by the name that it goes by."""

from __future__ import annotations

from typing import Any

StateDict = dict[str, Any]
"""What a `state_dict` gives and a `load_state_dict` takes: whatever its owner keeps, by name."""

ParamGroup = dict[str, Any]
"""One of an optimizer's `param_groups`: its parameters and their settings."""

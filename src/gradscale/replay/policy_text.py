"""Policies as somebody types them: ``dynamic``, ``"lognormal(deviations=2)"``, ``apex``."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any, cast

import gradscale.policies
from gradscale.policies import Policy
from gradscale.policies.by_name import BY_NAME
from gradscale.policies.frozen import frozen

NAMES: tuple[str, ...] = tuple(BY_NAME)
"""What may be typed: policies, then other systems' defaults."""


def policy_from(text: str) -> Policy:
    """The policy of that name, with settings in parentheses; nothing is evaluated.

    Args:
        text: one of `NAMES`, and any of its settings: a number (``2^16`` too), a name in quotes,
            None, True, False, or another policy.

    Raises:
        ValueError: if there is no such policy or setting, or a value is out of range.

    Example:
        >>> policy_from("dynamic(init_scale=2^20, hysteresis=2)").init_scale
        1048576.0
        >>> policy_from("guarded(policy=lognormal(deviations=2))").policy.deviations
        2
    """
    # A hyphen between letters is part of a name; a minus never is.
    plain = re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", "_", text.strip())
    try:
        tree = ast.parse(plain, mode="eval").body
    except SyntaxError:
        tree = None
    policy = None if tree is None else _value(tree, text)
    if not isinstance(policy, Policy):
        raise ValueError(
            f"`--policy {text!r}` is no policy. Write a name, with settings in parentheses if you "
            f'like: dynamic, "dynamic(init_scale=2^20)". Names: {", ".join(NAMES)}.'
        )
    return policy


def policy_of(description: Mapping[str, Any]) -> Policy:
    """The policy that a recording's header describes.

    Raises:
        ValueError: if this gradscale has no such policy.

    Example:
        >>> policy_of({"name": "Static", "config": {"scale": 8.0}})
        Static(scale=8.0)
    """
    kind = getattr(gradscale.policies, description["name"], None)
    if not (isinstance(kind, type) and issubclass(kind, Policy)):
        raise ValueError(
            f"the recorded policy {description['name']!r} is none of `gradscale.policies`, so it "
            "cannot be built again. Replay others with `--policy`."
        )
    # A policy within a policy is described like one.
    config = {
        name: policy_of(value)
        if isinstance(value, Mapping) and "config" in value
        else frozen(value)
        for name, value in description["config"].items()
    }
    return kind(**config)


def _value(node: ast.expr, text: str) -> object:
    if isinstance(node, ast.Constant):
        return node.value
    # A name without parentheses is a policy with its defaults, also inside another.
    if isinstance(node, ast.Name):
        return _build(node.id, {}, text)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand, text)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor | ast.Pow):
        return _power(_number(node.left, text), _number(node.right, text), text)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError(
                f"`--policy {text!r}`: settings are given by name, as in "
                f'"{node.func.id}(init_scale=2^20)".'
            )
        given = {str(keyword.arg): _value(keyword.value, text) for keyword in node.keywords}
        return _build(node.func.id, given, text)
    return None


def _number(node: ast.expr, text: str) -> float:
    value = _value(node, text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"`--policy {text!r}`: {ast.unparse(node)!r} is not a number.")
    return value


def _power(base: float, exponent: float, text: str) -> float:
    try:
        power = float(base) ** float(exponent)
    except ArithmeticError:
        power = None
    if not isinstance(power, float):
        raise ValueError(f"`--policy {text!r}`: {base}^{exponent} is not a number.")
    return power


def _build(name: str, given: Mapping[str, object], text: str) -> Policy:
    policy = BY_NAME.get(_spelling(name))
    if policy is None:
        close = difflib.get_close_matches(name.replace("_", "-"), NAMES, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"`--policy {text!r}`: there is no policy {name!r}.{hint} Names: {', '.join(NAMES)}."
        )
    _check_settings(type(policy), given, text)
    return dataclasses.replace(policy, **given)  # pyright: ignore[reportArgumentType, reportUnknownVariableType]


def _spelling(name: str) -> str:
    """``LogNormal``, ``lognormal`` and ``log_normal`` are the same."""
    squeezed = name.replace("_", "").lower()
    return next((known for known in NAMES if known.replace("-", "") == squeezed), name)


def _check_settings(kind: type[Policy], given: Mapping[str, object], text: str) -> None:
    names = [field.name for field in dataclasses.fields(cast(Any, kind))]
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"`--policy {text!r}`: {kind.__name__} has no setting {name!r}.{hint} "
                f"Settings: {', '.join(names)}."
            )

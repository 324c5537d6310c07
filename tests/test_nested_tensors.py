"""Tensors are found in whatever people put them in."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradscale.nested_tensors import tensors_in


class Pair(NamedTuple):
    first: Any
    second: Any


class Own(tuple):
    __slots__ = ()


class Attributes(dict):
    pass


@dataclasses.dataclass
class Output:
    loss: Any
    logits: Any = None


ONE, TWO = torch.ones(1), torch.ones(2)


@pytest.mark.parametrize(
    "nesting",
    [
        (ONE, TWO), [ONE, [TWO]], {"b": ONE, "a": TWO}, OrderedDict(b=ONE, a=TWO), Pair(ONE, TWO),
        Own((ONE, TWO)), Attributes(b=ONE, a=[TWO]), UserDict(b=ONE, a=TWO),
        Output(ONE, {"x": TWO}),
        Output([Own((ONE,))], Attributes(a=Pair(TWO, "text"))), [None, 3, "name", ONE, Output, TWO],
    ],
)  # fmt: skip
def test_both_are_found_in_order(nesting: Any) -> None:
    first, second = tensors_in(nesting)
    assert first is ONE and second is TWO


@given(st.recursive(st.just(None), lambda inner: st.lists(inner) | st.tuples(inner, inner)))
def test_where_none_are_none_are_found(nesting: Any) -> None:
    assert list(tensors_in(nesting)) == []

"""The published layer-wise method, as a planner: each matrix product scales what it passes on.

Zhao, Vogel, Ahmed, arXiv 1910.12385; the formulas are in `adaptive_rules`. On our graph, in the
order of the nodes from the loss:

    arriving exponent   2^0 at a root; where several gradients are added the largest of theirs for
                        which the sum stays finite; else that of the node before
    matrix product      arriving exponent + floor(log2(rule(gradient, weight)))
    cast from float32   arriving exponent + floor(log2(cast_rule(gradient)))
    any other node      arriving exponent

The statistics of a gradient are those it would have at its arriving exponent. Deliberate
differences from the authors' code, by their number in the list of its known faults:

- X1, X4: a node computes all outputs at its own exponent, so the weight gradient is computed at
  ``alpha * S`` too, not at ``S``, and divided where it enters the leaf, in the leaf's dtype.
- X2, X3: scales are integer exponents without limit, and there are no caps unless they are asked
  for.
- X5: ``alpha`` times the gradient must be finite as well, not only the product behind it.
- X6: every cast from float32 is scaled.
- X10: a weight that cannot be read (a saved-tensor hook, an operand that was not saved) is named
  in the decision's notes; that product follows the rule `gradient`.
- X12: `fan` is the true number of terms, with groups and strides.
- X19, X20, X23, X24: forks bound the sum, divide by each branch's scale once, move exponents, not
  values, and have no floor.
- X21, X22: gradients of unequal scale are brought to one exponent before they are added, under
  every rule.
- X26: an overflow lowers the groups in which it began, at once; there is no cache.
- X27, X29: statistics come from one measuring step for all nodes, without a host read in it.
- X30: attention's products follow the rule like any other; other nodes pass exponents through.

X7 (placement at the lower edge), X8, X9, X11, X13 and X14 are the method itself and kept:
`Windows` is the planner without them. X15 to X17 are not offered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from gradscale.backward.measure_places import PRODUCTS, is_reduced
from gradscale.backward.measurements import PlaceRecord
from gradscale.backward.topology import CAST
from gradscale.exponents import floor_exponent
from gradscale.formats import FloatFormat
from gradscale.plans.adaptive_rules import (
    OVERFLOW,
    Bounds,
    Statistics,
    capped,
    fork_exponent,
    gradient_bounds,
    lognormal_bounds,
    product_bounds,
)
from gradscale.plans.decision import Decision
from gradscale.plans.decision_report import node_label
from gradscale.plans.groups import bounded, connected_groups
from gradscale.plans.situation import Situation
from gradscale.plans.window import Window
from gradscale.plans.windows_anchor import loss_exponent
from gradscale.plans.windows_overflow import lowered, overflow_in
from gradscale.policies.setting_checks import check, check_count, check_number, check_share

Rule = Literal["product", "gradient", "output"]
CastRule = Literal["lognormal", "gradient"]
# `addmm(bias, input, weight)`: the input's gradient is the second; of any other product the first.
_INPUT_OUTPUT = {"AddmmBackward0": 1, "BaddbmmBackward0": 1}


@dataclass(frozen=True)
class Adaptive:
    """Adaptive loss scaling as published; `Windows` needs none of these settings.

    Args:
        rule: what is modelled: one scalar ``"product"`` of gradient and weight (closest to the
            article), the ``"gradient"`` alone, or the ``"output"`` of the matrix product.
        threshold: the share of elements that may fall below the smallest float16, by the model.
        cast_rule: at casts from float32: ``"lognormal"`` or the normal model of ``"gradient"``.
        scale_upper_bound: the largest factor of one node; None for none.
        accum_upper_bound: the largest scale that factors may accumulate to; None for none.
        backoff: octaves by which a group goes down when it overflows, at least 1.

    Raises:
        TypeError: if a setting is of another kind.
        ValueError: if it lies outside its range.

    Example:
        >>> Adaptive(rule="output").threshold
        0.001
    """

    rule: Rule = "product"
    threshold: float = 1e-3
    cast_rule: CastRule = "lognormal"
    scale_upper_bound: float | None = None
    accum_upper_bound: float | None = None
    backoff: int = 2

    def __post_init__(self) -> None:
        if self.rule not in ("product", "gradient", "output"):
            raise ValueError(
                f"`Adaptive(rule={self.rule!r})` must be 'product', 'gradient' or 'output'."
            )
        if self.cast_rule not in ("lognormal", "gradient"):
            raise ValueError(
                f"`Adaptive(cast_rule={self.cast_rule!r})` must be 'lognormal' or 'gradient'."
            )
        check_share(self, "threshold", "It is a share of elements.")
        for name in ("scale_upper_bound", "accum_upper_bound"):
            bound = getattr(self, name)
            if bound is not None:
                check_number(self, name)
                fits = 0 < bound < math.inf
                check(self, name, fits, "must be positive and finite", "Pass None for none.")
        check_count(self, "backoff", 1, "It is a number of octaves.")

    @property
    def moments(self) -> bool:
        """The rules need means and standard deviations, and those of the weights."""
        return True

    @property
    def products(self) -> bool:
        """The rules are about what arrives at products, in any dtype."""
        return True

    def decide(self, situation: Situation) -> Decision:
        """See the module.

        Raises:
            ValueError: if the measurements lack moments.
        """
        graph, log2_scale = situation.graph, situation.log2_scale
        if situation.measurements.overflowed:
            origins = overflow_in(graph, situation.measurements).origins
            plan, scale = lowered(graph, situation.current, log2_scale, origins, self.backoff)
            groups = connected_groups(graph, plan, scale)
            return situation.decision(plan, scale, groups, origins)
        walked = _Chain(self, situation)
        exponents = walked.exponents()
        scale = loss_exponent(graph, [Window()] * len(graph), exponents, log2_scale)
        plan = situation.plan_of(exponents, scale)
        decision = situation.decision(plan, scale, connected_groups(graph, plan, scale))
        return replace(decision, notes=tuple(walked.notes))

    def product(self, gradient: Statistics, weight: Statistics | None, fan: int) -> Bounds:
        """The bounds that the rule sets for one matrix product; without a weight by `gradient`."""
        alone = gradient_bounds(gradient, self.threshold)
        if weight is None or self.rule == "gradient":
            return alone
        summed = self.rule == "output"
        bounds = product_bounds(gradient, weight, fan, self.threshold, summed=summed)
        return Bounds(bounds.low, min(bounds.up, alone.up))

    def cast(self, gradient: Statistics) -> Bounds:
        """The bounds at a cast from float32."""
        if self.cast_rule == "lognormal":
            return lognormal_bounds(gradient, self.threshold)
        return gradient_bounds(gradient, self.threshold)

    def exponent(self, bounds: Bounds, arriving: int) -> int:
        """``log2(alpha)``: the raw factor, capped and rounded down to a power of two."""
        raw = capped(
            bounds.raw,
            math.ldexp(1.0, arriving),
            self.scale_upper_bound,
            self.accum_upper_bound,
        )
        return floor_exponent(raw)


class _Chain:
    """The walk from the loss to the leaves that sets one exponent after the other."""

    def __init__(self, rules: Adaptive, situation: Situation) -> None:
        self.notes: list[str] = []
        self._rules = rules
        self._graph = situation.graph
        self._log2_scale = situation.log2_scale
        self._names = situation.names
        self._records = {record.place: record for record in situation.measurements.records}

    def exponents(self) -> dict[int, int]:
        """Absolute exponents of all nodes but leaves and pinned ones."""
        fixed = self._graph.fixed
        found: dict[int, int] = {}
        for node in range(len(self._graph)):
            if node not in fixed:
                arriving = self._arriving(node, found)
                exponent = arriving + self._factor(node, arriving)
                found[node] = bounded(exponent)
        return found

    def _arriving(self, node: int, found: dict[int, int]) -> int:
        edges = [self._graph.edges[number] for number in self._graph.edges_into(node)]
        branches = [found.get(edge.source, self._log2_scale) for edge in edges]
        if len(branches) < 2:
            return branches[0] if branches else 0
        maxima: list[float] = []
        for edge, exponent in zip(edges, branches, strict=True):
            record = self._records.get((edge.source, "produced", node)) or self._arrived(node)
            maxima.append(math.ldexp(record.counts.amax, exponent) if record else 0.0)
        arrivals = self._graph.arrives[node]
        # A sum in reduced precision must stay below float16's maximum while it is added up.
        reduced = any(is_reduced(arrival.dtype) for arrival in arrivals)
        limit = OVERFLOW if reduced else FloatFormat.of("fp32").max
        return fork_exponent(branches, maxima, limit)

    def _arrived(self, node: int) -> PlaceRecord | None:
        return self._records.get((node, "arrived", -1))

    def _factor(self, node: int, arriving: int) -> int:
        name = self._graph.names[node]
        record = self._arrived(node)
        if record is None or record.counts.nonzero == 0:
            return 0
        if name in PRODUCTS and self._passes_on(node):
            gradient = Statistics.of(record.counts, arriving)
            return self._rules.exponent(self._product(node, gradient), arriving)
        if name == CAST and record.format == "fp32" and self._casts_down(node):
            bounds = self._rules.cast(Statistics.of(record.counts, arriving))
            return self._rules.exponent(bounds, arriving)
        return 0

    def _product(self, node: int, gradient: Statistics) -> Bounds:
        saved = self._records.get((node, "weight", -1))
        if saved is None and self._rules.rule != "gradient":
            name = node_label(self._graph, self._names, node)
            self.notes.append(f"the weight of {name} could not be read")
        weight = None if saved is None else Statistics.of(saved.counts)
        return self._rules.product(gradient, weight, 1 if saved is None else saved.fan)

    def _passes_on(self, node: int) -> bool:
        """Whether the product computes a gradient of its input, the only one a factor is for."""
        output = _INPUT_OUTPUT.get(self._graph.names[node], 0)
        edges = (self._graph.edges[number] for number in self._graph.edges_from(node))
        return any(edge.output == output for edge in edges)

    def _casts_down(self, node: int) -> bool:
        structure = self._graph.structure
        edges = (structure.edges[number] for number in self._graph.edges_from(node))
        return any(is_reduced(structure.arrival(edge).dtype) for edge in edges)

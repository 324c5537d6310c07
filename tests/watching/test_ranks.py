"""Real processes over gloo: the same bits, and one report for all ranks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from layerwise_worker import WRAPPERS, Build, ddp, fsdp2
from processes import ON_RANKS, on_two_ranks
from watching_worker import (
    alone,
    different_graphs,
    first_step,
    interrupted,
    no_pass_on_rank_one,
    with_and_without,
)

pytestmark = ON_RANKS
NAMES = {f"{layer}.{part}" for layer in (0, 1, 3, 5) for part in ("weight", "bias")}


def counts_of(report: dict[str, Any]) -> dict[str, tuple[float, Counter[int]]]:
    """By row the largest magnitude and how many elements lie in each octave."""
    found: dict[str, tuple[float, Counter[int]]] = {}
    for row in report["rows"]:
        counts = row["counts"]
        octaves = Counter(dict(enumerate(counts["octaves"], counts["lowest"])))
        found[row["name"]] = counts["amax"], octaves + Counter({-999: counts["zero"]})
    return found


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("build", WRAPPERS)
def test_parameters_keep_their_bits_and_ranks_have_one_report(build: Build, half: bool) -> None:
    results = on_two_ranks(with_and_without, build, half, not half)
    for plain, watched, _ in results:
        assert plain == watched and any(any(values) for values in plain)
    (_, _, first), (_, _, second) = results
    assert first == second
    assert first["steps"] == [0, 1, 2, 4] and not first["alone"]
    names = {row["name"] for row in first["rows"]}
    assert {"0", "3", "5"} <= names
    if build in (ddp, fsdp2):
        assert names >= NAMES
        assert ({"0 (output)", "4 (output)"} <= names) == (not half)
    assert not any("module" in name or "_fsdp" in name for name in names)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("build", [ddp, fsdp2])
def test_the_report_is_the_sum_over_ranks(build: Build, half: bool) -> None:
    (one, two), _ = on_two_ranks(alone, half)
    expected = {
        name: (max(amax, counts_of(two)[name][0]), octaves + counts_of(two)[name][1])
        for name, (amax, octaves) in counts_of(one).items()
    }
    for report in on_two_ranks(first_step, build, half):
        assert counts_of(report) == expected


def test_ranks_that_run_different_graphs_wait_for_nobody_and_say_so() -> None:
    (is_alone, names, text), (also_alone, others, _) = on_two_ranks(different_graphs)
    assert is_alone and also_alone
    assert "one.weight" in names and "one.weight" not in others
    assert text[3] == "Ranks ran different graphs: these are the counts of this rank only."


def test_ranks_with_different_micro_batches_do_not_wait_for_each_other() -> None:
    results = on_two_ranks(no_pass_on_rank_one)
    assert results == [((0, 1, 2), True)] * 2


def test_an_exception_leaves_nobody_waiting() -> None:
    assert on_two_ranks(interrupted, None) == [0, 0]

"""Small tensors that are counted together, against each of them counted alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gradscale.backward import measure_waiting as module
from gradscale.backward.graph import walk
from gradscale.backward.measure import Measuring, measure
from gradscale.backward.measure_counts import count_into, moments_into, stored_values
from gradscale.backward.measure_places import CountedPlace
from gradscale.backward.measure_rows import count_by_torch, empty_counts
from gradscale.backward.measure_tally import Tally
from gradscale.backward.measure_waiting import SMALL, Waiting, is_small
from gradscale.backward.measurements import Counts, unscaled_counts
from tensor_kinds import FLOAT_DTYPES, LAYOUTS

CPU = torch.device("cpu")
MORE_LAYOUTS = {
    "complex": lambda x: torch.complex(x, -x).conj(),
    "large": lambda x: x.repeat(40, 1, 1),
}
rare = st.sampled_from([0.0, 1.0, 0.25, 2.0**-149, 2.0**-126, math.inf, -math.inf, math.nan])
floats = st.floats(width=32, allow_nan=True, allow_infinity=True) | rare


def plain_counts(tensors: list[Tensor], ceil: bool) -> Counts:
    """The slow and obvious way: each alone, by a few operations of torch."""
    rows = empty_counts(1)
    for tensor in tensors:
        flat = stored_values(tensor)
        if flat.numel():
            count_by_torch(rows[0], flat, ceil=ceil)
    return unscaled_counts(rows, [(1.0, 0)])[0]


def measuring_of(places: int, *, ceil: bool = False, moments: bool = False) -> Measuring:
    name = "bf16" if ceil else "fp16"
    chosen = [CountedPlace(node, "arrived", -1, -1, name, CPU) for node in range(places)]
    return Measuring("s", [0] * places, chosen, [], 1.0, moments, exact=ceil)


@pytest.mark.parametrize("ceil", [False, True])
@given(
    given=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(FLOAT_DTYPES), st.lists(floats, max_size=9)),
        max_size=20,
    )
)
@settings(max_examples=80, deadline=None)
def test_counted_together_is_counted_alone(
    ceil: bool, given: list[tuple[int, torch.dtype, list[float]]]
) -> None:
    measuring = measuring_of(6, ceil=ceil)
    alone: dict[int, list[Tensor]] = {place: [] for place in range(6)}
    for place, dtype, values in given:
        tensor = torch.tensor(values, dtype=torch.float32).to(dtype)
        alone[place].append(tensor)
        measuring._see(place, tensor)
    records = measuring.result().records
    assert [record.counts for record in records] == [plain_counts(alone[p], ceil) for p in range(6)]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [*LAYOUTS, *MORE_LAYOUTS])
def test_any_layout_is_counted_among_others(layout: str) -> None:
    view = (LAYOUTS | MORE_LAYOUTS)[layout]
    tensors = [view(torch.randn(4, 6, 5)) for _ in range(3)]
    measuring = measuring_of(2)
    for tensor in tensors:
        measuring._see(0, torch.ones(2))
        measuring._see(1, tensor)
    assert measuring.result().records[1].counts == plain_counts(tensors, ceil=False)


def test_moments_of_small_tensors_are_those_of_each_alone() -> None:
    tensors = [torch.randn(size) for size in (1, 4, 7)]
    tensors[1][0], tensors[2][3] = math.inf, 0.0
    measuring = measuring_of(3, moments=True)
    for place, tensor in enumerate(tensors):
        measuring._see(place, tensor)
    for record, tensor in zip(measuring.result().records, tensors, strict=True):
        row = torch.zeros(4, dtype=torch.float64)
        moments_into(row, tensor)
        assert record.counts.moments == pytest.approx(tuple(row.tolist()), rel=1e-12)


def test_a_gradient_that_is_overwritten_later_is_counted_as_it_was_seen() -> None:
    measuring = measuring_of(1)
    tensor = torch.tensor([1.0, 2.0])
    measuring._see(0, tensor)
    tensor.data.fill_(math.inf)  # leaves no trace in the version
    assert measuring.result().records[0].counts == Counts(2.0, octaves=(1, 1))


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].mul_(0.0)


def test_a_function_that_writes_to_what_arrived_does_not_change_what_was_counted_before() -> None:
    x = torch.ones(3, dtype=torch.float16, requires_grad=True)
    loss = (InPlace.apply(x * 1.0) * 4.0).float().sum()  # type: ignore[no-untyped-call]
    walked = walk(loss)
    writes = next(i for i, name in enumerate(walked.graph.names) if "InPlace" in name)
    place = CountedPlace(writes - 1, "produced", writes, 0, "fp16", CPU)
    measuring = measure(walked, places=[place])
    loss.backward()
    (record,) = measuring.result().records
    assert record.counts == Counts(4.0, octaves=(3,), lowest=2)
    assert x.grad is not None and x.grad.count_nonzero() == 0


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    class Noting(Tally):
        def count_together(self, places: Any, tensors: Any, *, ceil: bool) -> None:
            counted.append(len(places))

    monkeypatch.setattr(module, "MOST_TENSORS", 10)
    monkeypatch.setattr(module, "MOST_ELEMENTS", 1000)
    waiting = Waiting(Noting(CPU), ceil=False)
    for _ in range(25):
        assert waiting.add(0, torch.ones(2))
    assert counted == [10, 10]
    waiting.count()
    for _ in range(6):
        waiting.add(0, torch.ones(400))
    assert counted == [10, 10, 5, 3, 3]


def test_only_plain_dense_floats_of_a_few_elements_wait() -> None:
    assert is_small(torch.ones(SMALL, dtype=torch.float8_e5m2))
    assert not is_small(torch.ones(SMALL + 1))
    assert not is_small(torch.ones(3, dtype=torch.complex64))
    assert not is_small(torch.ones(3).to_sparse())
    assert not is_small(torch.nn.Parameter(torch.ones(3)))
    assert not is_small(torch.ones(0))


class Operations(TorchDispatchMode):
    """Counts what is called; on a GPU each is a launch, or a view."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_how_many_operations_does_not_grow_with_the_number_of_small_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from contextlib import nullcontext

    counts: list[int] = []
    for tensors in (4, 400):
        waiting = Waiting(Tally(CPU), ceil=False)
        for place in range(tensors):
            waiting.add(place, torch.ones(2))
        with monkeypatch.context() as patched, Operations() as seen:
            patched.setattr(torch._C, "_DisableTorchDispatch", nullcontext)
            waiting.count()
        counts.append(seen.count)
    # Each is flattened, a view on a GPU, on its way into one tensor; all else is done once.
    assert counts[1] - counts[0] == 396
    assert counts[0] - 4 <= 50


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_every_pattern_of_a_narrow_format_counts_as_the_plain_form_says(dtype: torch.dtype) -> None:
    if dtype.itemsize > 2:
        values = torch.randn(5000).to(dtype)
    else:
        whole = torch.int16 if dtype.itemsize == 2 else torch.uint8
        bits = 8 * dtype.itemsize
        values = torch.arange(1 << bits).to(whole).view(dtype).repeat(1 if bits > 8 else 4)
    for ceil in (False, True):
        quick, plain = empty_counts(1), empty_counts(1)
        count_into(quick[0], values, ceil=ceil)
        count_by_torch(plain[0], values, ceil=ceil)
        assert torch.equal(quick, plain)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("moments", [False, True])
def test_small_tensors_on_the_device_are_counted_as_on_the_host(moments: bool) -> None:
    cuda = torch.device("cuda", torch.cuda.current_device())
    tensors = [torch.randn(size).to(dtype) for size in (1, 5, 700) for dtype in FLOAT_DTYPES]
    found: list[tuple[Counts, ...]] = []
    for device in (CPU, cuda):
        places = [CountedPlace(n, "arrived", -1, -1, "fp16", device) for n in range(len(tensors))]
        measuring = Measuring("s", [0] * len(places), places, [], 1.0, moments)
        torch.cuda.synchronize()
        for place, tensor in enumerate(tensors):
            moved = tensor.to(device)
            torch.cuda.set_sync_debug_mode("error")
            try:
                measuring._see(place, moved)
                measuring._settle()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        records = measuring.result().records
        found.append(tuple(record.counts for record in records))
    host, there = found
    for one, other in zip(host, there, strict=True):
        assert (one.amax, one.zero, one.nonfinite, one.lowest, one.octaves) == (
            other.amax, other.zero, other.nonfinite, other.lowest, other.octaves,
        )  # fmt: skip

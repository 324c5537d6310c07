"""What is counted, against plain tensor hooks and the real casts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradscale
from gradscale.backward import measure_tally, measure_waiting
from gradscale.backward.measurements import Counts
from gradscale.backward.plan import ScalePlan
from gradscale.emulation import emulate
from gradscale.formats import FloatFormat
from gradscale.watching import Watch
from gradscale.watching.report import WatchReport

FORMATS = ["fp16", "bf16", "e5m2", "e4m3", "e3m4"]


def network(widths: list[int], norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.LayerNorm(fan_out) if norm else nn.Tanh()]
    return nn.Sequential(*layers)


def captured(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The slow, obvious version: what plain hooks on outputs and parameters see."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda grad: found.update({name: grad.detach().clone()})

    def watch_output(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            output.register_hook(keep(name))

        return hook

    handles = [
        module.register_forward_hook(watch_output(name))
        for name, module in model.named_modules()
        if name and list(module.parameters(recurse=False))
    ]
    handles += [p.register_hook(keep(name)) for name, p in model.named_parameters()]
    loss().backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return found


def watched(model: nn.Module, loss: Callable[[], Tensor], **settings: Any) -> Watch:
    with gradscale.watch(model, **settings) as watch:
        loss().backward()
    model.zero_grad()
    return watch


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    batch=st.integers(1, 6),
    norm=st.booleans(),
    shift=st.integers(-30, 4),
    format=st.sampled_from(FORMATS),
    at=st.integers(-6, 12),
    seed=st.integers(0, 2**31),
)
def test_in_float32_every_number_is_that_of_the_cast(
    widths: list[int], batch: int, norm: bool, shift: int, format: str, at: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model, x = network(widths, norm), torch.randn(batch, widths[0])

    def loss() -> Tensor:
        return model(x).square().sum() * 2.0**shift

    true = captured(model, loss)
    target = FloatFormat.of(format)
    report = watched(model, loss).report(format=format, at=at)
    assert {row.name for row in report} == true.keys()
    for row in report:
        stored = true[row.name] * 2.0**at
        kept = target.round(stored)
        if row.negligible:
            continue
        assert (row.numel, row.exponent, row.method) == (stored.numel(), at, "counted")
        assert row.counts.amax == float(true[row.name].abs().max())
        lost = (stored != 0) & (kept == 0)
        if row.zero_share == float((stored == 0).float().mean()):  # no part is negligible
            assert row.flushed == int(lost.sum())
            assert row.nonzero == int((stored != 0).sum())
        assert row.overflows == bool((stored.abs() > target.max).any())


def test_half_the_smallest_subnormal_is_lost_and_anything_above_is_not() -> None:
    model = nn.Linear(2, 1, bias=False)
    x = torch.tensor([[2.0**-25, 2.0**-25 * (1 + 2.0**-10)]])
    (row,) = watched(model, lambda: model(x).sum()).report("fp16").of(kind="parameter")
    assert (row.flushed, row.nonzero) == (1, 2)
    assert [bool(value) for value in x[0].half()] == [False, True]


def deep(width: int = 64) -> tuple[nn.Module, Callable[[torch.dtype | None], Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    x = torch.randn(32, width)

    def loss(dtype: torch.dtype | None) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            out = model(x)
        return out.float().square().mean()

    return model, loss


def test_under_autocast_a_parameter_is_counted_in_half_precision_before_its_cast_to_float32() -> (
    None
):
    model, loss = deep()
    watch = watched(model, lambda: loss(torch.float16))
    report = watch.report()
    loss(torch.float16).backward()
    for name, parameter in model.named_parameters():
        (row,) = report.of(kind="parameter", name=name)
        assert (row.format, row.method) == ("fp16", "extrapolated")
        assert parameter.grad is not None
        assert row.counts.zero == int((parameter.grad == 0).sum())
        assert row.counts.amax == float(parameter.grad.abs().max())


def test_a_cast_is_counted_before_it_rounds() -> None:
    model, loss = deep()
    shifted = lambda: loss(torch.float16) * 2.0**-12  # noqa: E731
    (row,) = watched(model, shifted).report().of(kind="cast")
    assert (row.name, row.kind, row.format, row.method) == (
        "cast after 2",
        "cast",
        "fp16",
        "counted",
    )
    seen: list[Tensor] = []
    with torch.autocast("cpu", torch.float16):
        out = model(torch.randn(32, 64, generator=torch.Generator().manual_seed(1)))
    single = out.float()
    single.register_hook(seen.append)
    (single.square().mean() * 2.0**-12).backward()
    with gradscale.watch(model) as watch:
        with torch.autocast("cpu", torch.float16):
            out = model(torch.randn(32, 64, generator=torch.Generator().manual_seed(1)))
        (out.float().square().mean() * 2.0**-12).backward()
    (row,) = watch.report().of(kind="cast")
    assert row.flushed == int(((seen[0] != 0) & (seen[0].half() == 0)).sum()) > 0
    assert row.nonzero == int((seen[0] != 0).sum())


@pytest.mark.parametrize("scale", [1.0, 2.0**10, 2.0**16])
def test_what_half_precision_flushed_is_estimated_near_the_truth(scale: float) -> None:
    model, loss = deep()

    def scaled(dtype: torch.dtype | None) -> Callable[[], Tensor]:
        return lambda: loss(dtype) * scale * 2.0**-9

    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.ones(()))  # it has its scale on the device from its first use
    half = watched(model, scaled(torch.float16), scaler=scaler).report()
    true = captured(model, scaled(None))
    stored = captured(model, scaled(torch.float16))
    for row in half.of(kind="parameter"):
        assert row.exponent == torch.tensor(scale).log2()
        exact = (true[row.name] != 0) & (stored[row.name] == 0)
        share = float(exact.sum() / (true[row.name] != 0).sum())
        assert row.lost_share == pytest.approx(share, abs=0.05), row.name
    assert half.lost_share > 0.03 if scale == 1.0 else half.lost_share < 0.001


def test_an_emulated_product_loses_what_it_rounds_and_nothing_else_is_guessed() -> None:
    model, loss = deep()
    with emulate(forward=torch.float16, backward="e5m2"):
        report = watched(model, lambda: loss(None) * 2.0**-6).report()
    (row,) = report.of(name="2", kind="module")
    assert (row.format, row.method) == ("e5m2", "counted")
    seen: list[Tensor] = []
    with emulate(forward=torch.float16, backward="e5m2"):
        out = model[1](model[0](torch.randn(32, 64)))
        out = model[2](out)
        out.register_hook(seen.append)
        (out.square().mean() * 2.0**-6).backward()
    model.zero_grad()
    rounded = FloatFormat.of("e5m2").round(seen[0])
    share = float(((seen[0] != 0) & (rounded == 0)).sum() / (seen[0] != 0).sum())
    assert share > 0.05 and row.lost_share == pytest.approx(share, abs=0.03)  # another batch
    assert [row.format for row in report.of(name="2.weight")] == ["fp16"]
    assert [row.format for row in report.of(name="2.bias")] == ["fp32"]  # a sum is no product


def test_each_measured_tensor_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int, int]] = []
    kept: list[Tensor] = []
    monkeypatch.setattr(measure_waiting, "SMALL", 0)  # each at once, as it is met
    plain = measure_tally.count_into

    def spy(row: Tensor, tensor: Tensor, **settings: Any) -> None:
        kept.append(tensor)  # so that no address is used twice
        read.append((tensor.data_ptr(), tensor.numel(), tensor._version))
        plain(row, tensor, **settings)

    monkeypatch.setattr(measure_tally, "count_into", spy)
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.ModuleDict({"body": layer, "left": nn.Linear(8, 8), "right": nn.Linear(8, 8)})
    x = torch.randn(3, 5, 8)

    def loss() -> Tensor:
        hidden = layer(x)
        return (model["left"](hidden) + model["right"](hidden)).square().sum()

    report = watched(model, loss).report("fp16")
    assert len(read) == len(set(read))
    (left,), (right,) = (report.of("module", name) for name in ("left", "right"))
    assert left.counts == right.counts and left.numel == 120  # one tensor, two rows
    (fused,) = [row for row in report if row.name == "body.self_attn"]
    assert fused.numel == 15 * 24 and len(report) == len({(row.kind, row.name) for row in report})


def test_micro_batches_of_a_step_are_counted_together() -> None:
    model, loss = deep()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscale.watch(model, every=1) as watch:
        for _ in range(3):
            loss(None).backward()
        optimizer.step()
        optimizer.zero_grad()
        loss(None).backward()
    assert watch.report().steps == (0, 1)
    (row,) = watch.report().of(name="0.weight")
    assert row.numel == 4 * 64 * 64
    assert watch.latest is not None and watch.latest.of(name="0.weight")[0].numel == 64 * 64


def test_with_a_plan_every_row_has_the_exponent_of_its_node_and_the_same_counts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(4)])
    x = torch.randn(8, 16)
    reports: list[WatchReport] = []
    plans: list[ScalePlan] = []

    def plan(graph: Any, measurements: Any) -> ScalePlan:
        last = max(n for n, name in enumerate(graph.names) if name == "AddmmBackward0")
        inner = set(range(2, len(graph))) - set(graph.leaves)
        # What arrives at the last layer was made three octaves below where it is used.
        plans.append(ScalePlan.of(graph, {n: 6 if n >= last else 3 for n in inner}))
        return plans[-1]

    for layerwise in (False, plan):
        scaler = gradscale.GradScaler("cpu", init_scale=2.0**8, layerwise=layerwise)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with gradscale.watch(model, scaler, every=1) as watch:
            for _ in range(3):
                optimizer.zero_grad()
                scaler.scale(model(x).square().mean()).backward()
                scaler.step(optimizer)
                scaler.update()
        assert watch.latest is not None
        reports.append(watch.latest)
    plain, planned = reports
    assert plans and {row.exponent for row in plain} == {8}
    assert {row.exponent for row in planned.of(kind="module")} == {11}
    # Made at the node's exponent, and brought down to the leaf's.
    assert {row.exponent for row in planned.of(kind="parameter")} == {8}
    for one, two in zip(plain.in_order, planned.in_order, strict=True):
        assert (one.name, one.counts) == (two.name, two.counts)


def test_no_counts_are_lost_between_a_report_and_its_rows() -> None:
    model, loss = deep()
    report = watched(model, lambda: loss(None)).report("fp16")
    for row in report:
        assert isinstance(row.counts, Counts)
        assert row.numel == row.counts.nonzero + row.counts.zero

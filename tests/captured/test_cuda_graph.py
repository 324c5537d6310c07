"""On a GPU: a recorded step is the eager loop, bit for bit, and waits for nothing."""

import copy

import pytest
import torch
from torch import nn

import gradscale
from assertions import assert_same_bits
from captured.steps import (
    HUGE,
    MODELS,
    OPTIMIZERS,
    assert_same_traces,
    batches,
    build,
    run,
    tensors_of,
    weighted_loss,
)
from gradscale import CapturedStep, Dynamic, GradScaler, LogNormal

pytestmark = pytest.mark.cuda

NAN = float("nan")
WEIGHTS = (1.0, 0.5, HUGE, 1.0, 1.0, HUGE, HUGE, 2.0, NAN, 1.0)
QUICK = Dynamic(init_scale=2.0**10, growth_interval=2)
ON_DEVICE = {
    "momentum": OPTIMIZERS["momentum"],
    "fused_sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, capturable=True),
    "fused_adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


@pytest.fixture(autouse=True)
def same_kernels_every_time():
    """Bits are compared: cuDNN's quickest gradient of a weight adds in any order."""
    before, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    yield
    torch.backends.cudnn.deterministic = before


def on_cuda(monkeypatch, model, optimizer, **options):
    monkeypatch.setitem(OPTIMIZERS, optimizer, ON_DEVICE[optimizer])
    return build(model, optimizer, "cuda", **options)


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("optimizer", sorted(ON_DEVICE))
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_a_recorded_step_has_the_bits_of_the_eager_one(model, optimizer, max_norm, monkeypatch):
    options = {"policy": QUICK, "max_norm": max_norm}
    eager = on_cuda(monkeypatch, model, optimizer, mode="eager", **options)
    graph = on_cuda(monkeypatch, model, optimizer, mode="cuda_graph", warmup=2, **options)
    data = batches(MODELS[model][1], WEIGHTS, "cuda")
    assert_same_traces(run(eager, data), run(graph, data))
    assert graph.captured
    for a, b in zip(tensors_of(eager), tensors_of(graph), strict=True):
        assert_same_bits(a, b)
    assert graph.skipped_steps.item() == eager.skipped_steps.item() == 4


@pytest.mark.parametrize("policy", [Dynamic(hysteresis=2), LogNormal()])
def test_policies_move_inside_the_graph(policy, monkeypatch):
    eager = on_cuda(monkeypatch, "mlp", "adam", mode="eager", policy=policy)
    graph = on_cuda(monkeypatch, "mlp", "adam", mode="cuda_graph", policy=policy)
    data = batches(MODELS["mlp"][1], WEIGHTS, "cuda")
    assert_same_traces(run(eager, data), run(graph, data))


def test_a_recorded_step_waits_for_nothing(monkeypatch):
    graph = on_cuda(monkeypatch, "mlp", "fused_adamw", mode="cuda_graph", max_norm=1.0)
    data = batches(MODELS["mlp"][1], (1.0,) * 5 + (HUGE, 1.0), "cuda")
    run(graph, data[:5])
    assert graph.captured
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in data[5:]:
            graph.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert graph.skipped_steps.item() == 1


def test_micro_batches_are_accumulated_inside_the_graph(monkeypatch):
    options = {"policy": QUICK, "micro_batches": 2}
    eager = on_cuda(monkeypatch, "mlp", "momentum", mode="eager", **options)
    graph = on_cuda(monkeypatch, "mlp", "momentum", mode="cuda_graph", **options)
    singles = batches(MODELS["mlp"][1], (1.0,) * 9 + (HUGE, 1.0, 1.0), "cuda")
    data = [singles[i : i + 2] for i in range(0, 12, 2)]
    assert_same_traces(run(eager, data), run(graph, data))


def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(monkeypatch):
    whole, first, second = (
        on_cuda(monkeypatch, "mlp", "adam", mode="cuda_graph", policy=QUICK) for _ in range(3)
    )
    data = batches(MODELS["mlp"][1], WEIGHTS, "cuda")
    expected = run(whole, data)
    run(first, data[:5])
    second._written.model.load_state_dict(copy.deepcopy(first._written.model.state_dict()))
    second._optimizer.load_state_dict(copy.deepcopy(first._optimizer.state_dict()))
    second.load_state_dict(first.state_dict())
    assert_same_traces(expected[5:], run(second, data[5:]))


@pytest.mark.parametrize("build", [torch.optim.SGD, torch.optim.AdamW])
def test_a_half_precision_model_is_recorded_with_its_masters(build):
    settings = {"momentum": 0.9} if build is torch.optim.SGD else {"fused": True}
    traces = []
    for mode in ("eager", "cuda_graph"):
        torch.manual_seed(0)
        model = MODELS["mlp"][0]().cuda()
        optimizer = build(model.parameters(), lr=0.01, **settings)
        gradscale.half_precision(model, optimizer)

        def loss_fn(model, batch):
            x, target, weight = batch
            return nn.functional.cross_entropy(model(x.half()).float(), target) * weight

        step = CapturedStep(model, loss_fn, optimizer, mode=mode, policy=QUICK, max_norm=1.0)
        traces.append(run(step, batches(MODELS["mlp"][1], WEIGHTS, "cuda")))
        traces[-1].append([p.detach().clone() for p in model.parameters()])
        assert step.captured == (mode == "cuda_graph")
    assert_same_traces(*traces)


def test_a_scaler_that_has_trained_long_can_be_recorded():
    """By then copies of flags and of the scale are on their way to the host."""
    parameter = nn.Parameter(torch.ones(3, device="cuda"))
    optimizer = torch.optim.AdamW([parameter], lr=0.01, fused=True)
    scaler = GradScaler("cuda", init_scale=2.0**10)
    scaler.metrics()
    parameter.grad = torch.zeros(3, device="cuda")
    busy = torch.randn(4096, 4096, device="cuda")

    def step():
        scaler.scale(parameter.square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        parameter.grad.zero_()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(30):
            busy = busy @ busy
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    before = parameter.detach().clone()
    graph.replay()
    assert not torch.equal(parameter, before)


@pytest.mark.slow
def test_the_compiled_step_takes_the_same_decisions_on_a_gpu(monkeypatch):
    eager = on_cuda(monkeypatch, "mlp", "adam", mode="eager", policy=QUICK)
    compiled = on_cuda(monkeypatch, "mlp", "adam", mode="compile", policy=QUICK)
    data = batches(MODELS["mlp"][1], WEIGHTS, "cuda")
    decided = [row[1:3] for row in run(eager, data)]
    assert_same_traces(decided, [row[1:3] for row in run(compiled, data)])


def test_an_optimizer_that_counts_on_the_host_is_refused():
    model = nn.Linear(4, 1, device="cuda")
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match=r"Adam\(…, capturable=True\)` or with `fused=True`"):
        CapturedStep(model, weighted_loss, optimizer, mode="cuda_graph")


def test_a_graph_of_ones_own_holds_the_scaler():
    """The recipe of the guide: the ordinary scaler, recorded by hand."""
    torch.manual_seed(0)
    model = nn.Linear(8, 3, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scaler = GradScaler("cuda", init_scale=2.0**10, growth_interval=1000)
    batch = [t.clone() for t in batches(MODELS["mlp"][1], (1.0,), "cuda")[0]]

    def step():
        optimizer.zero_grad()
        loss = weighted_loss(model, batch)
        scaler.scale(loss).backward()
        scaler.clip_grad_norm_(optimizer, 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    graph.replay()
    before = [p.clone() for p in model.parameters()]
    batch[2].fill_(HUGE)
    graph.replay()
    assert scaler.get_scale() == 2.0**9
    for old, new in zip(before, model.parameters(), strict=True):
        assert_same_bits(old, new.detach())

"""Models that compute their own loss: softmax, losses and reductions are float32 inside."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

import gradscale
from gradscale import half_precision

X, CLASSES = torch.randn(32, 16, generator=torch.Generator().manual_seed(0)), torch.arange(32)
HUGE = torch.full((32, 1), 7e4)
"""Targets beyond float16, and no more than that."""


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(16, 32), nn.Linear(32, 64)

    def forward(self, x, labels):
        return F.cross_entropy(self.head(self.body(x)), labels)


class Regressor(nn.Module):
    """Holds a parameter by itself, too, so that it is a layer and more than that."""

    def __init__(self):
        super().__init__()
        self.body, self.shift = nn.Linear(16, 1), nn.Parameter(torch.zeros(1))

    def forward(self, x, target):
        return F.mse_loss((self.body(x) + self.shift).float() * 1e5, target)


class Attends(nn.Module):
    """Products of its own, in which softmax has left float32 and values are half."""

    def __init__(self):
        super().__init__()
        self.qk, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x):
        keys = self.qk(x)
        weights = (keys @ keys.T).softmax(-1)
        assert weights.dtype == torch.float32
        values = weights @ keys
        assert values.dtype == keys.dtype
        return self.norm(x + values)


class Whole(nn.Module):
    def __init__(self, checkpointed=False):
        super().__init__()
        self.first, self.second, self.head = Attends(), Attends(), nn.Linear(16, 64)
        self.checkpointed = checkpointed

    def forward(self, x, labels):
        for part in (self.first, self.second):
            x = checkpoint(part, x, use_reentrant=False) if self.checkpointed else part(x)
        logits = self.head(x)
        return F.cross_entropy(logits, labels), logits


def made(build, **settings):
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.pop("lr", 1e-3))
    half_precision(model, optimizer, **settings)
    return model, optimizer


def losses_of(build, *batch, half, steps=60, lr=1e-3, **settings):
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    if half:
        half_precision(model, optimizer, **settings)
    scaler, losses = gradscale.GradScaler("cpu", init_scale=2.0**10), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(*batch)
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses, scaler.counters.skipped


@pytest.mark.parametrize("keep", [(), "head"])
def test_a_loss_in_the_model_has_the_digits_of_float32(keep):
    true, _ = losses_of(Classifier, X, CLASSES, half=False)
    losses, skipped = losses_of(Classifier, X, CLASSES, half=True, keep=keep)
    assert skipped == 0 and len(set(losses)) == len(set(true)) == 60
    assert losses == pytest.approx(true, rel=1e-4)


def test_targets_that_only_a_loss_reads_are_not_rounded():
    true, _ = losses_of(Regressor, X, HUGE, half=False, lr=1e-14)
    model, _ = made(Regressor)
    assert model(X, HUGE).item() == pytest.approx(true[0], rel=1e-3)
    assert model(X, target=HUGE).item() == pytest.approx(true[0], rel=1e-3)


def test_what_a_kept_module_returns_stays_float32_within_the_model():
    seen = []

    class Model(Classifier):
        def forward(self, x, labels):
            logits = self.head(self.body(x))
            seen.append(logits.dtype)
            return F.cross_entropy(logits, labels)

    for keep in ((), "head"):
        model, _ = made(Model, keep=keep)
        model(X, CLASSES).backward()
    assert seen == [torch.float16, torch.float32]


@pytest.mark.parametrize("format", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("operation", "dtype"),
    [
        (lambda x: x.softmax(-1), "float32"),
        (lambda x: F.softmax(x, dim=-1), "float32"),
        (lambda x: torch.log_softmax(x, -1), "float32"),
        (lambda x: x.logsumexp(-1), "float32"),
        (lambda x: F.mse_loss(x, x + 1), "float32"),
        (lambda x: F.cross_entropy(x, x.softmax(-1)), "float32"),
        (lambda x: F.binary_cross_entropy_with_logits(x, x.sigmoid()), "float32"),
        (lambda x: nn.CrossEntropyLoss()(x, torch.zeros(3).long()), "float32"),
        (lambda x: x.sum(), "float32"),
        (lambda x: x.mean(-1), "float32"),
        (lambda x: torch.mean(x, dim=0), "float32"),
        (lambda x: x.var(), "float32"),
        (lambda x: torch.linalg.vector_norm(x), "float32"),
        (lambda x: x**2, "float32"),
        (lambda x: x.exp(), "float32"),
        (lambda x: x.cumsum(0), "float32"),
        (lambda x: x.sum(dtype=x.dtype), "half"),
        (lambda x: x.sum(-1, dtype=x.dtype), "half"),
        (lambda x: torch.sum(x, 0, out=torch.empty(4, dtype=x.dtype)), "half"),
        (lambda x: x + x, "half"),
        (lambda x: x.relu(), "half"),
        (lambda x: x @ x.T, "half"),
        (lambda x: x.softmax(-1) @ x.T, "half"),
        (lambda x: torch.einsum("ij,kj->ik", x, x.float()), "half"),
        (lambda x: F.linear(x.float(), x), "half"),
        (lambda x: F.scaled_dot_product_attention(x, x.float(), x), "half"),
        (lambda x: x.float() @ x.float().T, "float32"),
        (lambda x: F.linear(x, nn.Parameter(x.float())), "float32"),
        (lambda x: torch.ones(3, dtype=torch.int64).sum(), "int64"),
        (lambda x: x.double().sum(), "float64"),
    ],
)
def test_dtypes_are_those_of_autocast_wherever_an_operation_stands(operation, dtype, format):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            result = operation(self.layer(x))
            seen.append(result.dtype)
            return result

    seen = []
    model, _ = made(Model, format=format)
    with warnings.catch_warnings(), torch.no_grad():
        model(torch.randn(3, 4))
    assert seen == [format if dtype == "half" else getattr(torch, dtype)]


def test_what_is_written_into_a_tensor_takes_its_dtype():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            hidden = self.layer(x).detach()
            hidden[torch.tensor([True, False, True])] = torch.ones(2, 4)
            hidden.index_add_(0, torch.tensor([0]), hidden.softmax(-1)[:1])
            wide = torch.zeros(3, 4)
            wide[torch.tensor([True, False, True])] = hidden[:2]
            return hidden, wide

    hidden, wide = made(Model)[0](torch.randn(3, 4))
    assert hidden[0].tolist() == [1.25] * 4 and wide[0].tolist() == [1.25] * 4


# Dynamo hides this warning, which is of its own making, unless warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_and_checkpointed_models_compute_as_the_model_does(backend):
    found = {}
    for name in ("plain", "checkpointed", "compiled"):
        model, _ = made(lambda name=name: Whole(checkpointed=name == "checkpointed"))
        run = torch.compile(model, backend=backend, fullgraph=True) if name == "compiled" else model
        loss, logits = run(X, CLASSES)
        (loss * 2**10).backward()
        found[name] = [loss, logits, *(p.grad for p in model.parameters())]
    for name in ("checkpointed", "compiled"):
        for one, other in zip(found["plain"], found[name], strict=True):
            assert torch.equal(one, other), name


def test_copies_and_pickles_compute_as_the_model_does():
    model, _ = made(Classifier)
    expected = model(X, CLASSES)
    assert torch.equal(copy.deepcopy(model)(X, CLASSES), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(X, CLASSES), expected)


def test_nothing_is_left_behind_by_a_forward_pass_nor_by_one_that_failed():
    model, _ = made(Whole)
    model(X, CLASSES)
    with pytest.raises(RuntimeError):
        model(torch.randn(32, 3), CLASSES)
    assert _get_current_function_mode_stack() == []
    assert torch.ones(2).half().softmax(0).dtype == torch.float16
    assert model(X, CLASSES)[0].dtype == torch.float32


def test_parts_that_are_called_by_themselves_compute_in_float32_too():
    model, _ = made(Whole)
    model.first(X)  # asserts within
    assert _get_current_function_mode_stack() == []


def test_a_loss_in_half_precision_is_warned_of_once():
    class Model(Classifier):
        def forward(self, x, labels):
            logits = self.head(self.body(x))
            return torch.dot(logits[0], logits[1])

    model, _ = made(Model)
    with pytest.warns(UserWarning, match="Model computed a loss in float16"):
        model(X, CLASSES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(X, CLASSES)


def test_a_loss_that_torch_computes_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(Classifier)[0](X, CLASSES)

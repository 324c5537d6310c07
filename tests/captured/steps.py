"""Models, batches and optimizers that captured steps are tried on."""

import pytest
import torch
from torch import nn

from gradscale.captured import CapturedStep
from gradscale.captured.compiled import can_compile_backward

HUGE = 2.0**120


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.convolution(x))).flatten(1))


class Transformer(nn.Module):
    """With tied embeddings, and a layer that no loss depends on."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return (self.layer(self.embedding(x)) @ self.embedding.weight.T).flatten(0, 1)


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def numbers():
    return torch.randn(5, 8), torch.randint(3, (5,))


def images():
    return torch.randn(4, 1, 8, 8), torch.randint(3, (4,))


def words():
    return torch.randint(11, (3, 7)), torch.randint(11, (21,))


MODELS = {"mlp": (mlp, numbers), "conv": (Convolution, images), "transformer": (Transformer, words)}

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.125),
    "momentum": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
}


def weighted_loss(model, batch):
    """Cross entropy under autocast, times the batch's own weight: a huge one overflows."""
    x, target, weight = batch
    with torch.autocast(x.device.type, torch.bfloat16):
        output = model(x)
    return nn.functional.cross_entropy(output.float(), target) * weight


def float32_loss(model, batch):
    x, target, weight = batch
    return nn.functional.cross_entropy(model(x), target) * weight


def batches(make, weights, device="cpu"):
    torch.manual_seed(1)
    return [(*(t.to(device) for t in make()), torch.tensor(w, device=device)) for w in weights]


def needs_compiled_backward():
    """Skips a test of the compiled step where this torch has none: users are refused there."""
    if not can_compile_backward():
        pytest.skip(f"torch {torch.__version__} does not compile backward passes; 2.13 does")


def build(model, optimizer, device="cpu", loss_fn=weighted_loss, **options):
    if options.get("mode") == "compile":
        needs_compiled_backward()
    torch.manual_seed(0)
    network = MODELS[model][0]().to(device)
    return CapturedStep(network, loss_fn, OPTIMIZERS[optimizer](network.parameters()), **options)


def tensors_of(step):
    """Everything a step may change: parameters, buffers, moments, counters, policy state."""
    model, optimizer = step._written.model, step._optimizer
    state = [v for p in optimizer.state.values() for v in p.values() if torch.is_tensor(v)]
    return [
        t.detach().clone() for t in [*model.state_dict().values(), *state, *step.scaler._held.state]
    ]


def run(step, data):
    """Of each step: the loss, whether it was skipped, the next scale, the norm."""
    trace = []
    for batch in data:
        loss = step.step(batch)
        # All but the loss is overwritten by the next captured step.
        norm = None if step.last_norm is None else step.last_norm.clone()
        trace.append((loss, step.last_found_inf.clone(), step.scale.clone(), norm))
    return trace


def assert_same_traces(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for x, y in zip(a, b, strict=True):
            assert (x is None and y is None) or torch.equal(x.nan_to_num(-1), y.nan_to_num(-1))

"""Bytes per parameter and per activation of a training step, against the arithmetic.

Run it as ``python benchmarks/memory.py`` (a minute or two on a CPU). For each recipe it counts
what a parameter costs (weights, masters, gradients, optimizer state), what the forward pass keeps
for the backward pass, and the peak of all that is alive: by the allocator on CUDA, by accounting
for every tensor on the CPU. Step times are medians of interleaved rounds; on a CPU they say nothing
of a GPU.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker

import gradscale
from pairs import in_turns, seconds
from where import arguments, began, describe, in_words, save


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attention and a feed-forward layer, each beside the residual stream."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class GPT(nn.Module):
    """A small language model."""

    def __init__(self, width: int, layers: int, vocabulary: int = 1024, length: int = 128) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList([Block(width, 4) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits."""
        x = self.embed(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def convolutions(width: int, layers: int) -> nn.Module:
    """A plain convolutional network with batch normalisation."""
    stages: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(layers):
        stages += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


@dataclass
class Task:
    """A model and a batch for it."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    targets: Callable[[], Tensor]


TASKS: dict[str, dict[str, Task]] = {
    "cpu": {
        "GPT 4 x 128": Task(
            lambda: GPT(128, 4),
            lambda: torch.randint(1024, (8, 128)),
            lambda: torch.randint(1024, (8, 128)),
        ),
        "CNN 6 x 32": Task(
            lambda: convolutions(32, 6),
            lambda: torch.randn(16, 3, 32, 32),
            lambda: torch.randint(10, (16,)),
        ),
    },
    "cuda": {
        "GPT 12 x 768": Task(
            lambda: GPT(768, 12, 50304, 1024),
            lambda: torch.randint(50304, (8, 1024)),
            lambda: torch.randint(50304, (8, 1024)),
        ),
        "CNN 24 x 256": Task(
            lambda: convolutions(256, 24),
            lambda: torch.randn(64, 3, 64, 64),
            lambda: torch.randint(10, (64,)),
        ),
    },
}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        autocast: the dtype of autocast, or None.
        half: the format of `half_precision`, or None.
        scaled: whether the loss is.
    """

    autocast: torch.dtype | None = None
    half: torch.dtype | None = None
    scaled: bool = False


RECIPES = {
    "float32": Recipe(),
    "autocast float16": Recipe(autocast=torch.float16, scaled=True),
    "half model float16 + masters": Recipe(half=torch.float16, scaled=True),
    "autocast bfloat16": Recipe(autocast=torch.bfloat16),
    "half model bfloat16 + masters": Recipe(half=torch.bfloat16),
}

# Bytes per parameter that lies in half precision, AdamW: weight, master, gradient after backward,
# gradient at the step, state. Autocast casts weights, and keeps the casts for the backward pass.
ARITHMETIC = {
    "float32": (4, 0, 4, 4, 8),
    "autocast float16": (4, 0, 4, 4, 8),
    "half model float16 + masters": (2, 4, 2, 4, 8),
    "autocast bfloat16": (4, 0, 4, 4, 8),
    "half model bfloat16 + masters": (2, 4, 2, 4, 8),
}


@dataclass
class Trainer:
    """One recipe on one task."""

    task: Task
    recipe: Recipe
    device: str
    model: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = self.task.build().to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        if self.recipe.half is not None:
            gradscale.half_precision(self.model, self.optimizer, self.recipe.half)
        self.scaler = gradscale.GradScaler(
            self.device, init_scale=2.0**10, enabled=self.recipe.scaled
        )
        self.inputs = self.task.inputs().to(self.device)
        self.targets = self.task.targets().to(self.device)

    def forward(self) -> Tensor:
        """The loss."""
        with torch.autocast(
            self.device, self.recipe.autocast, enabled=self.recipe.autocast is not None
        ):
            logits = self.model(self.inputs)
        return F.cross_entropy(logits.float().flatten(0, -2), self.targets.flatten())

    def step(self) -> None:
        """One step."""
        self.optimizer.zero_grad()
        self.scaler.scale(self.forward()).backward()
        self.scaler.step(self.optimizer)
        if self.scaler.is_enabled():
            self.scaler.update()


def bytes_of(tensors: Iterable[Tensor | None]) -> int:
    """Of all storages, each once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors if t is not None}
    return sum(storage.nbytes() for storage in storages.values())


@contextlib.contextmanager
def saved(outside: Iterable[Tensor]) -> Iterator[dict[int, int]]:
    """What is saved for the backward pass: bytes by storage, without those of `outside`."""
    known = {t.untyped_storage()._cdata for t in outside}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            found[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def peak_of(trainer: Trainer) -> float:
    """Bytes alive at the worst moment of a step, by the allocator or by accounting."""
    if trainer.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        trainer.step()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated())
    tracker = MemTracker()
    masters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    tracker.track_external(trainer.model, trainer.optimizer, *masters)
    with tracker:
        trainer.step()
    peak = tracker.get_tracker_snapshot("peak")
    return float(sum(device["Total"] for device in peak.values()))


def measure(task: Task, recipe: Recipe, device: str) -> dict[str, float]:
    """Bytes of one recipe on one task."""
    trainer = Trainer(task, recipe, device)
    trainer.step()
    trainer.step()
    trainer.optimizer.zero_grad()
    model, optimizer = trainer.model, trainer.optimizer
    parameters = list(model.parameters())
    masters = [p for group in optimizer.param_groups for p in group["params"]]
    own = [*parameters, *model.buffers(), *masters, trainer.inputs, trainer.targets]
    with saved(own) as activations:
        loss = trainer.forward()
    kept = sum(activations.values())
    trainer.scaler.scale(loss).backward()
    after_backward = bytes_of(p.grad for p in parameters)
    if trainer.scaler.is_enabled():
        trainer.scaler.unscale_(optimizer)
    trainer.scaler.step(optimizer)
    if trainer.scaler.is_enabled():
        trainer.scaler.update()
    at_step = bytes_of(p.grad for p in parameters)
    del loss
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    count = sum(p.numel() for p in parameters)
    masters_bytes = bytes_of([*masters, *parameters]) - bytes_of(parameters)
    optimizer.zero_grad()
    return {
        "parameters": count,
        "weight": bytes_of(parameters) / count,
        "master": masters_bytes / count,
        "gradient_backward": after_backward / count,
        "gradient_step": at_step / count,
        "state": bytes_of(state) / count,
        "saved": kept,
        "peak": peak_of(trainer),
    }


def times(task: Task, device: str, rounds: int) -> dict[str, float]:
    """Median milliseconds of a step, interleaved over the recipes."""
    trainers = {name: Trainer(task, recipe, device) for name, recipe in RECIPES.items()}
    steps = {name: partial(seconds, trainer.step, device) for name, trainer in trainers.items()}
    in_turns(steps, 2)
    taken = in_turns(steps, rounds)
    return {name: 1e3 * statistics.median(all_times) for name, all_times in taken.items()}


def markdown(where: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table that goes into the documentation; in brackets what the arithmetic says."""
    lines = [
        "# Memory of a training step, by recipe",
        "",
        f"{in_words(where)}. AdamW. Bytes per parameter, in brackets the arithmetic for one in "
        "half precision; bytes saved for the backward pass per element that float32 saves; peak "
        "and time as ratios to float32 in the same run.",
        "",
        "| model | recipe | weight | master | gradient after backward | at the step | state "
        "| saved | peak | time |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    base: dict[str, Any] = {}
    for row in rows:
        base = row if row["recipe"] == "float32" else base
        keys = ("weight", "master", "gradient_backward", "gradient_step", "state")
        cells = [
            f"{row[key]:.2f} ({expected})"
            for key, expected in zip(keys, ARITHMETIC[row["recipe"]], strict=True)
        ]
        lines.append(
            f"| {row['model']} | {row['recipe']} | {' | '.join(cells)} "
            f"| {4 * row['saved'] / base['saved']:.2f} | {row['peak'] / base['peak']:.2f} "
            f"| {row['ms'] / base['ms']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    given = began(arguments(__doc__.splitlines()[0], rounds=7, threads=1))
    where = describe(given.device)
    rows: list[dict[str, Any]] = []
    for model, task in TASKS[given.device].items():
        milliseconds = times(task, given.device, given.rounds)
        for name, recipe in RECIPES.items():
            figures = measure(task, recipe, given.device)
            row = {"model": model, "recipe": name, **figures, "ms": milliseconds[name]}
            rows.append(row)
            print(model, name, {k: round(v, 2) for k, v in figures.items()})
    data = {"where": where, "rows": rows}
    save(given.output, f"memory-{given.device}", data, markdown(where, rows))


if __name__ == "__main__":
    main()

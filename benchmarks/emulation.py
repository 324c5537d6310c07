"""What emulation costs: a training step in float32, emulated, and in native half precision.

    python benchmarks/emulation.py [--rounds 15] [--threads 1] [--device cpu] [--save FOLDER]

All variants of a model take turns in one process, and each is reported as the median over the
rounds of its time divided by float32's time *in the same round*: on a machine that others use too,
ratios are meaningful where absolute times are not. A step is the forward and the backward pass.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from gradscale.emulation import emulate
from pairs import seconds
from where import hardware

TARGET = 1.2
"""The issue's bound on emulated fp16 over float32, for models whose time is in products."""


class Block(nn.Module):
    """One pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape `(batch, length, width)` in and out."""
        qkv = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*qkv, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x))


def mlp() -> tuple[nn.Module, Tensor, Tensor]:
    layers = [part for _ in range(4) for part in (nn.Linear(1024, 1024), nn.ReLU())]
    return nn.Sequential(*layers), torch.randn(256, 1024), torch.randint(1024, (256,))


def convolutional() -> tuple[nn.Module, Tensor, Tensor]:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(*layers), torch.randn(16, 3, 32, 32), torch.randint(10, (16,))


def gpt() -> tuple[nn.Module, Tensor, Tensor]:
    blocks = [Block(256, 4) for _ in range(4)]
    layers = [nn.Embedding(128, 256), *blocks, nn.LayerNorm(256), nn.Linear(256, 128)]
    tokens = torch.randint(128, (8, 129))
    return nn.Sequential(*layers), tokens[:, :-1], tokens[:, 1:].contiguous()


MODELS = {
    "MLP, 4 x 1024 wide, batch 256": mlp,
    "convolutional, 64-128 channels, batch 16 of 32x32": convolutional,
    "GPT, 4 blocks of width 256, batch 8 x 128": gpt,
}


@contextmanager
def _variant(name: str, device: str) -> Iterator[None]:
    formats = {"fp16": ("fp16", "fp16"), "fp16, e5m2 backward": ("fp16", "e5m2")}
    formats["e4m3, e5m2 backward"] = ("e4m3", "e5m2")
    dtype = torch.bfloat16 if "bf16" in name else torch.float16
    kind, _, precision = name.partition(" ")
    emulation = emulate(*formats[precision]) if kind == "emulated" else nullcontext()
    with emulation, torch.autocast(device, dtype, enabled=kind != "float32"):
        yield


VARIANTS = (
    "float32",
    "emulated fp16",
    "emulated fp16, e5m2 backward",
    "emulated e4m3, e5m2 backward",
    "native bf16",
    "native fp16",
)


def timed(model: nn.Module, x: Tensor, y: Tensor, variant: str) -> float:
    """Seconds of one training step."""
    model.zero_grad()

    def step() -> None:
        with _variant(variant, x.device.type):
            loss = nn.functional.cross_entropy(model(x).flatten(0, -2), y.flatten())
            loss.backward()

    return seconds(step, x.device.type)


def ratios(
    build: Callable[[], tuple[nn.Module, Tensor, Tensor]], device: str, rounds: int
) -> dict[str, float]:
    """The median ratio to float32 of each variant; the slow native fp16 runs every third round."""
    torch.manual_seed(0)
    model, x, y = build()
    model, x, y = model.to(device), x.to(device), y.to(device)
    taken: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for number in range(rounds + 1):
        base = 0.0
        for variant in VARIANTS:
            if variant == "native fp16" and number % 3 and device == "cpu":
                continue
            took = timed(model, x, y, variant)
            base = took if variant == "float32" else base
            if number > 0:
                taken[variant].append(took / base)
    return {variant: statistics.median(values) for variant, values in taken.items()}


def table(device: str, rounds: int) -> str:
    """The results as Markdown, with the machine, the versions and the date."""
    lines = [
        "# What emulation costs",
        "",
        f"`python benchmarks/emulation.py --device {device} --rounds {rounds} "
        f"--threads {torch.get_num_threads()}`: time of forward + backward over that of float32, "
        "medians of interleaved rounds.",
        "",
        f"{hardware(device)}; torch {torch.__version__}, Python {platform.python_version()}; "
        f"{datetime.date.today().isoformat()}.",
        "",
        "| model | " + " | ".join(VARIANTS[1:]) + " |",
        "|---" + "|--:" * len(VARIANTS[1:]) + "|",
    ]
    for label, build in MODELS.items():
        found = ratios(build, device, rounds)
        lines.append(f"| {label} | " + " | ".join(f"{found[v]:.2f}" for v in VARIANTS[1:]) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="What emulation costs.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", type=Path, help="write the table into this folder")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    text = table(options.device, options.rounds)
    print(text)
    if options.save is not None:
        (options.save / f"emulation-{options.device}.md").write_text(text)


if __name__ == "__main__":
    main()

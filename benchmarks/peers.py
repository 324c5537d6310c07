"""Cost of a half-precision optimizer step: gradscale against DeepSpeed's and fairseq's scalers.

Everybody gets the same float16 parameters and gradients, keeps float32 master weights and steps the
same torch optimizer on them; timed is all between the backward pass and the next forward pass:
check, unscale, step, copy back, update of the scale. Rounds are interleaved, and only ratios mean
anything on a shared machine.

The peers do not belong into the project's environment. One of their own is made by::

    make bench-peers

fairseq 0.12.2 and its hydra were written before Python 3.11 refused mutable defaults in
dataclasses; they are imported with that check off, otherwise as they are. Its flattened parameters
need CUDA, so that it runs with ``--fp16-no-flatten-grads``.

On the CPU memory matters as much as arithmetic: what is allocated anew in every step, such as our
float32 gradients, costs a page fault for every 4 KiB, because glibc returns large blocks to the
system. Torch's allocator for GPUs keeps them. So both are measured, the second with glibc told to
keep its blocks as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

import gradscale
from pairs import paired, ratio_of, seconds
from step import MODELS
from where import RESULTS, describe, in_words

SCALE = 2.0**10
MEMORY: dict[str, dict[str, str]] = {
    "returned": {},
    "kept": {
        "MALLOC_MMAP_THRESHOLD_": str(2**33),
        "MALLOC_TRIM_THRESHOLD_": str(2**34),
        "MALLOC_TOP_PAD_": str(2**30),
    },
}
"""What glibc is told to do with freed blocks."""
Step = Callable[[], object]


def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
    """The same for everybody."""
    return torch.optim.AdamW(parameters, lr=1e-6, foreach=True)


class Weights(torch.nn.Module):
    """Parameters of given shapes, and float16 gradients that never change."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], device: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.all = torch.nn.ParameterList(torch.randn(s, device=device) * 0.02 for s in shapes)
        self.grads = [torch.randn_like(p).half() for p in self.all]

    def fill(self) -> None:
        """What a backward pass leaves behind; a view, so that nobody pays for a copy."""
        for parameter, grad in zip(self.all, self.grads, strict=True):
            parameter.grad = grad


def ours(weights: Weights, device: str) -> Step:
    """`half_precision` and `GradScaler`."""
    optimizer = optimizer_of(weights.all)
    gradscale.half_precision(weights, optimizer, format=torch.float16)
    scaler = gradscale.GradScaler(device, init_scale=SCALE, growth_interval=10**9)
    scaler.scale(torch.zeros((), device=device))

    def step() -> None:
        scaler.step(optimizer)
        scaler.update()

    return step


def deepspeed(weights: Weights, device: str) -> Step:
    """`FP16_UnfusedOptimizer`, DeepSpeed's scaler for any torch optimizer."""
    from deepspeed import comm
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    weights.half()
    settings = {
        "init_scale": SCALE,
        "scale_window": 10**9,
        "min_scale": 1,
        "delayed_shift": 1,
        "consecutive_hysteresis": False,
        "raise_error_at_min_scale": False,
    }
    optimizer = FP16_UnfusedOptimizer(
        optimizer_of(weights.all),
        dynamic_loss_scale=True,
        dynamic_loss_args=settings,
        verbose=False,
    )
    return optimizer.step


def fairseq(weights: Weights, device: str) -> Step:
    """`FP16Optimizer`, fairseq's master weights and scaler."""
    del device
    with _mutable_defaults():
        from fairseq.optim.fairseq_optimizer import FairseqOptimizer
        from fairseq.optim.fp16_optimizer import FP16Optimizer
    from omegaconf import OmegaConf

    class Inner(FairseqOptimizer):
        def __init__(self, parameters: Any) -> None:
            super().__init__(None)
            self._optimizer = optimizer_of(parameters)

    weights.half()
    common = {
        "fp16_init_scale": SCALE,
        "fp16_scale_window": 10**9,
        "fp16_scale_tolerance": 0.0,
        "threshold_loss_scale": None,
        "min_loss_scale": 1e-4,
    }
    config = OmegaConf.create({"common": common, "optimizer": {}})
    parameters = list(weights.all)
    masters = FP16Optimizer.build_fp32_params(config, parameters, flatten=False)
    optimizer = FP16Optimizer(config, parameters, Inner(masters), masters)

    def step() -> None:
        optimizer._multiply_factor = 1.0 / optimizer.scaler.loss_scale
        optimizer._needs_sync = True
        optimizer.clip_grad_norm(0.0)  # where fairseq looks for overflow
        optimizer.step()

    return step


class _mutable_defaults:
    """Gives dataclasses of fairseq and hydra a hash, which is all that Python 3.11 asks for."""

    def __enter__(self) -> None:
        self.plain = dataclasses.dataclass
        dataclasses.dataclass = self._dataclass

    def __exit__(self, *error: object) -> None:
        dataclasses.dataclass = self.plain

    def _dataclass(self, cls: Any = None, **options: Any) -> Any:
        module = sys._getframe(1).f_globals.get("__name__", "")
        if module.partition(".")[0] in ("fairseq", "hydra", "omegaconf"):
            options["unsafe_hash"] = True
        if cls is None:
            return lambda decorated: self.plain(decorated, **options)
        return self.plain(cls, **options)


PEERS: dict[str, Callable[[Weights, str], Step]] = {"DeepSpeed": deepspeed, "fairseq": fairseq}


def timed(weights: Weights, step: Step, device: str) -> float:
    """Seconds for one step."""
    weights.fill()
    return seconds(step, device)


def compare(name: str, peer: str, device: str, rounds: int) -> dict[str, Any]:
    """Paired times of ours and one peer."""
    shapes = MODELS[name]()
    sides = []
    for make in (ours, PEERS[peer]):
        weights = Weights(shapes, device)
        sides.append(partial(timed, weights, make(weights, device), device))
    for side in sides * 3:
        side()
    return {"model": name, "peer": peer, **paired(*sides, rounds).row("ours", "peer")}


def table(rows: Sequence[dict[str, Any]], device: str) -> str:
    """The result as a page."""
    peers = ", ".join(f"{name} {version(name)}" for name in ("deepspeed", "fairseq"))
    lines = [
        "# One half-precision optimizer step with master weights, against DeepSpeed and fairseq",
        "",
        f"{in_words(describe(device))}; {peers}. AdamW (foreach), float16 parameters and "
        "gradients. Ratio below 1: gradscale is faster; median of paired, interleaved rounds, "
        "quartiles in brackets. Memory: whether the allocator returns freed blocks to the system "
        "or keeps them, as on a GPU. From `make bench-peers`.",
        "",
        "| model | peer | memory | gradscale ms | peer ms | ratio |",
        "|---|---|---|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['peer']} | {row['memory']} | {row['ours_ms']:.3f} "
            f"| {row['peer_ms']:.3f} | {ratio_of(row)} |"
        )
    return "\n".join(lines) + "\n"


def measure(given: argparse.Namespace) -> None:
    """One JSON line for each row, in a process whose allocator is set already."""
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": 29531}.items():
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("MASTER_ADDR", "localhost")
    for model in given.models:
        for peer in given.peers:
            row = compare(model, peer, given.device, given.rounds)
            print(json.dumps(row | {"memory": given.within}), flush=True)


def rows_with(memory: str) -> Iterator[dict[str, Any]]:
    """What a process says that measures under such an allocator, row by row."""
    command = [sys.executable, __file__, *sys.argv[1:], "--within", memory]
    with subprocess.Popen(
        command, env=os.environ | MEMORY[memory], stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            if line.startswith("{"):
                print(line, end="", flush=True)
                yield json.loads(line)
    if process.returncode:
        sys.exit(process.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results")
    parser.add_argument("--within", choices=list(MEMORY), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.within is not None:
        measure(given)
        return
    kinds = list(MEMORY) if given.device == "cpu" else ["kept"]
    rows = [row for memory in kinds for row in rows_with(memory)]
    page = table(rows, given.device)
    print(page)
    if given.save:
        (RESULTS / f"peers-{given.device}.md").write_text(page)


if __name__ == "__main__":
    main()

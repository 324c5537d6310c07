"""Where a benchmark runs, in words, and where its results go."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Collection
from datetime import date
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def arguments(description: str, rounds: int, threads: int) -> argparse.ArgumentParser:
    """The options of every benchmark, with its own defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the results")
    return parser


def began(parser: argparse.ArgumentParser, models: Collection[str] = ()) -> argparse.Namespace:
    """The options as given, with the threads set and the seed at 0.

    Args:
        parser: from `arguments`.
        models: of these some may be asked for, as `--models`.
    """
    if models:
        parser.add_argument("--models", nargs="*", default=list(models), choices=list(models))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    return given


def hardware(device: str) -> str:
    """The name of the GPU, or of the processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"


def describe(device: str) -> dict[str, Any]:
    """Where the figures were taken."""
    return {
        "device": device,
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "load": f"{os.getloadavg()[1]:.1f} on {os.cpu_count()} cores",
    }


def in_words(where: dict[str, Any]) -> str:
    """What `describe` found, for the head of a table."""
    return ", ".join(f"{key} {value}" for key, value in where.items())


def save(folder: Path, name: str, data: dict[str, Any], page: str) -> None:
    """Figures as `name.json`, and as the page `name.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / f"{name}.md").write_text(page)

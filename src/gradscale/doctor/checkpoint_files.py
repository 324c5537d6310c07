"""Which files of a folder to look at, and which of them are ranks of one checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from gradscale.doctor.recorded_run import STEPS, is_run

SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".pickle"}
_DEEPEST = 4  # folder of a comparison, divisor, strategy, seed
# As DeepSpeed and Megatron name the files and folders of their ranks.
_RANK = re.compile(r"rank_?\d+(_\d+)*")


def parts_of(path: Path) -> list[Path]:
    """The runs and checkpoints at a path, in order.

    Args:
        path: a file, or a folder: of a run, of a comparison, or of checkpoints.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if a folder has none.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"`{path}` does not exist. Pass a checkpoint, a recording, or a folder with one."
        )
    if not path.is_dir() or is_run(path):
        return [path]  # what is no regular file is refused when it is opened
    # Runs first: the checkpoint in the folder of one is read with it, and is no file of its own.
    runs = [folder for folder in _folders(path) if is_run(folder)]
    if runs or (path / "comparison.json").is_file():
        return runs
    files = [file for folder in _folders(path) for file in _checkpoints(folder)]
    if not files:
        raise ValueError(f"`{path}` holds no checkpoint and no run. {_advice(path)}")
    return files


def _folders(path: Path) -> Iterator[Path]:
    for folder, inside, _ in os.walk(path):
        inside.sort()
        here = Path(folder)
        if len(here.relative_to(path).parts) >= _DEEPEST:
            inside.clear()
        yield here


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())


def _advice(path: Path) -> str:
    if any(path.glob("**/*.distcp")):
        return (
            "It is a distributed checkpoint: make one file of it with `python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {path} checkpoint.pt`."
        )
    return f"Files ending in {', '.join(sorted(SUFFIXES))}, and {STEPS}, are looked for."


def without_rank(where: str) -> str:
    """A place in a file, by the name that it has on every rank.

    Example:
        >>> without_rank("mp_rank_00/model_optim_rng.pt")
        'mp_rank_*/model_optim_rng.pt'
    """
    return _RANK.sub("rank_*", where)

"""Checkpoints as each system writes them, with objects whose classes are gone afterwards."""

from __future__ import annotations

import argparse
import contextlib
import sys
import types
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from checkpoints import peers

DEEPSPEED = "deepspeed.runtime.fp16.loss_scaler"


@contextlib.contextmanager
def foreign(module: str, name: str) -> Generator[type]:
    """A class of a package that is not installed; afterwards it is gone."""
    parts = module.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    for each in names:
        sys.modules[each] = types.ModuleType(each)
    kind = type(name, (), {"__module__": module})
    setattr(sys.modules[module], name, kind)
    try:
        yield kind
    finally:
        for each in names:
            del sys.modules[each]


def zero(path: Path, peer: peers.DeepSpeed, **more: Any) -> Path:
    """DeepSpeed ZeRO: the optimizer's state holds the scaler as an object."""
    with foreign(DEEPSPEED, "DynamicLossScaler") as kind:
        scaler = kind()
        vars(scaler).update(peer.save())
        optimizer = {
            "loss_scaler": scaler,
            "dynamic_loss_scale": True,
            "overflow": False,
            "single_partition_of_fp32_groups": [torch.ones(3)],
            "ds_version": "0.16.0",
        }
        torch.save({"optimizer_state_dict": optimizer, **more}, path)
    return path


def megatron(path: Path, peer: peers.Megatron, **args: Any) -> Path:
    """Megatron-LM: the scaler beside the optimizer, its settings in the arguments."""
    namespace = argparse.Namespace(fp16=True, loss_scale=None, **args)
    optimizer = {"optimizer": {"state": {}, "param_groups": []}, "grad_scaler": peer.save()}
    saved = {"args": namespace, "iteration": 5000, "model": {}, "optimizer": optimizer}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(saved, path)
    return path


def fairseq(path: Path, scale: float, **more: Any) -> Path:
    """fairseq: the scale within the optimizer's state, and the configuration."""
    optimizer = {"state": {}, "param_groups": [], "loss_scale": scale}
    saved = {"model": {"w": torch.ones(2)}, "last_optimizer_state": optimizer, **more}
    saved["optimizer_history"] = [{"num_updates": 3000}]
    torch.save(saved, path)
    return path

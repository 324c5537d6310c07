"""What is of the wrong kind is refused where it is passed, by the name of the call."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import gradscale
from gradscale import CapturedStep, GradScaler, Layerwise, Recorder, advise, half_precision, watch
from gradscale.ranks import check_process_group

NAN = float("nan")


def pair() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(4, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def mean(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).mean()


def halved(**settings: object) -> object:
    return half_precision(*pair(), **settings)


def advised(**settings: object) -> object:
    step = (pair()[0], [torch.ones(2, 4)], mean)
    return advise(step, **{"formats": "bf16", "steps": 1, **settings})


def captured(**settings: object) -> object:
    model, optimizer = pair()
    return CapturedStep(model, mean, optimizer, mode="eager", **settings)


CALLS: dict[str, Callable[..., object]] = {
    "GradScaler": lambda **settings: GradScaler("cpu", **settings),
    "watch": lambda **settings: watch(pair()[0], **settings),
    "Layerwise": Layerwise,
    "half_precision": halved,
    "advise": advised,
    "CapturedStep": captured,
}
WRONG = {
    "GradScaler": {
        "process_group": (3, "x", [0, 1], True),
        "sync_free": ("no", 1, None),
    },
    "watch": {
        "process_group": (3, "x"),
        "activations": ("no", 1, None),
        "every": (0, 2.5, NAN, True, "3", None),
        "keep": (0, 2.5, True),
        "format": ("fp17", 3, True),
    },
    "Layerwise": {"process_group": (3, "x")},
    "half_precision": {
        "format": ("fp17", 3, None, "e5m2", torch.int8),
        "gradients": ("fp17", 3),
        "saturate": ("no", 1, None),
    },
    "advise": {
        "steps": (0, 2.5, NAN, True, "3", None),
        "seed": (-1, 2.5, NAN, True, "3"),
        "device": ("gpu", 3.5),
        "formats": (None, 3, [], ["fp16", 3]),
        "progress": (3,),
        "emulate": (True,),
    },
    "CapturedStep": {
        "micro_batches": (0, 2.5, NAN, True, "3"),
        "warmup": (0, 2.5, True),
        "max_norm": (-1.0, NAN, "1", True),
        "policy": (3, "dynamic", gradscale.Dynamic),
    },
}


@pytest.mark.parametrize(("call", "name"), [(c, n) for c, names in WRONG.items() for n in names])
def test_a_wrong_argument_is_refused_at_once_by_the_name_of_the_call(call, name):
    quoted = "GradScaler" if name == "policy" else call
    for value in WRONG[call][name]:
        with pytest.raises((TypeError, ValueError), match=rf"^`{quoted}\({name}=") as caught:
            CALLS[call](**{name: value})
        assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "watch": ("yes", 3, True),
        "amax": ("no", 1, None),
        "exponents": ("no", 1),
        "step": (2.5, NAN, True, "3"),
        "note": ("mine", 3, True),
        "size": (0, -1, NAN, "big", True, None),
        "format": ("fp17", 3),
    }.items(),
)
def test_a_recorder_is_refused_before_a_file_is_made(name, values, tmp_path):
    for value in values:
        with pytest.raises((TypeError, ValueError), match=rf"^`Recorder\({name}="):
            Recorder(tmp_path / "run", GradScaler("cpu"), **{name: value})
    with pytest.raises(TypeError, match="a path comes first"):
        Recorder(GradScaler("cpu"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_device_may_be_an_object_and_a_scale_in_its_place_is_refused():
    scaler = GradScaler(torch.device("cpu"))
    weight = torch.nn.Parameter(torch.ones(2))
    scaler.scale(weight.sum()).backward()
    assert weight.grad.tolist() == [65536.0, 65536.0]
    assert GradScaler(0).is_enabled(), "the number of a device, as ranks have"
    for value in (65536, 2.0**16, -1, True):
        with pytest.raises(TypeError, match="the first argument is a device"):
            GradScaler(value)


def test_process_groups_and_meshes_are_let_through():
    class Mesh:
        def get_all_groups(self) -> list[object]:
            return []

    for group in (None, Mesh(), torch.distributed.GroupMember.NON_GROUP_MEMBER):
        check_process_group("GradScaler", group)

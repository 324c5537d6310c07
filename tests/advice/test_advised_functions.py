"""What advice says of backward functions that torch did not write."""

import json

import torch
from torch import nn

import gradscale
from gradscale.advice import advise
from user_functions import ADDITIONS, Clamp, Experts


def batches():
    return [torch.randn(6, 8, generator=torch.Generator().manual_seed(s)) for s in range(3)]


def loss(model, batch):
    return model(batch)


def test_a_function_that_adds_is_named_and_the_code_corrects_it():
    torch.manual_seed(0)
    model = Experts(ADDITIONS["DeepSeek"])
    advice = advise((model, batches(), loss), formats=["fp16"], steps=3)
    verdict = advice["fp16"]
    (found,) = verdict.functions
    assert (found.name, found.kind) == ("AddAuxiliaryLoss", "injects")
    assert found.wrong == 2.0**verdict.log2_default and found.reaches.startswith("router.")
    # Were it not corrected on trial, the router's gradient would be astray.
    assert verdict.level == "safe" and verdict.one.worst > 0.99
    assert advice.code.endswith(', injected="scale")')
    assert "returns a gradient of its own, which reaches router." in str(advice)
    assert json.loads(json.dumps(advice.to_dict()))["verdicts"][0]["functions"]
    names = {"gradscale": gradscale}
    exec(advice.code, names)
    assert names["scaler"]._held.functions.injected == "scale"


class Clamping(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.down(Clamp.apply(self.up(x), 1e-3)).square().mean()


def test_a_function_that_is_not_linear_is_named_and_needs_no_correction():
    torch.manual_seed(0)
    advice = advise((Clamping(), batches(), loss), formats=["fp16"], steps=2)
    (found,) = advice["fp16"].functions
    assert (found.name, found.kind) == ("Clamp", "nonlinear")
    assert "injected" not in advice.code
    assert "Clamp.backward (after up) is not linear in its gradient" in str(advice)


class Refuses(nn.Module):
    def forward(self, x):
        if x.dtype is not torch.float32:
            raise RuntimeError("no kernel for Half")
        return x


def test_the_module_that_cannot_run_in_a_format_is_named():
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Tanh(), Refuses()), nn.Linear(8, 1))
    steps = (model, batches(), lambda m, x: m(x).mean())
    verdict = advise(steps, formats=["fp16"], steps=1)["fp16"]
    assert verdict.level == "unknown" and verdict.note == "no kernel for Half (in 1.1)"


def test_a_model_without_such_functions_has_nothing_to_say():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    advice = advise(
        (model, batches(), lambda m, x: m(x).square().mean()), formats=["fp16"], steps=2
    )
    assert advice["fp16"].functions == ()

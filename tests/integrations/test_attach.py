"""What `attach` refuses, and how an attachment finds its way back; without any host."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gradscale
from gradscale.integrations.attachment import Attachment
from gradscale.integrations.hosts import HOSTS


@pytest.fixture
def attachment():
    host = SimpleNamespace(scaler="theirs", nested=SimpleNamespace())
    return Attachment(host, gradscale.GradScaler("cpu", layerwise=True))


def test_what_was_put_there_is_taken_away_and_what_was_there_comes_back(attachment):
    host = attachment.host
    attachment.put(host, "scaler", attachment.scaler)
    attachment.put(host.nested, "new", 1)
    attachment.put(host, "scaler", "again")
    attachment.detach()
    assert host.scaler == "theirs" and not hasattr(host.nested, "new")


def test_what_somebody_else_has_put_there_since_stays(attachment):
    attachment.put(attachment.host, "scaler", attachment.scaler)
    attachment.host.scaler = "somebody else's"
    attachment.detach()
    assert attachment.host.scaler == "somebody else's"


def test_an_attachment_says_in_one_line_what_it_did(attachment):
    attachment.put(attachment.host, "scaler", attachment.scaler)
    attachment.put(attachment.host, "quiet", 1, say="")
    said = repr(attachment)
    assert said == (
        "<gradscale in SimpleNamespace: scaler; GradScaler('cpu'), Dynamic, layer-wise by Windows>"
    )
    attachment.detach()
    assert repr(attachment) == "<gradscale, detached from SimpleNamespace>"


def test_a_scaler_that_is_off_says_so():
    attachment = Attachment(SimpleNamespace(), gradscale.GradScaler("cpu", enabled=False))
    attachment.put(attachment.host, "scaler", attachment.scaler)
    assert "GradScaler(enabled=False)" in repr(attachment)


@pytest.mark.parametrize(
    ("host", "way_out"),
    [
        (torch.nn.Linear(1, 1), r"attach\(Linear\).*is a model.*GradScaler\(device\)"),
        (torch.optim.SGD([torch.zeros(1)]), r"attach\(SGD\).*is an optimizer.*scaler.step"),
        (object(), r"attach\(object\).*no trainer that is known.*accelerate.Accelerator.*assign"),
    ],
)
def test_what_is_no_trainer_is_refused_with_the_way_out(host, way_out):
    with pytest.raises(TypeError, match=way_out):
        gradscale.attach(host)


def test_a_scaler_and_arguments_of_one_are_refused():
    with pytest.raises(ValueError, match=r"layerwise=….*says the same thing twice"):
        gradscale.attach(object(), gradscale.GradScaler("cpu"), layerwise=True)


def test_a_scaler_of_another_kind_is_refused():
    with pytest.raises(TypeError, match=r"scaler=int\(…\).*must be a `gradscale.GradScaler`"):
        gradscale.attach(object(), 3)


def test_every_kind_of_host_has_a_module_with_its_function():
    source = Path(gradscale.__file__).parent / "integrations"
    for kind in HOSTS:
        assert f"def {kind.function}(" in (source / f"{kind.module}.py").read_text()

"""An inspection is no run: the doctor repeats what it said, and counts nothing anew."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradscale.advice import advise
from gradscale.advice.verdict_sentences import headline
from gradscale.cli.advice_report import write_recordings
from gradscale.doctor import examine


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture(scope="module")
def advice():
    """At its three moments the best single scale is not the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    batches = [(torch.randn(32, 16) * 8**i, torch.randint(4, (32,))) for i in range(3)]
    advice = advise((model, batches, loss), formats=["fp16", "e5m2"], steps=3)
    assert len({moment.rows[0].exponent for moment in advice["fp16"].moments}) > 1
    return advice


def test_the_doctor_says_of_an_inspection_what_the_inspection_said(advice, tmp_path):
    """It took three looks for a run: its scale had fallen, and other gradients were lost."""
    write_recordings(advice, tmp_path, "mine:step")
    diagnosis = examine(tmp_path)
    assert diagnosis.patients == () and diagnosis.healthy
    assert [finding.code for finding in diagnosis.findings] == ["inspected"] * 2
    for finding in diagnosis.findings:
        verdict = advice[finding.where]
        assert finding.what == f"{verdict.format} is {headline(verdict)}."
        assert finding.way_out == f"Write: `{verdict.code}`"
        assert finding.evidence.startswith("3 looks at `mine:step`, each at the best single scale")
    (alone,) = examine(tmp_path / "fp16").findings
    assert alone.what in str(diagnosis)


@pytest.mark.parametrize(
    "note", [{}, {"inspect": 3}, {"inspect": "mine"}, {"inspect": "m", "advice": {"lines": 3}}]
)
def test_a_note_of_the_users_own_makes_no_inspection_of_a_run(note, advice, tmp_path):
    (first, *_) = write_recordings(advice, tmp_path, "mine:step")
    (file,) = first.glob("*.jsonl")
    header, *lines = file.read_text().splitlines()
    head = json.loads(header) | {"note": note}
    file.write_text("\n".join([json.dumps(head), *lines, ""]))
    (patient,) = examine(first).patients
    assert patient.course is not None and patient.course.steps == 3

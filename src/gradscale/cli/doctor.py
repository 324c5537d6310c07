"""`gradscale doctor`: what a saved scaler state means and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from gradscale.cli.display import console
from gradscale.cli.errors import bad_input
from gradscale.cli.options import NO_COLOR
from gradscale.cli.progress import progress
from gradscale.cli.prose import say
from gradscale.doctor import Diagnosis, examine
from gradscale.doctor.diagnosis import patient_words
from gradscale.policies.presets import PRESETS

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}


@click.command(
    name="doctor",
    short_help="What the scaler state in a checkpoint means, and what is wrong with it.",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="SETTINGS",
    help="What your code passes, to be compared: a preset "
    f"({', '.join(PRESETS)}) or NAME=VALUE,… of `gradscale.Dynamic`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the diagnosis as JSON.")
@NO_COLOR
def doctor_command(file: Path, against: str | None, as_json: bool, no_color: bool) -> None:
    """Say what the scaler state in FILE means, what is wrong with it, and what to do.

    FILE is a checkpoint of gradscale, torch.amp, DeepSpeed, Megatron, fairseq, apex, Keras, Paddle
    or flax, the state found wherever it is; or a recording; or a folder of `gradscale train` or
    `compare`; or JSON with a state; or a folder with any of these. Nothing that FILE holds is run,
    not even pickled objects, and no tensor is loaded.

    The exit code is 0 if nothing is wrong, 1 if there are errors or warnings, 2 for a FILE that
    cannot be read or holds no scaler.

    \b
    Examples:
      gradscale doctor checkpoint.pt
      gradscale doctor checkpoints/global_step1000
      gradscale doctor runs/mine --json
      gradscale doctor checkpoint.pt --against growth_interval=500,min_scale=1
    """  # noqa: D301
    errors = console(stderr=True, no_color=no_color)
    with bad_input(), progress(errors, "reading") as tell:
        diagnosis = examine(file, against, progress=tell)
    if as_json:
        click.echo(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        _show(diagnosis, console(no_color=no_color))
    # After everything is printed: the exit code is for scripts, the words for people.
    if not diagnosis.healthy:
        raise SystemExit(1)


def _show(diagnosis: Diagnosis, screen: Console) -> None:
    for patient in diagnosis.patients:
        say(screen, f"{patient_words(patient)}\n")
    for finding in diagnosis.findings:
        lead = _STYLES[finding.severity], len(finding.severity)
        say(screen, f"{finding.words(where=diagnosis.several)}\n", lead=lead)
    say(screen, diagnosis.summary, style="green" if diagnosis.healthy else "red")

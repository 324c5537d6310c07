"""The command `gradscale`: what all of its commands have in common."""

from __future__ import annotations

from importlib.metadata import version

import click

from gradscale.cli.compare import compare_command
from gradscale.cli.doctor import doctor_command
from gradscale.cli.inspect import inspect_command
from gradscale.cli.recipes import recipes_command
from gradscale.cli.replay import replay_command
from gradscale.cli.report import report_command
from gradscale.cli.train import train_command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("gradscale"), prog_name="gradscale")
def gradscale() -> None:
    """Loss scaling for PyTorch: train in half precision and see what it costs.

    \b
    Examples:
      gradscale compare                  float32 against fp16, scaled in every way
      gradscale train chars              a small GPT in fp16, dynamic loss scaling
      gradscale recipes                  what can be trained here
      gradscale inspect mine:model_step  which formats are safe for your model
      gradscale doctor checkpoint.pt     what is wrong with a saved loss scale
      gradscale report runs/mine         a recorded run as a page: what was lost
      gradscale replay runs/mine         what another policy would have done on it
    """  # noqa: D301


# In the order of somebody who tries the program for the first time.
for _command in (
    compare_command,
    train_command,
    inspect_command,
    doctor_command,
    recipes_command,
    report_command,
    replay_command,
):
    gradscale.add_command(_command)

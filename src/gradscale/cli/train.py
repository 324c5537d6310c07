"""`gradscale train`: one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradscale.cli.display import Display, console, scale_text
from gradscale.cli.errors import BadInput, bad_input
from gradscale.cli.options import (
    PRECISION,
    SCALING,
    SharedOptions,
    parse_number,
    refuse_changes_on_resume,
    shared_options,
)
from gradscale.cli.renamed import renamed
from gradscale.cli.run_folder import begun_with, make_folder, new_folder, training_in
from gradscale.cli.table import percentage
from gradscale.files.json_text import json_value
from gradscale.recipes import RECIPES, Recipe, find
from gradscale.training import (
    RunFolder,
    RunResult,
    Settings,
    load_data,
    run,
    settings_for,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


class TrainOptions(SharedOptions):
    """What was typed."""

    recipe: str | None
    format: str
    policy: str | None
    seed: int
    loss_divisor: float | None


OPTIONS = (
    "format policy seed steps batch_size lr loss_divisor init_scale device emulate threads data"
).split()


@click.command(name="train")
@click.argument("recipe", type=click.Choice(list(RECIPES)), required=False, metavar="[RECIPE]")
@click.option("--format", type=PRECISION, default="fp16", show_default=True)
@click.option("--policy", type=SCALING, metavar="NAME", help="See above.  [dynamic]")
@renamed("--precision", "--format")
@renamed("--scaling", "--policy")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--loss-divisor", type=parse_number, metavar="X", help="Divide the loss by this.  [1]"
)
@shared_options
@click.pass_context
def train_command(context: click.Context, **given: Unpack[TrainOptions]) -> None:
    """Train RECIPE once.

    RECIPE is digits, chars, words, denoise, towers, cifar10 or fashion-mnist; `gradscale recipes`
    says what they are.

    \b
    The loss scale is chosen by --policy:
      none               nobody
      static             one constant, 2^10
      dynamic            backs off on overflow, grows after 2000 good steps
      last-maximum, lognormal, quantile, band, two-sided
                         by the size of the gradients measured so far
      guarded            last-maximum, under a ceiling that overflows lower
      recovering         dynamic, that climbs faster while its scale is below 1
      layerwise          a scale for every part of the network that needs one
      adaptive           a scale for every layer, by the published rule
      torch              torch.amp.GradScaler
      SYSTEM             the defaults of apex, deepspeed, megatron, fairseq,
                         metaseq, keras, jmp, flax, paddle, mindspore, popart,
                         colossalai, openseq2seq-backoff, openseq2seq-logmax, verl,
                         icefall, lerobot

    \b
    Examples:
      gradscale train digits
      gradscale train chars --format fp16 --policy dynamic --init-scale 2^24
      gradscale train denoise --format e5m2 --loss-divisor 256
      gradscale train words --config run.toml --steps 500
      gradscale train digits --record --out runs/digits
      gradscale train --resume runs/train-chars-20260101-120000
    """  # noqa: D301
    if given["resume"]:
        refuse_changes_on_resume(context)
        path = given["resume"]
        settings = begun_with(path, "settings.json", "run", Settings.from_json)
    elif given["recipe"] is None:
        raise BadInput(f"which recipe? Pass one of {', '.join(RECIPES)}, or `--resume DIR`.")
    else:
        with bad_input():
            settings = settings_for(
                given["recipe"], **{n: v for n, v in given.items() if n in OPTIONS}
            )
        path = new_folder(given["out"], f"train-{settings.recipe}")
    result = _run(settings, path, given)
    if given["as_json"]:
        click.echo(json.dumps(json_value({"settings": settings.to_json(), **result}), indent=2))
    else:
        _report(find(settings.recipe), result, path, no_color=given["no_color"])


def _run(settings: Settings, path: Path, given: TrainOptions) -> RunResult:
    errors = console(stderr=True, no_color=given["no_color"])
    resume = f"gradscale train --resume {path}"
    with bad_input():
        finished = RunFolder(path).result if given["resume"] else None
        if finished is not None:
            return finished
        data = load_data(settings)
        make_folder(path)
        folder = RunFolder(path)
    display = Display(errors, settings.steps)
    with training_in(path, resume, errors) as stop, display:
        return run(
            settings,
            data,
            folder,
            on_step=display.begin(f"{settings.format}, {settings.policy}", settings.steps),
            on_resume=display.skip,
            stop=stop,
            save_every=given["save_every"],
            record=given["record"],
        )


def _report(recipe: Recipe, result: RunResult, path: Path, *, no_color: bool) -> None:
    loss, metric = float(result["loss"]), float(result["metric"])
    reasons = ", ".join(f"{count} {reason}" for reason, count in result["reasons"].items())
    lost = result["lost_share"]
    lines = {
        "test loss": f"{loss:.4f}",
        recipe.metric_name: f"{100 * metric:.2f} %" if recipe.metric_is_share else f"{metric:.4f}",
        "lost gradients": "–" if lost is None else f"{percentage(lost)} %",
        "skipped steps": f"{result['skipped']}" + (f" ({reasons})" if reasons else ""),
        "final scale": scale_text(float(result["final_scale"])),
        "ms/step": "–" if result["ms_per_step"] is None else f"{result['ms_per_step']:.1f}",
        "written to": str(path),
    }
    screen = console(no_color=no_color)
    for name, value in lines.items():
        screen.print(f"{name:<15} {value}", soft_wrap=True)

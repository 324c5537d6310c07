"""`gradscale inspect`: a few steps of the user's own training, and what they say about formats."""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch

from gradscale.advice import FORMATS, Advice, ModelStep, Verdict, advise
from gradscale.cli.advice_report import INSTALL, write_page, write_recordings
from gradscale.cli.advice_table import advice_table, layer_table
from gradscale.cli.display import console
from gradscale.cli.errors import BadInput, bad_input
from gradscale.cli.options import FOLDER, NO_COLOR, one_of, several
from gradscale.cli.progress import progress
from gradscale.cli.prose import say
from gradscale.cli.run_folder import leaving_nothing, make_folder, new_folder
from gradscale.cli.user_function import user_code, user_function
from gradscale.files.json_text import json_value, write_json
from gradscale.files.replacement import replace_file


@click.command(
    name="inspect", short_help="Which formats are safe for your own model, and how to scale them."
)
@click.argument("target", metavar="PACKAGE.MODULE:FUNCTION")
@click.option(
    "--format",
    "formats",
    type=several(one_of(FORMATS)),
    metavar="NAME,…",
    help="Of fp16, bf16, e5m2, e4m3, the one you prefer first.  [all]",
)
@click.option("--steps", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--device", help="cpu, cuda, cuda:1 …  [where the model is]")
@click.option(
    "--emulate",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="auto: on a CPU, and for 8 bits.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--limit",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Exit with 1 if more than this share of the gradients is lost.",
)
@click.option("--out", type=FOLDER, help="Folder of the report.  [runs/inspect-NAME-DATE]")
@click.option("--json", "as_json", is_flag=True, help="Print the advice as JSON.")
@NO_COLOR
def inspect_command(
    target: str,
    formats: tuple[str, ...] | None,
    steps: int,
    device: str | None,
    emulate: str,
    seed: int,
    limit: float | None,
    out: Path | None,
    as_json: bool,
    no_color: bool,
) -> None:
    """Train your own model for a few steps and say which formats are safe for it.

    FUNCTION takes no argument and returns `(model, batches, loss)`: a torch.nn.Module, an iterable
    of batches, and a function `loss(model, batch)` that returns the loss as a scalar tensor. It
    enters no autocast and calls no backward: the precision is chosen here. A fourth item may be
    `optimizer(parameters)`, which returns an optimizer; without it, Adam at 1e-3. The current
    folder is searched for the module first.

    The advice is a table and plain words. advice.json, advice.txt, a recording of every format and
    report.html, which shows them side by side, are written to a folder.
    --limit is for continuous integration: it looks at the formats of --format, or at fp16, each
    with the scaling that is advised for it.

    \b
    Examples:
      gradscale inspect my_training:model_step
      gradscale inspect my_training:model_step --format fp16,bf16 --device cuda
      gradscale inspect my_training:model_step --format fp16 --limit 0.001 --json
    """  # noqa: D301
    function = user_function(target)
    with user_code(f"`{target}`"):
        step = ModelStep.of(function, f"inspect {target}")
    name = f"inspect-{target.partition(':')[2]}"
    # After the user's function has run: what fails first should not leave a folder.
    path = new_folder(out, name, resumable=False)
    make_folder(path)
    screen = console(stderr=True, no_color=no_color)
    with (
        leaving_nothing(path),
        progress(screen, "starting") as tell,
        user_code("the training step"),
    ):
        advice = advise(
            step,
            formats=formats or FORMATS,
            steps=steps,
            device=_device(device),
            emulate=emulate,
            seed=seed,
            progress=tell,
        )
    with bad_input((OSError,)):
        page = _write(advice, path, target)
    _show(advice, path, page, as_json=as_json, no_color=no_color)
    # Last: whoever fails a build by it wants the report all the same.
    over = _over(advice, formats, limit)
    if over:
        say(screen, over)
        raise SystemExit(1)


def _device(name: str | None) -> torch.device | None:
    if name is None:
        return None
    try:
        device = torch.device(name)
        # A name can be valid and the device not there.
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise BadInput(f"`--device {name}` cannot be used: {reason}") from error
    return device


def _write(advice: Advice, path: Path, target: str) -> Path | None:
    """Writes the folder; the page, if it could be drawn."""
    write_json(path / "advice.json", json_value(advice.to_dict()))
    replace_file(path / "advice.txt", f"{advice}\n".encode())
    recordings = write_recordings(advice, path, target)
    return write_page(recordings, path, f"gradscale inspect {target}")


def _show(advice: Advice, path: Path, page: Path | None, *, as_json: bool, no_color: bool) -> None:
    if as_json:
        click.echo(json.dumps(json_value(advice.to_dict()), indent=2))
        return
    screen = console(no_color=no_color)
    if advice.verdicts:
        screen.print(advice_table(advice, screen.width))
        layers = layer_table(advice.verdicts[0])
        if layers is not None:
            screen.print(layers)
    say(screen, str(advice), verbatim=[line for v in advice.verdicts for line in _code(v)])
    # The answer above has the line of the best format only.
    for verdict in advice.verdicts if len(advice.verdicts) > 1 else ():
        if verdict.level in ("safe", "risky"):
            screen.print(f"\n{verdict.format}, {verdict.level}:\n  {verdict.code}", soft_wrap=True)
    written = f"\nWritten to {path}" if page is None else f"\nWritten to {path}; see {page}"
    screen.print(written, soft_wrap=True)
    if page is None and advice.verdicts:
        screen.print(INSTALL, style="dim")


def _code(verdict: Verdict) -> list[str]:
    return [line.strip() for line in verdict.code.splitlines()]


def _over(advice: Advice, formats: tuple[str, ...] | None, limit: float | None) -> str:
    """What is above the limit, in a line; empty if nothing is."""
    if limit is None:
        return ""
    if not advice.verdicts:
        return "--limit: the loss is not finite in float32 already."
    judged = formats or ("fp16",)
    over = [v for v in advice.verdicts if v.format in judged and v.lost_share > limit]
    said = ", ".join(f"{v.format} loses {v.lost_share:.3%}" for v in over)
    return f"--limit {limit:g}: {said}." if over else ""
